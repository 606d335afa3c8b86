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
	"github.com/hoplite-net/hoplite/test/lab/inside"
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

// natPools are a pool with natOutgoing for node1 and one without for node2, of each family.
func natPools() (pools []client.Object, routed *v1alpha1.IPPool) {
	for _, p := range []struct {
		name, cidr, node string
		nat              bool
	}{
		{"nat", "10.244.0.0/16", "node1", true},
		{"nat6", "fd00:10:244::/48", "node1", true},
		{"routed6", "fd00:10:245::/48", "node2", false},
		{"routed", "10.245.0.0/16", "node2", false},
	} {
		routed = lab.DefaultPool()
		routed.Name, routed.Spec.CIDR, routed.Spec.NATOutgoing, routed.Spec.NodeSelector = p.name, p.cidr, p.nat, only(p.node)
		pools = append(pools, routed)
	}
	return pools, routed
}

// world is a lab with pods of a pool with natOutgoing (nat, near, on node1) and
// of one without (plain, on node2), and a host that is neither node nor pod. All have IPv4 and IPv6.
type world struct {
	lab              *lab.Lab
	host             *lab.Machine
	nat, near, plain *lab.Pod
}

// What leaves the cluster does so with its node's address where the pool says
// so, and only there; pods are reached whatever FORWARD's policy is. With
// either of the kernel's two iptables, in both families.
func TestNAT(t *testing.T) {
	for _, mode := range []string{"nft", "legacy"} {
		t.Run(mode, func(t *testing.T) { testNAT(t, mode) })
	}
}

func startWorld(t *testing.T, ctx context.Context, mode string) world {
	t.Helper()
	pools, _ := natPools()
	w := world{lab: labtest.Start(t, lab.Config{
		Nodes: lab.Nodes(2), DualStack: true, Objects: pools, AgentArgs: []string{"--iptables", mode},
	})}
	if err := w.lab.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.host, err = w.lab.AddMachine("neighbour", 77); err != nil { // on the nodes' subnet, and no node
		t.Fatal(err)
	}
	node1, node2 := w.lab.Nodes()[0], w.lab.Nodes()[1]
	for _, m := range []*lab.Machine{w.lab.Outside(), w.host, node1.Machine, node2.Machine} {
		if err := m.Serve(ctx); err != nil {
			t.Fatal(err)
		}
	}
	w.nat, w.near = labtest.AddPod(t, node1, "nat", chained), labtest.AddPod(t, node1, "near", lab.PodOptions{})
	w.plain = labtest.AddPod(t, node2, "plain", lab.PodOptions{})
	for family, via := range node2.Addresses {
		if err := node1.WaitRoute(ctx, w.plain.IPs()[family], via); err != nil {
			t.Fatal(err)
		}
		if err := node2.WaitRoute(ctx, w.nat.IPs()[family], node1.Addresses[family]); err != nil {
			t.Fatal(err)
		}
	}
	// The world beyond learns of pods: what is translated all the same, is so on purpose.
	for _, m := range []*lab.Machine{w.lab.Fabric(), w.host} {
		for _, pod := range []*lab.Pod{w.nat, w.near, w.plain} {
			for family, a := range pod.IPs() {
				if out, err := m.Command(ctx, "ip", "route", "add", a.String(), "via", pod.Node.Addresses[family].String()).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
		}
	}
	return w
}

func testNAT(t *testing.T, mode string) {
	ctx := labtest.Context(t, long)
	w := startWorld(t, ctx, mode)
	t.Run("out of the cluster", func(t *testing.T) { w.testOutgoing(t, ctx) })
	t.Run("within the cluster", func(t *testing.T) { w.testWithin(t, ctx) })
	t.Run("FORWARD drops", func(t *testing.T) {
		for _, node := range w.lab.Nodes() {
			output(t, ctx, node, "iptables-"+mode, "-P", "FORWARD", "DROP")
			output(t, ctx, node, "ip6tables-"+mode, "-P", "FORWARD", "DROP")
		}
		w.testOutgoing(t, ctx)
		w.testWithin(t, ctx)
		w.testIncoming(t, ctx)
	})
	t.Run("only what is ours", func(t *testing.T) {
		for _, node := range w.lab.Nodes() {
			for back, want := range map[string]bool{"nft": mode == "nft", "legacy": mode == "legacy"} {
				if rules := output(t, ctx, node, "sh", "-c", "iptables-"+back+"-save; ip6tables-"+back+"-save"); strings.Contains(rules, "HOPLITE-") != want {
					t.Errorf("%s: rules of ours in %s: want %t, there are:\n%s", node.Name, back, want, rules)
				}
			}
		}
	})
	t.Run("natOutgoing changes", func(t *testing.T) {
		for _, on := range []bool{true, false} {
			_, change := natPools()
			change.Spec.NATOutgoing = on
			if err := w.lab.Apply(ctx, change); err != nil {
				t.Fatal(err)
			}
			want := map[bool]netip.Addr{true: w.plain.Node.IP(), false: w.plain.IP()}[on]
			labtest.Eventually(t, 10*time.Second, fmt.Sprintf("natOutgoing: %t shows", on), func() error {
				body, err := w.plain.Get(ctx, serverURL(w.lab.Outside().Addresses[0]))
				if err == nil && !strings.HasPrefix(body, want.String()+":") {
					err = fmt.Errorf("seen as %s, want %s", body, want)
				}
				return err
			})
			w.testWithin(t, ctx)
		}
		w.testOutgoing(t, ctx)
	})
}

func (w world) testOutgoing(t *testing.T, ctx context.Context) {
	t.Helper()
	for what, m := range map[string]*lab.Machine{"outside": w.lab.Outside(), "a host beside the nodes": w.host} {
		for family, to := range m.Addresses {
			sees(t, ctx, "a natOutgoing pod to "+what, w.nat, serverURL(to), w.nat.Node.Addresses[family])
			sees(t, ctx, "a pod without natOutgoing to "+what, w.plain, serverURL(to), w.plain.IPs()[family])
			for _, pod := range []*lab.Pod{w.nat, w.plain} {
				echoes(t, ctx, pod.Name+" to "+what+" by UDP", pod, netip.AddrPortFrom(to, inside.UDPPort))
			}
		}
	}
}

func (w world) testWithin(t *testing.T, ctx context.Context) {
	t.Helper()
	pods := []*lab.Pod{w.nat, w.near, w.plain}
	for _, from := range pods {
		for family, address := range from.IPs() {
			for _, to := range pods {
				sees(t, ctx, from.Name+" to "+to.Name, from, serverURL(to.IPs()[family]), address)
			}
			for _, node := range w.lab.Nodes() {
				sees(t, ctx, from.Name+" to "+node.Name, from, serverURL(node.Addresses[family]), address)
				sees(t, ctx, node.Name+" to "+from.Name, node, serverURL(address), node.Addresses[family])
			}
		}
	}
}

func (w world) testIncoming(t *testing.T, ctx context.Context) {
	t.Helper()
	for family, outside := range w.lab.Outside().Addresses {
		port := hostURL(w.nat.Node.Addresses[family])
		sees(t, ctx, "outside to the host port", w.lab.Outside(), port, outside)
		sees(t, ctx, "a host beside the nodes to the host port", w.host, port, w.host.Addresses[family])
		sees(t, ctx, "another node to the host port", w.plain.Node, port, w.plain.Node.Addresses[family])
		sees(t, ctx, "another node's pod to the host port", w.plain, port, w.plain.IPs()[family])
		for _, pod := range []*lab.Pod{w.nat, w.plain} {
			sees(t, ctx, "outside, which has a route, to "+pod.Name, w.lab.Outside(), serverURL(pod.IPs()[family]), outside)
		}
	}
}
