package tunnel

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/watch"
	"github.com/hoplite-net/hoplite/bgp"
)

// running is a host with all as desired and Run at work.
func running(t *testing.T, c Config, want Desired) (*host, *Devices) {
	h := newHost(t)
	d := h.devicesWith(c)
	h.start(d)
	must(t, d.Sync(t.Context(), want))
	return h, d
}

// damage is what someone does to a device, in commands of ip(8), or of bridge(8)
// after "bridge".
type damage struct {
	name     string
	commands []string
	remade   bool // it takes another device
}

func TestVXLANIsRepairedWithinASecond(t *testing.T) {
	for _, c := range []damage{
		{"deleted", []string{"link del hop.vxlan"}, true},
		{"down", []string{"link set hop.vxlan down"}, false},
		{"down and up", []string{"link set hop.vxlan down", "link set hop.vxlan up"}, false},
		{"MTU", []string{"link set hop.vxlan mtu 1400"}, false},
		{"MTU too low for IPv6", []string{"link set hop.vxlan mtu 1000"}, false},
		{"MAC", []string{"link set hop.vxlan address 02:00:00:00:00:07"}, false},
		{"renamed", []string{"link set hop.vxlan name other"}, true}, // while it is up, since Linux 6.2
		{"another of the name", []string{"link del hop.vxlan", "link add hop.vxlan type vxlan id 77 dstport 4789 local 192.0.2.1"}, true},
		{"learning", []string{"link set hop.vxlan type vxlan learning"}, false},
		{"local address", []string{"link set hop.vxlan type vxlan local 192.0.2.99"}, false},
		{"link-local address", []string{"link set hop.vxlan addrgenmode eui64"}, false},
		{"IPv4 address removed", []string{"addr del 10.244.0.1/32 dev hop.vxlan"}, false},
		{"IPv6 address removed", []string{"addr del fd00:1::1/128 dev hop.vxlan"}, false},
		{"addresses flushed", []string{"addr flush dev hop.vxlan"}, false},
		{"another address", []string{"addr add 10.9.9.9/32 dev hop.vxlan"}, false},
		{"another IPv6 address", []string{"addr add fe80::9/64 dev hop.vxlan nodad"}, false},
		{"prefix length", []string{"addr del 10.244.0.1/32 dev hop.vxlan", "addr add 10.244.0.1/24 dev hop.vxlan"}, false},
		{"IPv6 prefix length", []string{"addr del fd00:1::1/128 dev hop.vxlan", "addr add fd00:1::1/64 dev hop.vxlan nodad"}, false},
		{"neighbour deleted", []string{"neigh del 192.0.2.2 dev hop.vxlan"}, false},
		{"IPv6 neighbour deleted", []string{"neigh del 2001:db8::2 dev hop.vxlan"}, false},
		{"neighbour elsewhere", []string{"neigh replace 192.0.2.2 lladdr 02:00:00:00:00:08 dev hop.vxlan nud permanent"}, false},
		{"neighbour may go", []string{"neigh replace 192.0.2.2 lladdr 0a:68:c0:00:02:02 dev hop.vxlan nud stale"}, false},
		{"another neighbour", []string{"neigh add 192.0.2.66 lladdr 02:00:00:00:00:08 dev hop.vxlan nud permanent"}, false},
		{"neighbours flushed", []string{"neigh flush dev hop.vxlan nud permanent"}, false},
		{"FDB entry deleted", []string{"bridge fdb del 0a:68:c0:00:02:02 dev hop.vxlan"}, false},
		{"FDB entry elsewhere", []string{"bridge fdb replace 0a:68:c0:00:02:02 dev hop.vxlan dst 192.0.2.66"}, false},
		{"FDB entry with another port", []string{"bridge fdb replace 0a:68:c0:00:02:02 dev hop.vxlan dst 192.0.2.2 port 99"}, false},
		{"FDB entry may go", []string{"bridge fdb replace 0a:68:c0:00:02:02 dev hop.vxlan dst 192.0.2.2 dynamic"}, false},
		{"FDB entry by a nexthop group", []string{
			"nexthop add id 1 via 192.0.2.66 fdb", "nexthop add id 2 group 1 fdb",
			"bridge fdb del 0a:68:c0:00:02:02 dev hop.vxlan", "bridge fdb add 0a:68:c0:00:02:02 dev hop.vxlan nhid 2",
		}, false},
		{"another FDB entry", []string{"bridge fdb add 02:00:00:00:00:08 dev hop.vxlan dst 192.0.2.66"}, false},
		{"a default destination", []string{
			"bridge fdb append 00:00:00:00:00:00 dev hop.vxlan dst 192.0.2.66",
			"bridge fdb append 00:00:00:00:00:00 dev hop.vxlan dst 192.0.2.67",
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, d := running(t, Config{Audit: time.Hour}, two())
			h.repairs(t, d, c)
		})
	}
}

// repairs does the damage and waits for all to be as before.
func (h *host) repairs(t *testing.T, d *Devices, c damage) {
	t.Helper()
	want, before := h.view(), d.State()[0]
	h.damage(d, c.commands...)
	h.eventually("repair", func() bool { return h.view() == want })
	h.eventually("word of it", func() bool {
		state := d.State()
		return len(state) == 1 && state[0].Index == h.index(before.Name) && state[0].Up && state[0].Err == nil && d.Ready().Has(before.Kind)
	})
	if remade := d.State()[0].Index != before.Index; remade != c.remade {
		t.Errorf("the device was made anew: %v", remade)
	}
	h.settles(d)
}

// damage happens all before d does anything about it.
func (h *host) damage(d *Devices, commands ...string) {
	h.t.Helper()
	d.writing.Lock()
	defer d.writing.Unlock()
	for _, command := range commands {
		program, arguments, _ := strings.Cut(command, " ")
		if program != "bridge" {
			program, arguments = "ip", command
		}
		h.run("", program, strings.Fields(arguments)...)
	}
}

// settles waits for Run to have no more to do, which it finds out by looking once
// more after what it has done itself.
func (h *host) settles(d *Devices) {
	h.t.Helper()
	h.eventually("rest", func() bool {
		return len(h.told(func() { must(h.t, d.repair(h.t.Context())) })) == 0
	})
}

func TestSettingsAreRepairedWithinASecond(t *testing.T) {
	for name, value := range map[string]string{
		"net/ipv4/conf/hop.vxlan/rp_filter": "1", "net/ipv4/conf/hop.vxlan/forwarding": "0", "net/ipv6/conf/hop.vxlan/disable_ipv6": "1",
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := running(t, Config{Audit: time.Hour}, two())
			want := h.view()
			h.ns.SetSysctl(t, name, value)
			h.eventually("repair", func() bool { return h.view() == want })
		})
	}
}

// TestWhatNobodyTellsOfIsRepairedByTheAudit: accept_ra has no notification, and
// of neighbours and FDB entries some may be missed.
func TestWhatNobodyTellsOfIsRepairedByTheAudit(t *testing.T) {
	h, d := running(t, Config{Audit: 100 * time.Millisecond}, two())
	want := h.view()
	h.ns.SetSysctl(t, "net/ipv6/conf/hop.vxlan/accept_ra", "1")
	h.eventually("repair", func() bool { return h.view() == want })

	must(t, d.listener.follow(0)) // deaf
	h.damage(d, "neigh del 192.0.2.2 dev hop.vxlan", "bridge fdb del 0a:68:c0:00:02:03 dev hop.vxlan")
	h.eventually("repair", func() bool { return h.view() == want })
}

func TestLostNotificationsAreMadeUpFor(t *testing.T) {
	h, d := running(t, Config{Audit: time.Hour}, two())
	want := h.view()
	must(t, d.listener.follow(0))
	h.damage(d, "neigh del 192.0.2.2 dev hop.vxlan")
	d.RequestAudit()
	h.eventually("repair", func() bool { return h.view() == want })
}

func TestChecksumOffloadIsRepaired(t *testing.T) {
	h, d := running(t, Config{Audit: time.Hour}, two())
	_, err := d.setChecksumOffload("hop.vxlan", true)
	must(t, err)
	h.eventually("repair", func() bool { return !h.checksumOffload("hop.vxlan") })
}

// TestForeignDeviceComesAndGoes: nobody deletes it but who made it.
func TestForeignDeviceComesAndGoes(t *testing.T) {
	h, d := running(t, Config{Audit: time.Hour}, two())
	want := h.view()
	h.damage(d, "link del hop.vxlan", "link add hop.vxlan type bridge")
	h.eventually("word of it", func() bool {
		state := d.State()
		return len(state) == 1 && errors.Is(state[0].Err, ErrForeign) && d.Ready() == 0 && len(d.Addrs()) == 0
	})
	h.damage(d, "link del hop.vxlan")
	h.eventually("repair", func() bool { return h.view() == want })
}

// TestEventsOfTheDevicesAreHeeded, and no others: with each pod come a dozen.
func TestEventsOfTheDevicesAreHeeded(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	ours, other := h.index("hop.vxlan"), h.index("up0")
	for name, c := range map[string]struct {
		tell func()
		want bool
	}{
		"link":                  {func() { d.LinkEvent(watch.Link{Index: ours, Name: "hop.vxlan"}) }, true},
		"link renamed":          {func() { d.LinkEvent(watch.Link{Index: ours, Name: "other"}) }, true},
		"link of the name":      {func() { d.LinkEvent(watch.Link{Index: 999, Name: "hop.ipip"}) }, true},
		"address":               {func() { d.AddrEvent(watch.Addr{Index: ours}) }, true},
		"setting":               {func() { d.NetconfEvent(watch.Netconf{Index: ours}) }, true},
		"other link":            {func() { d.LinkEvent(watch.Link{Index: other, Name: "up0"}) }, false},
		"link without an index": {func() { d.LinkEvent(watch.Link{Name: "hop0123456789a"}) }, false},
		"other address":         {func() { d.AddrEvent(watch.Addr{Index: other}) }, false},
		"setting of all":        {func() { d.NetconfEvent(watch.Netconf{Index: watch.NetconfAll}) }, false},
	} {
		c.tell()
		if kicked := len(d.kick) > 0; kicked != c.want {
			t.Errorf("%s: heeded %v", name, kicked)
		}
		select {
		case <-d.kick:
		default:
		}
	}
}

// TestOnlyForeignChangesOfTheDeviceAreHeard: what other devices' neighbours do
// wakes nobody, nor what we do ourselves. Of FDB entries the kernel does not say
// whose work they are.
func TestOnlyForeignChangesOfTheDeviceAreHeard(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	h.ip("neigh add 192.0.2.200 lladdr 02:00:00:00:00:01 dev up0", "neigh del 192.0.2.200 dev up0")
	want := two()
	want.Peers[1].NextHops = addrs("192.0.2.3", "192.0.2.4")
	must(t, d.Sync(t.Context(), want))
	h.ip("neigh add 192.0.2.66 lladdr 02:00:00:00:00:01 dev hop.vxlan nud permanent")
	if first := <-h.hear(d, func(n neighbour) bool { return !n.fdb }); first.to.String() != "192.0.2.66" {
		t.Errorf("first was heard of %v", first.to)
	}
}

// TestOwnChangesAreNotTakenForDamage: to list all after each change would be work
// in proportion to all nodes.
func TestOwnChangesAreNotTakenForDamage(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	must(t, d.Sync(t.Context(), want))
	heard := h.hear(d, func(n neighbour) bool { return n.to.String() == "192.0.2.66" })
	add := func(w *Desired, i int) {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
		w.Peers = append(w.Peers, Peer{Underlay: a, NextHops: []netip.Addr{a}})
	}
	// What was undone before it was heard of may well be looked at again.
	for _, change := range []func(*Desired, int){add, func(w *Desired, _ int) { w.Peers = w.Peers[1:] }} {
		for i := range 50 {
			change(&want, i)
			must(t, d.Sync(t.Context(), want))
		}
		h.ip("neigh add 192.0.2.66 lladdr 02:00:00:00:00:08 dev hop.vxlan nud permanent", "neigh del 192.0.2.66 dev hop.vxlan")
		<-heard // in order, and what came before was passed on before
		d.mu.Lock()
		if !d.entries.known {
			t.Error("what is on the device is believed to be unknown")
		}
		d.mu.Unlock()
	}
}

// hear hands what d's listener hears to d, but for that which is sent on.
func (h *host) hear(d *Devices, divert func(neighbour) bool) <-chan neighbour {
	diverted := make(chan neighbour, 100)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		d.listener.run(ctx, func(n neighbour, deleted bool) {
			if divert(n) {
				diverted <- n
			} else {
				d.heard(n, deleted)
			}
		}, func() { h.t.Error("notifications were lost") })
	})
	h.t.Cleanup(func() { cancel(); running.Wait() })
	return diverted
}

func TestRunBeforeTheFirstSyncTouchesNothing(t *testing.T) {
	h := newHost(t)
	must(t, h.devices().Sync(t.Context(), two()))
	d := h.devices()
	h.unchanged(func() {
		h.start(d)
		must(t, d.repair(t.Context()))
	})
	if d.Ready() != bgp.EncapsulationsOf(bgp.VXLAN) {
		t.Errorf("ready %v", d.Ready())
	}
}
