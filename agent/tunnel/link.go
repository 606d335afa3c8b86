package tunnel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
	"github.com/hoplite-net/hoplite/bgp"
)

// Numbers of the kernel's ABI that golang.org/x/sys does not have.
const (
	confForwarding = 1 // IPV4_DEVCONF_FORWARDING
	confRPFilter   = 8 // IPV4_DEVCONF_RP_FILTER

	conf6AcceptRA = 3  // DEVCONF_ACCEPT_RA
	conf6Disable  = 26 // DEVCONF_DISABLE_IPV6

	genModeNone = 1 // IN6_ADDR_GEN_MODE_NONE

	skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS
)

// link is a device as the kernel tells it. The zero link: there is none.
type link struct {
	index int
	name  string
	kind  string // "vxlan", "ipip", "" for what was not made by rtnetlink
	up    bool
	mtu   int
	mac   mac
	data  map[uint16][]byte // IFLA_INFO_DATA
	conf  []byte            // IPv4's settings, 32-bit words; the first is number 1
	// conf6 are IPv6's settings, of which the first is number 0. Empty where the
	// device cannot have IPv6: off since boot, or an MTU below 1,280.
	conf6   []byte
	genMode byte
}

func (l link) setting(number int) uint32 {
	if len(l.conf) < 4*number {
		return 0
	}
	return word(l.conf[4*(number-1):])
}

func (l link) setting6(number int) uint32 {
	if len(l.conf6) < 4*(number+1) {
		return 0
	}
	return word(l.conf6[4*number:])
}

func (l link) hasIPv6() bool { return len(l.conf6) > 0 }

// ours looks up the device of a kind. It fails with ErrForeign if what bears the
// name is not ours.
func (d *Devices) ours(kind bgp.Encapsulation) (link, error) {
	l, err := d.lookUp(Name(kind))
	if err == nil && l.index != 0 && (l.kind != kind.String() || l.name != Name(kind)) {
		return link{}, fmt.Errorf("%w: %s is a device of type %q: rename or delete it (ip link delete %s)",
			ErrForeign, Name(kind), l.kind, l.name)
	}
	return l, err
}

// lookUp asks for the device of a name. Since Linux 5.5 that may be one that has
// it as an alternative name.
func (d *Devices) lookUp(name string) (link, error) {
	r := ask("look up device "+name, unix.RTM_GETLINK, 0, ifinfo(0, 0)).str(unix.IFLA_IFNAME, name).u32(unix.IFLA_EXT_MASK, skipStats)
	err := d.exchange(r)
	if errors.Is(err, unix.ENODEV) {
		return link{}, nil
	}
	if err != nil {
		return link{}, err
	}
	return parseLink(r.answer)
}

func parseLink(body []byte) (link, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return link{}, fmt.Errorf("the kernel told of a device in %d bytes", len(body))
	}
	attrs := attributes(body[unix.SizeofIfInfomsg:])
	l := link{
		index: int(int32(order.Uint32(body[4:]))),
		name:  unix.ByteSliceToString(attrs[unix.IFLA_IFNAME]),
		up:    order.Uint32(body[8:])&unix.IFF_UP != 0,
		mtu:   int(word(attrs[unix.IFLA_MTU])),
	}
	copy(l.mac[:], attrs[unix.IFLA_ADDRESS])
	info := attributes(attrs[unix.IFLA_LINKINFO])
	l.kind = unix.ByteSliceToString(info[unix.IFLA_INFO_KIND])
	l.data = attributes(info[unix.IFLA_INFO_DATA])
	families := attributes(attrs[unix.IFLA_AF_SPEC])
	l.conf = attributes(families[unix.AF_INET])[unix.IFLA_INET_CONF]
	inet6 := attributes(families[unix.AF_INET6])
	l.conf6 = inet6[unix.IFLA_INET6_CONF]
	if mode := inet6[unix.IFLA_INET6_ADDR_GEN_MODE]; len(mode) > 0 {
		l.genMode = mode[0]
	}
	return l, nil
}

// ifinfo is struct ifinfomsg; the flags given are to be set.
func ifinfo(index int, flags uint32) []byte { return rtnl.IfInfo(index, flags, flags) }

func deleteLink(name string, index int) *request {
	return ask("delete device "+name, unix.RTM_DELLINK, 0, ifinfo(index, 0)).allow(unix.ENODEV)
}
