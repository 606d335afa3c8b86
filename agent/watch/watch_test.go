package watch_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/watch"
)

func ip(t *testing.T, ns *nstest.NS, commands ...string) {
	t.Helper()
	ns.Do(t, func() {
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v\n%s", commands, err, out)
		}
	})
}

func newWatcher(t *testing.T, ns *nstest.NS, ignore ...uint32) *watch.Watcher {
	t.Helper()
	var w *watch.Watcher
	var err error
	ns.Do(t, func() {
		w, err = watch.New(watch.Config{IgnorePorts: ignore, Log: slog.New(slog.DiscardHandler)})
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// run runs w until the test ends.
func run(t *testing.T, w *watch.Watcher) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

func receive[T any](t *testing.T, what string, c <-chan T, match func(T) bool) {
	t.Helper()
	timeout := time.After(time.Second)
	for {
		select {
		case v := <-c:
			if match(v) {
				return
			}
		case <-timeout:
			t.Fatalf("no %s within a second", what)
		}
	}
}

func TestChangesAreToldToAllListeners(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	w := newWatcher(t, ns)
	links, addrs := make(chan watch.Link, 1000), make(chan watch.Addr, 1000)
	confs, hops := make(chan watch.Netconf, 1000), make(chan watch.Nexthop, 1000)
	type change struct {
		prefix   string
		protocol uint8
		deleted  bool
	}
	routes := make(chan change, 1000)
	w.Listen(watch.Listener{Link: func(l watch.Link) { links <- l }, Addr: func(a watch.Addr) { addrs <- a }})
	w.Listen(watch.Listener{
		Netconf: func(n watch.Netconf) { confs <- n },
		Nexthop: func(n watch.Nexthop) { hops <- n },
		Route:   func(r watch.Route) { routes <- change{r.Prefix.String(), r.Protocol, r.Deleted} },
	})
	run(t, w)

	ip(t, ns, "link add up0 type veth peer name far0", "link set up0 up")
	receive(t, "link", links, func(l watch.Link) bool { return l.Name == "up0" && l.Up && !l.Deleted })
	ip(t, ns, "addr add 192.0.2.1/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad")
	receive(t, "address", addrs, func(a watch.Addr) bool { return a.Prefix == netip.MustParsePrefix("192.0.2.1/24") && !a.Deleted })
	receive(t, "address", addrs, func(a watch.Addr) bool { return a.Prefix == netip.MustParsePrefix("2001:db8::1/64") })
	ip(t, ns, "addr del 192.0.2.1/24 dev up0")
	receive(t, "address's removal", addrs, func(a watch.Addr) bool { return a.Prefix == netip.MustParsePrefix("192.0.2.1/24") && a.Deleted })

	ip(t, ns, "route add blackhole 10.0.0.0/26 proto 104", "route del blackhole 10.0.0.0/26",
		"route add blackhole fd00::/122 proto static")
	receive(t, "route", routes, func(c change) bool { return c == change{"10.0.0.0/26", 104, false} })
	receive(t, "route's removal", routes, func(c change) bool { return c == change{"10.0.0.0/26", 104, true} })
	receive(t, "IPv6 route", routes, func(c change) bool { return c == change{"fd00::/122", 4, false} })

	ip(t, ns, "link set far0 up", "nexthop add id 5 via fe80::1 dev up0 proto 104", "nexthop del id 5")
	receive(t, "next hop", hops, func(n watch.Nexthop) bool {
		return n.ID == 5 && n.Protocol == 104 && n.Gateway == netip.MustParseAddr("fe80::1") && !n.Special && !n.Deleted
	})
	receive(t, "next hop's removal", hops, func(n watch.Nexthop) bool { return n.ID == 5 && n.Deleted })

	ns.SetSysctl(t, "net/ipv4/ip_forward", "1")
	receive(t, "setting", confs, func(n watch.Netconf) bool { return !n.IPv6 && n.Index == watch.NetconfAll })
	ns.SetSysctl(t, "net/ipv6/conf/all/forwarding", "1")
	receive(t, "IPv6 setting", confs, func(n watch.Netconf) bool { return n.IPv6 && n.Index == watch.NetconfAll })

	ip(t, ns, "link del up0")
	receive(t, "link's removal", links, func(l watch.Link) bool { return l.Name == "up0" && l.Deleted })
}

func TestLeavingABridgeIsNoDeletion(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	ip(t, ns, "link add up0 type veth peer name far0", "link set up0 up")
	if !bridge(t, ns) {
		t.Skip("the kernel has no bridges")
	}
	w := newWatcher(t, ns)
	links := make(chan watch.Link, 1000)
	w.Listen(watch.Listener{Link: func(l watch.Link) { links <- l }})
	run(t, w)
	ip(t, ns, "link set up0 nomaster", "link del far0")
	var seen []bool
	receive(t, "deletion of far0", links, func(l watch.Link) bool {
		if l.Name == "up0" {
			seen = append(seen, l.Deleted)
		}
		return l.Name == "far0" && l.Deleted
	})
	if i := slices.Index(seen, true); i >= 0 && i < len(seen)-1 {
		t.Error("up0 was said to be deleted when it left its bridge")
	}
}

func bridge(t *testing.T, ns *nstest.NS) (made bool) {
	ns.Do(t, func() {
		made = exec.Command("ip", "link", "add", "br0", "type", "bridge").Run() == nil
		if made {
			made = exec.Command("ip", "link", "set", "up0", "master", "br0").Run() == nil
		}
	})
	return made
}

func TestOwnWritesAreNotHeardOfOthersAre(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	s := newSyncer(t, ns)
	w := newWatcher(t, ns, 12345, s.PortID(), 54321)
	routes := make(chan netip.Prefix, 10000)
	w.Listen(watch.Listener{Route: func(r watch.Route) { routes <- r.Prefix }})
	run(t, w)
	s.SetBlocks(blocks(5000))
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := netip.MustParsePrefix("192.168.0.0/26")
	ip(t, ns, "route add blackhole 192.168.0.0/26 proto 104")
	receive(t, "route of another", routes, func(p netip.Prefix) bool {
		if p != last {
			t.Fatalf("heard of our own %v", p)
		}
		return true
	})
}

func TestOverrunIsToldAndWatchingGoesOn(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	s := newSyncer(t, ns)
	w := newWatcher(t, ns)
	overruns, routes := make(chan struct{}, 1000), make(chan netip.Prefix, 200000)
	w.Listen(watch.Listener{
		Overrun: func() { overruns <- struct{}{} },
		Route:   func(r watch.Route) { routes <- r.Prefix },
	})
	// Nobody reads yet.
	s.SetBlocks(blocks(60000))
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, w)
	receive(t, "overrun", overruns, func(struct{}) bool { return true })
	last := netip.MustParsePrefix("192.168.0.0/26")
	// The buffer is still full: what happens now may be lost, and is told of so.
	for end := time.Now().Add(5 * time.Second); ; {
		ip(t, ns, "route add blackhole 192.168.0.0/26", "route del blackhole 192.168.0.0/26")
		for len(routes) > 0 {
			if <-routes == last {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("nothing heard after an overrun")
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	nstest.Require(t)
	w := newWatcher(t, nstest.New(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.Run(ctx) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Run goes on after its context ended")
	}
}

func newSyncer(t *testing.T, ns *nstest.NS) *route.Syncer {
	t.Helper()
	var s *route.Syncer
	var err error
	ns.Do(t, func() { s, err = route.New(route.Config{Log: slog.New(slog.DiscardHandler)}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func blocks(n int) []netip.Prefix {
	list := make([]netip.Prefix, n)
	for i := range list {
		list[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26)
	}
	return list
}
