package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/hoplite-net/hoplite/test/lab/inside"
)

const (
	ifName      = "eth0"
	hopliteName = "hoplite"
	ptpName     = "ptp"
	floorName   = "floor"
)

// space is a network namespace with nothing in it but lo.
type space struct {
	name  string
	fd    netns.NsHandle
	inner *netlink.Handle // in there
}

func (s *space) path() string { return filepath.Join("/run/netns", s.name) }

// makeSpace makes a network namespace. It ends with the node.
func makeSpace(ctx context.Context, name string) (*space, error) {
	s := &space{name: name}
	if out, err := exec.CommandContext(ctx, "ip", "netns", "add", name).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ip netns add %s: %w: %s", name, err, out)
	}
	var err error
	if s.fd, err = netns.GetFromPath(s.path()); err != nil {
		return nil, err
	}
	if s.inner, err = netlink.NewHandleAt(s.fd); err != nil {
		return nil, err
	}
	lo, err := s.inner.LinkByName("lo")
	if err == nil {
		err = s.inner.LinkSetUp(lo)
	}
	if err != nil {
		return nil, fmt.Errorf("set lo of %s up: %w", name, err)
	}
	return s, nil
}

// enter runs f with this thread in the namespace; what f starts is in there,
// too. No namespace is the one the thread is in.
func (s *space) enter(f func() error) error {
	if s == nil {
		return f()
	}
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		return err
	}
	defer before.Close()
	if err := netns.Set(s.fd); err != nil {
		return fmt.Errorf("enter %s: %w", s.name, err)
	}
	failed := f()
	if err := netns.Set(before); err != nil {
		// The thread stays locked, so that it ends with the goroutine and nobody else gets it.
		return fmt.Errorf("leave %s: %w", s.name, err)
	}
	runtime.UnlockOSThread()
	return failed
}

// pod is what a container runtime has before ADD.
type pod struct{ *space }

func makePods(ctx context.Context, n int) ([]*pod, error) {
	pods := make([]*pod, n)
	for i := range pods {
		s, err := makeSpace(ctx, fmt.Sprintf("bench%03d", i))
		if err != nil {
			return nil, err
		}
		pods[i] = &pod{s}
	}
	return pods, nil
}

func (p *pod) empty() bool {
	_, err := p.inner.LinkByName(ifName)
	return errors.As(err, &netlink.LinkNotFoundError{})
}

// plugin is a kind that runs a CNI plugin by itself, as a runtime does: exec,
// parameters in the environment, configuration on standard input.
type plugin struct {
	pods []*pod
	typ  string
	conf string
	host *space // that it runs in, nil: the node's
}

func newHoplite(pods []*pod) plugin {
	return plugin{pods: pods, typ: hopliteName, conf: `{"cniVersion": "1.1.0", "name": "bench", "type": "hoplite"}`}
}

// newPTP is the reference plugin that does most nearly the same: a routed veth,
// no bridge. Its address store is in memory here, as it would not be on a real node.
func newPTP(pods []*pod, host *space) plugin {
	return plugin{pods: pods, host: host, typ: ptpName, conf: `{"cniVersion": "1.1.0", "name": "bench-ptp", "type": "ptp", "ipam": {
		"type": "host-local", "subnet": "198.18.0.0/16", "dataDir": "/run/bench-ptp", "routes": [{"dst": "0.0.0.0/0"}]}}`}
}

func (k plugin) name() string { return k.typ }

func (k plugin) add(ctx context.Context, pod int) error { return k.call(ctx, "ADD", pod) }

func (k plugin) del(ctx context.Context, pod int) error { return k.call(ctx, "DEL", pod) }

func (k plugin) call(ctx context.Context, command string, pod int) error {
	p := k.pods[pod]
	var out string
	err := k.host.enter(func() (err error) {
		out, err = execute(ctx, filepath.Join(inside.PluginDir, k.typ), k.conf,
			"CNI_COMMAND="+command,
			"CNI_CONTAINERID="+p.name,
			"CNI_NETNS="+p.path(),
			"CNI_IFNAME="+ifName,
			"CNI_PATH="+inside.PluginDir,
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME="+p.name,
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s %s %s: %w: %s", k.typ, command, p.name, err, out)
	}
	return nil
}

// execute runs a program to its end, its input and output piped as a runtime's are.
func execute(ctx context.Context, program, input string, env ...string) (output string, err error) {
	cmd := exec.CommandContext(ctx, program)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = strings.NewReader(input), &out, &errs, env
	err = cmd.Run()
	return out.String() + errs.String(), err
}
