package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/bgp"
)

// TestIPIP is what is promised of hop.ipip. Not every kernel has such devices; on
// one that has none there is a promise, too, and that is tested then. The tests
// are run on a kernel with them as well, and HOPLITE_KERNEL says so.
func TestIPIP(t *testing.T) {
	nstest.Require(t)
	if h := newHost(t); !h.hasIPIP() {
		if os.Getenv("HOPLITE_KERNEL") == "uml" {
			t.Fatal("the second kernel is there for its IPIP, and has none")
		}
		t.Run("unsupported", testWithoutIPIP)
		return
	}
	t.Run("device", testIPIPDevice)
	t.Run("changes", testIPIPChanges)
	t.Run("tunl0", testTunl0IsLeftAlone)
	t.Run("foreign", testForeignIPIP)
	t.Run("repair", testIPIPRepair)
	t.Run("pods", testPodsReachEachOtherThroughIPIP)
	t.Run("path MTU", testIPIPPathMTU)
	t.Run("low TTL", testIPIPIsOneHop)
	t.Run("loose", testIPIPLooseReversePathFilter)
	t.Run("both", testConnectionOutlivesChangeOfTunnel)
}

func (h *host) hasIPIP() bool {
	h.t.Helper()
	out, err := h.try("", "ip", "link", "add", "probe", "type", "ipip", "local", "192.0.2.99")
	if err == nil {
		h.ip("link del probe")
	} else if !strings.Contains(out, "Unknown device type") {
		h.t.Fatal(out)
	}
	return err == nil
}

var both = bgp.Tunnels

func testWithoutIPIP(t *testing.T) {
	h := newHost(t)
	at := time.Unix(1e9, 0)
	d := h.devicesWith(Config{Now: func() time.Time { return at }})
	must(t, d.Load(t.Context()))
	want := two()
	want.Kinds = both
	for range 2 {
		must(t, d.Sync(t.Context(), want)) // nobody can do anything about it by trying again
		state := d.State()
		if len(state) != 2 || !errors.Is(state[0].Err, ErrUnsupported) || !strings.Contains(state[0].Err.Error(), "modprobe ipip") || state[0].Index != 0 {
			t.Fatalf("state %v", state)
		}
		if state[1].Err != nil || d.Ready() != vxlanOnly {
			t.Errorf("state %v, ready %v", state, d.Ready())
		}
		at = at.Add(unsupportedPause)
	}
	h.contains("0a:68:c0:00:02:02 dst 192.0.2.2 self permanent")
	must(t, d.Sync(t.Context(), two()))
	if state := d.State(); len(state) != 1 {
		t.Errorf("not wanted any more, and still %v", state)
	}
}

func testIPIPDevice(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	want.Kinds = both
	must(t, d.Sync(t.Context(), want))
	ipip := h.run("", "ip", "-d", "-o", "link", "show", "hop.ipip") + h.run("", "ip", "-o", "addr", "show", "hop.ipip")
	for _, w := range []string{
		"UP,LOWER_UP> mtu 1480", "ipip ipip remote any local 192.0.2.1 ttl 64 pmtudisc", "inet 10.244.0.1/32 scope global", "inet6 fd00:1::1/128 scope global nodad",
	} {
		if !strings.Contains(ipip, w) {
			t.Errorf("no %q in:\n%s", w, ipip)
		}
	}
	h.contains("net/ipv4/conf/hop.ipip/rp_filter=2", "net/ipv4/conf/hop.ipip/forwarding=1", "net/ipv6/conf/hop.ipip/accept_ra=0", "dst 192.0.2.2 self permanent")
	if state := d.State(); len(state) != 2 || state[0].Kind != bgp.IPIP || state[0].MTU != 1480 || state[0].Err != nil || d.Ready() != both {
		t.Errorf("state %v, ready %v", state, d.Ready())
	}
	if got := fmt.Sprint(d.Addrs()); got != "[10.244.0.1 fd00:1::1]" {
		t.Errorf("addresses %s", got)
	}
	h.unchanged(func() { must(t, d.Sync(t.Context(), want)) })

	second := h.devices()
	h.unchanged(func() {
		must(t, second.Load(t.Context()))
		if second.Ready() != both {
			t.Errorf("after Load, ready: %v", second.Ready())
		}
		must(t, second.Sync(t.Context(), want))
	})

	want.Kinds = vxlanOnly
	must(t, second.Sync(t.Context(), want))
	h.lacks("hop.ipip")
	h.contains("hop.vxlan", "inet 10.244.0.1/32")
}

func testIPIPChanges(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	want.Kinds = bgp.EncapsulationsOf(bgp.IPIP)
	must(t, d.Sync(t.Context(), want))
	index := h.index("hop.ipip")
	want.Local, want.UplinkMTU, want.Addrs = netip.MustParseAddr("192.0.2.77"), 1400, addrs("10.244.9.1")
	must(t, d.Sync(t.Context(), want))
	h.contains("mtu 1380", "local 192.0.2.77 ttl 64", "inet 10.244.9.1/32", "disable_ipv6=1")
	h.lacks("10.244.0.1", "fd00:1::1")
	if h.index("hop.ipip") != index {
		t.Error("the device was made anew")
	}
	h.unchanged(func() { must(t, d.Sync(t.Context(), want)) })
}

// testTunl0IsLeftAlone: it appears in each namespace when the module is loaded.
func testTunl0IsLeftAlone(t *testing.T) {
	h := newHost(t)
	want := two()
	want.Kinds = both
	d := h.devices()
	tunl0 := func() string { out, _ := h.try("", "ip", "-d", "addr", "show", "tunl0"); return out }
	before := tunl0()
	if !strings.Contains(before, "remote any local any") {
		t.Fatalf("there is no tunl0 here: %s", before)
	}
	must(t, d.Sync(t.Context(), want))
	want.Kinds = 0
	must(t, d.Sync(t.Context(), want))
	if after := tunl0(); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
}

func testForeignIPIP(t *testing.T) {
	h := newHost(t)
	want := two()
	want.Kinds = both
	d := h.devices()
	h.ip("link add theirs type ipip local 192.0.2.1 remote any")
	if err := d.Sync(t.Context(), want); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "type ipip") {
		t.Errorf("Sync: %v", err)
	}
	h.ip("link set theirs name hop.ipip")
	must(t, d.Sync(t.Context(), want)) // it is of our type and name, and so ours
	h.contains("ipip ipip remote any local 192.0.2.1 ttl 64")
	h.ip("link del hop.ipip", "link add hop.ipip type bridge")
	if err := d.Sync(t.Context(), want); !errors.Is(err, ErrForeign) {
		t.Errorf("Sync: %v", err)
	}
	if d.Ready() != vxlanOnly {
		t.Errorf("ready: %v", d.Ready())
	}
}

func testIPIPRepair(t *testing.T) {
	want := two()
	want.Kinds = bgp.EncapsulationsOf(bgp.IPIP)
	for _, c := range []damage{
		{"deleted", []string{"link del hop.ipip"}, true},
		{"down", []string{"link set hop.ipip down"}, false},
		{"MTU", []string{"link set hop.ipip mtu 1400"}, false},
		{"renamed", []string{"link set hop.ipip down", "link set hop.ipip name other", "link set other up"}, true},
		{"local address", []string{"link set hop.ipip type ipip local 192.0.2.99"}, false},
		{"a remote", []string{"link del hop.ipip", "link add hop.ipip type ipip local 192.0.2.1 remote 192.0.2.9"}, true},
		{"TTL", []string{"link set hop.ipip type ipip local 192.0.2.1 ttl inherit"}, false},
		{"no path MTU discovery", []string{"link set hop.ipip type ipip local 192.0.2.1 ttl inherit nopmtudisc"}, false},
		{"IPv4 address removed", []string{"addr del 10.244.0.1/32 dev hop.ipip"}, false},
		{"IPv6 address removed", []string{"addr del fd00:1::1/128 dev hop.ipip"}, false},
		{"another address", []string{"addr add 10.9.9.9/32 dev hop.ipip"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, d := running(t, Config{Audit: time.Hour}, want)
			h.repairs(t, d, c)
		})
	}
}

func testPodsReachEachOtherThroughIPIP(t *testing.T) {
	f := newFabric(t, both, false)
	f.routeAll("hop.ipip")
	seen := f.router.capture("node1", func() {
		for _, to := range f.nodes[1:] {
			for _, bytes := range []int{100, 1480} {
				f.nodes[0].pod.reaches(to.podAddr(4), bytes)
				to.pod.reaches(f.nodes[0].podAddr(4), bytes)
				f.nodes[0].reaches(to.podAddr(4), bytes)
			}
			f.nodes[0].pod.sends(to.pod, to.podAddr(4), 1<<20)
			f.nodes[0].sends(to.pod, to.podAddr(4), 1<<20)
		}
	})
	tunnelled := 0
	for _, packet := range seen {
		switch {
		case packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_IPIP:
			tunnelled++
		case isPods(packet):
			t.Errorf("a pod's packet as it is: %x", packet[:40])
		}
	}
	if tunnelled < 2*3*2*2 {
		t.Errorf("%d IPIP packets", tunnelled)
	}
	if said := f.nodes[0].pod.ping(f.nodes[1].podAddr(4), 1481); !strings.Contains(said, "mtu") || !strings.Contains(said, "1480") {
		t.Errorf("a packet of 1481 bytes: %q", said)
	}
}

// testIPIPPathMTU: a router on the way has a smaller MTU than the uplink.
func testIPIPPathMTU(t *testing.T) {
	f := newFabric(t, both, false)
	f.routeAll("hop.ipip")
	f.router.ip("link set node2 mtu 1400")
	pod, to := f.nodes[0].pod, f.nodes[1].podAddr(4)
	pod.reaches(to, 1380)
	// The first tells the node, the next is told to the pod.
	said := ""
	for end := time.Now().Add(10 * time.Second); !strings.Contains(said, "1380") && time.Now().Before(end); {
		said = pod.ping(to, 1480, "-W", "0.2")
	}
	if !strings.Contains(said, "1380") {
		t.Errorf("no word of the smaller MTU reached the pod: %q", said)
	}
}

// testIPIPIsOneHop: what a packet has left of hops is for hops between pods.
func testIPIPIsOneHop(t *testing.T) {
	f := newFabric(t, both, false)
	f.routeAll("hop.ipip")
	// From the pod to its node, to the other node, to the other pod: one is left on
	// arrival. Of the router in between nothing may be taken.
	f.nodes[0].pod.reaches(f.nodes[1].podAddr(4), 100, "-t", "3")
	seen := f.router.capture("node1", func() { f.nodes[0].pod.reaches(f.nodes[1].podAddr(4), 100, "-t", "3") })
	for _, packet := range seen {
		if packet[0]>>4 == 4 && packet[9] == unix.IPPROTO_IPIP && packet[8] < 60 {
			t.Errorf("an outer packet has %d hops left", packet[8])
		}
	}
}

func testIPIPLooseReversePathFilter(t *testing.T) {
	f := newFabric(t, both, false)
	f.native()
	n, other := f.nodes[0], f.nodes[1]
	n.ns.SetSysctl(t, "net/ipv4/conf/all/rp_filter", "1")
	n.route(other, "up0")
	other.route(n, "hop.ipip")
	n.pod.reaches(other.podAddr(4), 100)
}

// testConnectionOutlivesChangeOfTunnel: a host's connection to a pod keeps its
// address when its packets go through the other tunnel.
func testConnectionOutlivesChangeOfTunnel(t *testing.T) {
	f := newFabric(t, both, false)
	f.routeAll("hop.ipip")
	n, other := f.nodes[0], f.nodes[1]
	server := other.pod.echo(other.podAddr(4))
	var conn net.Conn
	var err error
	n.ns.Do(t, func() { conn, err = net.Dial("tcp", server) })
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	for range 2 {
		for _, device := range []string{"hop.ipip", "hop.vxlan"} {
			n.route(other, device)
			other.route(n, device)
			if _, err := conn.Write([]byte(device)); err != nil {
				t.Fatal(err)
			}
			back := make([]byte, len(device))
			if _, err := io.ReadFull(conn, back); err != nil || string(back) != device {
				t.Fatalf("by way of %s: %q, %v", device, back, err)
			}
		}
	}
}

// echo sends back what comes on its first connection.
func (h *host) echo(addr string) string {
	h.t.Helper()
	var l net.Listener
	var err error
	h.ns.Do(h.t, func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	must(h.t, err)
	done := make(chan struct{})
	h.t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

// TestUnsupportedIsAskedAgainNowAndThen: a module may be loaded, but to ask makes
// the kernel look for it.
func TestUnsupportedIsAskedAgainNowAndThen(t *testing.T) {
	h := newHost(t)
	at := time.Unix(1e9, 0)
	d := h.devicesWith(Config{Now: func() time.Time { return at }})
	// No kernel has a device of this type, until it is one that all have.
	const kind = bgp.Encapsulation(99)
	d.devices[kind] = &device{}
	s := spec{encap: kind, name: "hop.test"}
	refused := func() bool {
		t.Helper()
		_, err := d.create(s)
		return errors.Is(err, ErrUnsupported)
	}
	if !refused() {
		t.Fatal("a device of a type that does not exist was made")
	}
	d.devices[bgp.VXLAN].refused = d.devices[kind].refused
	s, err := two().spec(bgp.VXLAN)
	must(t, err)
	at = at.Add(unsupportedPause - 1)
	if !refused() {
		t.Error("asked again at once")
	}
	at = at.Add(1)
	if refused() {
		t.Error("not asked again")
	}
	h.index("hop.vxlan")
}
