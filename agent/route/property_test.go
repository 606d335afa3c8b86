package route_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
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
// few prefixes and next hops at random, with agents one after the other that use
// next hop objects and that do not. However it went, others' routes and objects
// are as they were left, and once nobody interferes any more the kernel has what
// is wanted.
func TestAnyHistoryConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := newHost(t)
		m := newModel(h, rt)
		rt.Repeat(map[string]func(*rapid.T){
			"learn": m.learn, "blocks": m.setBlocks, "sync": m.sync, "restart": m.restart,
			"retarget": m.retarget, "prune": m.prune, "flap": m.flap,
			"own edit": m.ownEdit, "own object": m.ownObject,
			"foreign add": m.foreignAdd, "foreign del": m.foreignDel, "foreign object": m.foreignObject,
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
	tunnel  int
	s       *route.Syncer
	w       *watch.Watcher
	learned map[string][]route.Hop
	targets map[route.Hop]route.Target
	blocks  map[string]bool
	foreign map[string]string // prefix to its line in a listing
	objects map[string]string // others' next hop objects, by number
}

func newModel(h *host, rt *rapid.T) *model {
	m := &model{
		host: h, rt: rt, tunnel: h.tunnel(),
		learned: map[string][]route.Hop{}, targets: map[route.Hop]route.Target{}, blocks: map[string]bool{},
		foreign: map[string]string{}, objects: map[string]string{},
	}
	for _, p := range keys {
		for _, hop := range hops[:3] {
			m.targets[hopOf(gateway(p, hop))] = target(h.up, gateway(p, hop), false)
		}
	}
	h.ns.SetSysctl(h.t, "net/ipv4/nexthop_compat_mode", rapid.SampledFrom([]string{"0", "1"}).Draw(rt, "compatible"))
	m.restart(rt)
	return m
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

func (m *model) restart(rt *rapid.T) {
	if m.w != nil {
		m.listen() // only to close the old one
	}
	m.inline = rapid.Bool().Draw(rt, "inline")
	m.s = m.syncer()
	m.subscribe()
	must(m.t, m.s.Load(m.t.Context()))
	m.tell(rapid.Bool().Draw(rt, "targets first"))
}

// tell has the syncer know all that is wanted.
func (m *model) tell(targetsFirst bool) {
	if targetsFirst {
		m.s.SetTargets(m.targets)
	}
	for p, hops := range m.learned {
		m.s.Update(learned(p, hops...))
	}
	if !targetsFirst {
		m.s.SetTargets(m.targets)
	}
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
	n := rapid.SampledFrom([]int{0, 1, 1, 1, 2, 3}).Draw(rt, "hops")
	var chosen []route.Hop
	for _, hop := range rapid.Permutation(hops[:3]).Draw(rt, "which")[:n] {
		chosen = append(chosen, hopOf(gateway(p, hop)))
	}
	m.learned[p] = chosen
	m.s.Update(learned(p, chosen...))
}

// retarget has one hop lead elsewhere: to itself or to another out of the
// uplink, into the tunnel, or nowhere.
func (m *model) retarget(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "family")
	hop := hopOf(gateway(p, rapid.SampledFrom(hops[:3]).Draw(rt, "hop")))
	m.targets[hop] = rapid.SampledFrom([]route.Target{
		target(m.up, hop.Addr.String(), false), target(m.up, gateway(p, "5"), false), target(m.tunnel, farEnd(hop), true), {},
	}).Draw(rt, "target")
	m.s.SetTargets(map[route.Hop]route.Target{hop: m.targets[hop]})
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
	if rapid.Bool().Draw(rt, "later") {
		m.later(time.Second)
	}
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

// check: whatever happens, others' routes and objects are as they were left.
func (m *model) check(rt *rapid.T) {
	if got, want := m.host.routes("proto", "static"), slices.Collect(maps.Values(m.foreign)); !slices.Equal(got, sorted(want)) {
		rt.Fatalf("others' routes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	if got := m.objectsOf("static"); !maps.Equal(got, m.objects) {
		rt.Fatalf("others' next hop objects: %v\nwant: %v", got, m.objects)
	}
}

func (m *model) converge() {
	for hop, t := range m.targets {
		if (t == route.Target{}) {
			m.targets[hop] = target(m.up, hop.Addr.String(), false)
		}
	}
	m.s.SetTargets(m.targets)
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
	if got := slices.Sorted(maps.Values(m.objectsOf("104"))); !slices.Equal(got, m.wantedObjects()) {
		m.rt.Fatalf("next hop objects:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(m.wantedObjects(), "\n  "))
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
	if m.blocks[p] {
		return "blackhole " + p + lo + metric
	}
	var ways []string
	for _, hop := range m.learned[p] {
		ways = append(ways, m.way(hop))
	}
	ways = slices.Compact(sorted(ways))
	switch len(ways) {
	case 0:
		return ""
	case 1:
		way, onlink := strings.CutSuffix(ways[0], " onlink")
		if onlink {
			metric += " onlink"
		}
		return p + " " + way + metric
	}
	return p + metric + " nexthop " + strings.Join(ways, " nexthop ")
}

// way is how ip(8) says where a hop leads.
func (m *model) way(hop route.Hop) string {
	t := m.targets[hop]
	way := "via " + t.Gateway.String() + " dev "
	if t.Device == m.up {
		return way + "up0"
	}
	return way + "hop.vxlan onlink"
}

// wantedObjects are one for each hop that some prefix is reached by alone.
func (m *model) wantedObjects() []string {
	used := make(map[route.Hop]bool)
	for _, hops := range m.learned {
		if len(hops) == 1 && !m.inline {
			used[hops[0]] = true
		}
	}
	want := []string{}
	for hop := range used {
		way, onlink := strings.CutSuffix(m.way(hop), " onlink")
		if way += " proto 104"; onlink {
			way += " onlink"
		}
		want = append(want, way)
	}
	return sorted(want)
}

// routes are those of the host, next hops of each in order.
func (m *model) routes(filter ...string) []string {
	lines := m.host.routes(filter...)
	for i, line := range lines {
		if parts := strings.Split(line, " nexthop "); len(parts) > 2 {
			slices.Sort(parts[1:])
			lines[i] = strings.Join(parts, " nexthop ")
		}
	}
	return lines
}

// farEnd is a hop's gateway in the tunnel. IPv6 refuses one, onlink or not, that
// another device has a subnet for.
func farEnd(hop route.Hop) string {
	if hop.Addr.Is6() {
		return strings.Replace(hop.Addr.String(), "2001:db8::", "fe80::", 1)
	}
	return hop.Addr.String()
}

func gateway(p, hop string) string {
	if prefix(p).Addr().Is6() {
		return "2001:db8::" + hop
	}
	return fmt.Sprintf("192.0.2.%s", hop)
}
