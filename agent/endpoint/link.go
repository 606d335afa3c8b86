package endpoint

import (
	"bytes"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"

	wire "github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// link is what the kernel says of a link.
type link struct {
	name  string
	index int
	// peer is the index of a veth's other end, in that one's namespace.
	peer  int
	nsid  int // of the peer's namespace as seen from here, -1 if unknown
	up    bool
	mtu   int
	mac   net.HardwareAddr
	alias string
	group uint32
	conf  []byte // struct of IPv4 settings, one uint32 each, from IPV4_DEVCONF 1
}

// delLinkByName is for a link whose index never became known.
func delLinkByName(name string) *request {
	return newRequest("delete link "+name, unix.RTM_DELLINK, 0, wire.IfInfo(0, 0, 0)).
		str(unix.IFLA_IFNAME, name).allow(unix.ENODEV)
}

// link looks up one of the node's links; unix.ENODEV says that there is none.
func (p *Plumber) link(name string) (link, error) {
	r := getLink(name)
	if err := p.sockets.exchange(r); err != nil {
		return link{}, err
	}
	return r.link()
}

// link reads the answer to getLink.
func (r *request) link() (link, error) {
	if len(r.answers) == 0 {
		return link{}, fmt.Errorf("%s: no answer", r.what)
	}
	return parseLink(r.answers[0])
}

// parseLink reads struct ifinfomsg and its attributes.
func parseLink(b []byte) (link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, fmt.Errorf("link of %d bytes from the kernel", len(b))
	}
	l := link{index: int(int32(order.Uint32(b[4:]))), up: order.Uint32(b[8:])&unix.IFF_UP != 0, nsid: -1}
	l.peer = l.index
	for typ, v := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch {
		case typ == unix.IFLA_IFNAME:
			l.name = cstring(v)
		case typ == unix.IFLA_IFALIAS:
			l.alias = cstring(v)
		case typ == unix.IFLA_ADDRESS:
			l.mac = bytes.Clone(v)
		case typ == unix.IFLA_AF_SPEC:
			l.conf = bytes.Clone(attrs(attrs(v)[unix.AF_INET])[inetConf])
		case len(v) != 4:
		case typ == unix.IFLA_LINK:
			l.peer = int(int32(order.Uint32(v)))
		case typ == unix.IFLA_LINK_NETNSID:
			l.nsid = int(int32(order.Uint32(v)))
		case typ == unix.IFLA_MTU:
			l.mtu = int(order.Uint32(v))
		case typ == unix.IFLA_GROUP:
			l.group = order.Uint32(v)
		}
	}
	return l, nil
}

// setting is one of the link's IPv4 settings.
func (l link) setting(devconf int) string {
	if len(l.conf) < 4*devconf {
		return "unknown"
	}
	return strconv.Itoa(int(int32(order.Uint32(l.conf[4*(devconf-1):]))))
}

// owner says whose the link is, and whether it is k's host veth. Its alias is
// the truth; a link whose alias somebody changed is still ours if it is the very
// one that we know.
func (l link) owner(k Key, known Endpoint) (owner, bool) {
	if o, ok := parseAlias(l.alias); ok {
		return o, o.Key == k
	}
	return owner{Key: k, Addrs: known.Addrs, Pod: known.Pod}, known.HostIndex == l.index
}
