package agent

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hoplite-net/hoplite/agent/encap"
	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/agent/route"
)

// A node with an uplink and a pod: who is on-link is the kernel's word, whatever
// the prefixes look like, and what leads to a pod or a tunnel leads to no node.
func TestOnlyTheKernelSaysWhoIsOnLink(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	ns.Do(t, func() {
		up := veth(t, "eth0")
		pod := veth(t, "hop0123456789a")
		must(t, netlink.AddrAdd(up, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{172, 30, 1, 11})}))
		subnet := addRoute(t, netlink.Route{LinkIndex: up.Attrs().Index, Dst: cidr(t, "172.30.1.0/24"), Scope: netlink.SCOPE_LINK})
		addRoute(t, netlink.Route{LinkIndex: up.Attrs().Index, Dst: cidr(t, "172.30.2.0/24"), Gw: []byte{172, 30, 1, 1}})
		addRoute(t, netlink.Route{LinkIndex: pod.Attrs().Index, Dst: cidr(t, "10.244.0.5/32"), Scope: netlink.SCOPE_LINK})

		near, far, own := v4("172.30.1.12"), v4("172.30.2.13"), v4("172.30.1.11")
		asked := make(map[netip.Addr]bool)
		for _, a := range []netip.Addr{near, far, own, v4("10.244.0.5"), v4("192.0.2.1")} {
			asked[a] = true
		}
		var w ways
		got := w.lookAll(asked)
		index := up.Attrs().Index
		want := map[netip.Addr]encap.Way{
			near: {Onlink: true, Target: route.Target{Device: index, Gateway: near}},
			far:  {Target: route.Target{Device: index, Gateway: v4("172.30.1.1")}},
		}
		if len(got) != len(want) || got[near] != want[near] || got[far] != want[far] {
			t.Errorf("ways %+v, want %+v", got, want)
		}
		if w.moved() {
			t.Error("moved with nothing changed")
		}
		if _, ok := w.lookNew([]netip.Addr{near, v4("192.0.2.1")}); ok {
			t.Error("asked again about addresses that were asked about")
		}
		later := v4("172.30.1.99")
		if all, ok := w.lookNew([]netip.Addr{later}); !ok || !all[later].Onlink || all[far] != want[far] {
			t.Errorf("with a new one: %+v", all)
		}
		must(t, netlink.RouteDel(subnet))
		addRoute(t, netlink.Route{LinkIndex: index, Dst: cidr(t, "172.30.1.1/32"), Scope: netlink.SCOPE_LINK})
		addRoute(t, netlink.Route{LinkIndex: index, Dst: cidr(t, "172.30.1.0/24"), Gw: []byte{172, 30, 1, 1}})
		if !w.moved() {
			t.Error("a router now stands between, and nothing moved")
		}
	})
}

func veth(t *testing.T, name string) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name[1:]}
	must(t, netlink.LinkAdd(link))
	must(t, netlink.LinkSetUp(link))
	peer, err := netlink.LinkByName(link.PeerName)
	must(t, err)
	must(t, netlink.LinkSetUp(peer))
	return link
}

func cidr(t *testing.T, s string) *net.IPNet {
	t.Helper()
	n, err := netlink.ParseIPNet(s)
	must(t, err)
	return n
}

func addRoute(t *testing.T, r netlink.Route) *netlink.Route {
	t.Helper()
	must(t, netlink.RouteAdd(&r))
	return &r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
