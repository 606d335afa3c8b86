package tunnel

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/bgp"
)

// fabric is nodes 1, 2, ..., each on a subnet of its own of a router that knows
// nothing of pods. Node i is 192.0.i.1 and 2001:db8:i::1, has the block
// 10.244.i.0/24 and fd00:i::/64, of which .1 and ::1 are its own and .2 and ::2
// its pod's.
type fabric struct {
	router *host
	nodes  []*node
}

type node struct {
	*host
	number int
	local  netip.Addr // on the underlay
	pod    *host
	d      *Devices
}

// newFabric has three nodes with devices of these kinds, and no routes to blocks.
func newFabric(t *testing.T, kinds bgp.Encapsulations, ipv6Underlay bool) *fabric {
	t.Helper()
	nstest.Require(t)
	f := &fabric{router: &host{t, nstest.New(t)}}
	forward(f.router)
	for i := 1; i <= 3; i++ {
		n := &node{host: &host{t, nstest.New(t)}, number: i, pod: &host{t, nstest.New(t)}}
		f.nodes = append(f.nodes, n)
		forward(n.host)
		join(f.router, fmt.Sprintf("node%d", i), n.host, "up0")
		join(n.host, "pod0", n.pod, "eth0")
		f.router.ip(fmt.Sprintf("addr add 192.0.%d.254/24 dev node%d", i, i), fmt.Sprintf("addr add 2001:db8:%d::fe/64 dev node%d nodad", i, i))
		n.ip(fmt.Sprintf("addr add 192.0.%d.1/24 dev up0", i), fmt.Sprintf("addr add 2001:db8:%d::1/64 dev up0 nodad", i),
			fmt.Sprintf("route add default via 192.0.%d.254", i), fmt.Sprintf("route add default via 2001:db8:%d::fe", i),
			"addr add 169.254.1.1/32 dev pod0", "addr add fe80::1/64 dev pod0 nodad",
			fmt.Sprintf("route add 10.244.%d.2 dev pod0", i), fmt.Sprintf("route add fd00:%d::2 dev pod0", i))
		n.pod.ip(fmt.Sprintf("addr add 10.244.%d.2/32 dev eth0", i), fmt.Sprintf("addr add fd00:%d::2/128 dev eth0 nodad", i),
			"route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1", "route add default via fe80::1 dev eth0")
		n.d = n.devices()
	}
	for _, n := range f.nodes {
		n.local = n.nodeAddr(4)
		if ipv6Underlay {
			n.local = n.nodeAddr(6)
		}
	}
	for _, n := range f.nodes {
		want := Desired{Kinds: kinds, Local: n.local, UplinkMTU: 1500, Addrs: addrs(n.own(4), n.own(6))}
		for _, other := range f.nodes {
			if other != n {
				want.Peers = append(want.Peers, Peer{other.local, []netip.Addr{other.gateway(4), other.gateway(6)}})
			}
		}
		must(t, n.d.Sync(t.Context(), want))
	}
	return f
}

// nodeAddr is BGP's next hop to the node, gateway what routes through a tunnel name.
func (n *node) nodeAddr(family int) netip.Addr {
	if family == 4 {
		return netip.MustParseAddr(fmt.Sprintf("192.0.%d.1", n.number))
	}
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::1", n.number))
}

func (n *node) gateway(family int) netip.Addr { return Gateway(n.nodeAddr(family), n.local) }

// own is the node's address on the tunnels, podAddr its pod's.
func (n *node) own(family int) string { return n.address(family, 1) }

func (n *node) podAddr(family int) string { return n.address(family, 2) }

func (n *node) address(family, last int) string {
	if family == 4 {
		return fmt.Sprintf("10.244.%d.%d", n.number, last)
	}
	return fmt.Sprintf("fd00:%d::%d", n.number, last)
}

// route has a node reach other's block through a device, or natively by way of
// the router if that is "up0".
func (n *node) route(other *node, device string) {
	n.t.Helper()
	way := func(family int, router string) string {
		if device == "up0" {
			return fmt.Sprintf("via %s dev up0", router)
		}
		return fmt.Sprintf("via %s dev %s onlink", other.gateway(family), device)
	}
	n.ip(fmt.Sprintf("route replace 10.244.%d.0/24 %s", other.number, way(4, fmt.Sprintf("192.0.%d.254", n.number))))
	if device != "hop.ipip" {
		n.ip(fmt.Sprintf("route replace fd00:%d::/64 %s", other.number, way(6, fmt.Sprintf("2001:db8:%d::fe", n.number))))
	}
}

// routeAll does so between all nodes.
func (f *fabric) routeAll(device string) {
	for _, n := range f.nodes {
		for _, other := range f.nodes {
			if n != other {
				n.route(other, device)
			}
		}
	}
}

// native has the router know where the blocks are.
func (f *fabric) native() {
	for _, n := range f.nodes {
		f.router.ip(fmt.Sprintf("route add 10.244.%d.0/24 via 192.0.%d.1", n.number, n.number), fmt.Sprintf("route add fd00:%d::/64 via 2001:db8:%d::1", n.number, n.number))
	}
}

func forward(h *host) {
	for _, setting := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		h.ns.SetSysctl(h.t, setting, "1")
	}
	h.ns.SetSysctl(h.t, "net/ipv4/conf/all/rp_filter", "0")
	h.ns.SetSysctl(h.t, "net/ipv4/conf/default/rp_filter", "0")
	h.ns.SetSysctl(h.t, "net/ipv6/conf/default/accept_dad", "0") // which would take a second
}

// join makes a veth pair, both ends up.
func join(a *host, name string, b *host, peer string) {
	a.t.Helper()
	a.ip(fmt.Sprintf("link add %s type veth peer name %s netns %s", name, peer, b.ns.Path), fmt.Sprintf("link set %s up", name))
	b.ip(fmt.Sprintf("link set %s up", peer))
}

// ping sends one packet of that many bytes, all headers of IP counted, that must
// not be fragmented, and returns what ping(8) says if no answer comes.
func (h *host) ping(to string, bytes int, options ...string) (complaint string) {
	h.t.Helper()
	headers := 20 + 8
	if strings.Contains(to, ":") {
		headers = 40 + 8
	}
	args := append([]string{"-n", "-c", "1", "-W", "5", "-M", "do", "-s", fmt.Sprint(bytes - headers)}, options...)
	out, err := h.try("", "ping", append(args, to)...)
	if err != nil {
		return out
	}
	return ""
}

func (h *host) reaches(to string, bytes int, options ...string) {
	h.t.Helper()
	if complaint := h.ping(to, bytes, options...); complaint != "" {
		h.t.Errorf("%d bytes do not reach %s:\n%s", bytes, to, complaint)
	}
}

// capture returns what passes a device, both ways, while f runs: packets from
// their IP header on.
func (h *host) capture(device string, f func()) [][]byte {
	h.t.Helper()
	var fd int
	var err error
	h.ns.Do(h.t, func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, int(networkOrder(unix.ETH_P_ALL)))
	})
	must(h.t, err)
	defer unix.Close(fd)
	must(h.t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20))
	must(h.t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: h.index(device)}))
	f()
	var packets [][]byte
	for {
		buf := make([]byte, 2048)
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EAGAIN {
			return packets
		}
		must(h.t, err)
		switch protocol := from.(*unix.SockaddrLinklayer).Protocol; protocol {
		case networkOrder(unix.ETH_P_IP), networkOrder(unix.ETH_P_IPV6):
			packets = append(packets, buf[:n])
		}
	}
}

func networkOrder(v uint16) uint16 { return v>>8 | v<<8 }

// sends sends that many bytes over TCP to another's address, and checks that as
// many arrive.
func (h *host) sends(other *host, to string, bytes int) {
	h.t.Helper()
	var l net.Listener
	var err error
	other.ns.Do(h.t, func() { l, err = net.Listen("tcp", net.JoinHostPort(to, "0")) })
	must(h.t, err)
	defer l.Close()
	received := make(chan int64, 1)
	go func() {
		n := int64(-1)
		if conn, err := l.Accept(); err == nil {
			n, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
		received <- n
	}()
	var conn net.Conn
	h.ns.Do(h.t, func() { conn, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second) })
	must(h.t, err)
	must(h.t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = conn.Write(make([]byte, bytes))
	must(h.t, err)
	must(h.t, conn.Close())
	if n := <-received; n != int64(bytes) {
		h.t.Errorf("%d bytes of %d arrived at %s", n, bytes, to)
	}
}
