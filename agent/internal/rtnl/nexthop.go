package rtnl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrNoNextHops means that the kernel has no next hop objects: it is older than
// 5.3, or no Linux.
var ErrNoNextHops = errors.New("the kernel has no next hop objects")

// nhaFDB is NHA_FDB, which golang.org/x/sys/unix lacks.
const nhaFDB = 11

// NextHop is a next hop object (linux/nexthop.h): routes that name its ID lead
// where it does.
type NextHop struct {
	ID       uint32
	Protocol uint8
	Hop
	// Special tells of what Hoplite makes none of: a group, a blackhole, one
	// without a gateway or with encapsulation, one for bridges (fdb).
	Special bool
}

// NextHopEvent is a change of a next hop object.
type NextHopEvent struct {
	NextHop
	Deleted bool
}

// ParseNextHop reads the body of an RTM_NEWNEXTHOP or RTM_DELNEXTHOP.
func ParseNextHop(body []byte) (NextHop, error) {
	if len(body) < unix.SizeofNhmsg {
		return NextHop{}, fmt.Errorf("%w: next hop object of %d bytes", ErrMalformed, len(body))
	}
	n := NextHop{Protocol: body[2]}
	n.Onlink = native.Uint32(body[4:])&unix.RTNH_F_ONLINK != 0
	for kind, value := range Attributes(body[unix.SizeofNhmsg:]) {
		var err error
		switch kind {
		case unix.NHA_ID:
			n.ID, err = word(value)
		case unix.NHA_OIF:
			n.Device, err = word(value)
		case unix.NHA_GATEWAY:
			n.Gateway, err = addr(value)
		case unix.NHA_GROUP, unix.NHA_BLACKHOLE, unix.NHA_ENCAP, nhaFDB:
			n.Special = true
		}
		if err != nil {
			return NextHop{}, err
		}
	}
	if n.ID == 0 {
		return NextHop{}, fmt.Errorf("%w: next hop object without a number", ErrMalformed)
	}
	n.Special = n.Special || !n.Gateway.IsValid() || n.Device == 0
	return n, nil
}

// Append appends the message that asks for n to be made, replaced or deleted:
// RTM_NEWNEXTHOP or RTM_DELNEXTHOP. A deletion needs its ID only, and an object
// is deleted with all routes that use it.
func (n *NextHop) Append(b []byte, kind, flags uint16, seq uint32) []byte {
	start := len(b)
	b = appendMessage(b, kind, flags|unix.NLM_F_REQUEST, seq, nil)
	if kind == unix.RTM_DELNEXTHOP {
		// The kernel wants all else to be 0.
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
		b = appendWord(b, unix.NHA_ID, n.ID)
	} else {
		family, size, flags := byte(unix.AF_INET), 4, uint32(0)
		if n.Gateway.Is6() {
			family, size = unix.AF_INET6, 16
		}
		if n.Onlink {
			flags = unix.RTNH_F_ONLINK
		}
		b = append(b, family, 0, n.Protocol, 0)
		b = native.AppendUint32(b, flags)
		b = appendWord(b, unix.NHA_ID, n.ID)
		b = appendWord(b, unix.NHA_OIF, n.Device)
		b = appendAddr(appendHeader(b, unix.NHA_GATEWAY, size), n.Gateway)
	}
	native.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// DumpNextHops yields all next hop objects, whoever made them. ErrNoNextHops
// where there is no such thing.
func (c *Conn) DumpNextHops(each func(NextHop)) (interrupted bool, err error) {
	var bad error
	interrupted, err = c.Dump(unix.RTM_GETNEXTHOP, make([]byte, unix.SizeofNhmsg), func(m Message) {
		if m.Type != unix.RTM_NEWNEXTHOP {
			return
		}
		n, err := ParseNextHop(m.Body)
		if err != nil {
			bad = err
			return
		}
		each(n)
	})
	if err == nil {
		err = bad
	}
	return interrupted, noNextHops(err)
}

// noNextHops recognizes the answer to a message of a type that the kernel does not know.
func noNextHops(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: %w", ErrNoNextHops, err)
	}
	return err
}
