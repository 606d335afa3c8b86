package rtnl

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// rtaNextHopID is RTA_NH_ID, which golang.org/x/sys/unix lacks.
const rtaNextHopID = 30

// Route is a route as the kernel tells it. Parse may be called again and again
// on one Route; it reuses the memory of NextHops.
type Route struct {
	Prefix   netip.Prefix
	Table    uint32
	Metric   uint32
	Protocol uint8
	Type     uint8
	Scope    uint8
	TOS      uint8
	// Cloned marks a cached route, which is no entry of a table.
	Cloned bool
	// Gateways are the next hops' addresses.
	Gateways []netip.Addr
	// Bare tells that a next hop is a device alone, without a gateway.
	Bare bool
	// Special tells of what Hoplite writes nowhere: encapsulation, a next hop
	// object, unequal weights, onlink, a gateway of the other family.
	Special bool
}

// Endpoint tells whether r looks like the route to a local pod: unicast to a
// device, without a gateway. (In IPv4 its scope is link; the kernel keeps no
// scope for IPv6 routes.)
func (r *Route) Endpoint() bool {
	return r.Type == unix.RTN_UNICAST && len(r.Gateways) == 0 && !r.Special
}

// Parse reads the body of an RTM_NEWROUTE or RTM_DELROUTE.
func (r *Route) Parse(body []byte) error {
	*r = Route{Gateways: r.Gateways[:0]}
	if len(body) < unix.SizeofRtMsg {
		return fmt.Errorf("%w: route of %d bytes", ErrMalformed, len(body))
	}
	family, bits := body[0], int(body[1])
	r.TOS, r.Table, r.Protocol, r.Scope, r.Type = body[3], uint32(body[4]), body[5], body[6], body[7]
	flags := native.Uint32(body[8:])
	r.Cloned = flags&unix.RTM_F_CLONED != 0
	r.Special = flags&unix.RTNH_F_ONLINK != 0
	address, err := unspecified(family)
	if err != nil {
		return err
	}
	single, device := false, false
	for kind, value := range Attributes(body[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			address, err = addr(value)
		case unix.RTA_GATEWAY:
			single = true
			err = r.gateway(value)
		case unix.RTA_OIF:
			device = true
		case unix.RTA_PRIORITY:
			r.Metric, err = word(value)
		case unix.RTA_TABLE:
			r.Table, err = word(value)
		case unix.RTA_MULTIPATH:
			single = true
			err = r.multipath(value)
		case unix.RTA_VIA, unix.RTA_ENCAP, rtaNextHopID:
			r.Special = true
		}
		if err != nil {
			return err
		}
	}
	r.Bare = r.Bare || device && !single
	r.Prefix = netip.PrefixFrom(address, bits)
	if !r.Prefix.IsValid() || address.Is4() != (family == unix.AF_INET) {
		return fmt.Errorf("%w: route to %v with a prefix of %d bits", ErrMalformed, address, bits)
	}
	return nil
}

func (r *Route) multipath(b []byte) error {
	for len(b) >= unix.SizeofRtNexthop {
		length := int(native.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			return fmt.Errorf("%w: next hop of %d bytes", ErrMalformed, length)
		}
		// rtnh_flags, then rtnh_hops, which is the weight less one.
		r.Special = r.Special || b[2]&unix.RTNH_F_ONLINK != 0 || b[3] != 0
		before := len(r.Gateways)
		for kind, value := range Attributes(b[unix.SizeofRtNexthop:length]) {
			switch kind {
			case unix.RTA_GATEWAY:
				if err := r.gateway(value); err != nil {
					return err
				}
			case unix.RTA_VIA, unix.RTA_ENCAP:
				r.Special = true
			}
		}
		r.Bare = r.Bare || len(r.Gateways) == before
		b = b[min(align(length), len(b)):]
	}
	return nil
}

func (r *Route) gateway(value []byte) error {
	a, err := addr(value)
	r.Gateways = append(r.Gateways, a)
	return err
}

func unspecified(family uint8) (netip.Addr, error) {
	switch family {
	case unix.AF_INET:
		return netip.IPv4Unspecified(), nil
	case unix.AF_INET6:
		return netip.IPv6Unspecified(), nil
	}
	return netip.Addr{}, fmt.Errorf("%w: route of address family %d", ErrMalformed, family)
}

func addr(value []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(value)
	if !ok {
		return a, fmt.Errorf("%w: address of %d bytes", ErrMalformed, len(value))
	}
	return a, nil
}

func word(value []byte) (uint32, error) {
	if len(value) != 4 {
		return 0, fmt.Errorf("%w: number of %d bytes", ErrMalformed, len(value))
	}
	return native.Uint32(value), nil
}

// Request is a route to write: RTM_NEWROUTE or RTM_DELROUTE.
type Request struct {
	Kind     uint16
	Flags    uint16
	Seq      uint32
	Prefix   netip.Prefix
	Table    uint32
	Metric   uint32
	Protocol uint8
	Type     uint8
	// Device is the index of the outgoing device, 0 to leave it to the kernel.
	Device uint32
}

// Append appends the message that asks for q, with next hops given as
// addresses end to end, each of the size of the prefix's family. One next hop
// becomes a gateway, several become equal-cost next hops.
func (q *Request) Append(b []byte, hops string) []byte {
	start := len(b)
	a := q.Prefix.Addr()
	family, size := byte(unix.AF_INET), 4
	if a.Is6() {
		family, size = unix.AF_INET6, 16
	}
	b = appendMessage(b, q.Kind, q.Flags|unix.NLM_F_REQUEST, q.Seq, nil)
	table := byte(unix.RT_TABLE_UNSPEC)
	if q.Table < 256 {
		table = byte(q.Table)
	}
	b = append(b, family, byte(q.Prefix.Bits()), 0, 0, table, q.Protocol, unix.RT_SCOPE_UNIVERSE, q.Type, 0, 0, 0, 0)
	b = appendHeader(b, unix.RTA_DST, size)
	if size == 4 {
		b4 := a.As4()
		b = append(b, b4[:]...)
	} else {
		b16 := a.As16()
		b = append(b, b16[:]...)
	}
	if q.Table > 255 {
		b = appendWord(b, unix.RTA_TABLE, q.Table)
	}
	if q.Metric != 0 {
		b = appendWord(b, unix.RTA_PRIORITY, q.Metric)
	}
	if q.Device != 0 {
		b = appendWord(b, unix.RTA_OIF, q.Device)
	}
	b = appendHops(b, hops, size)
	native.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendHops(b []byte, hops string, size int) []byte {
	if len(hops) <= size {
		if hops != "" {
			b = append(appendHeader(b, unix.RTA_GATEWAY, size), hops...)
		}
		return b
	}
	each := unix.SizeofRtNexthop + unix.SizeofNlAttr + size
	b = appendHeader(b, unix.RTA_MULTIPATH, len(hops)/size*each)
	for ; len(hops) >= size; hops = hops[size:] {
		b = native.AppendUint16(b, uint16(each))
		b = append(b, 0, 0, 0, 0, 0, 0)
		b = append(appendHeader(b, unix.RTA_GATEWAY, size), hops[:size]...)
	}
	return b
}

// appendHeader starts an attribute of size bytes, a multiple of four.
func appendHeader(b []byte, kind uint16, size int) []byte {
	b = native.AppendUint16(b, uint16(unix.SizeofNlAttr+size))
	return native.AppendUint16(b, kind)
}

func appendWord(b []byte, kind uint16, value uint32) []byte {
	return native.AppendUint32(appendHeader(b, kind, 4), value)
}

// DumpRoutes yields the routes of one family in table that bear protocol. A
// kernel too old to filter (before 4.20) sends all, and they are filtered here;
// so is a kernel without IPv6. The Route is valid only during the call.
func (c *Conn) DumpRoutes(family, protocol uint8, table uint32, each func(*Route)) (interrupted bool, err error) {
	var (
		route Route
		bad   error
	)
	body := []byte{family, 0, 0, 0, 0, protocol, 0, 0, 0, 0, 0, 0}
	body = appendWord(body, unix.RTA_TABLE, table)
	interrupted, err = c.Dump(unix.RTM_GETROUTE, body, func(m Message) {
		if m.Type != unix.RTM_NEWROUTE || len(m.Body) == 0 || m.Body[0] != family {
			return
		}
		if err := route.Parse(m.Body); err != nil {
			bad = err
			return
		}
		if route.Protocol == protocol && route.Table == table && !route.Cloned {
			each(&route)
		}
	})
	switch {
	case errors.Is(err, unix.ENOENT): // the kernel makes a table with its first route
		err = nil
	case family == unix.AF_INET6 && errors.Is(err, unix.EOPNOTSUPP):
		err = nil
	case err == nil:
		err = bad
	}
	return interrupted, err
}
