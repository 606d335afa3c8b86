package route_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/watch"
)

func TestBlocksAndLearnedPrefixesReachTheKernel(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		s.SetBlocks(prefixes("10.244.0.0/26", "fd00::/122"))
		h.learn(s,
			via("10.244.1.0/26", "192.0.2.2"),
			via("10.244.2.0/26", "192.0.2.3", "192.0.2.2", "192.0.2.3"),
			via("0.0.0.0/0", "192.0.2.9"),
			via("fd00::40/122", "2001:db8::2"),
			via("fd00::80/122", "2001:db8::3", "2001:db8::2"))
		must(t, s.Sync(t.Context()))
		h.expect(
			"blackhole 10.244.0.0/26 proto 104",
			"10.244.1.0/26 via 192.0.2.2 dev up0 proto 104",
			"10.244.2.0/26 proto 104 nexthop via 192.0.2.2 dev up0 nexthop via 192.0.2.3 dev up0",
			"default via 192.0.2.9 dev up0 proto 104",
			"blackhole fd00::/122 dev lo proto 104 metric 1024",
			"fd00::40/122 via 2001:db8::2 dev up0 proto 104 metric 1024",
			"fd00::80/122 proto 104 metric 1024 nexthop via 2001:db8::2 dev up0 nexthop via 2001:db8::3 dev up0")

		s.SetBlocks(nil)
		h.learn(s,
			via("10.244.1.0/26"),
			via("10.244.2.0/26", "192.0.2.4"),
			via("0.0.0.0/0"),
			via("fd00::40/122", "2001:db8::4", "2001:db8::5"),
			via("fd00::80/122"))
		must(t, s.Sync(t.Context()))
		h.expect(
			"10.244.2.0/26 via 192.0.2.4 dev up0 proto 104",
			"fd00::40/122 proto 104 metric 1024 nexthop via 2001:db8::4 dev up0 nexthop via 2001:db8::5 dev up0")
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

func TestSecondSyncSendsNothing(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		blocks := prefixes("10.244.0.0/26", "fd00::/122")
		learned := []route.Learned{
			via("10.244.2.0/26", "192.0.2.3", "192.0.2.2"),
			via("fd00::80/122", "2001:db8::3", "2001:db8::2"),
			via("10.244.9.0/26"),
		}
		s.SetBlocks(blocks)
		h.learn(s, learned...)
		must(t, s.Sync(t.Context()))
		before := s.Stats().Messages
		if before != 4 {
			t.Errorf("4 routes took %d messages", before)
		}
		slices.Reverse(learned[0].Hops)
		s.SetBlocks(blocks)
		h.learn(s, learned...)
		must(t, s.Sync(t.Context()))
		must(t, s.Audit(t.Context()))
		if after := s.Stats().Messages; after != before {
			t.Errorf("%d messages sent with nothing to do", after-before)
		}
	})
}

func TestOwnBlockWinsOverItsLearnedPrefix(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		h.learn(s, via("10.244.0.0/26", "192.0.2.2"))
		s.SetBlocks(prefixes("10.244.0.0/26"))
		must(t, s.Sync(t.Context()))
		h.expect("blackhole 10.244.0.0/26 proto 104")
		s.SetBlocks(nil)
		must(t, s.Sync(t.Context()))
		h.expect("10.244.0.0/26 via 192.0.2.2 dev up0 proto 104")
	})
}

func TestRestartIsNoEventUntilPrune(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		first := h.syncer()
		first.SetBlocks(prefixes("10.244.0.0/26", "fd00::/122"))
		kept := []route.Learned{
			via("10.244.1.0/26", "192.0.2.2", "192.0.2.3"),
			via("fd00::40/122", "2001:db8::2", "2001:db8::3"),
		}
		h.learn(first, kept...)
		h.learn(first, via("10.244.7.0/26", "192.0.2.2"), via("fd00::1c0/122", "2001:db8::2"))
		must(t, first.Sync(t.Context()))
		before := h.routes()

		events := h.routeEvents()
		second := h.syncer()
		must(t, second.Load(t.Context()))
		if got, want := second.Blocks(), prefixes("10.244.0.0/26", "fd00::/122"); !slices.Equal(got, want) {
			t.Errorf("Blocks() = %v, want %v", got, want)
		}
		if st := second.Stats(); st.Installed != 6 || st.Stale != 6 {
			t.Errorf("after Load: %+v, want 6 installed, all stale", st)
		}
		second.SetBlocks(second.Blocks())
		h.learn(second, kept...)
		must(t, second.Sync(t.Context()))
		must(t, second.Audit(t.Context()))
		h.expect(before...)
		if n, objects := events(); n+objects > 0 {
			t.Errorf("%d route events during a restart, and %d of objects", n, objects)
		}

		must(t, second.Prune(t.Context()))
		h.expect(slices.DeleteFunc(before, func(line string) bool {
			return strings.HasPrefix(line, "10.244.7.") || strings.HasPrefix(line, "fd00::1c0")
		})...)
		if st := second.Stats(); st.Installed != 4 || st.Stale != 0 {
			t.Errorf("after Prune: %+v, want 4 installed, none stale", st)
		}
	})
}

func TestWithdrawalRemovesAStaleRouteBeforePrune(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		h.ip("route add 10.244.1.0/26 via 192.0.2.2 proto 104", "route add 10.244.2.0/26 via 192.0.2.2 proto 104")
		s := h.syncer()
		must(t, s.Load(t.Context()))
		h.learn(s, via("10.244.1.0/26"))
		must(t, s.Sync(t.Context()))
		h.expect("10.244.2.0/26 via 192.0.2.2 dev up0 proto 104")
	})
}

func TestPruneRemovesWhatBearsOurNumberAtOddPlaces(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		h.ip("route add 10.244.1.0/26 via 192.0.2.2 proto 104 metric 7",
			"route add unreachable 10.244.2.0/26 proto 104",
			"route add 10.244.3.0/26 via 192.0.2.2 proto 104",
			"route append 10.244.3.0/26 via 192.0.2.3 proto 104",
			"route add fd00::40/122 via 2001:db8::2 proto 104 metric 7",
			"route add unreachable fd00::80/122 proto 104")
		s := h.syncer()
		must(t, s.Load(t.Context()))
		h.learn(s, via("10.244.3.0/26", "192.0.2.2"))
		must(t, s.Prune(t.Context()))
		h.expect("10.244.3.0/26 via 192.0.2.2 dev up0 proto 104")
	})
}

func TestPodRoutesAreLeftAlone(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		h.ip("link add hop0123456789a type veth peer name pod0", "link set hop0123456789a up", "link set pod0 up",
			"route add 10.244.0.5/32 dev hop0123456789a proto 104 scope link",
			"route add fd00::5/128 dev hop0123456789a proto 104")
		pods := []string{
			"10.244.0.5 dev hop0123456789a proto 104 scope link",
			"fd00::5 dev hop0123456789a proto 104 metric 1024",
		}
		s := h.syncer()
		must(t, s.Load(t.Context()))
		must(t, s.Prune(t.Context()))
		h.expect(pods...)

		// Blocks of one address: the pod's route takes the blackhole's place.
		s.SetBlocks(prefixes("10.244.0.5/32", "fd00::5/128"))
		must(t, s.Sync(t.Context()))
		h.expect(pods...)
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
		// Someone else claims to have our pod's address.
		s.SetBlocks(nil)
		h.learn(s, via("10.244.0.5/32", "192.0.2.2"), via("fd00::5/128", "2001:db8::2"))
		must(t, s.Sync(t.Context()))
		h.expect(pods...)
		if p := s.Problems(); len(p) != 2 || !errors.Is(p[0].Err, route.ErrConflict) || !errors.Is(p[1].Err, route.ErrConflict) {
			t.Errorf("problems: %v, want two conflicts", p)
		}
		h.learn(s, via("10.244.0.5/32"), via("fd00::5/128"))
		must(t, s.Sync(t.Context()))
		h.expect(pods...)
	})
}

func TestForeignRouteIsAConflictNotATarget(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		foreign := []string{
			"10.244.1.0/26 via 192.0.2.66 dev up0 proto static",
			"blackhole 10.244.0.0/26 proto static",
			"fd00::40/122 via 2001:db8::66 dev up0 proto static metric 1024",
		}
		h.ip("route add 10.244.1.0/26 via 192.0.2.66 proto static", "route add blackhole 10.244.0.0/26 proto static",
			"route add fd00::40/122 via 2001:db8::66 proto static")
		s := h.syncer()
		must(t, s.Load(t.Context()))
		s.SetBlocks(prefixes("10.244.0.0/26"))
		h.learn(s, via("10.244.1.0/26", "192.0.2.2"), via("fd00::40/122", "2001:db8::2"), via("10.244.2.0/26", "192.0.2.2"))
		must(t, s.Prune(t.Context()))
		ours := "10.244.2.0/26 via 192.0.2.2 dev up0 proto 104"
		h.expect(append(foreign, ours)...)
		problems := s.Problems()
		if len(problems) != 3 {
			t.Fatalf("problems: %v, want 3", problems)
		}
		for _, p := range problems {
			if !errors.Is(p.Err, route.ErrConflict) {
				t.Errorf("%v: want a conflict", p)
			}
		}
		// Neither other next hops, nor a retry, nor a withdrawal touch them.
		h.learn(s, via("10.244.1.0/26", "192.0.2.2", "192.0.2.3"), via("fd00::40/122", "2001:db8::3"))
		h.later(time.Minute)
		must(t, s.Audit(t.Context()))
		h.learn(s, via("10.244.1.0/26"), via("fd00::40/122"))
		s.SetBlocks(nil)
		must(t, s.Sync(t.Context()))
		h.expect(append(foreign, ours)...)
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems with nothing in the way of what is wanted: %v", p)
		}
	})
}

func TestOneBadRouteStopsNoOther(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		h.learn(s,
			via("10.244.1.0/26", "192.0.2.2"),
			via("10.244.2.0/26", "203.0.113.1"),
			via("10.244.3.0/26", "2001:db8::2"),
			via("10.244.4.0/26", "192.0.2.4"),
			via("fd00::40/122", "2001:db8:1::2"),
			via("fd00::80/122", "2001:db8::2"))
		must(t, s.Sync(t.Context()))
		h.expect(
			"10.244.1.0/26 via 192.0.2.2 dev up0 proto 104",
			"10.244.4.0/26 via 192.0.2.4 dev up0 proto 104",
			"fd00::80/122 via 2001:db8::2 dev up0 proto 104 metric 1024")
		problems := s.Problems()
		if len(problems) != 3 {
			t.Fatalf("problems: %v, want 3", problems)
		}
		if p := problems[0]; p.Prefix != prefix("10.244.2.0/26") || !errors.Is(p.Err, unix.ENETUNREACH) {
			t.Errorf("problem %v, want network unreachable for 10.244.2.0/26", p)
		}
		if p := problems[2]; p.Prefix != prefix("fd00::40/122") || !errors.Is(p.Err, unix.EHOSTUNREACH) {
			t.Errorf("problem %v, want no route to host for fd00::40/122", p)
		}
	})
}

func TestRetriesPauseLongerAndLonger(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		h.learn(s, via("10.244.2.0/26", "203.0.113.1"))
		must(t, s.Sync(t.Context()))
		for i, pause := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			before := s.Stats().Messages
			h.later(pause*time.Second - 1)
			must(t, s.Sync(t.Context()))
			if s.Stats().Messages != before {
				t.Errorf("retry %d came before %d s", i, pause)
			}
			h.later(1)
			must(t, s.Sync(t.Context()))
			if s.Stats().Messages != before+1 {
				t.Errorf("retry %d did not come after %d s", i, pause)
			}
		}
		h.ip("addr add 203.0.113.2/24 dev up0")
		h.later(30 * time.Second)
		must(t, s.Sync(t.Context()))
		h.expect("10.244.2.0/26 via 203.0.113.1 dev up0 proto 104")
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

func TestSyncEndsWithItsContext(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		h.learn(s, via("10.244.1.0/26", "192.0.2.2"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Sync(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Sync with a cancelled context: %v", err)
		}
		must(t, s.Sync(t.Context()))
		h.expect("10.244.1.0/26 via 192.0.2.2 dev up0 proto 104")
	})
}

func TestNextHopChangeLeavesNoMomentWithoutRoute(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		h.learn(s, via("10.244.1.0/26", "192.0.2.2"), via("fd00::40/122", "2001:db8::2"))
		must(t, s.Sync(t.Context()))
		events := h.routeEvents()
		h.learn(s, via("10.244.1.0/26", "192.0.2.3", "192.0.2.4"), via("fd00::40/122", "2001:db8::3", "2001:db8::4"))
		must(t, s.Sync(t.Context()))
		h.learn(s, via("10.244.1.0/26", "192.0.2.4"), via("fd00::40/122", "2001:db8::4"))
		must(t, s.Sync(t.Context()))
		if n, _ := events(); n != 4 {
			t.Errorf("4 replacements made %d events", n)
		}
	})
}

// routeEvents starts to listen; the function returned stops, tells the number
// of events about our routes and about next hop objects, and fails the test if one
// was the deletion of a route.
func (h *host) routeEvents() func() (routes, objects int) {
	h.t.Helper()
	var w *watch.Watcher
	var err error
	h.ns.Do(h.t, func() { w, err = watch.New(watch.Config{}) })
	must(h.t, err)
	routes, objects := 0, 0
	ctx, cancel := context.WithCancel(context.Background())
	h.t.Cleanup(cancel)
	last := netip.MustParsePrefix("198.51.100.0/24")
	w.Listen(watch.Listener{Route: func(r watch.Route) {
		if r.Prefix == last {
			cancel()
			return
		}
		if r.Protocol != route.Protocol {
			return // the kernel's own, which come with a device, some of them late
		}
		routes++
		if r.Deleted {
			h.t.Errorf("route to %v was deleted", r.Prefix)
		}
	}, Nexthop: func(watch.Nexthop) { objects++ }})
	return func() (int, int) {
		// The marker comes after all that happened before.
		h.ip("route add blackhole 198.51.100.0/24", "route del blackhole 198.51.100.0/24")
		must(h.t, w.Run(ctx))
		return routes, objects
	}
}
