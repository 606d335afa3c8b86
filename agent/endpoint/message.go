package endpoint

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	wire "github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// Numbers of the kernel's ABI that golang.org/x/sys does not have.
const (
	vethInfoPeer = 1 // VETH_INFO_PEER

	inetConf          = 1 // IFLA_INET_CONF
	inet6AddrGenMode  = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenModeNone   = 1 // IN6_ADDR_GEN_MODE_NONE
	devconfForwarding = 1 // IPV4_DEVCONF_FORWARDING
	devconfProxyARP   = 3 // IPV4_DEVCONF_PROXY_ARP

	ndtaName        = 1  // NDTA_NAME
	ndtaParms       = 6  // NDTA_PARMS
	ndtpaIfindex    = 1  // NDTPA_IFINDEX
	ndtpaProxyDelay = 13 // NDTPA_PROXY_DELAY

	skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS
)

// newVeth makes the pair: the host's end here, the other already in the
// namespace ns. Moving it there afterwards would cost a synchronize_net.
func newVeth(host, pod string, podMAC net.HardwareAddr, mtu int, up bool, ns int) *request {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	r := newRequest(fmt.Sprintf("create veth %s with peer %s", host, pod), unix.RTM_NEWLINK,
		unix.NLM_F_CREATE|unix.NLM_F_EXCL, wire.IfInfo(0, flags, flags))
	r.vethEnd(host, hostMAC, mtu)
	return r.nest(unix.IFLA_LINKINFO, func() {
		r.attr(unix.IFLA_INFO_KIND, []byte("veth"))
		r.nest(unix.IFLA_INFO_DATA, func() {
			r.nest(vethInfoPeer, func() {
				// The peer cannot be created up: veth_open wants its partner.
				r.raw(wire.IfInfo(0, 0, 0))
				r.vethEnd(pod, podMAC, mtu)
				r.u32(unix.IFLA_NET_NS_FD, uint32(ns))
			})
		})
	})
}

// vethEnd appends what both ends have. By default the kernel gives each end as
// many queues as the machine has CPUs, each with directories in sysfs: on two
// CPUs a third of the time that an ADD takes, and it grows with the CPUs. A veth
// needs none of them: it sends without a queue's lock (NETIF_F_LLTX) and receives
// on the sender's CPU, unless a program is attached with XDP.
func (r *request) vethEnd(name string, mac net.HardwareAddr, mtu int) {
	r.str(unix.IFLA_IFNAME, name)
	r.attr(unix.IFLA_ADDRESS, mac)
	r.u32(unix.IFLA_NUM_TX_QUEUES, 1)
	r.u32(unix.IFLA_NUM_RX_QUEUES, 1)
	if mtu > 0 {
		r.u32(unix.IFLA_MTU, uint32(mtu))
	}
}

// getLink asks for one link by name.
func getLink(name string) *request {
	return newRequest("look up link "+name, unix.RTM_GETLINK, 0, wire.IfInfo(0, 0, 0)).
		str(unix.IFLA_IFNAME, name).
		u32(unix.IFLA_EXT_MASK, skipStats)
}

// getLinkByIndex asks for one link by index; name is for errors.
func getLinkByIndex(name string, index int) *request {
	return newRequest("look up link "+name, unix.RTM_GETLINK, 0, wire.IfInfo(index, 0, 0)).
		u32(unix.IFLA_EXT_MASK, skipStats)
}

// getVeths asks for all veths (with dump).
func getVeths() *request {
	r := newRequest("list veths", unix.RTM_GETLINK, 0, wire.IfInfo(0, 0, 0)).u32(unix.IFLA_EXT_MASK, skipStats)
	return r.nest(unix.IFLA_LINKINFO, func() { r.attr(unix.IFLA_INFO_KIND, []byte("veth")) })
}

// setLink starts a change of a link.
func setLink(what string, index int) *request {
	return newRequest(what, unix.RTM_SETLINK, 0, wire.IfInfo(index, 0, 0))
}

func setUp(name string, index int) *request {
	return newRequest("set "+name+" up", unix.RTM_SETLINK, 0, wire.IfInfo(index, unix.IFF_UP, unix.IFF_UP))
}

func setMTU(name string, index, mtu int) *request {
	return setLink(fmt.Sprintf("set MTU of %s to %d", name, mtu), index).u32(unix.IFLA_MTU, uint32(mtu))
}

// delLink deletes one link; delGroup all of a group in one go, for the price of one.
func delLink(name string, index int) *request {
	return newRequest("delete link "+name, unix.RTM_DELLINK, 0, wire.IfInfo(index, 0, 0)).allow(unix.ENODEV)
}

func delGroup(group uint32) *request {
	return newRequest(fmt.Sprintf("delete links of group %#x", group), unix.RTM_DELLINK, 0, wire.IfInfo(0, 0, 0)).
		u32(unix.IFLA_GROUP, group).allow(unix.ENODEV)
}

// hostSettings appends the host veth's settings: a message already under way
// carries them at no cost, where a sysctl file costs three system calls each.
func (r *request) hostSettings(v6 bool) *request {
	return r.nest(unix.IFLA_AF_SPEC, func() {
		r.nest(unix.AF_INET, func() {
			r.nest(inetConf, func() {
				r.u32(devconfProxyARP, 1)
				r.u32(devconfForwarding, 1)
			})
		})
		if v6 {
			// The link-local address is ours to choose, and usable at once.
			r.nest(unix.AF_INET6, func() { r.attr(inet6AddrGenMode, []byte{addrGenModeNone}) })
		}
	})
}

// setProxyDelay makes the kernel answer ARP requests at once. Its default is
// to wait a random time of up to 0.8 s (proxy_delay, RFC 925).
func setProxyDelay(name string, index int) *request {
	r := newRequest("set proxy_delay of "+name, unix.RTM_SETNEIGHTBL, 0, []byte{unix.AF_INET, 0, 0, 0})
	r.str(ndtaName, "arp_cache")
	return r.nest(ndtaParms, func() {
		r.u32(ndtpaIfindex, uint32(index))
		r.u64(ndtpaProxyDelay, 0)
	})
}

// addAddr adds addr/bits. Duplicate address detection is off: the address is
// the allocator's word, and the pod uses it in its first millisecond.
func addAddr(addr netip.Prefix, name string, index int) *request {
	h := []byte{family(addr.Addr()), byte(addr.Bits()), unix.IFA_F_NODAD, 0, 0, 0, 0, 0}
	if addr.Addr().Is4() {
		h[2] = unix.IFA_F_PERMANENT
	}
	order.PutUint32(h[4:], uint32(index))
	return newRequest(fmt.Sprintf("add address %s to %s", addr, name), unix.RTM_NEWADDR,
		unix.NLM_F_CREATE|unix.NLM_F_EXCL, h).
		attr(unix.IFA_LOCAL, addr.Addr().AsSlice()).
		attr(unix.IFA_ADDRESS, addr.Addr().AsSlice())
}

// rtmsg is struct rtmsg for the main table.
func rtmsg(dst netip.Prefix, protocol, scope byte, flags uint32) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = family(dst.Addr()), byte(dst.Bits())
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_MAIN, protocol, scope, unix.RTN_UNICAST
	order.PutUint32(b[8:], flags)
	return b
}

// linkRoute is dst straight out of a link; verb is "add" or "delete".
func linkRoute(typ, flags uint16, verb string, dst netip.Prefix, protocol byte, name string, index int) *request {
	scope := byte(unix.RT_SCOPE_LINK)
	if dst.Addr().Is6() {
		scope = unix.RT_SCOPE_UNIVERSE // IPv6 has no other
	}
	return newRequest(fmt.Sprintf("%s route %s dev %s", verb, dst, name), typ, flags, rtmsg(dst, protocol, scope, 0)).
		attr(unix.RTA_DST, dst.Addr().AsSlice()).
		u32(unix.RTA_OIF, uint32(index))
}

func addLinkRoute(dst netip.Prefix, protocol byte, name string, index int) *request {
	return linkRoute(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "add", dst, protocol, name, index)
}

func delLinkRoute(dst netip.Prefix, protocol byte, name string, index int) *request {
	return linkRoute(unix.RTM_DELROUTE, 0, "delete", dst, protocol, name, index).allow(unix.ESRCH, unix.ENODEV)
}

// addDefault is the pod's default route.
func addDefault(gw netip.Addr, name string, index int) *request {
	dst := netip.PrefixFrom(zero(gw), 0)
	return newRequest(fmt.Sprintf("add default route via %s dev %s", gw, name), unix.RTM_NEWROUTE,
		unix.NLM_F_CREATE|unix.NLM_F_EXCL, rtmsg(dst, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, 0)).
		attr(unix.RTA_GATEWAY, gw.AsSlice()).
		u32(unix.RTA_OIF, uint32(index))
}

// addNeighbour says where the gateway is for good. Then the pod's first packet
// waits for nobody, and the gateway is there even on a node without a default
// route, where the kernel answers no ARP request for 169.254.1.1.
func addNeighbour(addr netip.Addr, mac net.HardwareAddr, name string, index int) *request {
	h := make([]byte, unix.SizeofNdMsg)
	h[0] = family(addr)
	order.PutUint32(h[4:], uint32(index))
	order.PutUint16(h[8:], unix.NUD_PERMANENT)
	return newRequest(fmt.Sprintf("add neighbour %s dev %s", addr, name), unix.RTM_NEWNEIGH,
		unix.NLM_F_CREATE|unix.NLM_F_REPLACE, h).
		attr(unix.NDA_DST, addr.AsSlice()).
		attr(unix.NDA_LLADDR, mac)
}

// getRoute asks which routing entry, not which path, serves dst.
func getRoute(dst netip.Addr) *request {
	h := make([]byte, unix.SizeofRtMsg)
	h[0], h[1] = family(dst), byte(dst.BitLen())
	order.PutUint32(h[8:], unix.RTM_F_FIB_MATCH)
	return newRequest(fmt.Sprintf("look up route of %s", dst), unix.RTM_GETROUTE, 0, h).
		attr(unix.RTA_DST, dst.AsSlice())
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func zero(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
