// Package cni is Hoplite's CNI plugin: configuration in, one call to the node's
// agent, CNI result out. It implements the CNI specification 1.1 and, of the
// older ones, 0.3.1, 0.4.0 and 1.0.0.
//
// The plugin keeps no state and has no Kubernetes credentials. What it promises:
//
//   - ADD waits, for a bounded time, for an agent that is restarting, and on an
//     error leaves nothing behind.
//   - DEL succeeds whatever is missing. With no agent to ask it is queued on disk
//     (package delqueue), and the next agent carries it out before it serves.
//   - Every error has a code of the specification or one documented in docs/cni.md,
//     and says what to do.
//
// The plugin is a process per call, and its start is a large part of the whole
// call's time. Hence: no package here may import net, reflection-heavy
// libraries, the generated protobuf code or grpc-go.
package cni

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hoplite-net/hoplite/api/delqueue"
	"github.com/hoplite-net/hoplite/cni/agentrpc"
)

// Plugin is one invocation.
type Plugin struct {
	// Version is Hoplite's own, for people.
	Version        string
	Getenv         func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// callTimeout stands in for the constant of that name in tests of agents that hang.
	callTimeout time.Duration
}

// Run does what CNI_COMMAND says, writes the result or the error to Stdout as
// the specification demands, and returns the process's exit status.
func (p Plugin) Run() int {
	command := p.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		return p.print(struct {
			CNIVersion string   `json:"cniVersion"`
			Supported  []string `json:"supportedVersions"`
		}{specVersion, supportedVersions})
	}
	if command == "" {
		_, _ = fmt.Fprintf(p.Stderr, "Hoplite CNI plugin %s, for CNI %s. Container runtimes run this program; "+
			"for people there is netctl.\n", p.Version, strings.Join(supportedVersions, ", "))
	}
	if p.callTimeout == 0 {
		p.callTimeout = callTimeout
	}
	r := &invocation{Plugin: p, command: command, conf: config{CNIVersion: specVersion}}
	if err := r.run(); err != nil {
		e := asError(err)
		e.CNIVersion = r.conf.CNIVersion
		p.print(e)
		return 1
	}
	return 0
}

func (p Plugin) print(v any) int {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = p.Stdout.Write(append(b, '\n'))
	}
	if err != nil {
		_, _ = fmt.Fprintln(p.Stderr, "hoplite: write the result:", err)
		return 1
	}
	return 0
}

// invocation is a command with everything it was given, checked.
type invocation struct {
	Plugin
	command    string
	attachment delqueue.Attachment
	netns      string
	pod        pod
	conf       config
	agent      agentrpc.Client
}

func (r *invocation) run() error {
	do, err := r.lookUp()
	if err != nil {
		return err
	}
	if err := r.readEnvironment(); err != nil {
		return err
	}
	stdin, err := io.ReadAll(r.Stdin)
	if err != nil {
		return fail(codeIO, "read the configuration from stdin: %v", err)
	}
	// A DEL must go through even where someone has broken the configuration since.
	if err := r.conf.parse(stdin, r.command == "DEL"); err != nil {
		return err
	}
	if since := introduced[r.command]; older(r.conf.CNIVersion, since) {
		return fail(codeIncompatibleVersion, "%s exists since CNI %s, the configuration says cniVersion %s: raise it",
			r.command, since, r.conf.CNIVersion)
	}
	r.agent = agentrpc.Client{Socket: r.conf.Socket}
	return do()
}

func (r *invocation) lookUp() (func() error, error) {
	switch r.command {
	case "ADD":
		return r.add, nil
	case "DEL":
		return r.del, nil
	case "CHECK":
		return r.check, nil
	case "GC":
		return r.gc, nil
	case "STATUS":
		return r.status, nil
	case "":
		return nil, fail(codeInvalidEnvironment, "CNI_COMMAND is not set: it must be ADD, DEL, CHECK, GC, STATUS or VERSION")
	}
	return nil, fail(codeInvalidEnvironment, "CNI_COMMAND is %q: it must be ADD, DEL, CHECK, GC, STATUS or VERSION", r.command)
}
