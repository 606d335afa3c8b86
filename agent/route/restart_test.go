package route_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/hoplite-net/hoplite/agent/route"
)

// before is a host on which an agent has been, which knew these.
type before struct {
	*host
	targets map[route.Hop]route.Target
	learned []route.Learned
}

func newBefore(h *host) *before {
	vxlan := h.tunnel()
	a, b, router := forHop("192.0.2.2", "a"), forHop("192.0.2.2", "b"), forHop("192.0.2.3", "")
	six, seven := forHop("2001:db8::2", "six"), forHop("fd00:30::7", "six")
	return &before{
		host: h,
		targets: map[route.Hop]route.Target{
			a: target(h.up, "192.0.2.2", false), b: target(vxlan, "192.0.2.2", true), router: target(h.up, "192.0.2.3", false),
			six: target(h.up, "2001:db8::2", false), seven: target(vxlan, "fd00:30::7", true),
		},
		learned: slices.Concat(
			learned("10.1.0.0/26", a), learned("10.1.0.64/26", a), learned("10.2.0.0/26", b), learned("10.2.0.64/26", b),
			learned("10.3.0.0/26", router), learned("10.4.0.0/26", router, b),
			learned("fd01::/122", six), learned("fd01::40/122", seven), learned("fd01::80/122", six, seven)),
	}
}

func (b *before) run() *route.Syncer {
	s := b.syncer()
	s.SetBlocks(prefixes("10.244.0.0/26"))
	s.SetTargets(b.targets)
	s.Update(b.learned)
	must(b.t, s.Sync(b.t.Context()))
	return s
}

// TestRestartSendsNothing, in whatever order a starting agent comes to know.
func TestRestartSendsNothing(t *testing.T) {
	sync := func(b *before, s *route.Syncer) { must(b.t, s.Sync(b.t.Context())) }
	for name, tell := range map[string]func(*before, *route.Syncer){
		"targets first": func(b *before, s *route.Syncer) { s.SetTargets(b.targets); s.Update(b.learned) },
		"prefixes first": func(b *before, s *route.Syncer) {
			s.Update(b.learned)
			sync(b, s)
			must(b.t, s.Audit(b.t.Context()))
			s.SetTargets(b.targets)
		},
		"one by one": func(b *before, s *route.Syncer) {
			for i := range b.learned {
				s.Update(b.learned[i : i+1])
				sync(b, s)
			}
			for hop, target := range b.targets {
				s.SetTargets(map[route.Hop]route.Target{hop: target})
				sync(b, s)
			}
		},
		"told twice": func(b *before, s *route.Syncer) {
			for range 2 {
				s.Update(b.learned)
				s.SetTargets(b.targets)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, h *host) {
				b := newBefore(h)
				b.run()
				routes, objects := h.routes(), h.run("ip", "", "nexthop", "show")
				events := h.routeEvents()
				s := h.syncer()
				must(t, s.Load(t.Context()))
				s.SetBlocks(s.Blocks())
				tell(b, s)
				sync(b, s)
				must(t, s.Audit(t.Context()))
				must(t, s.Prune(t.Context()))
				if routes, objects := events(); routes+objects > 0 {
					t.Errorf("%d changes of routes in the kernel, %d of objects", routes, objects)
				}
				if st := s.Stats(); st.Messages > 0 || st.Problems > 0 || st.Stale > 0 || st.Repairs > 0 {
					t.Errorf("%+v: want no message, no problem, nothing stale, no repair", st)
				}
				h.expect(routes...)
				if now := h.run("ip", "", "nexthop", "show"); now != objects {
					t.Errorf("next hop objects were\n%sand are\n%s", objects, now)
				}
			})
		})
	}
}

// TestNothingIsDisturbedBeforeTargetsAreKnown, though not all is as a hop alone
// would have it: prefixes that are now reached the same way use two objects.
func TestNothingIsDisturbedBeforeTargetsAreKnown(t *testing.T) {
	h := newHost(t)
	h.ip("nexthop add id 20 via 192.0.2.2 dev up0 proto 104", "nexthop add id 21 via 192.0.2.3 dev up0 proto 104",
		"route add 10.1.0.0/26 nhid 20 proto 104", "route add 10.1.0.64/26 nhid 21 proto 104",
		"route add 10.1.0.128/26 via 192.0.2.4 dev up0 proto 104")
	before, objects := h.routes(), h.objects()
	s := h.syncer()
	must(t, s.Load(t.Context()))
	hop := forHop("192.0.2.2", "p")
	s.Update(slices.Concat(learned("10.1.0.0/26", hop), learned("10.1.0.64/26", hop), learned("10.1.0.128/26", hop)))
	events := h.routeEvents()
	must(t, s.Sync(t.Context()))
	must(t, s.Prune(t.Context()))
	must(t, s.Audit(t.Context()))
	h.expect(before...)
	h.expectObjects(objects...)
	if p := s.Problems(); len(p) > 0 {
		t.Errorf("problems of routes that are there: %v", p)
	}
	if routes, objects := events(); routes+objects > 0 {
		t.Errorf("%d changes of routes in the kernel, %d of objects", routes, objects)
	}
	if _, ok := s.Installed(hop); !ok {
		t.Error("the hop adopted no object")
	}

	// Then two routes are replaced, none deleted before, and what nobody claims goes.
	h.routeEvents()
	s.SetTargets(map[route.Hop]route.Target{hop: target(h.up, "192.0.2.2", false)})
	must(t, s.Sync(t.Context()))
	h.expect("10.1.0.0/26 via 192.0.2.2 dev up0 proto 104", "10.1.0.64/26 via 192.0.2.2 dev up0 proto 104",
		"10.1.0.128/26 via 192.0.2.2 dev up0 proto 104")
	h.expectObjects("via 192.0.2.2 dev up0 proto 104")
	if n := s.Stats().Messages; n > 4 {
		t.Errorf("%d messages for two replacements, a deletion, and at most one new target", n)
	}
	settled(t, s)
}

// TestObjectOfAnotherHopIsNotShared: two hops whose prefixes use one object, as
// when a pool was split while no agent ran. The first keeps it.
func TestObjectOfAnotherHopIsNotShared(t *testing.T) {
	h := newHost(t)
	vxlan := h.tunnel()
	h.ip("nexthop add id 20 via 192.0.2.2 dev up0 proto 104", "route add 10.1.0.0/26 nhid 20 proto 104", "route add 10.2.0.0/26 nhid 20 proto 104")
	s := h.syncer()
	must(t, s.Load(t.Context()))
	a, b := forHop("192.0.2.2", "a"), forHop("192.0.2.2", "b")
	s.Update(slices.Concat(learned("10.1.0.0/26", a), learned("10.2.0.0/26", b)))
	h.routeEvents()
	s.SetTargets(map[route.Hop]route.Target{a: target(h.up, "192.0.2.2", false), b: target(vxlan, "192.0.2.2", true)})
	must(t, s.Sync(t.Context()))
	h.expect("10.1.0.0/26 via 192.0.2.2 dev up0 proto 104", "10.2.0.0/26 via 192.0.2.2 dev hop.vxlan proto 104 onlink")
	if n := s.Stats().Messages; n != 2 {
		t.Errorf("%d messages, want one for the new object and one for the route", n)
	}
	if id := h.objectID("192.0.2.2 dev up0"); id != "20" {
		t.Errorf("the first hop's object is %s, want 20", id)
	}
}

// TestUpgradeAndDowngradeReplaceEachRouteOnce: an agent that writes next hops
// into routes is followed by one that uses objects, and that by the first again.
func TestUpgradeAndDowngradeReplaceEachRouteOnce(t *testing.T) {
	h := newHost(t)
	b := newBefore(h)
	h.inline = true
	b.run()
	routes := h.routes()
	single := 0
	for _, l := range b.learned {
		if len(l.Hops) == 1 {
			single++
		}
	}
	for _, inline := range []bool{false, true} {
		h.inline = inline
		events := h.routeEvents()
		s := h.syncer()
		must(t, s.Load(t.Context()))
		s.SetBlocks(s.Blocks())
		s.Update(b.learned)
		s.SetTargets(b.targets)
		must(t, s.Sync(t.Context()))
		must(t, s.Prune(t.Context()))
		h.expect(routes...)
		h.expectCount(s, len(b.targets))
		if routes, objects := events(); routes != single || objects != len(b.targets) {
			t.Errorf("inline %v: %d changes of routes, %d of objects, want %d and %d", inline, routes, objects, single, len(b.targets))
		}
		settled(t, s)
	}
}

func TestUnclaimedObjectsGoWithTheirRoutesAtPrune(t *testing.T) {
	h := newHost(t)
	h.ip("nexthop add id 20 via 192.0.2.2 dev up0 proto 104", "nexthop add id 21 via 192.0.2.3 dev up0 proto 104",
		"nexthop add id 25 via 192.0.2.9 dev up0 proto static", "nexthop add id 22 group 25 proto 104",
		"nexthop add id 23 blackhole proto 104", "nexthop add id 24 via 2001:db8::2 dev up0 proto 104",
		"route add 10.1.0.0/26 nhid 20 proto 104", "route add 10.2.0.0/26 nhid 22 proto 104", "route add 10.3.0.0/26 nhid 23 proto 104",
		"route add 10.4.0.0/26 nhid 25 proto 104", "route add fd01::/122 nhid 24 proto 104",
		"route add 10.5.0.0/26 nhid 20 proto 104 metric 7")
	before, objects := h.routes(), h.objects()
	s := h.syncer()
	must(t, s.Load(t.Context()))
	must(t, s.Sync(t.Context()))
	h.expect(before...)
	h.expectObjects(objects...)
	// A group is not what a hop could go on with.
	h.learn(s, via("fd01::/122", "2001:db8::2"), via("10.2.0.0/26", "192.0.2.4"))
	must(t, s.Prune(t.Context()))
	h.expect("fd01::/122 via 2001:db8::2 dev up0 proto 104 metric 1024", "10.2.0.0/26 via 192.0.2.4 dev up0 proto 104")
	h.expectObjects("via 192.0.2.9 dev up0 proto static", "via 2001:db8::2 dev up0 proto 104", "via 192.0.2.4 dev up0 proto 104")
	must(t, s.Audit(t.Context()))
	settled(t, s)
}

// TestOwnReplacementsAreNoNews: the kernel tells of every route of an object
// that is replaced, in the name of the port that asked for it. None of it
// reaches a watcher that ignores our port; to one that does not, it is no reason
// to look at everything again.
func TestOwnReplacementsAreNoNews(t *testing.T) {
	for _, ignore := range []bool{true, false} {
		t.Run(fmt.Sprintf("ignored %v", ignore), func(t *testing.T) {
			h := newHost(t)
			vxlan := h.tunnel()
			s := h.syncerWith(route.Config{})
			heard := h.startHearing(s, ignore)
			hop := forHop("192.0.2.2", "p")
			var all []route.Learned
			for i := range 100 {
				all = append(all, learned(fmt.Sprintf("10.1.%d.0/26", i), hop)...)
			}
			s.Update(all)
			for i := range 20 {
				to := target(h.up, "192.0.2.2", false)
				if i%2 == 0 {
					to = target(vxlan, "192.0.2.2", true)
				}
				s.SetTargets(map[route.Hop]route.Target{hop: to})
				must(t, s.Sync(t.Context()))
			}
			// What comes last is by somebody else.
			h.ip("route add blackhole 198.51.100.0/24", "route del blackhole 198.51.100.0/24")
			wait(t, "the last route heard of", func() bool { return heard.last.Load() })
			if n := heard.routes.Load() + heard.objects.Load(); (n > 0) == ignore {
				t.Errorf("heard of %d changes", n)
			}
			st := s.Stats()
			if st.Audits != 1 || ignore && (st.Messages != 120 || st.Repairs > 0) {
				t.Errorf("%+v: want 120 messages, no audit after the first, no repair", st)
			}
		})
	}
}
