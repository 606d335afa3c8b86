package nat

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// world is a node between two pods of its own (10.244.0.2, 10.250.0.2 and their
// IPv6) and a machine that is, by its addresses, another node (192.0.2.2), a pod
// on it (10.244.1.2) and somewhere outside (198.51.100.1).
type world struct{ node, pod, quiet, out *nstest.NS }

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{nstest.New(t), nstest.New(t), nstest.New(t), nstest.New(t)}
	w.node.SetSysctl(t, "net/ipv4/ip_forward", "1")
	w.node.SetSysctl(t, "net/ipv6/conf/all/forwarding", "1")
	for _, ns := range []*nstest.NS{w.node, w.pod, w.quiet, w.out} {
		ns.SetSysctl(t, "net/ipv6/conf/default/accept_dad", "0")
		ns.SetSysctl(t, "net/ipv6/conf/all/accept_dad", "0")
	}
	join(t, w.node, "hop0123456789a", w.pod)
	join(t, w.node, "hopba987654321", w.quiet)
	join(t, w.node, "uplink", w.out)
	sh(t, w.node, `ip addr add 192.0.2.1/24 dev uplink; ip addr add 2001:db8::1/64 dev uplink nodad
		ip route add 10.244.0.2 dev hop0123456789a; ip route add fd00:244::2 dev hop0123456789a
		ip route add 10.250.0.2 dev hopba987654321
		ip route add 10.244.1.0/24 via 192.0.2.2; ip route add default via 192.0.2.2; ip route add default via 2001:db8::2
		ip addr add 169.254.1.1/32 dev hop0123456789a; ip addr add 169.254.1.1/32 dev hopba987654321
		ip addr add fe80::1/64 dev hop0123456789a nodad`)
	for ns, addr := range map[*nstest.NS]string{w.pod: "10.244.0.2", w.quiet: "10.250.0.2"} {
		sh(t, ns, "ip addr add %s/32 dev peer; ip route add 169.254.1.1 dev peer; ip route add default via 169.254.1.1", addr)
	}
	sh(t, w.pod, "ip addr add fd00:244::2/128 dev peer nodad; ip route add default via fe80::1 dev peer")
	sh(t, w.out, `for a in 192.0.2.2/24 2001:db8::2/64; do ip addr add $a dev peer; done
		for a in 198.51.100.1/32 10.244.1.2/32 2001:db8:ffff::1/128 203.0.113.1/32; do ip addr add $a dev lo; done
		ip route add 10.244.0.0/24 via 192.0.2.1; ip route add 10.250.0.0/24 via 192.0.2.1; ip route add fd00:244::/64 via 2001:db8::1`)
	return w
}

// join makes a veth pair, name in a and "peer" in b, both up.
func join(t *testing.T, a *nstest.NS, name string, b *nstest.NS) {
	t.Helper()
	peer, err := os.Open(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := a.Handle(t).LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer", PeerNamespace: netlink.NsFd(peer.Fd())}); err != nil {
		t.Fatal(err)
	}
	sh(t, a, "ip link set %s up", name)
	sh(t, b, "ip link set peer up")
}

// source connects from one namespace to an address in another, and returns the
// client's address as the server sees it; not valid if nothing arrives.
func source(t *testing.T, from *nstest.NS, bind string, to *nstest.NS, addr string) netip.Addr {
	t.Helper()
	var listener net.Listener
	var err error
	to.Do(t, func() { listener, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var conn net.Conn
	from.Do(t, func() {
		d := net.Dialer{Timeout: 500 * time.Millisecond}
		if bind != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(bind)}
		}
		conn, err = d.Dial("tcp", listener.Addr().String())
	})
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	return server.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

func TestSourceAddressesThatServersSee(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, _ *nstest.NS) {
		w := newWorld(t)
		sh(t, w.node, "iptables-%[1]s -P FORWARD DROP; ip6tables-%[1]s -P FORWARD DROP", m)
		if got := source(t, w.pod, "", w.out, "198.51.100.1"); got.IsValid() {
			t.Fatalf("policy DROP stops nothing: outside saw %s", got)
		}
		mustSync(t, newSyncer(t, w.node, Config{Mode: m}), Desired{
			Pools: twoFamilies.Pools,
			Nodes: append([]netip.Addr{netip.MustParseAddr("2001:db8::2")}, twoFamilies.Nodes...),
		})
		for _, c := range []struct {
			what     string
			from     *nstest.NS
			bind     string
			to       *nstest.NS
			dst, see string
		}{
			{"pod to outside: the node's", w.pod, "", w.out, "198.51.100.1", "192.0.2.1"},
			{"pod to outside, IPv6", w.pod, "", w.out, "2001:db8:ffff::1", "2001:db8::1"},
			{"pod to a node", w.pod, "", w.out, "192.0.2.2", "10.244.0.2"},
			{"pod to a node, IPv6", w.pod, "", w.out, "2001:db8::2", "fd00:244::2"},
			{"pod to its own node", w.pod, "", w.node, "192.0.2.1", "10.244.0.2"},
			{"pod to a pod elsewhere", w.pod, "", w.out, "10.244.1.2", "10.244.0.2"},
			{"pod to a pod here, of another pool", w.pod, "", w.quiet, "10.250.0.2", "10.244.0.2"},
			{"pool without natOutgoing to a node", w.quiet, "", w.out, "192.0.2.2", "10.250.0.2"},
			{"pool without natOutgoing to outside", w.quiet, "", w.out, "198.51.100.1", "10.250.0.2"},
			{"node to a pod", w.node, "192.0.2.1", w.pod, "10.244.0.2", "192.0.2.1"},
			{"a node to a pod", w.out, "192.0.2.2", w.pod, "10.244.0.2", "192.0.2.2"},
			{"outside to a pod", w.out, "203.0.113.1", w.pod, "10.244.0.2", "203.0.113.1"},
		} {
			if got := source(t, c.from, c.bind, c.to, c.dst); got.String() != c.see {
				t.Errorf("%s: %s saw %s, want %s", c.what, c.dst, got, c.see)
			}
		}
	})
}

// A node forwards between two others' pods, but its policy goes on to protect
// whatever else is behind it.
func TestForwardAcceptsTransitOfPodsOnly(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		left, right := nstest.New(t), nstest.New(t)
		node.SetSysctl(t, "net/ipv4/ip_forward", "1")
		join(t, node, "left", left)
		join(t, node, "right", right)
		sh(t, node, "iptables-%s -P FORWARD DROP; ip addr add 192.0.2.1/24 dev left; ip addr add 172.17.0.1/24 dev right; ip route add 10.244.1.0/24 via 192.0.2.2; ip route add 10.244.2.0/24 via 172.17.0.2; ip route add 203.0.113.0/24 via 192.0.2.2", m)
		sh(t, left, "ip addr add 192.0.2.2/24 dev peer; ip addr add 10.244.1.2/32 dev lo; ip addr add 203.0.113.1/32 dev lo; ip route add default via 192.0.2.1")
		sh(t, right, "ip addr add 172.17.0.2/24 dev peer; ip addr add 10.244.2.2/32 dev lo; ip addr add 172.17.0.3/24 dev peer; ip route add default via 172.17.0.1")
		d := Desired{Pools: twoFamilies.Pools, Nodes: append([]netip.Addr{netip.MustParseAddr("172.17.0.3")}, twoFamilies.Nodes...)}
		mustSync(t, newSyncer(t, node, Config{Mode: m}), d)
		for _, c := range []struct {
			what, bind, dst string
			passes          bool
		}{
			{"pod to pod", "10.244.1.2", "10.244.2.2", true},
			{"node to pod", "192.0.2.2", "10.244.2.2", true},
			{"pod to node", "10.244.1.2", "172.17.0.3", true},
			{"node to node", "192.0.2.2", "172.17.0.3", false},
			{"a pod's address to what is no pod", "10.244.1.2", "172.17.0.2", false},
			{"node to what is no pod", "192.0.2.2", "172.17.0.2", false},
			{"outside to a pod of another node", "203.0.113.1", "10.244.2.2", false},
		} {
			if got := arrives(t, left, c.bind, right, c.dst); got != c.passes {
				t.Errorf("%s: passes %v, want %v", c.what, got, c.passes)
			}
		}
	})
}

// arrives reports whether a datagram from bind to dst reaches the other side;
// there is no answer, so that each direction is judged by itself. One between
// pods, which passes, follows on the same path: what has not come before it was dropped.
func arrives(t *testing.T, from *nstest.NS, bind string, to *nstest.NS, dst string) bool {
	t.Helper()
	var in *net.UDPConn
	var err error
	to.Do(t, func() { in, err = net.ListenUDP("udp4", nil) })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	port := in.LocalAddr().(*net.UDPAddr).Port
	send := func(src, dst, text string) {
		from.Do(t, func() {
			var out *net.UDPConn
			if out, err = net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(src)}, &net.UDPAddr{IP: net.ParseIP(dst), Port: port}); err == nil {
				_, err = out.Write([]byte(text))
				out.Close()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	send(bind, dst, "tested")
	send("10.244.1.2", "10.244.2.2", "marker")
	if err := in.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, err := in.Read(buf)
	if err != nil {
		t.Fatal("not even what passes arrived:", err)
	}
	return string(buf[:n]) == "tested"
}
