package rtnl

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// RouteEvent is a change of a route. Its Route is valid only during the call
// that delivers it.
type RouteEvent struct {
	*Route
	Deleted bool
	// Appended: the route was put behind another of the same key (NLM_F_APPEND).
	Appended bool
}

// LinkEvent is a change of a device.
type LinkEvent struct {
	Index   int
	Name    string
	Up      bool // IFF_UP: someone wants it up
	Running bool // IFF_RUNNING: it can carry packets
	Deleted bool
}

// AddrEvent is a change of an address of a device.
type AddrEvent struct {
	Index   int
	Prefix  netip.Prefix
	Deleted bool
}

// The devices that a NetconfEvent can speak of besides real ones.
const (
	NetconfAll     = -1 // conf/all
	NetconfDefault = -2 // conf/default
)

// NetconfEvent is a change of a device's IP settings (forwarding, rp_filter,
// proxy_arp and a few more; the others have no notification).
type NetconfEvent struct {
	IPv6  bool
	Index int // of the device, or NetconfAll, NetconfDefault
	// Off: the change switched forwarding, or proxying of neighbours, off.
	Off bool
}

// ParseLink reads the body of an RTM_NEWLINK or RTM_DELLINK.
func ParseLink(body []byte) (LinkEvent, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return LinkEvent{}, fmt.Errorf("%w: link of %d bytes", ErrMalformed, len(body))
	}
	flags := native.Uint32(body[8:])
	e := LinkEvent{
		Index:   int(int32(native.Uint32(body[4:]))),
		Up:      flags&unix.IFF_UP != 0,
		Running: flags&unix.IFF_RUNNING != 0,
	}
	for kind, value := range Attributes(body[unix.SizeofIfInfomsg:]) {
		if kind == unix.IFLA_IFNAME {
			e.Name = cString(value)
			break
		}
	}
	return e, nil
}

// ParseAddr reads the body of an RTM_NEWADDR or RTM_DELADDR.
func ParseAddr(body []byte) (AddrEvent, error) {
	if len(body) < unix.SizeofIfAddrmsg {
		return AddrEvent{}, fmt.Errorf("%w: address of %d bytes", ErrMalformed, len(body))
	}
	e := AddrEvent{Index: int(int32(native.Uint32(body[4:])))}
	local := false
	for kind, value := range Attributes(body[unix.SizeofIfAddrmsg:]) {
		// On a point-to-point device IFA_ADDRESS is the other end's.
		if kind != unix.IFA_LOCAL && (kind != unix.IFA_ADDRESS || local) {
			continue
		}
		a, err := addr(value)
		if err != nil {
			return AddrEvent{}, err
		}
		local = kind == unix.IFA_LOCAL
		e.Prefix = netip.PrefixFrom(a, int(body[1]))
	}
	if !e.Prefix.IsValid() {
		return AddrEvent{}, fmt.Errorf("%w: no address in a notification of one", ErrMalformed)
	}
	return e, nil
}

// ParseNetconf reads the body of an RTM_NEWNETCONF.
func ParseNetconf(body []byte) (NetconfEvent, error) {
	// struct netconfmsg, padded; NETCONFA_IFINDEX, _FORWARDING, _PROXY_NEIGH
	const header, index, forwarding, proxyNeigh = 4, 1, 2, 5
	if len(body) < header {
		return NetconfEvent{}, fmt.Errorf("%w: netconf of %d bytes", ErrMalformed, len(body))
	}
	e := NetconfEvent{IPv6: body[0] == unix.AF_INET6}
	found := false
	for kind, value := range Attributes(body[header:]) {
		if kind != index && kind != forwarding && kind != proxyNeigh {
			continue
		}
		w, err := word(value)
		if err != nil {
			return e, err
		}
		if kind == index {
			e.Index, found = int(int32(w)), true
		} else if w == 0 {
			e.Off = true
		}
	}
	if found {
		return e, nil
	}
	return e, fmt.Errorf("%w: netconf without a device", ErrMalformed)
}
