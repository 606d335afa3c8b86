package endpoint

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// An unanswered ARP or NDP request, or SYN, is repeated after 1000 ms: what takes
// less was answered the first time, on however busy a machine.
const atOnce = 900 * time.Millisecond

// listen answers each connection with the client's address.
func listen(t *testing.T, ns *nstest.NS, addr string) netip.AddrPort {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(t, func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().String()))
			_ = c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// seenAs connects from ns and returns the address that the server saw.
func seenAs(t *testing.T, ns *nstest.NS, to netip.AddrPort) (addr string, took time.Duration) {
	t.Helper()
	start := time.Now()
	var c net.Conn
	var err error
	ns.Do(t, func() { c, err = net.DialTimeout("tcp", to.String(), 5*time.Second) })
	if err != nil {
		t.Errorf("connect to %s: %v", to, err)
		return "", 0
	}
	took = time.Since(start)
	defer c.Close()
	b := make([]byte, 100)
	n, _ := c.Read(b)
	return string(b[:n]), took
}

// awaitOwn waits for ns to know addr as its own. For IPv6 the kernel leaves that
// to a worker (addrconf_dad_work), which a busy machine may run after Add's end.
func awaitOwn(t *testing.T, ns *nstest.NS, addr string) {
	t.Helper()
	h := ns.Handle(t)
	for {
		rs, err := h.RouteGet(net.ParseIP(addr))
		if err == nil && len(rs) > 0 && rs[0].Type == unix.RTN_LOCAL {
			return
		}
		if t.Context().Err() != nil {
			t.Fatalf("%s never became local: %v, %v", addr, rs, err)
		}
		runtime.Gosched()
	}
}

func addLoAddr(t testing.TB, ns *nstest.NS, addrs ...string) {
	t.Helper()
	h := ns.Handle(t)
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range addrs {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.AddrAdd(lo, a); err != nil {
			t.Fatal(err)
		}
	}
}

// Note that this node has no default route: the kernel's proxy ARP alone would
// answer nothing for 169.254.1.1 here.
func TestEverybodyIsReachedAtOnce(t *testing.T) {
	nstest.Require(t)
	node, a, b := newNode(t), nstest.NewBare(t), nstest.NewBare(t)
	p := newPlumber(t, node)
	mustAdd(t, p, newSpec(a, "10.244.0.5", "fd00:10::5"))
	mustAdd(t, p, newSpec(b, "10.244.0.6", "fd00:10::6"))
	for _, c := range []struct {
		what     string
		from, to *nstest.NS
		addr     string
		seen     string // empty: any
	}{
		{"pod to node", a, node, "192.0.2.1", "10.244.0.5"},
		{"pod to node, IPv6", a, node, "2001:db8::1", "fd00:10::5"},
		{"node to pod", node, b, "10.244.0.6", "192.0.2.1"},
		{"node to pod, IPv6", node, b, "fd00:10::6", ""},
		{"pod to pod", a, b, "10.244.0.6", "10.244.0.5"},
		{"pod to pod, IPv6", a, b, "fd00:10::6", "fd00:10::5"},
		{"back", b, a, "10.244.0.5", "10.244.0.6"},
		{"pod to itself", a, a, "10.244.0.5", "10.244.0.5"},
		{"pod's loopback", a, a, "127.0.0.1", "127.0.0.1"},
	} {
		awaitOwn(t, c.to, c.addr)
		if c.seen != "" {
			awaitOwn(t, c.from, c.seen)
		}
		seen, took := seenAs(t, c.from, listen(t, c.to, c.addr))
		if c.seen != "" && seen != c.seen {
			t.Errorf("%s: seen as %s, want %s", c.what, seen, c.seen)
		}
		if took > atOnce {
			t.Errorf("%s: the first packet took %s", c.what, took)
		}
	}
}

// A pod that has lost its neighbour entry asks, and is answered at once.
func TestTheGatewayAnswersARPAtOnce(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	// Proxy ARP answers only for what is routed elsewhere.
	h := node.Handle(t)
	uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "fabric"}
	if err := h.LinkAdd(uplink); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(uplink); err != nil {
		t.Fatal(err)
	}
	fabric, err := h.LinkByName("fabric")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(fabric); err != nil {
		t.Fatal(err)
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	if err := h.RouteAdd(&netlink.Route{LinkIndex: uplink.Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: all.Addr().AsSlice(), Mask: net.CIDRMask(0, 32)}}); err != nil {
		t.Fatal(err)
	}
	p := newPlumber(t, node)
	mustAdd(t, p, newSpec(pod, "10.244.0.5"))
	server := listen(t, node, "192.0.2.1")
	inPod := pod.Handle(t)
	eth0, err := inPod.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	var total time.Duration
	// The default proxy_delay is up to 800 ms each time: eight in atOnce would
	// need the luck of one in fifteen thousand.
	for range 8 {
		if err := inPod.NeighDel(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: Gateway4.AsSlice()}); err != nil {
			t.Fatal(err)
		}
		_, took := seenAs(t, pod, server)
		total += took
	}
	if total > atOnce {
		t.Errorf("eight ARP requests took %s", total)
	}
}
