package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// A foreign speaker, BIRD 2, is a member of the mesh: it sees the blocks, and
// what it announces inside a pool reaches the kernel; what it announces beside
// the pools, or inside a node's own block, does not.
func TestBIRDInTheMesh(t *testing.T) {
	ctx, l := startLab(t)
	onePodEach(t, ctx, l)
	node := l.Nodes()[0]
	own := strings.Fields(output(t, ctx, node, "ip", "-4", "route", "show", "type", "blackhole"))[1]
	machine, err := l.AddMachine("router", 50)
	if err != nil {
		t.Fatal(err)
	}
	router := machine.Addresses[0]
	bird, err := machine.StartBIRD(ctx, birdConfiguration(router, node.IP(), own))
	if err != nil {
		t.Fatal(err)
	}
	// The mesh is made from Node objects; one with BIRD's address lets it in.
	member := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "router"}}
	if err := l.Client().Create(ctx, member); err != nil {
		t.Fatal(err)
	}
	member.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: router.String()}}
	if err := l.Client().Status().Update(ctx, member); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, time.Minute, "BIRD has the node's block", func() error {
		routes, err := bird.Query(ctx, "show route protocol node1")
		if err == nil && !(strings.Contains(routes, own) && strings.Contains(routes, node.IP().String())) {
			err = fmt.Errorf("%s", routes)
		}
		return err
	})
	labtest.Eventually(t, time.Minute, "BIRD's route is in the kernel", func() error {
		return node.WaitRoute(ctx, netip.MustParseAddr("10.244.255.1"), router)
	})
	routes := output(t, ctx, node, "ip", "route", "show", "proto", "104", "via", router.String())
	if got := strings.Fields(routes); len(got) == 0 || !strings.HasPrefix(routes, "10.244.255.0/26") || strings.Count(routes, "\n") != 1 {
		t.Errorf("by way of BIRD there should be 10.244.255.0/26 alone, there is:\n%s", routes)
	}
	bird.Kill()
	labtest.Eventually(t, time.Minute, "the dead router's route stays for its graceful restart", func() error {
		return node.WaitRoute(ctx, netip.MustParseAddr("10.244.255.1"), router)
	})
	if err := l.Client().Delete(ctx, member); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, gone, "the route goes with the Node", func() error {
		if routes := output(t, ctx, node, "ip", "route", "show", "via", router.String()); routes != "" {
			return fmt.Errorf("%s", routes)
		}
		return nil
	})
}

func birdConfiguration(router, node netip.Addr, own string) string {
	return fmt.Sprintf(`
router id %[1]s;
protocol device {}
protocol static announced {
	ipv4;
	route 10.244.255.0/26 blackhole; # inside the pool
	route 198.51.100.0/24 blackhole; # beside it
	route 0.0.0.0/0 blackhole;
	route %[3]s blackhole;           # the node's own
}
protocol bgp node1 {
	local %[1]s as 64512;
	neighbor %[2]s as 64512;
	graceful restart;
	hold time 9;
	ipv4 { import all; export where proto = "announced"; next hop self; };
}
`, router, node, own)
}
