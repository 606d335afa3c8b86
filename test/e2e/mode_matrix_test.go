package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/uml"
)

// In each mode, on one subnet and on two, pods and nodes reach each other, with
// packets as large as the pod's MTU, and what is on the wire is what the mode
// says. The modes come one after the other in a running cluster, as an operator would change them.
func TestModeMatrix(t *testing.T) {
	// Two subnets hold pairs of nodes on one as well: the second kernel, being slow, has to do with those.
	for name, subnets := range map[string][]int{"one subnet": {1, 1, 1}, "two subnets": {1, 1, 2}} {
		if uml.Inside() && name == "one subnet" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			ctx, l, pods := startOn(t, subnets)
			for _, m := range byKernel(t, []mode{native, vxlan, vxlanCross}, []mode{ipip, ipipCross}) {
				t.Run(string(m), func(t *testing.T) {
					took := setMode(t, ctx, l, defaultPool, m)
					waitMTU(t, lab.PodMTU(m), pods...)
					t.Logf("all nodes send so after %s", took.Round(time.Millisecond))
					matrix{l, pods, m}.check(t, ctx)
				})
			}
		})
	}
	thenOnSecondKernel(t)
}

// matrix is a lab in a mode.
type matrix struct {
	lab  *lab.Lab
	pods []*lab.Pod
	mode mode
}

func (m matrix) check(t *testing.T, ctx context.Context) {
	t.Helper()
	captures := map[*lab.Node]*lab.Capture{}
	for _, node := range m.lab.Nodes() {
		c, err := node.Capture(podRange)
		if err != nil {
			t.Fatal(err)
		}
		captures[node] = c
	}
	for _, from := range m.pods {
		for _, to := range m.pods {
			m.checkPair(t, ctx, from, to)
		}
		sees(t, ctx, from.Name+" to the world", from, serverURL(m.lab.Outside().Addresses[0]), from.Node.IP())
	}
	for node, c := range captures {
		flows, err := c.Stop()
		if err != nil {
			t.Error(err)
		}
		m.checkWire(t, node, flows)
	}
}

// joined says whether pods of the two nodes can reach each other: not without a
// tunnel if the network between does not know them.
func (m matrix) joined(a, b *lab.Node) bool { return m.mode != native || a.Subnet() == b.Subnet() }

func (m matrix) checkPair(t *testing.T, ctx context.Context, from, to *lab.Pod) {
	t.Helper()
	what := fmt.Sprintf("%s to %s", from.Name, to.Name)
	if !m.joined(from.Node, to.Node) {
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		if body, err := from.Get(short, to.URL("/clientip")); err == nil {
			t.Errorf("%s, natively across subnets: got %q", what, body)
		}
		return
	}
	sees(t, ctx, what, from, to.URL("/clientip"), from.IP())
	sees(t, ctx, what+"'s node", from, serverURL(to.Node.IP()), from.IP())
	// Through a tunnel a node goes by the tunnel's address.
	source := from.Node.IP()
	if lab.DeviceFor(m.mode, from.Node, to.Node) != lab.Uplink && from.Node != to.Node {
		source = tunnelAddr(t, from.Node)
	}
	sees(t, ctx, from.Name+"'s node to "+to.Name, from.Node, to.URL("/clientip"), source)
	if from == to {
		return
	}
	for size, want := range map[int]error{lab.PodMTU(m.mode): nil, lab.PodMTU(m.mode) + 1: lab.ErrTooBig} {
		if err := lab.Whole(ctx, from, to.IP(), size); !errors.Is(err, want) {
			t.Errorf("%s, %d bytes that may not be fragmented: %v, want %v", what, size, err, want)
		}
	}
}

// checkWire fails the test unless what passed the node's uplink travelled as the
// mode says, and there was something to and from every other node's pod.
func (m matrix) checkWire(t *testing.T, node *lab.Node, flows map[lab.Flow]int) {
	t.Helper()
	owners := m.owners(t)
	passed := map[[2]netip.Addr]bool{}
	for f, count := range flows {
		from, to := owners[f.From], owners[f.To]
		want := lab.Plain
		if podRange.Contains(f.To) && from != nil && to != nil {
			want = kindFor(m.mode, from, to)
		}
		if f.Kind != want {
			t.Errorf("%s's uplink: %d packets from %s to %s travelled as %s, want %s", node.Name, count, f.From, f.To, f.Kind, want)
		}
		if f.Kind != lab.Plain && (from == nil || to == nil || f.OuterFrom != from.IP() || f.OuterTo != to.IP()) {
			t.Errorf("%s's uplink: from %s to %s in a tunnel from %s to %s", node.Name, f.From, f.To, f.OuterFrom, f.OuterTo)
		}
		passed[[2]netip.Addr{f.From, f.To}] = true
	}
	for _, here := range m.pods {
		for _, there := range m.pods {
			if here.Node != node || here == there || !m.joined(here.Node, there.Node) {
				continue
			}
			if !passed[[2]netip.Addr{here.IP(), there.IP()}] || !passed[[2]netip.Addr{there.IP(), here.IP()}] {
				t.Errorf("%s's uplink: nothing seen between %s and %s: %v", node.Name, here.Name, there.Name, flows)
			}
		}
	}
}

// owners are the nodes of all addresses in the cluster: nodes', tunnels', pods'.
func (m matrix) owners(t *testing.T) map[netip.Addr]*lab.Node {
	t.Helper()
	all := map[netip.Addr]*lab.Node{}
	for _, node := range m.lab.Nodes() {
		all[node.IP()] = node
		if a := tunnelAddr(t, node); a.IsValid() {
			all[a] = node
		}
	}
	for _, p := range m.pods {
		all[p.IP()] = p.Node
	}
	return all
}
