package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/bgp"
)

const (
	vni  = 4096
	port = 4789 // IANA's for VXLAN

	// ttl makes a tunnel one hop, however long the way (RFC 2003 section 3.1): a
	// packet with few hops left still arrives. The kernel does the same for VXLAN.
	ttl = 64
)

// Numbers of the kernel's ABI that golang.org/x/sys does not have: linux/if_tunnel.h.
const (
	ipipLink     = 1  // IFLA_IPTUN_LINK
	ipipLocal    = 2  // IFLA_IPTUN_LOCAL
	ipipRemote   = 3  // IFLA_IPTUN_REMOTE
	ipipTTL      = 4  // IFLA_IPTUN_TTL
	ipipTOS      = 5  // IFLA_IPTUN_TOS
	ipipProto    = 9  // IFLA_IPTUN_PROTO
	ipipPMTUDisc = 10 // IFLA_IPTUN_PMTUDISC
	ipipMetadata = 19 // IFLA_IPTUN_COLLECT_METADATA
)

// spec is how a device shall be.
type spec struct {
	encap   bgp.Encapsulation
	name    string
	mtu     int // 0: any
	mac     mac // zero: any
	options []option
	ipv6    bool
	// rpFilter is 2 (loose): of all's and the device's own the kernel takes the
	// higher, so that a strict 1 of all does not count. Answers may come through a
	// tunnel to what was sent natively, while nodes change from one to the other.
	// A device without an IPv4 address has 0: the kernel drops with any other
	// what it would not send back by such a device (fib_validate_source).
	rpFilter uint32
}

// option is a part of IFLA_INFO_DATA. fixed: the kernel changes it in no device
// that exists. Without a value it must not be there; zeros are as good.
type option struct {
	name  string // as ip(8) has it
	kind  uint16
	value []byte
	fixed bool
}

func (d Desired) spec(kind bgp.Encapsulation) (spec, error) {
	if !d.Local.IsValid() {
		return spec{}, errors.New("the node has no address")
	}
	s := spec{encap: kind, name: Name(kind), ipv6: slices.ContainsFunc(d.Addrs, netip.Addr.Is6)}
	if slices.ContainsFunc(d.Addrs, netip.Addr.Is4) {
		s.rpFilter = 2
	}
	if d.UplinkMTU > 0 {
		s.mtu = d.UplinkMTU - Overhead(kind, d.Local)
	}
	if kind == bgp.IPIP {
		if !d.Local.Is4() {
			return s, fmt.Errorf("IPIP is from IPv4 address to IPv4 address, and the node has none but %s: let pools use VXLAN or Native", d.Local)
		}
		s.options = ipipOptions(d.Local)
		return s, nil
	}
	s.mac = macOf(d.Local)
	s.options = vxlanOptions(d.Local)
	for _, p := range d.Peers {
		s.ipv6 = s.ipv6 || slices.ContainsFunc(p.NextHops, netip.Addr.Is6)
	}
	return s, nil
}

// ipipOptions are those of a device that takes what anyone sends to local. With
// local "any", too, it would be tunl0, of which there is only one.
//
// PMTUDISC sets "don't fragment" in the outer packet, as the kernel always does
// where there is a TTL. A router on the way that has a smaller MTU says so to this
// node, which remembers it and tells the pod when its next packet comes.
func ipipOptions(local netip.Addr) []option {
	return []option{
		{name: "dev", kind: ipipLink, value: make([]byte, 4)},
		{name: "local", kind: ipipLocal, value: local.AsSlice()},
		{name: "remote", kind: ipipRemote, value: make([]byte, 4)},
		{name: "ttl", kind: ipipTTL, value: []byte{ttl}},
		{name: "tos", kind: ipipTOS, value: []byte{0}},
		{name: "mode", kind: ipipProto, value: []byte{unix.IPPROTO_IPIP}, fixed: true},
		{name: "pmtudisc", kind: ipipPMTUDisc, value: []byte{1}},
		{name: "external", kind: ipipMetadata, fixed: true},
	}
}

// vxlanOptions are those of a device without group, default destination or
// learning: it sends where an FDB entry says, and nowhere else.
//
// UDP checksums are as the kernel's default has been since Linux 4.6: on. They
// cost the sender next to nothing (the outer sum follows from the inner one,
// "local checksum offload"), and spare the receiver the inner one, since network
// cards verify outer sums, and receive offload (GRO) needs a verified one. Over
// IPv6 they are mandatory unless both ends agree (RFC 6935).
//
// The outer packet may be fragmented (the default): VXLAN devices pass no word
// of a smaller MTU on the way back to a pod whose packets they forward.
func vxlanOptions(local netip.Addr) []option {
	kind, other := uint16(unix.IFLA_VXLAN_LOCAL), uint16(unix.IFLA_VXLAN_LOCAL6)
	if local.Is6() {
		kind, other = other, kind
	}
	return []option{
		{name: "local", kind: kind, value: local.AsSlice()},
		{name: "local", kind: other},
		{name: "learning", kind: unix.IFLA_VXLAN_LEARNING, value: []byte{0}},
		{name: "id", kind: unix.IFLA_VXLAN_ID, value: order.AppendUint32(nil, vni), fixed: true},
		{name: "dstport", kind: unix.IFLA_VXLAN_PORT, value: binary.BigEndian.AppendUint16(nil, port), fixed: true},
		{name: "udpcsum", kind: unix.IFLA_VXLAN_UDP_CSUM, value: []byte{1}, fixed: true},
		{name: "udp6zerocsumtx", kind: unix.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, fixed: true},
		{name: "udp6zerocsumrx", kind: unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, fixed: true},
		{name: "remcsumtx", kind: unix.IFLA_VXLAN_REMCSUM_TX, fixed: true},
		{name: "remcsumrx", kind: unix.IFLA_VXLAN_REMCSUM_RX, fixed: true},
		{name: "group", kind: unix.IFLA_VXLAN_GROUP, fixed: true},
		{name: "group", kind: unix.IFLA_VXLAN_GROUP6, fixed: true},
		{name: "dev", kind: unix.IFLA_VXLAN_LINK, fixed: true},
		{name: "maxaddress", kind: unix.IFLA_VXLAN_LIMIT, fixed: true},
		{name: "proxy", kind: unix.IFLA_VXLAN_PROXY, fixed: true},
		{name: "rsc", kind: unix.IFLA_VXLAN_RSC, fixed: true},
		{name: "df", kind: unix.IFLA_VXLAN_DF, fixed: true},
		{name: "ttl", kind: unix.IFLA_VXLAN_TTL, fixed: true},
		{name: "ttl inherit", kind: unix.IFLA_VXLAN_TTL_INHERIT, fixed: true},
		{name: "l2miss", kind: unix.IFLA_VXLAN_L2MISS, fixed: true},
		{name: "l3miss", kind: unix.IFLA_VXLAN_L3MISS, fixed: true},
		{name: "gbp", kind: unix.IFLA_VXLAN_GBP, fixed: true},
		{name: "gpe", kind: unix.IFLA_VXLAN_GPE, fixed: true},
	}
}

// wrong names the options that l has otherwise; fixed: one is that the kernel
// cannot change.
func (s spec) wrong(l link) (names []string, fixed bool) {
	for _, o := range s.options {
		if !o.fits(l.data) {
			names = append(names, o.name)
			fixed = fixed || o.fixed
		}
	}
	return names, fixed
}

// fits says whether l has all options.
func (s spec) fits(l link) bool {
	names, _ := s.wrong(l)
	return names == nil
}

// fits: a flag (GBP, GPE) has no bytes, and to be there is to be on.
func (o option) fits(data map[uint16][]byte) bool {
	have, present := data[o.kind]
	if o.value != nil {
		return bytes.Equal(have, o.value)
	}
	return !present || len(have) > 0 && !slices.ContainsFunc(have, func(b byte) bool { return b != 0 })
}

// create is the message that makes the device, down.
func (s spec) create() *request {
	r := ask("make device "+s.name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(0, 0)).str(unix.IFLA_IFNAME, s.name)
	if s.mtu > 0 {
		r.u32(unix.IFLA_MTU, uint32(s.mtu))
	}
	if s.mac != (mac{}) {
		r.attr(unix.IFLA_ADDRESS, s.mac[:])
	}
	return s.info(r, true)
}

// change is the message that changes in place what can be. IPIP takes what is
// not said as zero, so all is said.
func (s spec) change(index int) *request {
	return s.info(ask("change device "+s.name, unix.RTM_NEWLINK, 0, ifinfo(index, 0)), false)
}

func (s spec) info(r *request, fixed bool) *request {
	return r.nest(unix.IFLA_LINKINFO, func() {
		r.attr(unix.IFLA_INFO_KIND, []byte(s.encap.String()))
		r.nest(unix.IFLA_INFO_DATA, func() {
			for _, o := range s.options {
				if o.value != nil && (fixed || !o.fixed) {
					r.attr(o.kind, o.value)
				}
			}
		})
	})
}
