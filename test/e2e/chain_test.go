package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/inside"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// What the pod of these tests asks of portmap and bandwidth.
const hostTCP, hostUDP = 8080, 5300

var chained = lab.PodOptions{
	PortMappings: []lab.PortMapping{
		{HostPort: hostTCP, ContainerPort: inside.HTTPPort, Protocol: "tcp"},
		{HostPort: hostUDP, ContainerPort: inside.UDPPort, Protocol: "udp"},
	},
	Bandwidth: &lab.Bandwidth{IngressRate: 80_000_000, IngressBurst: 8_000_000, EgressRate: 40_000_000, EgressBurst: 4_000_000},
}

// hostURL is the pod's server by its node's address and host port.
func hostURL(a netip.Addr) string {
	return "http://" + netip.AddrPortFrom(a, hostTCP).String() + "/clientip"
}

// traces is what plugins can leave on a node: devices and rules, without names' kernel numbers and counters.
func traces(t *testing.T, ctx context.Context, node *lab.Node) string {
	t.Helper()
	rules := output(t, ctx, node, "sh", "-c", "iptables-save; ip6tables-save")
	rules = regexp.MustCompile(`(?m)^#.*\n| ?\[\d+:\d+\]`).ReplaceAllString(rules, "")
	lines := strings.Split(rules, "\n")
	slices.Sort(lines) // tables come in the order of their making
	return output(t, ctx, node, "ip", "-br", "link") + output(t, ctx, node, "tc", "qdisc") + strings.Join(lines, "\n")
}

func sameTraces(t *testing.T, ctx context.Context, node *lab.Node, before string) {
	t.Helper()
	labtest.Eventually(t, 10*time.Second, "devices and rules are as before", func() error {
		if now := traces(t, ctx, node); now != before {
			return fmt.Errorf("now:\n%s\nbefore:\n%s", now, before)
		}
		return nil
	})
}

// The reference plugins portmap and bandwidth after hoplite, as on most nodes.
func TestChained(t *testing.T) {
	ctx := labtest.Context(t, long)
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), Objects: []client.Object{lab.DefaultPool()}})
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	node, other := l.Nodes()[0], l.Nodes()[1]
	// portmap's common chains stay after the first pod that needs them.
	if err := labtest.AddPod(t, node, "first", chained).Del(ctx); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 10*time.Second, "the first pod is gone", func() error { return exactly(ctx, node, nil) })
	before := traces(t, ctx, node)
	pod := labtest.AddPod(t, node, "pod", chained)
	near := labtest.AddPod(t, node, "near", lab.PodOptions{})
	far := labtest.AddPod(t, other, "far", lab.PodOptions{})
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	t.Run("bandwidth", func(t *testing.T) { testBandwidth(t, ctx, pod) })
	t.Run("host ports", func(t *testing.T) { testHostPorts(t, ctx, l, pod, near, far) })
	t.Run("CHECK", func(t *testing.T) {
		for _, p := range []*lab.Pod{pod, near, far} {
			if err := p.Check(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("STATUS and GC", func(t *testing.T) { testChainedGC(t, ctx, node, pod, near) })
	t.Run("agent restart", func(t *testing.T) {
		with := traces(t, ctx, node)
		node.Agent.Kill()
		sees(t, ctx, "outside to the host port without an agent", l.Outside(), hostURL(node.IP()), l.Outside().Addresses[0])
		if err := node.Agent.Start(); err != nil {
			t.Fatal(err)
		}
		if err := node.Agent.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		sameTraces(t, ctx, node, with)
		sees(t, ctx, "outside to the host port after a restart", l.Outside(), hostURL(node.IP()), l.Outside().Addresses[0])
		if err := pod.Check(ctx); err != nil {
			t.Error(err)
		}
	})
	for _, p := range []*lab.Pod{pod, near} {
		for range 2 {
			if err := p.Del(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	sameTraces(t, ctx, node, before)
	t.Run("DEL without an agent", func(t *testing.T) {
		pod := labtest.AddPod(t, node, "queued", chained)
		node.Agent.Kill()
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
		if err := node.Agent.Start(); err != nil {
			t.Fatal(err)
		}
		sameTraces(t, ctx, node, before)
	})
	t.Run("every version", func(t *testing.T) { testChainedVersions(t, ctx, node, before) })
	noLeak(t, ctx, l)
}

// testBandwidth looks for the limits where bandwidth puts them: to the pod on
// the host's veth, from the pod on an ifb that the veth's traffic is sent through.
func testBandwidth(t *testing.T, ctx context.Context, pod *lab.Pod) {
	ifaces := pod.Result.Interfaces
	if len(ifaces) != 3 || !strings.HasPrefix(ifaces[2].Name, "bwp") || *pod.Result.IPs[0].Interface != 1 || ifaces[1].Name != "eth0" {
		t.Fatalf("result %v: want the veth, eth0 that has the address, and an ifb", pod.Result)
	}
	for device, rate := range map[string]string{ifaces[0].Name: "80Mbit", ifaces[2].Name: "40Mbit"} {
		if qdiscs := output(t, ctx, pod.Node, "tc", "qdisc", "show", "dev", device); !strings.Contains(qdiscs, "tbf") || !strings.Contains(qdiscs, "rate "+rate) {
			t.Errorf("%s: want tbf with rate %s, there is:\n%s", device, rate, qdiscs)
		}
	}
	if filters := output(t, ctx, pod.Node, "tc", "filter", "show", "dev", ifaces[0].Name, "parent", "ffff:"); !strings.Contains(filters, ifaces[2].Name) {
		t.Errorf("nothing sends the pod's packets through %s: %s", ifaces[2].Name, filters)
	}
	// What the pod sends has to pass there.
	sees(t, ctx, "the limited pod to itself by its node's port", pod, hostURL(pod.Node.IP()), pod.Node.IP())
	if stats := output(t, ctx, pod.Node, "tc", "-s", "qdisc", "show", "dev", ifaces[2].Name); strings.Contains(stats, "Sent 0 bytes") {
		t.Errorf("no packet passed %s: %s", ifaces[2].Name, stats)
	}
}

// testHostPorts reaches the pod by its node's ports from everywhere. Clients keep
// their addresses, but where portmap must translate so that answers come back by the same way.
func testHostPorts(t *testing.T, ctx context.Context, l *lab.Lab, pod, near, far *lab.Pod) {
	node, outside := pod.Node, l.Outside().Addresses[0]
	for _, c := range []struct {
		what string
		from getter
		to   netip.Addr
		want netip.Addr
	}{
		{"outside", l.Outside(), node.IP(), outside},
		{"another node", far.Node, node.IP(), far.Node.IP()},
		{"another node's pod", far, node.IP(), far.IP()},
		{"another pod of the node", near, node.IP(), near.IP()},
		{"the node, by its address", node, node.IP(), node.IP()},
		{"the node, by loopback", node, loopback, node.IP()},
		{"the pod itself", pod, node.IP(), node.IP()},
	} {
		sees(t, ctx, c.what+" to the host port", c.from, hostURL(c.to), c.want)
	}
	for what, from := range map[string]dialer{"outside": l.Outside(), "another node's pod": far, "the node": node} {
		echoes(t, ctx, what+" to the host port by UDP", from, netip.AddrPortFrom(node.IP(), hostUDP))
	}
	if _, err := l.Outside().Get(ctx, hostURL(far.Node.IP())); err == nil {
		t.Errorf("%s answers on the host port of another node's pod", far.Node.Name)
	}
}

// testChainedGC: a GC that keeps the node's pods changes nothing, whatever plugins there are.
func testChainedGC(t *testing.T, ctx context.Context, node *lab.Node, pods ...*lab.Pod) {
	if _, err := node.CNI(ctx, inside.Request{Command: "STATUS"}); err != nil {
		t.Error(err)
	}
	before := traces(t, ctx, node)
	var valid []types.GCAttachment
	for _, p := range pods {
		valid = append(valid, types.GCAttachment{ContainerID: p.ContainerID, IfName: p.IfName})
	}
	if _, err := node.CNI(ctx, inside.Request{Command: "GC", Valid: valid}); err != nil {
		t.Error(err)
	}
	sameTraces(t, ctx, node, before)
}

// testChainedVersions goes through a pod's life in every version the chain can speak.
func testChainedVersions(t *testing.T, ctx context.Context, node *lab.Node, before string) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0"} { // 1.1.0 was tested above
		conf := "/etc/cni/versions/chained-" + version + ".conflist"
		if err := node.WriteFile(conf, []byte(strings.Replace(lab.Conflist, "1.1.0", version, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		request := inside.Request{
			Command: "ADD", ContainerID: "chained-" + version, Netns: "/run/netns/chained-" + version, NewNetns: true, IfName: "eth0", Conf: conf,
			Args:         [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "chained"}},
			Capabilities: map[string]any{"portMappings": chained.PortMappings, "bandwidth": chained.Bandwidth},
		}
		commands := []string{"ADD", "CHECK", "DEL"}
		if version == "0.3.1" {
			commands = []string{"ADD", "DEL"}
		}
		for _, request.Command = range commands {
			if _, err := node.CNI(ctx, request); err != nil {
				t.Errorf("%s: %s: %v", version, request.Command, err)
			}
		}
		sameTraces(t, ctx, node, before)
	}
}
