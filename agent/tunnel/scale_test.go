package tunnel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// thousand is two with 1,000 peers of both families instead.
func thousand() Desired {
	want := two()
	want.Peers = nil
	for i := range 1000 {
		v4 := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		v6 := netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", i+1))
		want.Peers = append(want.Peers, Peer{Underlay: v4, NextHops: []netip.Addr{v4, v6}})
	}
	return want
}

// TestThousandPeers: one peer more or less costs what one peer costs.
func TestThousandPeers(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := thousand()
	timed := func(what string, do func()) {
		t.Helper()
		start := time.Now()
		do()
		t.Logf("%-40s %6.1f ms", what, float64(time.Since(start).Microseconds())/1000)
	}
	sync := func() { must(t, d.Sync(t.Context(), want)) }
	timed("all of 1,000 peers", sync)
	h.counts(t, 2000, 1000)
	h.unchanged(func() { timed("nothing to do", sync) })

	want.Peers = append(want.Peers, Peer{Underlay: netip.MustParseAddr("198.19.0.1"), NextHops: addrs("198.19.0.1", "2001:db8:2::1")})
	// An entry in the FDB is told of twice by older kernels.
	if told := h.told(func() { timed("one more", sync) }); len(told) < 3 || len(told) > 4 {
		t.Errorf("%d notifications of three entries: %v", len(told), told)
	}
	want.Peers = want.Peers[1:]
	// A neighbour is first invalid, then deleted.
	if told := h.told(func() { timed("one less", sync) }); len(told) < 3 || len(told) > 6 {
		t.Errorf("%d notifications of three entries: %v", len(told), told)
	}
	h.counts(t, 2000, 1000)

	d.forgetEntries()
	h.unchanged(func() { timed("an audit", sync) })
	fresh := h.devices()
	h.unchanged(func() {
		timed("a restart", func() { must(t, fresh.Load(t.Context())); must(t, fresh.Sync(t.Context(), want)) })
	})
	h.ip("link del hop.vxlan")
	timed("after the device was deleted", sync)
	h.counts(t, 2000, 1000)
	want.Peers = nil
	timed("none of 1,000 peers", sync)
	h.counts(t, 0, 0)
}

func (h *host) counts(t *testing.T, neighbours, fdb int) {
	t.Helper()
	view := h.view()
	if n := strings.Count(view, "PERMANENT"); n != neighbours {
		t.Errorf("%d neighbours, want %d", n, neighbours)
	}
	if n := strings.Count(view, "self permanent"); n != fdb {
		t.Errorf("%d FDB entries, want %d", n, fdb)
	}
}

// TestAThousandPeersLostAreBackWithinASecond, all of them at once.
func TestAThousandPeersLostAreBackWithinASecond(t *testing.T) {
	want := thousand()
	h, d := running(t, Config{Audit: time.Hour}, want)
	h.repairs(t, d, damage{"", []string{"neigh flush dev hop.vxlan nud permanent"}, false})
	h.repairs(t, d, damage{"", []string{"link del hop.vxlan"}, true})
}

func BenchmarkNothingToDo(b *testing.B) {
	h := newHost(b)
	d := h.devices()
	want := thousand()
	must(b, d.Sync(b.Context(), want))
	b.ReportAllocs()
	for b.Loop() {
		must(b, d.Sync(b.Context(), want))
	}
}

func BenchmarkAudit(b *testing.B) {
	h := newHost(b)
	d := h.devices()
	want := thousand()
	must(b, d.Sync(b.Context(), want))
	b.ReportAllocs()
	for b.Loop() {
		d.forgetEntries()
		must(b, d.Sync(b.Context(), want))
	}
}
