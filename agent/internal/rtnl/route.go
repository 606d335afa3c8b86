package rtnl

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// rtaNextHopID is RTA_NH_ID, which golang.org/x/sys/unix lacks.
const rtaNextHopID = 30

// Hop is one next hop of a route: out of Device, via Gateway.
type Hop struct {
	Device  uint32 // interface index; 0 in a request: the kernel finds it
	Gateway netip.Addr
	Onlink  bool // the gateway need not be on a subnet of the device
}

// Route is a route as the kernel tells it. Parse may be called again and again
// on one Route; it reuses the memory of Hops.
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
	// NextHop is the next hop object that the route uses, 0 if none. What else
	// the kernel then tells is the object's, and only if the sysctl
	// nexthop_compat_mode is 1.
	NextHop uint32
	// Hops are the next hops that have a gateway.
	Hops []Hop
	// Bare tells that a next hop is a device alone, without a gateway.
	Bare bool
	// Special tells of what Hoplite writes nowhere: encapsulation, unequal
	// weights, a gateway of the other family.
	Special bool
}

// Endpoint tells whether r looks like the route to a local pod: unicast to a
// device, without a gateway. (In IPv4 its scope is link; the kernel keeps no
// scope for IPv6 routes.)
func (r *Route) Endpoint() bool {
	return r.Type == unix.RTN_UNICAST && len(r.Hops) == 0 && r.NextHop == 0 && !r.Special
}

// Parse reads the body of an RTM_NEWROUTE or RTM_DELROUTE.
func (r *Route) Parse(body []byte) error {
	*r = Route{Hops: r.Hops[:0]}
	if len(body) < unix.SizeofRtMsg {
		return fmt.Errorf("%w: route of %d bytes", ErrMalformed, len(body))
	}
	family, bits := body[0], int(body[1])
	r.TOS, r.Table, r.Protocol, r.Scope, r.Type = body[3], uint32(body[4]), body[5], body[6], body[7]
	flags := native.Uint32(body[8:])
	r.Cloned = flags&unix.RTM_F_CLONED != 0
	address, err := unspecified(family)
	if err != nil {
		return err
	}
	multiple := false
	hop := Hop{Onlink: flags&unix.RTNH_F_ONLINK != 0}
	for kind, value := range Attributes(body[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			address, err = addr(value)
		case unix.RTA_GATEWAY:
			hop.Gateway, err = addr(value)
		case unix.RTA_OIF:
			hop.Device, err = word(value)
		case unix.RTA_PRIORITY:
			r.Metric, err = word(value)
		case unix.RTA_TABLE:
			r.Table, err = word(value)
		case unix.RTA_MULTIPATH:
			multiple = true
			err = r.multipath(value)
		case rtaNextHopID:
			r.NextHop, err = word(value)
		case unix.RTA_VIA, unix.RTA_ENCAP:
			r.Special = true
		}
		if err != nil {
			return err
		}
	}
	switch {
	case hop.Gateway.IsValid():
		r.Hops = append(r.Hops, hop)
	case hop.Device != 0 && !multiple:
		r.Bare = true
	}
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
		r.Special = r.Special || b[3] != 0
		hop := Hop{Device: native.Uint32(b[4:]), Onlink: b[2]&unix.RTNH_F_ONLINK != 0}
		for kind, value := range Attributes(b[unix.SizeofRtNexthop:length]) {
			switch kind {
			case unix.RTA_GATEWAY:
				var err error
				if hop.Gateway, err = addr(value); err != nil {
					return err
				}
			case unix.RTA_VIA, unix.RTA_ENCAP:
				r.Special = true
			}
		}
		if hop.Gateway.IsValid() {
			r.Hops = append(r.Hops, hop)
		} else {
			r.Bare = true
		}
		b = b[min(align(length), len(b)):]
	}
	return nil
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
	// Device is the index of the outgoing device of a route without gateways.
	Device uint32
	// NextHop is the next hop object to use, 0 for none.
	NextHop uint32
	// Hops are next hops, each as Hop.Pack makes it, end to end. Several are
	// equal-cost. Their gateways are of the prefix's family.
	Hops string
}

// Pack appends h in a form that is comparable and ready for a Request.
func (h Hop) Pack(b []byte) []byte {
	flags := uint32(0)
	if h.Onlink {
		flags = unix.RTNH_F_ONLINK
	}
	b = native.AppendUint32(b, h.Device)
	b = native.AppendUint32(b, flags)
	return appendAddr(b, h.Gateway)
}

// Unpack yields the next hops that Pack made, for a prefix of that family.
func Unpack(packed string, is6 bool) iter.Seq[Hop] {
	size := packedSize(is6)
	return func(yield func(Hop) bool) {
		for ; len(packed) >= size; packed = packed[size:] {
			b := []byte(packed[:size])
			gateway, _ := netip.AddrFromSlice(b[8:])
			if !yield(Hop{Device: native.Uint32(b), Onlink: native.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0, Gateway: gateway}) {
				return
			}
		}
	}
}

func packedSize(is6 bool) int {
	if is6 {
		return 8 + 16
	}
	return 8 + 4
}

// Append appends the message that asks for q.
func (q *Request) Append(b []byte) []byte {
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
	b = append(b, family, byte(q.Prefix.Bits()), 0, 0, table, q.Protocol, unix.RT_SCOPE_UNIVERSE, q.Type)
	single := len(q.Hops) == packedSize(a.Is6())
	if single {
		b = append(b, q.Hops[4:8]...)
	} else {
		b = append(b, 0, 0, 0, 0)
	}
	b = appendAddr(appendHeader(b, unix.RTA_DST, size), a)
	if q.Table > 255 {
		b = appendWord(b, unix.RTA_TABLE, q.Table)
	}
	if q.Metric != 0 {
		b = appendWord(b, unix.RTA_PRIORITY, q.Metric)
	}
	if q.Device != 0 {
		b = appendWord(b, unix.RTA_OIF, q.Device)
	}
	if q.NextHop != 0 {
		b = appendWord(b, rtaNextHopID, q.NextHop)
	}
	switch {
	case single:
		b = appendSingle(b, q.Hops, size)
	case q.Hops != "":
		b = appendMultipath(b, q.Hops, size)
	}
	native.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func appendSingle(b []byte, hop string, size int) []byte {
	if device := hop[:4]; device != "\x00\x00\x00\x00" {
		b = append(appendHeader(b, unix.RTA_OIF, 4), device...)
	}
	return append(appendHeader(b, unix.RTA_GATEWAY, size), hop[8:]...)
}

// appendMultipath appends struct rtnexthop after struct rtnexthop.
func appendMultipath(b []byte, hops string, size int) []byte {
	each := unix.SizeofRtNexthop + unix.SizeofNlAttr + size
	b = appendHeader(b, unix.RTA_MULTIPATH, len(hops)/(8+size)*each)
	for ; len(hops) >= 8+size; hops = hops[8+size:] {
		flags := native.Uint32([]byte(hops[4:8]))
		b = native.AppendUint16(b, uint16(each))
		b = append(b, byte(flags), 0)
		b = append(b, hops[:4]...)
		b = append(appendHeader(b, unix.RTA_GATEWAY, size), hops[8:8+size]...)
	}
	return b
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		b4 := a.As4()
		return append(b, b4[:]...)
	}
	b16 := a.As16()
	return append(b, b16[:]...)
}

// appendHeader starts an attribute of size bytes; if that is no multiple of four, padding is to follow.
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
