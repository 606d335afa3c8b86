package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/bgp"
)

func TestVXLANDeviceIsMadeAsDesired(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	h.contains(
		"hop.vxlan: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450", "link/ether 0a:68:c0:00:02:01",
		"vxlan id 4096 local 192.0.2.1", "dstport 4789 nolearning", "ttl auto", " udpcsum noudp6zerocsumtx", "addrgenmode none",
		"inet 10.244.0.1/32 scope global", "inet6 fd00:1::1/128 scope global nodad",
		"192.0.2.2 lladdr 0a:68:c0:00:02:02 PERMANENT", "192.0.2.3 lladdr 0a:68:c0:00:02:03 PERMANENT",
		"2001:db8::2 lladdr 0a:68:c0:00:02:02 PERMANENT",
		"0a:68:c0:00:02:02 dst 192.0.2.2 self permanent", "0a:68:c0:00:02:03 dst 192.0.2.3 self permanent",
		"rp_filter=2", "forwarding=1", "accept_ra=0", "disable_ipv6=0",
	)
	h.lacks("2001:db8::4", "fe80:")
	if out := h.run("", "ip", "-6", "route", "show"); strings.Contains(out, "hop.vxlan") {
		t.Errorf("routes in the main table that nobody asked for:\n%s", out)
	}
	want := []Device{{Kind: bgp.VXLAN, Name: "hop.vxlan", Index: h.index("hop.vxlan"), MTU: 1450, Up: true}}
	if got := d.State(); len(got) != 1 || !got[0].equal(want[0]) {
		t.Errorf("state %v, want %v", got, want)
	}
	if got := d.Ready(); got != bgp.EncapsulationsOf(bgp.VXLAN) {
		t.Errorf("ready: %v", got)
	}
	if got := fmt.Sprint(d.Addrs()); got != "[10.244.0.1 fd00:1::1]" {
		t.Errorf("addresses %s", got)
	}
}

func TestOverAnIPv6Underlay(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	want.Local = netip.MustParseAddr("2001:db8::1")
	want.Peers = []Peer{{Underlay: netip.MustParseAddr("2001:db8::2"), NextHops: addrs("2001:db8::2")}}
	must(t, d.Sync(t.Context(), want))
	other := MAC(netip.MustParseAddr("2001:db8::2")).String()
	h.contains("mtu 1430", "local 2001:db8::1", MAC(want.Local).String(), other+" dst 2001:db8::2 self permanent",
		"2001:db8::2 lladdr "+other+" PERMANENT", "inet 10.244.0.1/32")
	if told := h.told(func() { must(t, d.Sync(t.Context(), want)) }); len(told) > 0 {
		t.Errorf("a second Sync: notifications of types %v", told)
	}
}

func TestSecondSyncChangesNothing(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	h.unchanged(func() { must(t, d.Sync(t.Context(), two())) })
}

func TestRestartChangesNothing(t *testing.T) {
	h := newHost(t)
	first := h.devices()
	must(t, first.Sync(t.Context(), two()))
	second := h.devices()
	h.unchanged(func() {
		must(t, second.Load(t.Context()))
		if got := fmt.Sprint(second.Addrs()); got != "[10.244.0.1 fd00:1::1]" {
			t.Errorf("after Load, addresses %s", got)
		}
		if state := second.State(); second.Ready() != bgp.EncapsulationsOf(bgp.VXLAN) || len(state) != 1 || !state[0].equal(first.State()[0]) {
			t.Errorf("after Load, state %v, ready %v", second.State(), second.Ready())
		}
		must(t, second.Sync(t.Context(), two()))
	})
}

func TestLoadOfNothing(t *testing.T) {
	d := newHost(t).devices()
	must(t, d.Load(t.Context()))
	if len(d.State()) > 0 || len(d.Addrs()) > 0 || d.Ready() != 0 {
		t.Errorf("state %v, addresses %v, ready %v", d.State(), d.Addrs(), d.Ready())
	}
}

// TestChangesKeepTheDevice: routes go by its index.
func TestChangesKeepTheDevice(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Desired)
		want   []string
		gone   []string
	}{
		{
			"address", func(d *Desired) { d.Addrs = addrs("10.244.9.1", "fd00:9::1") },
			[]string{"inet 10.244.9.1/32", "inet6 fd00:9::1/128"}, []string{"10.244.0.1", "fd00:1::1"},
		},
		{
			"IPv6 off", func(d *Desired) { d.Addrs = addrs("10.244.0.1"); d.Peers = d.Peers[1:2] },
			[]string{"inet 10.244.0.1/32", "disable_ipv6=1"}, []string{"inet6", "2001:db8::2"},
		},
		{
			"no IPv6 address of its own", func(d *Desired) { d.Addrs = addrs("10.244.0.1") },
			[]string{"disable_ipv6=0", "2001:db8::2 lladdr 0a:68:c0:00:02:02"}, []string{"inet6"},
		},
		{"MTU", func(d *Desired) { d.UplinkMTU = 9000 }, []string{"mtu 8950"}, []string{"mtu 1450"}},
		{"unknown MTU", func(d *Desired) { d.UplinkMTU = 0 }, []string{"mtu 1450"}, nil},
		{
			"node address", func(d *Desired) { d.Local = netip.MustParseAddr("192.0.2.77") },
			[]string{"local 192.0.2.77", "link/ether 0a:68:c0:00:02:4d"}, []string{"192.0.2.1 ", "0a:68:c0:00:02:01"},
		},
		{
			"peer gone", func(d *Desired) { d.Peers = d.Peers[:1] },
			[]string{"dst 192.0.2.2 "}, []string{"192.0.2.3", "0a:68:c0:00:02:03"},
		},
		{
			"peer's address", func(d *Desired) { d.Peers[0].Underlay = netip.MustParseAddr("192.0.2.9") },
			[]string{"192.0.2.2 lladdr 0a:68:c0:00:02:09", "2001:db8::2 lladdr 0a:68:c0:00:02:09", "0a:68:c0:00:02:09 dst 192.0.2.9 "},
			[]string{"0a:68:c0:00:02:02"},
		},
		{"no peers", func(d *Desired) { d.Peers = nil }, nil, []string{"PERMANENT", "permanent"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			d := h.devices()
			must(t, d.Sync(t.Context(), two()))
			index := h.index("hop.vxlan")
			want := two()
			c.change(&want)
			must(t, d.Sync(t.Context(), want))
			h.contains(c.want...)
			h.lacks(c.gone...)
			if now := h.index("hop.vxlan"); now != index {
				t.Errorf("the device had index %d and has %d", index, now)
			}
			h.unchanged(func() { must(t, d.Sync(t.Context(), want)) })
			must(t, d.Sync(t.Context(), two()))
			if c.name != "node address" && c.name != "MTU" && c.name != "unknown MTU" {
				h.contains("inet 10.244.0.1/32", "inet6 fd00:1::1/128", "2001:db8::2 lladdr 0a:68:c0:00:02:02", "0a:68:c0:00:02:03 dst 192.0.2.3")
			}
		})
	}
}

// TestANewAddressComesBeforeTheOldOneGoes: without an IPv4 address on the device
// the kernel drops the routes through it.
func TestANewAddressComesBeforeTheOldOneGoes(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	h.ip("route add 10.244.7.0/26 via 192.0.2.2 dev hop.vxlan onlink")
	want := two()
	want.Addrs = addrs("10.244.9.1", "fd00:9::1")
	must(t, d.Sync(t.Context(), want))
	if out := h.ip("route show 10.244.7.0/26"); !strings.Contains(out, "hop.vxlan") {
		t.Errorf("the route went with the address; left is %q", out)
	}
}

func TestRemoval(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	want := two()
	want.Kinds = 0
	must(t, d.Sync(t.Context(), want))
	if v := h.view(); v != "" {
		t.Errorf("left:\n%s", v)
	}
	if len(d.State()) > 0 || len(d.Addrs()) > 0 || d.Ready() != 0 {
		t.Errorf("state %v, addresses %v, ready %v", d.State(), d.Addrs(), d.Ready())
	}
	h.unchanged(func() { must(t, d.Sync(t.Context(), want)) })
	must(t, d.Sync(t.Context(), two()))
	h.contains("dst 192.0.2.2 self permanent", "inet 10.244.0.1/32")
}

// TestWhatIsRefusedKeepsNothingElseOut: a multicast address is nobody's own.
func TestWhatIsRefusedKeepsNothingElseOut(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	want.Addrs = addrs("ff02::99", "10.244.0.1")
	for range 2 {
		if err := d.Sync(t.Context(), want); err == nil || !strings.Contains(err.Error(), "add address ff02::99/128 to hop.vxlan") {
			t.Fatalf("Sync: %v", err)
		}
	}
	h.contains("192.0.2.2 lladdr 0a:68:c0:00:02:02", "192.0.2.3 lladdr 0a:68:c0:00:02:03", "dst 192.0.2.3 self permanent", "inet 10.244.0.1/32")
	if state := d.State(); state[0].Err == nil || d.Ready() != bgp.EncapsulationsOf(bgp.VXLAN) {
		t.Errorf("state %v, ready %v", state, d.Ready())
	}
	must(t, d.Sync(t.Context(), two()))
	if state := d.State(); state[0].Err != nil {
		t.Errorf("state %v", state)
	}
}

// TestAPeerOfTheOtherFamilyHasNoEntry and one with the MAC of another is reported.
func TestPeersThatCannotBeReached(t *testing.T) {
	want := two()
	want.Peers[1].Underlay = netip.MustParseAddr("2001:db8::3")
	e, err := want.clean().entries(true)
	if err != nil || len(e.fdb) != 1 || len(e.neighbours) != 2 {
		t.Errorf("%v, %v", e, err)
	}
	// The peers of one family collide only in IPv6, by chance; here they do by
	// the other family's address.
	e = entries{fdb: map[mac]netip.Addr{}, neighbours: map[netip.Addr]mac{}}
	if e.add(Peer{Underlay: netip.MustParseAddr("192.0.2.1")}, true) != nil {
		t.Error("the first is refused")
	}
	e.fdb[macOf(netip.MustParseAddr("192.0.2.2"))] = netip.MustParseAddr("2001:db8::9")
	if e.add(Peer{Underlay: netip.MustParseAddr("192.0.2.2")}, true) == nil {
		t.Error("two nodes have one MAC, and nobody says so")
	}
}

// TestChecksumOffload: ethtool(8)'s features, as the kernel shows them.
func TestChecksumOffload(t *testing.T) {
	h := newHost(t)
	for _, on := range []bool{false, true, false} {
		d := h.devicesWith(Config{VXLANChecksumOffload: on})
		must(t, d.Sync(t.Context(), two()))
		if got := h.checksumOffload("hop.vxlan"); got != on {
			t.Errorf("offload is %v, want %v", got, on)
		}
		if !h.checksumOffload("up0") {
			t.Error("the uplink's was switched off, too")
		}
		h.unchanged(func() { must(t, d.Sync(t.Context(), two())) })
	}
}

func TestChangedTells(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	told := func() bool {
		select {
		case <-d.Changed():
			return true
		default:
			return false
		}
	}
	must(t, d.Sync(t.Context(), two()))
	if !told() {
		t.Error("nothing was said of a device that was made")
	}
	must(t, d.Sync(t.Context(), two()))
	if told() {
		t.Error("a change was told of that was none")
	}
	for name, change := range map[string]func(*Desired){
		"MTU": func(w *Desired) { w.UplinkMTU = 1400 }, "address": func(w *Desired) { w.Addrs = w.Addrs[:1] }, "removal": func(w *Desired) { w.Kinds = 0 },
	} {
		must(t, d.Sync(t.Context(), two()))
		told()
		want := two()
		change(&want)
		must(t, d.Sync(t.Context(), want))
		if !told() {
			t.Errorf("nothing was said of a change: %s", name)
		}
	}
}

func TestEndedContext(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	ctx, cancel := contextWithDeadline(t, time.Unix(1, 0))
	defer cancel()
	if err := d.Sync(ctx, two()); !errors.Is(err, ctx.Err()) {
		t.Errorf("Sync: %v", err)
	}
	if v := h.view(); v != "" {
		t.Errorf("made all the same:\n%s", v)
	}
}
