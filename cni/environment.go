package cni

import (
	"fmt"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/hoplite-net/hoplite/api/delqueue"
)

// pod is what the runtime tells about the pod in CNI_ARGS. All of it may be empty.
type pod struct{ namespace, name, uid string }

// readEnvironment takes what the command needs from the environment and checks
// it: the names become file names and are written on links.
func (r *invocation) readEnvironment() error {
	if r.command == "GC" || r.command == "STATUS" {
		return nil
	}
	id, ifname := r.Getenv("CNI_CONTAINERID"), r.Getenv("CNI_IFNAME")
	if err := delqueue.ValidateContainerID(id); err != nil {
		return fail(codeInvalidEnvironment, "CNI_CONTAINERID: %v", err)
	}
	if err := delqueue.ValidateIfname(ifname); err != nil {
		return fail(codeInvalidEnvironment, "CNI_IFNAME: %v", err)
	}
	r.attachment = delqueue.Attachment{ContainerID: id, Ifname: ifname}

	r.netns = r.Getenv("CNI_NETNS")
	if r.command == "DEL" {
		// The namespace may be gone, and CNI_ARGS are of no use to a DEL.
		if !printable(r.netns) {
			r.netns = ""
		}
		return nil
	}
	if !strings.HasPrefix(r.netns, "/") || !printable(r.netns) {
		return fail(codeInvalidEnvironment, "CNI_NETNS is %q: it must be the full path of the container's network namespace", r.netns)
	}
	if r.command != "ADD" {
		return nil
	}
	var err error
	if r.pod, err = parseArgs(r.Getenv("CNI_ARGS")); err != nil {
		return fail(codeInvalidEnvironment, "CNI_ARGS: %v", err)
	}
	return nil
}

// checkNetns refuses a namespace that is not there, and the plugin's own: the
// host's default route must not be replaced by a pod's.
func (r *invocation) checkNetns() error {
	var container, own syscall.Stat_t
	if err := syscall.Stat(r.netns, &container); err != nil {
		return fail(codeInvalidEnvironment, "CNI_NETNS %s: %v", r.netns, err)
	}
	switch strings.ToLower(r.Getenv("CNI_NETNS_OVERRIDE")) {
	case "1", "true":
		return nil
	}
	if err := syscall.Stat("/proc/self/ns/net", &own); err != nil {
		return fail(codeIO, "look up the plugin's own network namespace: %v", err)
	}
	if container.Dev == own.Dev && container.Ino == own.Ino {
		return fail(codeInvalidNetns, "CNI_NETNS %s is the host's network namespace: give the container one of its own", r.netns)
	}
	return nil
}

// maxArg is the length of the longest pod name Kubernetes allows.
const maxArg = 253

// parseArgs reads CNI_ARGS: "KEY=value;KEY=value". A key that is not known is an
// error unless IgnoreUnknown is 1 or true.
func parseArgs(args string) (pod, error) {
	var p pod
	var unknown []string
	ignore := false
	if args == "" {
		return p, nil
	}
	for pair := range strings.SplitSeq(args, ";") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return pod{}, fmt.Errorf("%q is not KEY=value; separate pairs by ';'", pair)
		}
		switch key {
		case "IgnoreUnknown":
			switch strings.ToLower(value) {
			case "1", "true":
				ignore = true
			case "0", "false":
				ignore = false
			default:
				return pod{}, fmt.Errorf("IgnoreUnknown is %q: write 1 or 0", value)
			}
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_UID":
			p.uid = value
		case "K8S_POD_INFRA_CONTAINER_ID": // the same as CNI_CONTAINERID
		default:
			unknown = append(unknown, key)
		}
	}
	for _, v := range []string{p.namespace, p.name, p.uid} {
		if len(v) > maxArg || !printable(v) {
			return pod{}, fmt.Errorf("%q is not a name Kubernetes would give", v)
		}
	}
	if len(unknown) > 0 && !ignore {
		return pod{}, fmt.Errorf("unknown keys %q; add IgnoreUnknown=1 if they are meant for another plugin", unknown)
	}
	return p, nil
}

// printable: whole UTF-8 without control characters, as protobuf and logs need it.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
