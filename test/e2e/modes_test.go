package e2e

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
	"github.com/hoplite-net/hoplite/test/uml"
	"github.com/hoplite-net/hoplite/test/uml/umltest"
)

// The modes, in names as short as tables of them want.
const (
	native     = v1alpha1.ModeNative
	ipip       = v1alpha1.ModeIPIP
	ipipCross  = v1alpha1.ModeIPIPCrossSubnet
	vxlan      = v1alpha1.ModeVXLAN
	vxlanCross = v1alpha1.ModeVXLANCrossSubnet
)

type mode = v1alpha1.PoolMode

// defaultPool is the name of lab.DefaultPool; podRange is its range.
const defaultPool = "default"

var podRange = netip.MustParsePrefix("10.244.0.0/16")

// settles is how long a change may take on a busy machine, settled included.
const settles = 30 * time.Second

// byKernel is what a test does where the machine's kernel carries what kind of
// modes: everything at once if it has ipip. If it has not, what needs none is
// done here, and the test runs again for the rest on the second kernel.
func byKernel[T any](t *testing.T, without, with []T) []T {
	t.Helper()
	switch {
	case uml.Inside():
		return with
	case umltest.HasIPIP(t):
		return append(slices.Clone(without), with...)
	}
	return without
}

// thenOnSecondKernel runs the test again there, if it has left something to do.
func thenOnSecondKernel(t *testing.T) {
	t.Helper()
	if uml.Inside() || umltest.HasIPIP(t) {
		return
	}
	name := t.Name()
	t.Run("second kernel", func(t *testing.T) { umltest.RerunMatching(t, "^"+name+"$") })
}

// onSubnets are nodes on the fabric's subnets given.
func onSubnets(subnets ...int) []lab.NodeConfig {
	nodes := lab.Nodes(len(subnets))
	for i := range nodes {
		nodes[i].Subnet = subnets[i]
	}
	return nodes
}

// startOn is a lab with nodes on the subnets and the pools, the default one if
// none is given, of both families if a pool is IPv6, with a pod on each node, and servers on all machines.
func startOn(t *testing.T, subnets []int, pools ...*v1alpha1.IPPool) (context.Context, *lab.Lab, []*lab.Pod) {
	t.Helper()
	if len(pools) == 0 {
		pools = []*v1alpha1.IPPool{lab.DefaultPool()}
	}
	ctx := labtest.Context(t, long)
	config := lab.Config{Nodes: onSubnets(subnets...)}
	for _, p := range pools {
		config.Objects = append(config.Objects, p)
		config.DualStack = config.DualStack || strings.Contains(p.Spec.CIDR, ":")
	}
	l := labtest.Start(t, config)
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	var pods []*lab.Pod
	for _, node := range l.Nodes() {
		pods = append(pods, labtest.AddPod(t, node, "on-"+node.Name, lab.PodOptions{}))
		serve(t, ctx, node.Machine)
	}
	serve(t, ctx, l.Outside())
	for _, p := range pools {
		waitMode(t, ctx, l, p.Name, p.Spec.Mode)
	}
	return ctx, l, pods
}

func serve(t *testing.T, ctx context.Context, m *lab.Machine) {
	t.Helper()
	if err := m.Serve(ctx); err != nil {
		t.Fatal(err)
	}
}

// setMode changes the pool's mode and waits until all nodes have followed. It
// returns how long that took, until the last node sent the new way.
func setMode(t *testing.T, ctx context.Context, l *lab.Lab, pool string, m mode) time.Duration {
	t.Helper()
	begun := time.Now()
	if err := l.SetMode(ctx, pool, m); err != nil {
		t.Fatal(err)
	}
	waitMode(t, ctx, l, pool, m)
	return time.Since(begun)
}

func waitMode(t *testing.T, ctx context.Context, l *lab.Lab, pool string, m mode, nodes ...*lab.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, settles)
	defer cancel()
	if err := l.WaitMode(ctx, pool, m, nodes...); err != nil {
		t.Fatal(err)
	}
}

// waitMTU waits until both ends of all pods have the MTU.
func waitMTU(t *testing.T, want int, pods ...*lab.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settles)
	defer cancel()
	if err := lab.WaitMTU(ctx, want, pods...); err != nil {
		t.Fatal(err)
	}
}

// tunnelAddr is the node's address on its tunnel devices, of which all have the same; invalid without.
func tunnelAddr(t *testing.T, node *lab.Node) netip.Addr {
	t.Helper()
	var found netip.Addr
	for _, device := range []string{lab.IPIPDevice, lab.VXLANDevice} {
		addrs, err := node.Addrs(device)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if found.IsValid() && a != found && a.Is4() {
				t.Errorf("%s: the tunnel devices have different addresses: %s, %s", node.Name, found, a)
			}
			if a.Is4() {
				found = a
			}
		}
	}
	return found
}

// kindFor is how packets from one node to the other's pods travel.
func kindFor(m mode, from, to *lab.Node) lab.Kind {
	switch lab.DeviceFor(m, from, to) {
	case lab.IPIPDevice:
		return lab.IPIP
	case lab.VXLANDevice:
		return lab.VXLAN
	}
	return lab.Plain
}

// among is a selector for nodes by their names.
func among(nodes ...string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "kubernetes.io/hostname", Operator: metav1.LabelSelectorOpIn, Values: nodes},
	}}
}
