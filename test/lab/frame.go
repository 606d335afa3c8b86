package lab

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	vxlanPort = 4789
	ethernet  = 14 // bytes of header; the lab has no VLANs
	// snapLength has room for all headers: outer Ethernet, IPv6, UDP, VXLAN, inner Ethernet, IPv6.
	snapLength = 160
)

// captureFilter lets through what may be in a tunnel, IPv4 from or to the prefixes, and all of IPv6.
func captureFilter(prefixes []netip.Prefix) ([]unix.SockFilter, error) {
	keep := bpf.RetConstant{Val: snapLength}
	is := func(v uint32) bpf.JumpIf { return bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipFalse: 1} }
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		is(unix.ETH_P_IPV6), keep,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipTrue: 1}, bpf.RetConstant{},
		bpf.LoadAbsolute{Off: ethernet + 9, Size: 1},
		is(unix.IPPROTO_IPIP), keep,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipFalse: 4},
		bpf.LoadMemShift{Off: ethernet}, bpf.LoadIndirect{Off: ethernet + 2, Size: 2},
		is(vxlanPort), keep,
	}
	for _, p := range prefixes {
		if !p.Addr().Is4() {
			continue
		}
		net := p.Masked().Addr().As4()
		mask := ^uint32(0) << (32 - p.Bits())
		for _, off := range []uint32{ethernet + 12, ethernet + 16} { // source, destination
			program = append(program, bpf.LoadAbsolute{Off: off, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
				is(binary.BigEndian.Uint32(net[:])), keep)
		}
	}
	raw, err := bpf.Assemble(append(program, bpf.RetConstant{}))
	if err != nil {
		return nil, err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return filter, nil
}

// packet is the part of an IP header used here.
type packet struct {
	from, to netip.Addr
	protocol byte
	payload  []byte
}

// flowOf says what an Ethernet frame carries. A tunnel's packet whose inner one is no IP packet counts as plain.
func flowOf(frame []byte) (Flow, bool) {
	outer, ok := parseEthernet(frame)
	if !ok {
		return Flow{}, false
	}
	inner, kind := outer.inside()
	if kind == Plain {
		return Flow{From: outer.from, To: outer.to}, true
	}
	return Flow{From: inner.from, To: inner.to, Kind: kind, OuterFrom: outer.from, OuterTo: outer.to}, true
}

// inside is the packet in the tunnel.
func (p packet) inside() (packet, Kind) {
	const udp, vxlan = 8, 8 // bytes of header
	switch {
	case p.protocol == unix.IPPROTO_IPIP:
		if inner, ok := parseIP(p.payload); ok {
			return inner, IPIP
		}
	case p.protocol == unix.IPPROTO_UDP && len(p.payload) > udp+vxlan && binary.BigEndian.Uint16(p.payload[2:]) == vxlanPort:
		if inner, ok := parseEthernet(p.payload[udp+vxlan:]); ok {
			return inner, VXLAN
		}
	}
	return p, Plain
}

func parseEthernet(frame []byte) (packet, bool) {
	if len(frame) < ethernet {
		return packet{}, false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP, unix.ETH_P_IPV6:
		return parseIP(frame[ethernet:])
	}
	return packet{}, false
}

func parseIP(b []byte) (p packet, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		header := int(b[0]&0xf) * 4
		if len(b) < header {
			return packet{}, false
		}
		p.from, _ = netip.AddrFromSlice(b[12:16])
		p.to, _ = netip.AddrFromSlice(b[16:20])
		p.protocol, p.payload = b[9], b[header:]
		return p, true
	case len(b) >= 40 && b[0]>>4 == 6:
		p.from, _ = netip.AddrFromSlice(b[8:24])
		p.to, _ = netip.AddrFromSlice(b[24:40])
		p.protocol, p.payload = b[6], b[40:]
		return p, true
	}
	return packet{}, false
}
