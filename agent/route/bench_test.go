package route_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/hoplite-net/hoplite/agent/route"
)

// many are n prefixes 10.x.y.0/26 via one of four next hops.
func many(n, shift int) []route.Learned {
	learned := make([]route.Learned, n)
	for i := range learned {
		a := netip.AddrFrom4([4]byte{byte(10 + i>>18), byte(i >> 10), byte(i >> 2), byte(i << 6)})
		hop := netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + (i+shift)%4)})
		learned[i] = route.Learned{Prefix: netip.PrefixFrom(a, 26), Hops: []route.Hop{{Addr: hop}}}
	}
	return learned
}

func BenchmarkSync(b *testing.B) {
	for _, inline := range []bool{false, true} {
		for _, n := range []int{1_000, 10_000, 100_000} {
			name := func(what string) string {
				if inline {
					what += "/inline"
				}
				return fmt.Sprintf("%s/%d", what, n)
			}
			b.Run(name("add"), func(b *testing.B) { benchmark(b, inline, nil, many(n, 0)) })
			b.Run(name("replace"), func(b *testing.B) { benchmark(b, inline, many(n, 0), many(n, 1)) })
			withdrawn := many(n, 0)
			for i := range withdrawn {
				withdrawn[i].Hops = nil
			}
			b.Run(name("delete"), func(b *testing.B) { benchmark(b, inline, many(n, 0), withdrawn) })
		}
	}
}

// four are the targets of the next hops of many.
func (h *host) four(device int) map[route.Hop]route.Target {
	targets := make(map[route.Hop]route.Target)
	for _, l := range many(4, 0) {
		targets[l.Hops[0]] = route.Target{Device: device, Gateway: l.Hops[0].Addr, Onlink: device != h.up}
	}
	return targets
}

func benchmark(b *testing.B, inline bool, before, after []route.Learned) {
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		h := newHost(b)
		h.inline = inline
		s := h.syncer()
		s.SetTargets(h.four(h.up))
		s.Update(before)
		must(b, s.Sync(b.Context()))
		b.StartTimer()
		s.Update(after)
		must(b, s.Sync(b.Context()))
		if p := s.Problems(); len(p) > 0 {
			b.Fatal(p[0])
		}
	}
	b.ReportMetric(float64(len(after))*float64(b.N)/b.Elapsed().Seconds(), "routes/s")
}

// BenchmarkSetTargets has four next hops with 100,000 routes lead elsewhere.
func BenchmarkSetTargets(b *testing.B) {
	for _, inline := range []bool{false, true} {
		b.Run(fmt.Sprintf("inline=%v", inline), func(b *testing.B) {
			h := newHost(b)
			h.inline = inline
			s := h.syncer()
			targets := []map[route.Hop]route.Target{h.four(h.up), h.four(h.tunnel())}
			s.SetTargets(targets[0])
			s.Update(many(100_000, 0))
			must(b, s.Sync(b.Context()))
			i := 0
			for b.Loop() {
				i++
				s.SetTargets(targets[i%2])
				must(b, s.Sync(b.Context()))
			}
		})
	}
}

func BenchmarkAudit(b *testing.B) {
	for _, inline := range []bool{false, true} {
		b.Run(fmt.Sprintf("inline=%v", inline), func(b *testing.B) {
			h := newHost(b)
			h.inline = inline
			s := h.syncer()
			s.SetTargets(h.four(h.up))
			s.Update(many(100_000, 0))
			must(b, s.Sync(b.Context()))
			b.ReportAllocs()
			for b.Loop() {
				must(b, s.Audit(b.Context()))
			}
		})
	}
}
