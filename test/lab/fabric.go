package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// subnet is a bridge of the fabric, whose router has the first address of each family.
type subnet struct {
	bridge string
	v4, v6 netip.Prefix
}

// The lab's network. Every lab uses the same addresses, since its namespaces
// see nothing else. The fabric routes between the subnets and knows no pods.
var (
	controlNet = subnet{"br-control", netip.MustParsePrefix("172.30.0.0/24"), netip.MustParsePrefix("fd30:0:0::/64")}
	// nodeNets are where nodes and routers live, most on the first.
	nodeNets = []subnet{
		{"br-nodes1", netip.MustParsePrefix("172.30.1.0/24"), netip.MustParsePrefix("fd30:0:1::/64")},
		{"br-nodes2", netip.MustParsePrefix("172.30.2.0/24"), netip.MustParsePrefix("fd30:0:2::/64")},
	}
	outsideNet = subnet{"br-outside", netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:113::/64")}
)

const controlHost, outsideHost = 10, 10

// host returns the addresses of host number n: 172.30.1.n and fd30:0:1::n (n in decimal digits in both).
func (s subnet) host(n int) []netip.Addr {
	v4 := s.v4.Addr().As4()
	v4[3] = byte(n)
	v6 := netip.MustParseAddr(fmt.Sprintf("%s%d", s.v6.Addr(), n))
	return []netip.Addr{netip.AddrFrom4(v4), v6}
}

func (s subnet) router() []netip.Addr { return s.host(1) }

// bits is the prefix length an address of the subnet is configured with.
func (s subnet) bits(a netip.Addr) int {
	if a.Is4() {
		return s.v4.Bits()
	}
	return s.v6.Bits()
}

// uplink is the interface of every machine towards the fabric.
const uplink = "eth0"

// buildFabric makes the bridges and turns the machine into a router between them.
func (l *Lab) buildFabric() error {
	for name, value := range map[string]string{
		"ipv4/ip_forward":                 "1",
		"ipv6/conf/all/forwarding":        "1",
		"ipv6/conf/default/dad_transmits": "0", // or addresses are of no use for a second
	} {
		if err := l.fabric.Sysctl(name, value); err != nil {
			return err
		}
	}
	return l.fabric.Netlink(func(h *netlink.Handle) error {
		for i, s := range append([]subnet{controlNet, outsideNet}, nodeNets...) {
			// An address of its own: otherwise a bridge has that of its lowest port, hence another
			// when a machine comes or goes, and for seconds nobody's ARP entry of the router is right.
			mac := net.HardwareAddr{0x02, 0, 0, 0, 0, byte(i + 1)}
			bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: s.bridge, HardwareAddr: mac}}
			if err := h.LinkAdd(bridge); err != nil {
				return fmt.Errorf("make bridge %s: %w", s.bridge, err)
			}
			if err := h.LinkSetUp(bridge); err != nil {
				return err
			}
			if err := configure(h, bridge, s, s.router()); err != nil {
				return err
			}
		}
		return nil
	})
}

// attach connects the machine to the subnet by a veth, with default routes by way of the fabric.
func (l *Lab) attach(m *Machine, s subnet, addresses []netip.Addr) error {
	if err := m.Sysctl("ipv6/conf/default/dad_transmits", "0"); err != nil {
		return err
	}
	err := l.fabric.Netlink(func(h *netlink.Handle) error {
		bridge, err := h.LinkByName(s.bridge)
		if err != nil {
			return err
		}
		port := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: m.Name, MasterIndex: bridge.Attrs().Index},
			PeerName:      uplink,
			PeerNamespace: netlink.NsFd(m.ns[0].file.Fd()),
		}
		if err := h.LinkAdd(port); err != nil {
			return err
		}
		return h.LinkSetUp(port)
	})
	if err != nil {
		return fmt.Errorf("attach %s to the fabric: %w", m.Name, err)
	}
	err = m.Netlink(func(h *netlink.Handle) error {
		eth0, err := h.LinkByName(uplink)
		if err != nil {
			return err
		}
		if err := h.LinkSetUp(eth0); err != nil {
			return err
		}
		if err := configure(h, eth0, s, addresses); err != nil {
			return err
		}
		return defaultRoutes(h, eth0, s)
	})
	if err != nil {
		return fmt.Errorf("configure %s of %s: %w", uplink, m.Name, err)
	}
	m.Addresses = addresses
	return l.noteAddresses(m)
}

func configure(h *netlink.Handle, link netlink.Link, s subnet, addresses []netip.Addr) error {
	for _, a := range addresses {
		address := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, s.bits(a))), Flags: unix.IFA_F_NODAD}
		if a.Is4() {
			address.Flags = 0
		}
		if err := h.AddrReplace(link, address); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

func defaultRoutes(h *netlink.Handle, link netlink.Link, s subnet) error {
	for _, gateway := range s.router() {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Dst: ipNet(netip.PrefixFrom(gateway, 0).Masked())}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("default route by way of %s: %w", gateway, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
