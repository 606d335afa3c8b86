package route_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/watch"
)

// A check takes a quarter of a second, most of it in ip(8); -rapid.checks on
// the command line still counts.
func init() { _ = flag.Set("rapid.checks", "20") }

// TestAnyHistoryConverges lets a syncer and someone with ip(8) change the same
// few prefixes at random. However it went, others' routes are as they were
// left, and once nobody interferes any more the kernel has what is wanted.
func TestAnyHistoryConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := newHost(t)
		m := &model{host: h, rt: rt, learned: map[string][]string{}, blocks: map[string]bool{}, foreign: map[string]string{}}
		m.restart()
		rt.Repeat(map[string]func(*rapid.T){
			"learn": m.learn, "blocks": m.setBlocks, "sync": m.sync, "restart": func(*rapid.T) { m.restart() },
			"prune":       m.prune,
			"own edit":    m.ownEdit,
			"foreign add": m.foreignAdd, "foreign del": m.foreignDel,
		})
		m.converge()
	})
}

var (
	keys = []string{"10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26", "fd01::/122", "fd01::40/122", "fd01::80/122"}
	hops = []string{"2", "3", "4", "66"} // 66 is used by others only
)

type model struct {
	*host
	rt      *rapid.T
	s       *route.Syncer
	w       *watch.Watcher
	learned map[string][]string
	blocks  map[string]bool
	foreign map[string]string // prefix to its line in a listing
}

// listen delivers to the syncer what happened until now.
func (m *model) listen() {
	ctx, cancel := context.WithCancel(m.t.Context())
	marker := prefix("198.51.100.0/24")
	seen := false
	m.w.Listen(watch.Listener{Route: func(r watch.Route) {
		if r.Prefix == marker && r.Deleted && !seen {
			seen = true
			cancel()
		}
	}})
	m.ip("route add blackhole 198.51.100.0/24", "route del blackhole 198.51.100.0/24")
	must(m.t, m.w.Run(ctx))
	m.subscribe()
}

func (m *model) subscribe() {
	var err error
	m.ns.Do(m.t, func() { m.w, err = watch.New(watch.Config{IgnorePorts: []uint32{m.s.PortID()}}) })
	must(m.t, err)
	m.w.Listen(watch.Listener{Route: m.s.RouteEvent, Link: m.s.LinkEvent, Addr: m.s.AddrEvent, Nexthop: m.s.NexthopEvent})
}

func (m *model) restart() {
	if m.w != nil {
		m.listen() // only to close the old one
	}
	m.s = m.syncer()
	m.subscribe()
	must(m.t, m.s.Load(m.t.Context()))
	m.tell()
}

// tell has the syncer know all that is wanted.
func (m *model) tell() {
	var all []route.Learned
	for p, hops := range m.learned {
		all = append(all, via(p, hops...))
	}
	m.host.learn(m.s, all...)
	m.tellBlocks()
}

func (m *model) tellBlocks() {
	var blocks []netip.Prefix
	for p := range m.blocks {
		blocks = append(blocks, prefix(p))
	}
	m.s.SetBlocks(blocks)
}

func (m *model) learn(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "prefix")
	n := rapid.IntRange(0, 3).Draw(rt, "hops")
	var chosen []string
	for _, hop := range hops[:n] {
		chosen = append(chosen, gateway(p, hop))
	}
	m.learned[p] = chosen
	m.host.learn(m.s, via(p, chosen...))
}

func (m *model) setBlocks(rt *rapid.T) {
	clear(m.blocks)
	for _, p := range rapid.SliceOfNDistinct(rapid.SampledFrom(keys), 0, 2, rapid.ID).Draw(rt, "blocks") {
		m.blocks[p] = true
	}
	m.tellBlocks()
}

func (m *model) sync(rt *rapid.T) {
	m.listen()
	if rapid.Bool().Draw(rt, "audit") {
		must(m.t, m.s.Audit(m.t.Context()))
	} else {
		must(m.t, m.s.Sync(m.t.Context()))
	}
	m.check(rt)
}

func (m *model) prune(*rapid.T) {
	m.listen()
	must(m.t, m.s.Prune(m.t.Context()))
	m.check(m.rt)
}

// ownEdit is someone's meddling with routes of our number.
func (m *model) ownEdit(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "prefix")
	if m.foreign[p] != "" {
		return // ip(8) would change the other's
	}
	verb := rapid.SampledFrom([]string{"del", "replace", "append", "blackhole"}).Draw(rt, "verb")
	hop := gateway(p, rapid.SampledFrom(hops).Draw(rt, "hop"))
	switch verb {
	case "del":
		m.try("route del " + p + " proto 104")
	case "blackhole":
		m.try("route replace blackhole " + p + " proto 104")
	default:
		m.try("route " + verb + " " + p + " via " + hop + " proto 104")
	}
}

func (m *model) foreignAdd(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "prefix")
	if m.foreign[p] != "" {
		return
	}
	if rapid.Bool().Draw(rt, "take over") {
		// Every one of ours goes first, or IPv6 might join the two.
		m.try("route del "+p+" proto 104", "route del "+p+" proto 104", "route del "+p+" proto 104")
	}
	m.try("route add " + p + " via " + gateway(p, "66") + " proto static")
	for _, line := range m.routes("proto", "static") {
		if strings.HasPrefix(line, p+" ") {
			m.foreign[p] = line
		}
	}
}

func (m *model) foreignDel(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "prefix")
	if m.foreign[p] != "" {
		delete(m.foreign, p)
		m.try("route del " + p + " proto static")
	}
}

// try runs commands that may fail.
func (m *model) try(commands ...string) {
	m.run("sh", "ip -force -batch - >/dev/null 2>&1 <<E || :\n"+strings.Join(commands, "\n")+"\nE\n")
}

// check: whatever happens, others' routes are as they were left.
func (m *model) check(rt *rapid.T) {
	var want []string
	for _, line := range m.foreign {
		want = append(want, line)
	}
	slices.Sort(want)
	if got := m.routes("proto", "static"); !slices.Equal(got, want) {
		rt.Fatalf("others' routes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func (m *model) converge() {
	m.listen()
	must(m.t, m.s.Prune(m.t.Context()))
	m.later(time.Minute)
	must(m.t, m.s.Audit(m.t.Context()))
	var want []string
	conflicts := 0
	for _, p := range keys {
		line := m.wanted(p)
		if m.foreign[p] != "" {
			if line != "" {
				conflicts++
			}
			line = ""
		}
		if line != "" {
			want = append(want, line)
		}
	}
	slices.Sort(want)
	if got := m.routes("proto", "104"); !slices.Equal(got, want) {
		m.rt.Fatalf("routes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	if got := m.s.Problems(); len(got) != conflicts {
		m.rt.Fatalf("problems %v, want %d", got, conflicts)
	}
	m.check(m.rt)
	sent := m.s.Stats().Messages
	must(m.t, m.s.Sync(m.t.Context()))
	if m.s.Stats().Messages != sent {
		m.rt.Fatalf("another Sync sent messages")
	}
}

// wanted is how ip(8) lists what is wanted for p.
func (m *model) wanted(p string) string {
	metric, lo := "", ""
	if prefix(p).Addr().Is6() {
		metric, lo = " metric 1024", " dev lo"
	}
	hops := m.learned[p]
	switch {
	case m.blocks[p]:
		return "blackhole " + p + lo + metric
	case len(hops) == 0:
		return ""
	case len(hops) == 1:
		return p + " via " + hops[0] + " dev up0" + metric
	}
	line := p + metric
	for _, hop := range hops {
		line += " nexthop via " + hop + " dev up0"
	}
	return line
}

func gateway(p, hop string) string {
	if prefix(p).Addr().Is6() {
		return "2001:db8::" + hop
	}
	return fmt.Sprintf("192.0.2.%s", hop)
}
