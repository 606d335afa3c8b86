package tunnel

import (
	"crypto/sha256"
	"net"
	"net/netip"

	"github.com/hoplite-net/hoplite/bgp"
)

// Name is that of a kind's device, empty for Native.
func Name(kind bgp.Encapsulation) string {
	switch kind {
	case bgp.IPIP:
		return "hop.ipip"
	case bgp.VXLAN:
		return "hop.vxlan"
	}
	return ""
}

// KindOf is the kind that the device's name says.
func KindOf(deviceName string) (bgp.Encapsulation, bool) {
	for kind := range bgp.Tunnels.All() {
		if Name(kind) == deviceName {
			return kind, true
		}
	}
	return bgp.Native, false
}

// Overhead is how many bytes a kind adds to a packet, where nodes have addresses
// of underlay's family.
func Overhead(kind bgp.Encapsulation, underlay netip.Addr) int {
	const ipv4, ipv6, udp, vxlan, ethernet = 20, 40, 8, 8, 14
	switch {
	case kind == bgp.IPIP:
		return ipv4
	case kind == bgp.VXLAN && underlay.Unmap().Is6():
		return ipv6 + udp + vxlan + ethernet
	case kind == bgp.VXLAN:
		return ipv4 + udp + vxlan + ethernet
	}
	return 0
}

// MAC is that of the hop.vxlan of the node with this address. It must be the
// same in every version of Hoplite: nodes work it out for each other.
//
// Of an IPv4 address, all four octets are in it, so that no two nodes' are
// equal. An IPv6 address does not fit: 46 bits of its SHA-256 do, by which two
// of 5,000 nodes are equal in one of six million clusters. Either way it is
// unicast and locally administered (IEEE 802, the two low bits of the first octet).
func MAC(node netip.Addr) net.HardwareAddr {
	m := macOf(node)
	return m[:]
}

type mac [6]byte

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

func macOf(node netip.Addr) mac {
	node = node.Unmap().WithZone("")
	if node.Is4() {
		a := node.As4()
		return mac{0x0a, 'h', a[0], a[1], a[2], a[3]}
	}
	a := node.As16()
	sum := sha256.Sum256(a[:])
	m := mac(sum[:6])
	m[0] = m[0]&^0x01 | 0x02
	return m
}
