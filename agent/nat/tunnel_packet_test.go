package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// outer is a tunnel packet to be sent.
type outer struct {
	protocol int // unix.IPPROTO_UDP (VXLAN) or unix.IPPROTO_IPIP
	src, dst netip.Addr
	port     int
	vni      int
	options  []byte // IPv4 options, or an IPv6 destination options header
}

func vxlan(src, dst string, vni int) outer {
	return outer{protocol: unix.IPPROTO_UDP, src: netip.MustParseAddr(src), dst: netip.MustParseAddr(dst), port: 4789, vni: vni}
}

func ipip(src, dst string) outer {
	return outer{protocol: unix.IPPROTO_IPIP, src: netip.MustParseAddr(src), dst: netip.MustParseAddr(dst)}
}

func (o outer) with(options []byte) outer { o.options = options; return o }

func (o outer) to(port int) outer { o.port = port; return o }

// payload is the VXLAN header (RFC 7348 section 5), if it has one, and text.
func (o outer) payload(text string) []byte {
	var b []byte
	if o.protocol == unix.IPPROTO_UDP {
		b = binary.BigEndian.AppendUint32(b, 1<<27)
		b = binary.BigEndian.AppendUint32(b, uint32(o.vni)<<8)
	}
	return append(b, text...)
}

// socket is one of o's protocol in ns, bound to addr.
func (o outer) socket(t *testing.T, ns *nstest.NS, addr netip.Addr, port int) (fd int) {
	t.Helper()
	typ, protocol := unix.SOCK_DGRAM, 0
	if o.protocol != unix.IPPROTO_UDP {
		typ, protocol = unix.SOCK_RAW, o.protocol
	}
	domain := unix.AF_INET
	if addr.Is6() {
		domain = unix.AF_INET6
	}
	var err error
	ns.Do(t, func() { fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC, protocol) })
	if err == nil {
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, sockaddr(addr, port)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

func (o outer) send(t *testing.T, from *nstest.NS, text string) {
	t.Helper()
	fd := o.socket(t, from, o.src, 0)
	defer unix.Close(fd)
	var err error
	if o.options != nil {
		level, option := unix.IPPROTO_IP, unix.IP_OPTIONS
		if o.src.Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS
		}
		err = unix.SetsockoptString(fd, level, option, string(o.options))
	}
	if err == nil {
		err = unix.Sendto(fd, o.payload(text), 0, sockaddr(o.dst, o.port))
	}
	if err != nil {
		t.Fatalf("send from %s to %s: %v", o.src, o.dst, err)
	}
}

// arrivesAt reports whether o gets to a socket in to. Then marker is sent, on
// the same path, which must arrive: what has not come before it was dropped.
func (o outer) arrivesAt(t *testing.T, to, from *nstest.NS, marker outer) bool {
	t.Helper()
	in := o.socket(t, to, o.dst, o.port)
	defer unix.Close(in)
	if marker.port != o.port {
		t.Fatal("the marker goes to another port")
	}
	o.send(t, from, "tested")
	marker.send(t, from, "marker")
	deadline := unix.NsecToTimeval((10 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &deadline); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 200)
	n, _, err := unix.Recvfrom(in, buf, 0)
	if err != nil {
		t.Fatal("not even what passes arrived:", os.NewSyscallError("recvfrom", err))
	}
	return bytes.HasSuffix(buf[:n], []byte("tested"))
}

// enters says whether a packet gets into the node.
func (w world) enters(t *testing.T, from *nstest.NS, o, marker outer) bool {
	t.Helper()
	return o.arrivesAt(t, w.node, from, marker)
}

// spoofed lets a pod send with any source, as one with CAP_NET_RAW can, and the
// node take that.
func (w world) spoofed(t *testing.T, addrs ...string) {
	t.Helper()
	for _, dev := range []string{"all", "hop0123456789a"} {
		w.node.SetSysctl(t, "net/ipv4/conf/"+dev+"/rp_filter", "0")
	}
	for _, a := range addrs {
		sh(t, w.pod, "ip addr add %s dev lo nodad 2>/dev/null || ip addr add %[1]s dev lo", a)
	}
}

func TestTunnelPacketsAreTakenFromNodesOnly(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, _ *nstest.NS) {
		w := newWorld(t)
		w.spoofed(t, "192.0.2.2/32", "2001:db8::2/128")
		d := bothTunnels
		d.Nodes = append([]netip.Addr{netip.MustParseAddr("2001:db8::2")}, d.Nodes...)
		mustSync(t, newSyncer(t, w.node, Config{Mode: m}), d)
		const node, node6 = "192.0.2.1", "2001:db8::1"
		padding4 := []byte{1, 1, 1, 1}             // RFC 791: no operation
		padding6 := []byte{0, 0, 1, 4, 0, 0, 0, 0} // RFC 8200: PadN
		other, other6 := vxlan("192.0.2.2", node, 42), vxlan("2001:db8::2", node6, 42)
		fromPod, fromPod6 := vxlan("10.244.0.2", node, 42), vxlan("fd00:244::2", node6, 42)
		for _, c := range []struct {
			what   string
			from   *nstest.NS
			packet outer
			marker outer
			enters bool
		}{
			{"VXLAN of a node", w.out, vxlan("192.0.2.2", node, vxlanVNI), other, true},
			{"VXLAN of a node, IPv6", w.out, vxlan("2001:db8::2", node6, vxlanVNI), other6, true},
			{"VXLAN of a node with IP options", w.out, vxlan("192.0.2.2", node, vxlanVNI).with(padding4), other, true},
			{"VXLAN from outside", w.out, vxlan("198.51.100.1", node, vxlanVNI), other, false},
			{"VXLAN from outside, IPv6", w.out, vxlan("2001:db8:ffff::1", node6, vxlanVNI), other6, false},
			{"VXLAN from outside with IP options", w.out, vxlan("198.51.100.1", node, vxlanVNI).with(padding4), other, false},
			{"VXLAN from outside with an extension header", w.out, vxlan("2001:db8:ffff::1", node6, vxlanVNI).with(padding6), other6, false},
			{"VXLAN from a pod elsewhere", w.out, vxlan("10.244.1.2", node, vxlanVNI), other, false},
			{"VXLAN from a pod here", w.pod, vxlan("10.244.0.2", node, vxlanVNI), fromPod, false},
			{"VXLAN from a pod here, IPv6", w.pod, vxlan("fd00:244::2", node6, vxlanVNI), fromPod6, false},
			{"VXLAN from a pod here in a node's name", w.pod, vxlan("192.0.2.2", node, vxlanVNI), fromPod, false},
			{"VXLAN from a pod here in a node's name, IPv6", w.pod, vxlan("2001:db8::2", node6, vxlanVNI), fromPod6, false},
			{"another network from outside", w.out, vxlan("198.51.100.1", node, 42), other, true},
			{"another network from outside, IPv6", w.out, vxlan("2001:db8:ffff::1", node6, 42), other6, true},
			{"a network that ends like ours", w.out, vxlan("198.51.100.1", node, 1<<16|vxlanVNI), other, true},
			{"another network from outside with IP options", w.out, vxlan("198.51.100.1", node, 42).with(padding4), other, true},
			{"another port", w.out, vxlan("198.51.100.1", node, vxlanVNI).to(4790), other.to(4790), true},
			{"IPIP of a node", w.out, ipip("192.0.2.2", node), ipip("192.0.2.2", node), true},
			{"IPIP from outside", w.out, ipip("198.51.100.1", node), ipip("192.0.2.2", node), false},
			{"IPIP from a pod elsewhere", w.out, ipip("10.244.1.2", node), ipip("192.0.2.2", node), false},
		} {
			if got := w.enters(t, c.from, c.packet, c.marker); got != c.enters {
				t.Errorf("%s: enters %v, want %v", c.what, got, c.enters)
			}
		}
	})
}

// What a pod sends in a node's name must not get to other nodes, which cannot tell.
func TestPodsSendNoTunnelPacketsInANodesName(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, _ *nstest.NS) {
		w := newWorld(t)
		w.spoofed(t, "192.0.2.3/32", "2001:db8::3/128")
		d := bothTunnels
		d.Nodes = append([]netip.Addr{netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("192.0.2.3")}, d.Nodes...)
		mustSync(t, newSyncer(t, w.node, Config{Mode: m}), d)
		const node, node6 = "192.0.2.2", "2001:db8::2"
		for _, c := range []struct {
			what           string
			packet, marker outer
			arrives        bool
		}{
			{"VXLAN", vxlan("192.0.2.3", node, vxlanVNI), vxlan("10.244.0.2", node, vxlanVNI), false},
			{"VXLAN, IPv6", vxlan("2001:db8::3", node6, vxlanVNI), vxlan("fd00:244::2", node6, vxlanVNI), false},
			{"IPIP", ipip("192.0.2.3", node), ipip("10.244.0.2", node), false},
			{"another port", vxlan("192.0.2.3", node, vxlanVNI).to(4790), vxlan("10.244.0.2", node, vxlanVNI).to(4790), true},
			{"VXLAN to what is no node", vxlan("192.0.2.3", "10.244.1.2", vxlanVNI), vxlan("10.244.0.2", "10.244.1.2", vxlanVNI), true},
		} {
			if got := c.packet.arrivesAt(t, w.out, w.pod, c.marker); got != c.arrives {
				t.Errorf("%s: arrives %v, want %v", c.what, got, c.arrives)
			}
		}
	})
}
