package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
)

// Of several pools each has its own mode, and a packet travels as the pool of
// its destination says, there and back maybe differently. It makes no difference that a
// pool is disabled: its pods are there, and its mode can be changed.
func TestSeveralPools(t *testing.T) {
	for _, modes := range byKernel(t, [][2]mode{{native, vxlan}}, [][2]mode{{ipip, vxlan}}) {
		t.Run(fmt.Sprintf("%s and %s", modes[0], modes[1]), func(t *testing.T) {
			first, second := poolFor("first", "10.244.0.0/16", modes[0], "node1", "node3"), poolFor("second", "10.245.0.0/16", modes[1], "node2")
			ctx, l, pods := startOn(t, []int{1, 1, 1}, first, second)
			w := poolsWire{l, pods, map[*lab.Pod]mode{pods[0]: modes[0], pods[1]: modes[1], pods[2]: modes[0]}}
			w.check(t, ctx)
			waitMTU(t, lab.PodMTU(modes[0], modes[1]), pods...)

			second.Spec.Disabled = true
			underLoad(t, ctx, pods, func() {
				if err := l.Apply(ctx, second); err != nil {
					t.Fatal(err)
				}
			})
			w.check(t, ctx)
			underLoad(t, ctx, pods, func() { setMode(t, ctx, l, "second", modes[0]) })
			w.modes[pods[1]] = modes[0]
			w.check(t, ctx)
			underLoad(t, ctx, pods, func() { setMode(t, ctx, l, "first", modes[1]) })
			w.modes[pods[0]], w.modes[pods[2]] = modes[1], modes[1]
			w.check(t, ctx)
		})
	}
	thenOnSecondKernel(t)
}

// poolFor is a pool of which only the nodes take addresses.
func poolFor(name, cidr string, m mode, nodes ...string) *v1alpha1.IPPool {
	pool := lab.Pool(m)
	pool.Name, pool.Spec.CIDR = name, cidr
	pool.Spec.NodeSelector = among(nodes...)
	return pool
}

// poolsWire is a lab in which each pod's pool has a mode.
type poolsWire struct {
	lab   *lab.Lab
	pods  []*lab.Pod
	modes map[*lab.Pod]mode
}

func (w poolsWire) check(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, from := range w.pods {
		capture, err := from.Node.Capture(netip.MustParsePrefix("10.244.0.0/15"))
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range w.pods {
			if to != from {
				sees(t, ctx, from.Name+" to "+to.Name, from, to.URL("/clientip"), from.IP())
			}
		}
		flows, err := capture.Stop()
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range w.pods {
			if to == from {
				continue
			}
			w.checkFlow(t, flows, from, to)
			w.checkFlow(t, flows, to, from)
		}
	}
}

// checkFlow fails the test unless packets went from one pod to the other, and only as the latter's pool says.
func (w poolsWire) checkFlow(t *testing.T, flows map[lab.Flow]int, from, to *lab.Pod) {
	t.Helper()
	want := kindFor(w.modes[to], from.Node, to.Node)
	found := false
	for f, count := range flows {
		if f.From != from.IP() || f.To != to.IP() {
			continue
		}
		found = true
		if f.Kind != want {
			t.Errorf("%d packets from %s to %s travelled as %s, want %s", count, from.Name, to.Name, f.Kind, want)
		}
	}
	if !found {
		t.Errorf("nothing seen from %s to %s", from.Name, to.Name)
	}
}
