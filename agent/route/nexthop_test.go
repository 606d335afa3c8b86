package route_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/route"
)

// tunnel adds a device that can stand for a tunnel: gateways behind it are on
// no subnet of it.
func (h *host) tunnel() int {
	h.t.Helper()
	h.ip("link add hop.vxlan type veth peer name far1", "link set far1 up", "link set hop.vxlan up")
	return h.index("hop.vxlan")
}

// forHop is a hop of a pool.
func forHop(addr, pool string) route.Hop {
	return route.Hop{Addr: netip.MustParseAddr(addr), Pool: pool}
}

func learned(p string, hops ...route.Hop) []route.Learned {
	return []route.Learned{{Prefix: prefix(p), Hops: hops}}
}

func target(device int, gateway string, onlink bool) route.Target {
	return route.Target{Device: device, Gateway: netip.MustParseAddr(gateway), Onlink: onlink}
}

// expectCount: so many objects are counted, and in the kernel; none where next hops are written inline.
func (h *host) expectCount(s *route.Syncer, objects int) {
	h.t.Helper()
	if h.inline {
		objects = 0
	}
	if st := s.Stats(); st.NextHops != objects || len(h.objects()) != objects {
		h.t.Errorf("%d next hops counted, %d in the kernel, want %d", st.NextHops, len(h.objects()), objects)
	}
}

func TestTargetsReachTheKernel(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		vxlan := h.tunnel()
		s := h.syncer()
		a, b, far6 := forHop("172.30.1.12", "a"), forHop("172.30.1.12", "b"), forHop("fd00:30::12", "c")
		router := forHop("172.30.9.9", "a")
		s.Update(slices.Concat(learned("10.1.0.0/26", a), learned("10.1.0.64/26", a), learned("10.2.0.0/26", b),
			learned("10.3.0.0/26", a, b, router), learned("10.4.0.0/26", router), learned("fd01::/122", far6)))
		s.SetTargets(map[route.Hop]route.Target{
			a: target(vxlan, "172.30.1.12", true), b: target(h.up, "192.0.2.12", false),
			router: target(h.up, "192.0.2.254", false), far6: target(vxlan, "fd00:30::12", true),
		})
		must(t, s.Sync(t.Context()))
		h.expect(
			"10.1.0.0/26 via 172.30.1.12 dev hop.vxlan proto 104 onlink",
			"10.1.0.64/26 via 172.30.1.12 dev hop.vxlan proto 104 onlink",
			"10.2.0.0/26 via 192.0.2.12 dev up0 proto 104",
			"10.3.0.0/26 proto 104 nexthop via 192.0.2.12 dev up0 nexthop via 192.0.2.254 dev up0 nexthop via 172.30.1.12 dev hop.vxlan onlink",
			"10.4.0.0/26 via 192.0.2.254 dev up0 proto 104",
			"fd01::/122 via fd00:30::12 dev hop.vxlan proto 104 metric 1024 onlink")
		h.expectCount(s, 4)

		// Elsewhere, and back to where others are already.
		events := h.routeEvents()
		s.SetTargets(map[route.Hop]route.Target{
			a: target(h.up, "192.0.2.12", false), far6: target(h.up, "2001:db8::12", false), router: target(vxlan, "172.30.9.9", true),
		})
		must(t, s.Sync(t.Context()))
		events()
		h.expect(
			"10.1.0.0/26 via 192.0.2.12 dev up0 proto 104",
			"10.1.0.64/26 via 192.0.2.12 dev up0 proto 104",
			"10.2.0.0/26 via 192.0.2.12 dev up0 proto 104",
			"10.3.0.0/26 proto 104 nexthop via 192.0.2.12 dev up0 nexthop via 172.30.9.9 dev hop.vxlan onlink",
			"10.4.0.0/26 via 172.30.9.9 dev hop.vxlan proto 104 onlink",
			"fd01::/122 via 2001:db8::12 dev up0 proto 104 metric 1024")
		h.expectCount(s, 4)
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
		settled(t, s)
	})
}

// settled: neither a Sync nor an audit finds anything to do.
func settled(t *testing.T, s *route.Syncer) {
	t.Helper()
	before := s.Stats()
	must(t, s.Sync(t.Context()))
	must(t, s.Audit(t.Context()))
	if after := s.Stats(); after.Messages != before.Messages || after.Repairs != before.Repairs {
		t.Errorf("%d messages and %d repairs with nothing to do", after.Messages-before.Messages, after.Repairs-before.Repairs)
	}
}

func TestChangeOfTargetIsOneMessageForAllItsRoutes(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		vxlan := h.tunnel()
		s := h.syncer()
		const prefixes, hops = 10_000, 50
		all := many(prefixes, 0)
		native, tunnelled := make(map[route.Hop]route.Target), make(map[route.Hop]route.Target)
		for i := range all {
			hop := route.Hop{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + i%hops)}), Pool: "p"}
			all[i].Hops = []route.Hop{hop}
			native[hop] = route.Target{Device: h.up, Gateway: hop.Addr}
			tunnelled[hop] = route.Target{Device: vxlan, Gateway: hop.Addr, Onlink: true}
		}
		s.SetTargets(native)
		s.Update(all)
		must(t, s.Sync(t.Context()))
		h.expectCount(s, hops)
		before := s.Stats().Messages
		s.SetTargets(tunnelled)
		must(t, s.Sync(t.Context()))
		want := uint64(hops)
		if h.inline {
			want = prefixes
		}
		if sent := s.Stats().Messages - before; sent != want {
			t.Errorf("%d messages, want %d", sent, want)
		}
		n := strings.Count(strings.Join(h.routes(), "\n"), " dev hop.vxlan ")
		if n != prefixes {
			t.Errorf("%d routes by way of the tunnel, want %d", n, prefixes)
		}
	})
}

// TestAHopsPrefixesAreFoundHoweverTheyCameAndWent: where next hops are in the
// routes, all of a hop's have to be found when it leads elsewhere.
func TestAHopsPrefixesAreFoundHoweverTheyCameAndWent(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		a, b := hopOf("192.0.2.2"), hopOf("192.0.2.3")
		all := slicesOf("10.1.0.0/26", a, 60)
		h.learn(s, all...)
		must(t, s.Sync(t.Context()))
		for i := range all {
			switch i % 3 {
			case 0:
				all[i].Hops = nil
			case 1:
				all[i].Hops = []route.Hop{b}
			}
		}
		h.learn(s, all...)
		must(t, s.Sync(t.Context()))
		s.SetTargets(map[route.Hop]route.Target{a: target(h.up, "192.0.2.4", false), b: target(h.up, "192.0.2.5", false)})
		must(t, s.Sync(t.Context()))
		var want []string
		for i, l := range all {
			if i%3 != 0 {
				want = append(want, fmt.Sprintf("%s via 192.0.2.%d dev up0 proto 104", l.Prefix, 6-i%3))
			}
		}
		h.expect(want...)
	})
}

func TestObjectsLiveAsLongAsTheirRoutes(t *testing.T) {
	h := newHost(t)
	s := h.syncer()
	h.learn(s, via("10.1.0.0/26", "192.0.2.2"), via("10.1.0.64/26", "192.0.2.2"), via("10.2.0.0/26", "192.0.2.3"))
	must(t, s.Sync(t.Context()))
	h.expectObjects("via 192.0.2.2 dev up0 proto 104", "via 192.0.2.3 dev up0 proto 104")
	// The last prefix of one goes to the other, all in one Sync.
	h.learn(s, via("10.2.0.0/26", "192.0.2.2"), via("10.1.0.0/26"))
	must(t, s.Sync(t.Context()))
	h.expect("10.1.0.64/26 via 192.0.2.2 dev up0 proto 104", "10.2.0.0/26 via 192.0.2.2 dev up0 proto 104")
	h.expectObjects("via 192.0.2.2 dev up0 proto 104")
	// One of our own blocks, and one of several hops: neither uses an object.
	s.SetBlocks(prefixes("10.2.0.0/26"))
	h.learn(s, via("10.2.0.0/26"), via("10.1.0.64/26", "192.0.2.2", "192.0.2.3"))
	must(t, s.Sync(t.Context()))
	h.expectObjects()
	// One that was made for a route that could not be.
	h.ip("route add 10.5.0.0/26 via 192.0.2.66 proto static")
	h.learn(s, via("10.5.0.0/26", "192.0.2.5"))
	must(t, s.Sync(t.Context()))
	h.expectObjects("via 192.0.2.5 dev up0 proto 104")
	h.learn(s, via("10.5.0.0/26"))
	must(t, s.Sync(t.Context()))
	h.expectObjects()
	// The target is remembered for when the hop is used again.
	s.Update([]route.Learned{via("10.1.0.0/26", "192.0.2.2")})
	must(t, s.Sync(t.Context()))
	h.expectObjects("via 192.0.2.2 dev up0 proto 104")
	settled(t, s)
}

func TestHopWithoutTargetIsAProblemOfWhatIsNotThere(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		a, b := forHop("192.0.2.2", "a"), forHop("192.0.2.3", "b")
		s.SetTargets(map[route.Hop]route.Target{a: target(h.up, "192.0.2.2", false)})
		s.Update(slices.Concat(learned("10.1.0.0/26", a), learned("10.2.0.0/26", b), learned("10.3.0.0/26", a, b)))
		must(t, s.Sync(t.Context()))
		h.expect("10.1.0.0/26 via 192.0.2.2 dev up0 proto 104")
		problems := s.Problems()
		if len(problems) != 2 || s.Stats().Problems != 2 {
			t.Fatalf("problems %v (%d counted), want two", problems, s.Stats().Problems)
		}
		for _, p := range problems {
			if !errors.Is(p.Err, route.ErrNoTarget) || !strings.Contains(p.String(), "no way to next hop 192.0.2.3 for pool b is known") {
				t.Errorf("%v: want ErrNoTarget", p)
			}
		}
		// What is there stays when the way is not known any more, or the prefix
		// goes over to a hop without one.
		s.SetTargets(map[route.Hop]route.Target{a: {}})
		s.Update(learned("10.1.0.0/26", b))
		sent := s.Stats().Messages
		must(t, s.Audit(t.Context()))
		h.expect("10.1.0.0/26 via 192.0.2.2 dev up0 proto 104")
		if n := s.Stats().Messages - sent; n > 0 {
			t.Errorf("%d messages", n)
		}
		s.SetTargets(map[route.Hop]route.Target{a: target(h.up, "192.0.2.2", false), b: target(h.up, "192.0.2.3", false)})
		must(t, s.Sync(t.Context()))
		h.expect("10.1.0.0/26 via 192.0.2.3 dev up0 proto 104", "10.2.0.0/26 via 192.0.2.3 dev up0 proto 104",
			"10.3.0.0/26 proto 104 nexthop via 192.0.2.2 dev up0 nexthop via 192.0.2.3 dev up0")
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

// TestRefusedTargetIsAProblemAndOthersGoOn: a target that the kernel refuses
// leaves routes as they are.
func TestRefusedTargetIsAProblemAndOthersGoOn(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		h.learn(s, via("10.1.0.0/26", "192.0.2.2"), via("10.2.0.0/26", "192.0.2.3"))
		must(t, s.Sync(t.Context()))
		s.SetTargets(map[route.Hop]route.Target{
			hopOf("192.0.2.2"): target(h.up, "203.0.113.1", false), hopOf("192.0.2.3"): target(h.up, "192.0.2.4", false),
		})
		must(t, s.Sync(t.Context()))
		h.expect("10.1.0.0/26 via 192.0.2.2 dev up0 proto 104", "10.2.0.0/26 via 192.0.2.4 dev up0 proto 104")
		if p := s.Problems(); len(p) != 1 || p[0].Prefix != prefix("10.1.0.0/26") || s.Stats().Problems != 1 {
			t.Errorf("problems %v, want that of 10.1.0.0/26", p)
		}
		if at, ok := s.Installed(hopOf("192.0.2.2")); !ok || at != target(h.up, "192.0.2.2", false) {
			t.Errorf("Installed = %v, %v: want what is still there", at, ok)
		}
		h.ip("addr add 203.0.113.2/24 dev up0")
		h.later(time.Second)
		must(t, s.Sync(t.Context()))
		h.expect("10.1.0.0/26 via 203.0.113.1 dev up0 proto 104", "10.2.0.0/26 via 192.0.2.4 dev up0 proto 104")
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

func TestObjectsOfOthersAreLeftAlone(t *testing.T) {
	h := newHost(t)
	const first = 0x686f0000
	h.ip(fmt.Sprintf("nexthop add id %d via 192.0.2.66 dev up0 proto static", first),
		"nexthop add id 7 via 192.0.2.67 dev up0 proto bird")
	theirs := []string{"via 192.0.2.66 dev up0 proto static", "via 192.0.2.67 dev up0 proto bird"}
	s := h.syncer()
	must(t, s.Load(t.Context()))
	// Numbers taken behind our back.
	for i := range 3 {
		h.ip(fmt.Sprintf("nexthop add id %d via 192.0.2.7%d dev up0 proto static", first+1+i, i))
		theirs = append(theirs, fmt.Sprintf("via 192.0.2.7%d dev up0 proto static", i))
	}
	h.learn(s, via("10.1.0.0/26", "192.0.2.2"))
	must(t, s.Sync(t.Context()))
	h.expect("10.1.0.0/26 via 192.0.2.2 dev up0 proto 104")
	h.expectObjects(append(theirs, "via 192.0.2.2 dev up0 proto 104")...)
	h.learn(s, via("10.1.0.0/26"))
	must(t, s.Prune(t.Context()))
	must(t, s.Audit(t.Context()))
	h.expect()
	h.expectObjects(theirs...)
}

// TestSilentLossOfAnObjectIsSeenByWhatIsRefused: no notification tells that an
// object went with its device.
func TestSilentLossOfAnObjectIsSeenByWhatIsRefused(t *testing.T) {
	h := newHost(t)
	vxlan := h.tunnel()
	s := h.syncer()
	a := forHop("172.30.1.12", "a")
	s.SetTargets(map[route.Hop]route.Target{a: target(vxlan, "172.30.1.12", true)})
	s.Update(learned("10.1.0.0/26", a))
	must(t, s.Sync(t.Context()))
	h.ip("link set hop.vxlan down", "link set hop.vxlan up")
	s.Update(learned("10.1.0.64/26", a))
	must(t, s.Sync(t.Context()))
	must(t, s.Sync(t.Context()))
	h.expect("10.1.0.0/26 via 172.30.1.12 dev hop.vxlan proto 104 onlink", "10.1.0.64/26 via 172.30.1.12 dev hop.vxlan proto 104 onlink")
}

func TestDeviceGoneAndBackUnderAnotherIndex(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		old := h.tunnel()
		s := h.syncerWith(route.Config{Audit: time.Hour})
		h.start(s)
		a, six := forHop("172.30.1.12", "p"), forHop("fd00:30::12", "p")
		s.Update(slices.Concat(learned("10.1.0.0/26", a), learned("10.1.0.64/26", a), learned("fd01::/122", six)))
		tell := func(device int) {
			s.SetTargets(map[route.Hop]route.Target{a: target(device, "172.30.1.12", true), six: target(device, "fd00:30::12", true)})
		}
		want := []string{
			"10.1.0.0/26 via 172.30.1.12 dev hop.vxlan proto 104 onlink",
			"10.1.0.64/26 via 172.30.1.12 dev hop.vxlan proto 104 onlink",
			"fd01::/122 via fd00:30::12 dev hop.vxlan proto 104 metric 1024 onlink",
		}
		tell(old)
		h.eventually(want...)
		for _, damage := range []string{"link set hop.vxlan down\nlink set hop.vxlan up", "link set far1 down\nlink set far1 up"} {
			h.ip(damage)
			h.eventually(want...)
		}
		h.ip("link set hop.vxlan down")
		wait(t, "three problems", func() bool { return len(s.Problems()) == 3 })
		h.ip("link set hop.vxlan up")
		h.eventually(want...)
		h.ip("link del hop.vxlan")
		wait(t, "three problems", func() bool { return len(s.Problems()) == 3 })
		h.expect()
		h.expectObjects()
		tell(h.tunnel())
		h.eventually(want...)
		wait(t, "no problem", func() bool { return len(s.Problems()) == 0 })
		must(t, s.Sync(t.Context()))
		settled(t, s)
	})
}
