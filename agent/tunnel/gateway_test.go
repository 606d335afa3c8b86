package tunnel

import (
	"net/netip"
	"testing"
)

func TestGatewaysOfIPv6AreLinkLocal(t *testing.T) {
	underlay := netip.MustParseAddr("172.30.1.11")
	if got := Gateway(underlay, underlay); got != underlay {
		t.Errorf("an IPv4 next hop is reached by way of %s", got)
	}
	seen := make(map[netip.Addr]bool)
	for _, node := range []string{"172.30.1.11", "172.30.1.12", "172.31.1.11", "fd00::1", "fd00::2"} {
		got := Gateway(netip.MustParseAddr("fd00::99"), netip.MustParseAddr(node))
		if !got.IsLinkLocalUnicast() || seen[got] {
			t.Errorf("node %s is reached by way of %s", node, got)
		}
		seen[got] = true
	}
}

// TestTheKernelTakesTheGateway of a node on our own subnet, whose own address it
// refuses in IPv6.
func TestTheKernelTakesTheGateway(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	peer := &want.Peers[0]
	for i, hop := range peer.NextHops {
		peer.NextHops[i] = Gateway(hop, peer.Underlay)
	}
	must(t, d.Sync(t.Context(), want))
	for i, block := range []string{"10.244.7.0/24", "fd00:7::/64"} {
		h.ip("route add " + block + " via " + peer.NextHops[i].String() + " dev hop.vxlan onlink")
	}
	h.contains(peer.NextHops[1].String() + " lladdr " + MAC(peer.Underlay).String() + " PERMANENT")
}
