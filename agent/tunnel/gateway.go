package tunnel

import "net/netip"

// Gateway is what a route through a tunnel device names as the way to a node:
// nextHop, BGP's next hop, or for IPv6 a link-local address made from the node's
// MAC (RFC 4291 appendix A). The kernel takes no IPv6 gateway, onlink or not,
// that its own routes say is behind another device, as every node on our subnet
// is (ip6_route_check_nh_onlink).
func Gateway(nextHop, underlay netip.Addr) netip.Addr {
	if nextHop.Is4() || !underlay.IsValid() {
		return nextHop
	}
	mac := MAC(underlay)
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}
