package route_test

import (
	"slices"
	"testing"

	"github.com/hoplite-net/hoplite/agent/route"
)

func TestCurrentAndInstalledTellWhatTheKernelHas(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		vxlan := h.tunnel()
		a, b := forHop("192.0.2.2", "p"), forHop("192.0.2.3", "p")
		native, tunnelled := target(h.up, "192.0.2.2", false), target(vxlan, "192.0.2.2", true)
		toB := target(h.up, "192.0.2.9", false)
		s := h.syncer()
		check := func(who *route.Syncer, p string, want ...route.Target) {
			t.Helper()
			if got := who.Current(prefix(p)); !slices.Equal(got, want) {
				t.Errorf("Current(%s) = %v, want %v", p, got, want)
			}
		}
		installed := func(who *route.Syncer, hop route.Hop, want route.Target) {
			t.Helper()
			if got, ok := who.Installed(hop); got != want || ok != (want != route.Target{}) {
				t.Errorf("Installed(%s) = %v, %v, want %v", hop, got, ok, want)
			}
		}
		s.SetTargets(map[route.Hop]route.Target{a: native, b: toB})
		s.Update(slices.Concat(learned("10.1.0.0/26", a), learned("10.1.0.64/26", a), learned("10.2.0.0/26", a, b)))
		check(s, "10.1.0.0/26")
		installed(s, a, route.Target{})
		installed(s, forHop("192.0.2.2", ""), route.Target{})
		must(t, s.Sync(t.Context()))
		check(s, "10.1.0.0/26", native)
		check(s, "10.2.0.0/26", native, toB)
		installed(s, a, native)
		installed(s, b, toB)
		s.SetTargets(map[route.Hop]route.Target{a: tunnelled})
		installed(s, a, native)
		must(t, s.Sync(t.Context()))
		installed(s, a, tunnelled)
		s.SetBlocks(prefixes("10.9.0.0/26"))
		must(t, s.Sync(t.Context()))
		check(s, "10.9.0.0/26")
		check(s, "10.77.0.0/26")

		// A starting agent knows before anything is learned.
		next := h.syncer()
		must(t, next.Load(t.Context()))
		check(next, "10.1.0.0/26", tunnelled)
		check(next, "10.2.0.0/26", toB, tunnelled)
		installed(next, a, route.Target{})
		next.Update(slices.Concat(learned("10.1.0.0/26", a), learned("10.1.0.64/26", a), learned("10.2.0.0/26", a, b)))
		must(t, next.Sync(t.Context()))
		installed(next, a, tunnelled)
		// By which of several gateways a hop goes is known only once its target is.
		installed(next, b, route.Target{})
		next.SetTargets(map[route.Hop]route.Target{a: tunnelled, b: toB})
		installed(next, b, toB)
		if n := next.Stats().Messages; n > 0 {
			t.Errorf("%d messages", n)
		}

		// An agent of old may have written next hops that differ.
		h.ip("route add 10.3.0.0/26 via 192.0.2.7 proto 104", "route add 10.3.0.64/26 via 192.0.2.7 proto 104",
			"route add 10.4.0.0/26 via 192.0.2.8 proto 104")
		c := forHop("192.0.2.7", "c")
		must(t, next.Audit(t.Context()))
		next.Update(slices.Concat(learned("10.3.0.0/26", c), learned("10.3.0.64/26", c)))
		installed(next, c, target(h.up, "192.0.2.7", false))
		next.Update(learned("10.4.0.0/26", c))
		installed(next, c, route.Target{})
	})
}
