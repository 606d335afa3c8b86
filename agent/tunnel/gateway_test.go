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
