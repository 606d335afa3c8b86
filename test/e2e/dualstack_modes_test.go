package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// Both families travel in VXLAN over the nodes' IPv4 addresses, on one subnet and across a router that knows no pods;
// a pool of one family can be changed without the other.
func TestDualStackInVXLAN(t *testing.T) {
	for what, subnet := range map[string]int{"one subnet": 1, "two subnets": 2} {
		t.Run(what, func(t *testing.T) { dualStackInVXLAN(t, subnet) })
	}
}

func dualStackInVXLAN(t *testing.T, subnet int) {
	ctx := labtest.Context(t, long)
	four, six := lab.Pool(v1alpha1.ModeVXLAN), lab.Pool(v1alpha1.ModeVXLAN)
	six.Name, six.Spec.CIDR = "six", "fd00:10:244::/64"
	l := labtest.Start(t, lab.Config{
		Nodes: []lab.NodeConfig{{Name: "node1", Subnet: 1}, {Name: "node2", Subnet: subnet}}, DualStack: true,
		Objects: []client.Object{four, six},
	})
	var pods []*lab.Pod
	for _, node := range l.Nodes() {
		pods = append(pods, labtest.AddPod(t, node, "dual-"+node.Name, lab.PodOptions{}))
	}
	wait := func(pool string, mode v1alpha1.PoolMode) {
		t.Helper()
		if err := l.WaitMode(ctx, pool, mode); err != nil {
			t.Fatal(err)
		}
	}
	reach := func(what string, family int) {
		t.Helper()
		for i, from := range pods {
			to := pods[1-i]
			sees(t, ctx, fmt.Sprintf("%s: pod %s to pod %s", what, from.Name, to.Name), from, serverURL(to.IPs()[family]), from.IPs()[family])
			sees(t, ctx, fmt.Sprintf("%s: %s to pod %s", what, from.Node.Name, to.Name), from.Node, serverURL(to.IPs()[family]),
				tunnelAddress(t, from.Node, family))
		}
	}
	wait("default", v1alpha1.ModeVXLAN)
	wait("six", v1alpha1.ModeVXLAN)
	reach("IPv4", 0)
	reach("IPv6", 1)
	waitMTU(t, 1450, pods...)
	if err := l.SetMode(ctx, "default", v1alpha1.ModeNative); err != nil {
		t.Fatal(err)
	}
	wait("default", v1alpha1.ModeNative)
	wait("six", v1alpha1.ModeVXLAN)
	reach("IPv6, with IPv4 native", 1)
}

// tunnelAddress is the node's own on its tunnel device, out of one of its blocks.
func tunnelAddress(t *testing.T, node *lab.Node, family int) netip.Addr {
	t.Helper()
	addrs, err := node.Addrs(lab.VXLANDevice)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.Is4() == (family == 0) {
			return a
		}
	}
	t.Fatalf("%s on %s has no address of the family: %v", lab.VXLANDevice, node.Name, addrs)
	return netip.Addr{}
}
