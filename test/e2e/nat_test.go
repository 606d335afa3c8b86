package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

type dialer interface {
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// echoes fails the test unless what is sent by UDP comes back.
func echoes(t *testing.T, ctx context.Context, what string, from dialer, to netip.AddrPort) {
	t.Helper()
	conn, err := from.Dial(ctx, "udp", to.String())
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer conn.Close()
	answer := make([]byte, 16)
	for range 3 { // UDP may lose one
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err = conn.Write([]byte("hello")); err != nil {
			continue
		}
		var n int
		if n, err = conn.Read(answer); err == nil {
			if string(answer[:n]) != "hello" {
				t.Errorf("%s: came back as %q", what, answer[:n])
			}
			return
		}
	}
	t.Errorf("%s: %v", what, err)
}

// only is a selector for a node by its name.
func only(node string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/hostname": node}}
}

// routed is a pool without natOutgoing, for node2 alone.
func routed() *v1alpha1.IPPool {
	pool := lab.DefaultPool()
	pool.Name, pool.Spec.CIDR, pool.Spec.NATOutgoing, pool.Spec.NodeSelector = "routed", "10.245.0.0/16", false, only("node2")
	return pool
}

// What leaves the cluster does so with its node's address where the pool says
// so, and only there; pods are reached whatever FORWARD's policy is. With
// either of the kernel's two iptables.
func TestNAT(t *testing.T) {
	for _, mode := range []string{"nft", "legacy"} {
		t.Run(mode, func(t *testing.T) { testNAT(t, mode) })
	}
}

func testNAT(t *testing.T, mode string) {
	ctx := labtest.Context(t, long)
	pool := lab.DefaultPool()
	pool.Spec.NodeSelector = only("node1")
	l := labtest.Start(t, lab.Config{
		Nodes: lab.Nodes(2), Objects: []client.Object{pool, routed()}, AgentArgs: []string{"--iptables", mode},
	})
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	node1, node2 := l.Nodes()[0], l.Nodes()[1]
	if err := l.Outside().Serve(ctx); err != nil {
		t.Fatal(err)
	}
	host, err := l.AddMachine("neighbour", 77) // on the nodes' subnet, and no node
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.Nodes() {
		if err := node.Serve(ctx); err != nil {
			t.Fatal(err)
		}
	}
	w := world{
		lab: l, host: host,
		nat: labtest.AddPod(t, node1, "nat", chained), near: labtest.AddPod(t, node1, "near", lab.PodOptions{}),
		plain: labtest.AddPod(t, node2, "plain", lab.PodOptions{}),
	}
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	// The world beyond learns of pods: what is translated all the same, is so on purpose.
	for _, m := range []*lab.Machine{l.Fabric(), host} {
		for _, route := range [][2]string{{"10.244.0.0/16", node1.IP().String()}, {"10.245.0.0/16", node2.IP().String()}} {
			if _, err := m.Command(ctx, "ip", "route", "add", route[0], "via", route[1]).Output(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("out of the cluster", func(t *testing.T) { w.testOutgoing(t, ctx) })
	t.Run("within the cluster", func(t *testing.T) { w.testWithin(t, ctx) })
	t.Run("FORWARD drops", func(t *testing.T) {
		for _, node := range l.Nodes() {
			output(t, ctx, node, "iptables-"+mode, "-P", "FORWARD", "DROP")
		}
		w.testOutgoing(t, ctx)
		w.testWithin(t, ctx)
		w.testIncoming(t, ctx)
	})
	t.Run("only what is ours", func(t *testing.T) {
		for _, node := range l.Nodes() {
			for back, want := range map[string]bool{"nft": mode == "nft", "legacy": mode == "legacy"} {
				if rules := output(t, ctx, node, "iptables-"+back+"-save"); strings.Contains(rules, "HOPLITE-") != want {
					t.Errorf("%s: rules of ours in %s: want %t, there are:\n%s", node.Name, back, want, rules)
				}
			}
		}
	})
	t.Run("natOutgoing changes", func(t *testing.T) {
		for _, on := range []bool{true, false} {
			change := routed()
			change.Spec.NATOutgoing = on
			if err := l.Apply(ctx, change); err != nil {
				t.Fatal(err)
			}
			want := map[bool]netip.Addr{true: node2.IP(), false: w.plain.IP()}[on]
			labtest.Eventually(t, 10*time.Second, fmt.Sprintf("natOutgoing: %t shows", on), func() error {
				body, err := w.plain.Get(ctx, serverURL(l.Outside().Addresses[0]))
				if err == nil && !strings.HasPrefix(body, want.String()+":") {
					err = fmt.Errorf("seen as %s, want %s", body, want)
				}
				return err
			})
			w.testWithin(t, ctx)
		}
	})
}

// world is a lab with pods of a pool with natOutgoing (nat, near, on node1) and
// of one without (plain, on node2), and a host that is neither node nor pod.
type world struct {
	lab              *lab.Lab
	host             *lab.Machine
	nat, near, plain *lab.Pod
}

func (w world) testOutgoing(t *testing.T, ctx context.Context) {
	t.Helper()
	for what, to := range map[string]netip.Addr{"outside": w.lab.Outside().Addresses[0], "a host beside the nodes": w.host.Addresses[0]} {
		sees(t, ctx, "a natOutgoing pod to "+what, w.nat, serverURL(to), w.nat.Node.IP())
		sees(t, ctx, "a pod without natOutgoing to "+what, w.plain, serverURL(to), w.plain.IP())
		for _, pod := range []*lab.Pod{w.nat, w.plain} {
			echoes(t, ctx, pod.Name+" to "+what+" by UDP", pod, netip.AddrPortFrom(to, 7))
		}
	}
}

func (w world) testWithin(t *testing.T, ctx context.Context) {
	t.Helper()
	pods := []*lab.Pod{w.nat, w.near, w.plain}
	for _, from := range pods {
		for _, to := range pods {
			sees(t, ctx, from.Name+" to "+to.Name, from, to.URL("/clientip"), from.IP())
		}
		for _, node := range w.lab.Nodes() {
			sees(t, ctx, from.Name+" to "+node.Name, from, serverURL(node.IP()), from.IP())
			sees(t, ctx, node.Name+" to "+from.Name, node, from.URL("/clientip"), node.IP())
		}
	}
}

func (w world) testIncoming(t *testing.T, ctx context.Context) {
	t.Helper()
	outside, port := w.lab.Outside().Addresses[0], hostURL(w.nat.Node.IP())
	sees(t, ctx, "outside to the host port", w.lab.Outside(), port, outside)
	sees(t, ctx, "a host beside the nodes to the host port", w.host, port, w.host.Addresses[0])
	sees(t, ctx, "another node to the host port", w.plain.Node, port, w.plain.Node.IP())
	sees(t, ctx, "another node's pod to the host port", w.plain, port, w.plain.IP())
	for _, pod := range []*lab.Pod{w.nat, w.plain} {
		sees(t, ctx, "outside, which has a route, to "+pod.Name, w.lab.Outside(), pod.URL("/clientip"), outside)
	}
}
