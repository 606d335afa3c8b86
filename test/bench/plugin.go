package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
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

// pod is a network namespace and nothing else.
type pod struct {
	name  string
	fd    netns.NsHandle
	inner *netlink.Handle // in there
}

// makePods makes network namespaces with lo up. They end with the node.
func makePods(ctx context.Context, n int) ([]*pod, error) {
	pods := make([]*pod, n)
	for i := range pods {
		p := &pod{name: fmt.Sprintf("bench%03d", i)}
		if out, err := exec.CommandContext(ctx, "ip", "netns", "add", p.name).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip netns add %s: %w: %s", p.name, err, out)
		}
		var err error
		if p.fd, err = netns.GetFromPath(p.path()); err != nil {
			return nil, err
		}
		if p.inner, err = netlink.NewHandleAt(p.fd); err != nil {
			return nil, err
		}
		lo, err := p.inner.LinkByName("lo")
		if err == nil {
			err = p.inner.LinkSetUp(lo)
		}
		if err != nil {
			return nil, fmt.Errorf("set lo of %s up: %w", p.name, err)
		}
		pods[i] = p
	}
	return pods, nil
}

func (p *pod) path() string { return filepath.Join("/run/netns", p.name) }

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
}

func newHoplite(pods []*pod) plugin {
	return plugin{pods, hopliteName, `{"cniVersion": "1.1.0", "name": "bench", "type": "hoplite"}`}
}

// newPTP is the reference plugin that does most nearly the same: a routed veth,
// no bridge. Its address store is in memory here, as it would not be on a real node.
func newPTP(pods []*pod) plugin {
	return plugin{pods, ptpName, `{"cniVersion": "1.1.0", "name": "bench-ptp", "type": "ptp", "ipam": {
		"type": "host-local", "subnet": "198.18.0.0/16", "dataDir": "/run/bench-ptp", "routes": [{"dst": "0.0.0.0/0"}]}}`}
}

func (k plugin) name() string { return k.typ }

func (k plugin) add(ctx context.Context, pod int) error { return k.call(ctx, "ADD", pod) }

func (k plugin) del(ctx context.Context, pod int) error { return k.call(ctx, "DEL", pod) }

func (k plugin) call(ctx context.Context, command string, pod int) error {
	p := k.pods[pod]
	out, err := execute(ctx, filepath.Join(inside.PluginDir, k.typ), k.conf,
		"CNI_COMMAND="+command,
		"CNI_CONTAINERID="+p.name,
		"CNI_NETNS="+p.path(),
		"CNI_IFNAME="+ifName,
		"CNI_PATH="+inside.PluginDir,
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME="+p.name,
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
	)
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
