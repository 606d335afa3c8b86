package route_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/watch"
)

// running is a host with a running syncer and these routes in the kernel.
func running(t *testing.T, h *host) (*route.Syncer, []string) {
	s := h.syncerWith(route.Config{Audit: time.Hour})
	h.start(s)
	s.SetBlocks(prefixes("10.244.0.0/26", "fd00::/122"))
	h.learn(s,
		via("10.244.1.0/26", "192.0.2.2"),
		via("10.244.2.0/26", "192.0.2.2", "192.0.2.3"),
		via("fd00::40/122", "2001:db8::2"),
		via("fd00::80/122", "2001:db8::2", "2001:db8::3"))
	want := []string{
		"blackhole 10.244.0.0/26 proto 104",
		"10.244.1.0/26 via 192.0.2.2 dev up0 proto 104",
		"10.244.2.0/26 proto 104 nexthop via 192.0.2.2 dev up0 nexthop via 192.0.2.3 dev up0",
		"blackhole fd00::/122 dev lo proto 104 metric 1024",
		"fd00::40/122 via 2001:db8::2 dev up0 proto 104 metric 1024",
		"fd00::80/122 proto 104 metric 1024 nexthop via 2001:db8::2 dev up0 nexthop via 2001:db8::3 dev up0",
	}
	h.eventually(want...)
	must(t, s.Prune(t.Context()))
	return s, want
}

func TestRepairWithinASecond(t *testing.T) {
	for _, c := range []struct{ name, damage string }{
		{"block deleted", "route del blackhole 10.244.0.0/26"},
		{"IPv6 block deleted", "route del blackhole fd00::/122"},
		{"route deleted", "route del 10.244.1.0/26"},
		{"multipath route deleted", "route del 10.244.2.0/26"},
		{"IPv6 route deleted", "route del fd00::40/122"},
		{"IPv6 multipath route deleted", "route del fd00::80/122"},
		{"IPv6 multipath route lost a next hop", "route del fd00::80/122 via 2001:db8::2"},
		{"IPv6 multipath route got a next hop", "route append fd00::80/122 via 2001:db8::9 proto 104"},
		{"replaced by a single next hop", "route replace 10.244.2.0/26 via 192.0.2.9 proto 104"},
		{"replaced by a blackhole", "route replace blackhole 10.244.1.0/26 proto 104"},
		{"replaced by unreachable", "route replace unreachable 10.244.1.0/26 proto 104"},
		{"IPv6 replaced", "route replace fd00::40/122 via 2001:db8::9 proto 104"},
		{"second at the key", "route append 10.244.1.0/26 via 192.0.2.9 proto 104"},
		{"second before ours", "route prepend 10.244.1.0/26 via 192.0.2.9 proto 104"},
		{"IPv6 second at the key", "route append fd00::40/122 via 2001:db8::9 proto 104"},
		{"one of our number that nobody wants", "route add 10.9.0.0/26 via 192.0.2.9 proto 104"},
		{"the same at another metric", "route add 10.244.1.0/26 via 192.0.2.9 proto 104 metric 5"},
		{"all deleted", "route del blackhole 10.244.0.0/26\nroute del 10.244.1.0/26\nroute del 10.244.2.0/26\n" +
			"route del blackhole fd00::/122\nroute del fd00::40/122\nroute del fd00::80/122"},
		{"link down and up", "link set up0 down\nlink set up0 up\naddr replace 2001:db8::1/64 dev up0 nodad"},
		{"carrier lost and back", "link set far0 down\nlink set far0 up"},
		{"address away and back", "addr del 192.0.2.1/24 dev up0\naddr add 192.0.2.1/24 dev up0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, h *host) {
				s, want := running(t, h)
				h.ip(c.damage)
				h.eventually(want...)
				// Repair settles: what was written is believed, not written again.
				must(t, s.Sync(t.Context()))
				sent := s.Stats().Messages
				must(t, s.Audit(t.Context()))
				if again := s.Stats().Messages; again != sent {
					t.Errorf("%d messages after the repair", again-sent)
				}
			})
		})
	}
}

// TestObjectsAreRepairedWithinASecond: $4 and $6 are our objects, and want is
// what others left.
func TestObjectsAreRepairedWithinASecond(t *testing.T) {
	for _, c := range []struct{ name, damage, want string }{
		{"deleted", "nexthop del id $4", ""},
		{"IPv6 deleted", "nexthop del id $6", ""},
		{"all deleted", "nexthop flush proto 104", ""},
		{"replaced", "nexthop replace id $4 via 192.0.2.9 dev up0 proto 104", ""},
		{"IPv6 replaced", "nexthop replace id $6 via 2001:db8::9 dev up0 onlink proto 104", ""},
		{"replaced by a blackhole", "nexthop replace id $4 blackhole proto 104", ""},
		{"deleted and made again otherwise", "nexthop del id $4\nnexthop replace id $4 via 192.0.2.9 dev up0 proto 104", ""},
		{"taken over by another", "nexthop replace id $4 via 192.0.2.9 dev up0 proto static", "via 192.0.2.9 dev up0 proto static"},
		{"one of our number that nobody wants", "nexthop add id 7 via 192.0.2.9 dev up0 proto 104", ""},
		{"a group that nobody wants", "nexthop add id 7 group $4 proto 104", ""},
		{
			"a route made to use another's",
			"nexthop add id 7 via 192.0.2.9 dev up0 proto static\nroute replace 10.244.1.0/26 nhid 7 proto 104",
			"via 192.0.2.9 dev up0 proto static",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			s, routes := running(t, h)
			want := []string{"via 192.0.2.2 dev up0 proto 104", "via 2001:db8::2 dev up0 proto 104"}
			h.expectObjects(want...)
			ids := strings.NewReplacer("$4", h.objectID("192.0.2.2"), "$6", h.objectID("2001:db8::2"))
			if c.want != "" {
				want = append(want, c.want)
			}
			h.ip(ids.Replace(c.damage))
			h.eventually(routes...)
			wait(t, "repair", func() bool { return slices.Equal(h.objects(), sorted(want)) })
			if st := s.Stats(); st.NextHops != 2 {
				t.Errorf("%+v: want 2 next hops", st)
			}
			sent := s.Stats().Messages
			must(t, s.Audit(t.Context()))
			if again := s.Stats().Messages; again != sent {
				t.Errorf("%d messages after the repair", again-sent)
			}
		})
	}
}

func TestLinkDownIsAProblemUntilItIsUp(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s, want := running(t, h)
		h.ip("link set up0 down")
		h.eventually("blackhole 10.244.0.0/26 proto 104", "blackhole fd00::/122 dev lo proto 104 metric 1024")
		wait(t, "four problems", func() bool { return len(s.Problems()) == 4 })
		h.ip("link set up0 up", "addr replace 2001:db8::1/64 dev up0 nodad")
		h.eventually(want...)
		wait(t, "no problem", func() bool { return len(s.Problems()) == 0 })
	})
}

// TestLinkDownIsNoticedWithoutIPv6: no address goes with the link, and the
// kernel tells nothing of the routes that do.
func TestLinkDownIsNoticedWithoutIPv6(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		h.ip("addr del 2001:db8::1/64 dev up0")
		s := h.syncerWith(route.Config{Audit: time.Hour})
		h.start(s)
		h.learn(s, via("10.244.1.0/26", "192.0.2.2"))
		h.eventually("10.244.1.0/26 via 192.0.2.2 dev up0 proto 104")
		h.ip("link set up0 down", "link set up0 up")
		h.eventually("10.244.1.0/26 via 192.0.2.2 dev up0 proto 104")
	})
}

// TestCarrierLossIsNoticedWithoutIPv6: the far end is another machine, so that
// all there is to hear is that the uplink does not run.
func TestCarrierLossIsNoticedWithoutIPv6(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		far := &host{t: t, ns: nstest.New(t)}
		h.ip("addr del 2001:db8::1/64 dev up0", "link set far0 netns "+far.ns.Path)
		far.ip("link set far0 up")
		s := h.syncerWith(route.Config{Audit: time.Hour})
		h.start(s)
		h.learn(s, via("10.244.1.0/26", "192.0.2.2"))
		h.eventually("10.244.1.0/26 via 192.0.2.2 dev up0 proto 104")
		far.ip("link set far0 down")
		if !h.inline {
			h.eventually()
		}
		far.ip("link set far0 up")
		h.eventually("10.244.1.0/26 via 192.0.2.2 dev up0 proto 104")
	})
}

// TestNextHopIsTriedAtOnceWhenItsDeviceIsBack, however long the pause after
// several failures would be.
func TestNextHopIsTriedAtOnceWhenItsDeviceIsBack(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s := h.syncer()
		h.learn(s, via("10.244.1.0/26", "192.0.2.2"))
		must(t, s.Sync(t.Context()))
		link := watch.Link{Index: h.up, Name: "up0"}
		h.ip("link set up0 down")
		s.LinkEvent(link)
		for range 3 {
			h.later(10 * time.Second)
			must(t, s.Sync(t.Context()))
		}
		if len(s.Problems()) != 1 {
			t.Fatalf("problems %v, want one", s.Problems())
		}
		h.ip("link set up0 up")
		link.Up, link.Running = true, true
		s.LinkEvent(link)
		must(t, s.Sync(t.Context()))
		h.expect("10.244.1.0/26 via 192.0.2.2 dev up0 proto 104")
	})
}

func TestForeignReplacementIsLeftAloneAndReported(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s, want := running(t, h)
		h.ip("route replace 10.244.1.0/26 via 192.0.2.66 proto static",
			"route replace fd00::40/122 via 2001:db8::66 proto static")
		wait(t, "two problems", func() bool { return len(s.Problems()) == 2 })
		for _, p := range s.Problems() {
			if !errors.Is(p.Err, route.ErrConflict) {
				t.Errorf("%v: want a conflict", p)
			}
		}
		h.learn(s, via("10.244.1.0/26", "192.0.2.7"), via("fd00::40/122", "2001:db8::7"))
		must(t, s.Sync(t.Context()))
		must(t, s.Audit(t.Context()))
		h.expect(without(want, "10.244.1.0/26", "fd00::40/122",
			"10.244.1.0/26 via 192.0.2.66 dev up0 proto static",
			"fd00::40/122 via 2001:db8::66 dev up0 proto static metric 1024")...)

		h.ip("route del 10.244.1.0/26", "route del fd00::40/122")
		h.eventually(without(want, "10.244.1.0/26", "fd00::40/122",
			"10.244.1.0/26 via 192.0.2.7 dev up0 proto 104",
			"fd00::40/122 via 2001:db8::7 dev up0 proto 104 metric 1024")...)
		wait(t, "no problem", func() bool { return len(s.Problems()) == 0 })
	})
}

func TestForeignRouteBesideOursSurvivesItsChange(t *testing.T) {
	for _, how := range []string{"append", "prepend"} {
		t.Run(how, func(t *testing.T) {
			bothWays(t, func(t *testing.T, h *host) {
				s, want := running(t, h)
				h.ip("route " + how + " 10.244.1.0/26 via 192.0.2.66 proto static")
				if how == "prepend" {
					wait(t, "a problem", func() bool { return len(s.Problems()) == 1 })
				}
				h.learn(s, via("10.244.1.0/26", "192.0.2.7"))
				must(t, s.Sync(t.Context()))
				if got := h.routes("proto", "static"); !slices.Equal(got, []string{"10.244.1.0/26 via 192.0.2.66 dev up0"}) {
					t.Fatalf("the other's route is %q", got)
				}
				h.ip("route del 10.244.1.0/26 proto static")
				h.eventually(without(want, "10.244.1.0/26", "", "10.244.1.0/26 via 192.0.2.7 dev up0 proto 104")...)
			})
		})
	}
}

func TestPodRouteGivesWayToTheBlackholeAgain(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s, want := running(t, h)
		h.ip("link add hop0123456789a type veth peer name pod0", "link set hop0123456789a up", "link set pod0 up",
			"route add 10.244.5.5/32 dev hop0123456789a proto 104 scope link")
		s.SetBlocks(prefixes("10.244.0.0/26", "fd00::/122", "10.244.5.5/32"))
		must(t, s.Sync(t.Context()))
		h.eventually(append(want, "10.244.5.5 dev hop0123456789a proto 104 scope link")...)
		h.ip("route del 10.244.5.5/32")
		h.eventually(append(want, "blackhole 10.244.5.5 proto 104")...)
	})
}

func TestFloodOfForeignRoutesCostsNoRepair(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		s, want := running(t, h)
		sent := s.Stats().Messages
		var flood []string
		for i := range 5000 {
			flood = append(flood, fmt.Sprintf("route add 172.16.%d.%d/32 via 192.0.2.2 proto bird", i>>8, i&255))
		}
		h.ip(flood...)
		h.ip("route flush proto bird", "route del 10.244.1.0/26")
		h.eventually(want...)
		if n := s.Stats().Messages - sent; n != 1 {
			t.Errorf("%d messages, want the one repair", n)
		}
	})
}

// without drops the lines that start with one of two prefixes and adds others.
func without(lines []string, a, b string, add ...string) []string {
	kept := slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return len(line) > len(a) && line[:len(a)] == a || b != "" && len(line) > len(b) && line[:len(b)] == b
	})
	return append(kept, add...)
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within a second", what)
		}
	}
}
