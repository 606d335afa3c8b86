package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/uml"
)

// The parts about modes have a lab of their own: three nodes, two of them on
// one subnet, a pod on each, and a network that knows the nodes' blocks, so that all can
// talk in every mode.

// modesNodes are the nodes, in the lab and in that of the floor.
func modesNodes() []lab.NodeConfig {
	nodes := lab.Nodes(3)
	nodes[2].Subnet = 2
	return nodes
}

func (b *bench) startModesLab(ctx context.Context) error {
	b.say("starting a lab of three nodes on two subnets")
	l, err := lab.Start(ctx, lab.Config{Root: b.root, Nodes: modesNodes(), Objects: []client.Object{lab.DefaultPool()}})
	b.l = l
	if err != nil {
		return err
	}
	if err := l.WaitMesh(ctx); err != nil {
		return err
	}
	b.pods = nil
	for _, n := range l.Nodes() {
		p, err := n.AddPod(ctx, "on-"+n.Name, lab.PodOptions{NoServer: true})
		if err != nil {
			return err
		}
		b.pods = append(b.pods, p)
	}
	if err := l.WaitMode(ctx, lab.DefaultPool().Name, v1alpha1.ModeNative); err != nil {
		return err
	}
	return l.TeachFabric(ctx)
}

// settleTime is how long a change may take, on the slowest of kernels.
const settleTime = 2 * time.Minute

// setMode changes the pool's mode and returns when all nodes and pods have
// followed, with how long it took until the last node sent the new way.
func (b *bench) setMode(ctx context.Context, mode v1alpha1.PoolMode) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	pool, begun := lab.DefaultPool().Name, time.Now()
	if err := b.l.SetMode(ctx, pool, mode); err != nil {
		return 0, err
	}
	if err := b.l.WaitMode(ctx, pool, mode); err != nil {
		return 0, err
	}
	took = time.Since(begun)
	return took, lab.WaitMTU(ctx, lab.PodMTU(mode), b.pods...)
}

// allModes is the order of the reports.
var allModes = []v1alpha1.PoolMode{
	v1alpha1.ModeNative, v1alpha1.ModeIPIP, v1alpha1.ModeIPIPCrossSubnet, v1alpha1.ModeVXLAN, v1alpha1.ModeVXLANCrossSubnet,
}

func hasIPIP(mode v1alpha1.PoolMode) bool {
	return strings.HasPrefix(string(mode), string(v1alpha1.ModeIPIP))
}

// ours says whether something about the modes is to be measured here. A machine
// whose kernel has no ipip has what needs it measured on the second kernel.
func (b *bench) ours(modes ...v1alpha1.PoolMode) bool {
	needs := false
	for _, m := range modes {
		needs = needs || hasIPIP(m)
	}
	if uml.Inside() {
		return needs
	}
	return b.ipip || !needs
}

// kernelName is the running kernel's, for reports.
func kernelName() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's version: %w", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	if uml.Inside() {
		release += " (user-mode)"
	}
	return release, nil
}

// measureSecondKernel runs this program there for the parts about modes, and takes over what it found.
func (b *bench) measureSecondKernel(ctx context.Context, parts []string) error {
	b.say("second kernel: %s, with IPIP", strings.Join(parts, ", "))
	dir, err := os.MkdirTemp("", "hoplite-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	code, err := uml.Run(ctx, uml.Options{
		Build: filepath.Join(b.root, "build"), Dir: b.root, Write: []string{dir}, Stdout: os.Stdout, Stderr: os.Stderr,
	}, self, "--only", strings.Join(parts, ","), "--out", dir)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("on the second kernel: exit code %d", code)
	}
	content, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		return err
	}
	var there Report
	if err := json.Unmarshal(content, &there); err != nil {
		return err
	}
	b.report.Modes = append(b.report.Modes, there.Modes...)
	b.report.ModeChanges = append(b.report.ModeChanges, there.ModeChanges...)
	return nil
}
