package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
	"github.com/hoplite-net/hoplite/test/uml"
	"github.com/hoplite-net/hoplite/test/uml/umltest"
)

// lingers is how long a device may stay when nobody sends through it any more:
// longer than the BGP hold time, so that all have heard, and a while to look.
const lingers = 45 * time.Second

// A node's tunnels have an address of the node's own blocks, which no pod gets,
// which outlives agents, and by which the node itself reaches remote pods. It goes with the
// devices, and those when nobody sends through them and no connection needs the address.
func TestTunnelAddress(t *testing.T) {
	pool := lab.Pool(vxlan)
	small := int32(30) // blocks so small that a second one is needed
	pool.Spec.BlockSize = &small
	ctx, l, pods := startOn(t, []int{1, 1, 2}, pool)
	node, remote := l.Nodes()[0], pods[2]
	addr := tunnelAddr(t, node)
	if !addr.IsValid() || !ownBlock(t, ctx, node, addr) {
		t.Fatalf("the tunnel address is %s: not of a block that %s has", addr, node.Name)
	}
	for i := range 6 {
		if pod := labtest.AddPod(t, node, fmt.Sprintf("more-%d", i), lab.PodOptions{NoServer: true}); pod.IP() == addr {
			t.Fatalf("pod %s got the tunnel address %s", pod.Name, addr)
		}
	}
	sees(t, ctx, "a node to a remote pod", node, remote.URL("/clientip"), addr)
	chat, err := lab.StartChat(ctx, node, remote)
	if err != nil {
		t.Fatal(err)
	}
	defer chat.Stop()
	for _, end := range []func(){
		func() {
			if err := node.Agent.Stop(ctx); err != nil {
				t.Error(err)
			}
		},
		node.Agent.Kill,
	} {
		end()
		if err := errors.Join(node.Agent.Start(), node.Agent.WaitReady(ctx)); err != nil {
			t.Fatal(err)
		}
		if now := tunnelAddr(t, node); now != addr {
			t.Errorf("a new agent has made %s the tunnel address, instead of %s", now, addr)
		}
		if pod := labtest.AddPod(t, node, "after-restart", lab.PodOptions{NoServer: true}); pod.IP() == addr {
			t.Errorf("after a restart, a pod got the tunnel address %s", addr)
		} else if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := l.TeachFabric(ctx); err != nil { // the connection goes on, natively and across subnets
		t.Fatal(err)
	}
	setMode(t, ctx, l, defaultPool, native)
	testDevicesGo(t, ctx, l, node, addr, chat)
}

// testDevicesGo: all devices go but those of the node whose connection needs the address, and they too when it ends.
func testDevicesGo(t *testing.T, ctx context.Context, l *lab.Lab, node *lab.Node, addr netip.Addr, chat *lab.Chat) {
	t.Helper()
	begun := time.Now()
	for _, other := range l.Nodes() {
		if other != node {
			labtest.Eventually(t, lingers, other.Name+" has no tunnel devices", func() error { return noDevices(ctx, l, other) })
		}
	}
	t.Logf("devices without connections were gone %s after the change", time.Since(begun).Round(time.Second))
	if now := tunnelAddr(t, node); now != addr {
		t.Errorf("a connection uses the tunnel address %s, and it is %s", addr, now)
	}
	if o := chat.Stop(); o.Err != nil {
		t.Error(o)
	}
	labtest.Eventually(t, lingers, node.Name+" has no tunnel devices", func() error { return noDevices(ctx, l, node) })
	labtest.Eventually(t, settles, "the tunnel address is free", func() error {
		view, err := node.Agent.IPAM(ctx)
		if err != nil {
			return err
		}
		for _, b := range view.GetBlocks() {
			for _, a := range b.GetAddresses() {
				if a.GetAddress() == addr.String() {
					return fmt.Errorf("%s is taken in %s", addr, b.GetCidr())
				}
			}
		}
		return nil
	})
}

// noDevices is nil when the node has no tunnel devices; the error has what netctl says that they wait for.
func noDevices(ctx context.Context, l *lab.Lab, node *lab.Node) error {
	for _, device := range []string{lab.IPIPDevice, lab.VXLANDevice} {
		if has, err := node.Has(device); err != nil || has {
			said, sayErr := node.Command(ctx, l.Binary("netctl"), "node", "status").Output()
			return errors.Join(err, fmt.Errorf("%s is there\n%s", device, said), sayErr)
		}
	}
	return nil
}

// ownBlock says whether the address is in one of the node's blocks.
func ownBlock(t *testing.T, ctx context.Context, node *lab.Node, a netip.Addr) bool {
	t.Helper()
	view, err := node.Agent.IPAM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range view.GetBlocks() {
		if netip.MustParsePrefix(b.GetCidr()).Contains(a) {
			return true
		}
	}
	return false
}

// The pods' MTU is that of the mode, at both ends, for pods that are there and
// those that come. One given in the CNI configuration is only ever lowered. CHECK is content throughout.
func TestMTUFollows(t *testing.T) {
	ctx, l, pods := startOn(t, []int{1, 1})
	node := l.Nodes()[0]
	given, lowered := map[int]*lab.Pod{}, map[int]int{}
	for _, mtu := range []int{1300, 1490} {
		conflist := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "hoplite", "plugins": [{"type": "hoplite", "mtu": %d}]}`, mtu)
		if err := node.WriteFile("/etc/cni/net.d/10-hoplite.conflist", []byte(conflist), 0o644); err != nil {
			t.Fatal(err)
		}
		lowered[mtu] = mtu
		given[mtu] = labtest.AddPod(t, node, fmt.Sprintf("mtu-%d", mtu), lab.PodOptions{})
	}
	if err := node.WriteFile("/etc/cni/net.d/10-hoplite.conflist", []byte(lab.Conflist), 0o644); err != nil {
		t.Fatal(err)
	}
	modes := []mode{native, vxlan, native, vxlanCross}
	if umltest.HasIPIP(t) {
		modes = append(modes, ipip, vxlan, ipipCross, native)
	}
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			setMode(t, ctx, l, defaultPool, m)
			waitMTU(t, lab.PodMTU(m), pods...)
			for mtu, pod := range given {
				lowered[mtu] = min(lowered[mtu], lab.PodMTU(m))
				waitMTU(t, lowered[mtu], pod)
			}
			pods = append(pods, labtest.AddPod(t, node, fmt.Sprintf("at-%s-%d", m, len(pods)), lab.PodOptions{NoServer: true}))
			waitMTU(t, lab.PodMTU(m), pods...)
			for _, pod := range slices.Concat(pods, []*lab.Pod{given[1300], given[1490]}) {
				if err := pod.Check(ctx); err != nil {
					t.Errorf("CHECK of %s in mode %s: %v", pod.Name, m, err)
				}
			}
		})
	}
}

// Somebody deletes or changes what a tunnel is made of: it is back within a second, and packets go through it.
func TestTunnelComesBack(t *testing.T) {
	ctx, l, pods := startOn(t, []int{1, 1, 2})
	for _, m := range byKernel(t, []mode{vxlan}, []mode{ipip}) {
		t.Run(string(m), func(t *testing.T) {
			setMode(t, ctx, l, defaultPool, m)
			testTunnelComesBack(t, ctx, l, pods, lab.DeviceFor(m, l.Nodes()[0], l.Nodes()[1]))
		})
	}
	thenOnSecondKernel(t)
}

func testTunnelComesBack(t *testing.T, ctx context.Context, l *lab.Lab, pods []*lab.Pod, device string) {
	node, peer := l.Nodes()[0], l.Nodes()[1]
	within := repaired + leeway
	if uml.Inside() {
		within += leeway // reading the state alone takes half a second there
	}
	cases := []struct{ what, breaking string }{
		{"the device", "ip link del " + device},
		{"the device, set down", "ip link set " + device + " down"},
		{"the device's address", "ip addr flush dev " + device},
		{"the device's MTU", "ip link set " + device + " mtu 1000"},
		{"the next hop objects", "ip nexthop flush proto 104"},
		{"a next hop object, replaced", "ip nexthop replace id $(ip nexthop show proto 104 | awk '{print $2; exit}') blackhole proto 104"},
		{"a strict rp_filter's loosening", "echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter"},
	}
	if device == lab.VXLANDevice {
		cases = append(cases, []struct{ what, breaking string }{
			{"a neighbour", "ip neigh del " + peer.IP().String() + " dev " + device},
			{"a neighbour, changed", "ip neigh replace " + peer.IP().String() + " lladdr 02:00:00:00:00:99 nud permanent dev " + device},
			{"all FDB entries", "bridge fdb show dev " + device + " | while read mac rest; do bridge fdb del $mac dev " + device + "; done"},
		}...)
	}
	// Without what differs each time: indexes and identifiers.
	state := func() string {
		out, err := node.Command(ctx, "sh", "-c", `
ip -o -d link show `+device+` | sed 's/^[0-9]*: //; s/ state [A-Z]*//'
ip -o addr show dev `+device+` | sed 's/^[0-9]*: //' | grep -v fe80
ip neigh show nud permanent dev `+device+` | sort
bridge fdb show dev `+device+` | sort
ip nexthop show proto 104 | sed 's/^id [0-9]*//' | sort
ip route show proto 104 | sed 's/nhid [0-9]*//' | sort
test $(cat /proc/sys/net/ipv4/conf/eth0/rp_filter) = 1 && echo rp_filter is strict || true`).Output()
		if err != nil {
			return err.Error()
		}
		return string(out)
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			good := state()
			output(t, ctx, node, "sh", "-c", c.breaking)
			broken := time.Now()
			labtest.Eventually(t, within, c.what+" is back", func() error {
				if now := state(); now != good {
					return fmt.Errorf("it is\n%s\nand was\n%s", now, good)
				}
				return nil
			})
			t.Logf("seen again after %s", time.Since(broken).Round(time.Millisecond))
			for _, far := range pods[1:] {
				sees(t, ctx, "the pod to "+far.Name, pods[0], far.URL("/clientip"), pods[0].IP())
				sees(t, ctx, far.Name+" to the pod", far, pods[0].URL("/clientip"), far.IP())
			}
		})
	}
}
