package encap

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

// Pool is an IPPool as far as the way to its blocks is concerned.
type Pool struct {
	Name   string
	Prefix netip.Prefix
	Mode   v1alpha1.PoolMode
}

// Way is how the kernel reaches a next hop by itself, without a tunnel.
type Way struct {
	Target route.Target
	// Onlink: on a subnet of this node's own, no router between.
	Onlink bool
}

// Inputs are what decisions are made from, besides what is learned.
type Inputs struct {
	Pools []Pool
	// Devices are the tunnel devices that work now, by their indexes.
	Devices map[bgp.Encapsulation]int
	// Nodes are the next hops that are nodes which tunnels can lead to, and the
	// gateway that a route through a tunnel names for each.
	Nodes map[netip.Addr]netip.Addr
	// Ways are those of next hops; one that is missing cannot be reached at present.
	Ways map[netip.Addr]Way
}

// Table holds what was learned, by next hop and pool, and where each such next
// hop leads. Work is in proportion to what changes: to the prefixes when they
// are learned, to the next hops when the inputs change. Its methods may be
// called from several goroutines.
type Table struct {
	before func(netip.Prefix) Before

	mu       sync.Mutex
	in       Inputs
	prefixes map[netip.Prefix]known
	hops     map[route.Hop]*hop
	targets  map[route.Hop]route.Target // changed since the last Take
	changed  bool                       // what Facts tell, since the last Take
}

// known is a learned prefix.
type known struct {
	pool  string
	hops  []bgp.Hop
	stale bool
}

// hop is all that is known of one next hop for one pool. The counts are of
// prefixes: an owner receives a tunnel when all its paths say so, which while
// its update spreads they do not.
type hop struct {
	count     int
	receives  [2]int // ipip, vxlan
	sends     [2]int
	said      int
	unsettled int
	modes     map[v1alpha1.PoolMode]int

	before Before
	choice choice
	target route.Target
}

type choice struct {
	wanted, used bgp.Encapsulation
	settled      bool
}

var tunnels = [2]bgp.Encapsulation{bgp.IPIP, bgp.VXLAN}

// NewTable makes an empty table. before tells what the kernel uses for a prefix
// that is learned for the first time: what an earlier agent used.
func NewTable(before func(netip.Prefix) Before) *Table {
	return &Table{
		before:   before,
		prefixes: make(map[netip.Prefix]known),
		hops:     make(map[route.Hop]*hop),
		targets:  make(map[route.Hop]route.Target),
	}
}

// Configure replaces the inputs and decides anew. It returns the prefixes that
// are in another pool now, and hence under another next hop.
func (t *Table) Configure(in Inputs) []route.Learned {
	t.mu.Lock()
	defer t.mu.Unlock()
	moved := !slices.EqualFunc(in.Pools, t.in.Pools, func(a, b Pool) bool { return a.Name == b.Name && a.Prefix == b.Prefix })
	t.in = in
	var learned []route.Learned
	if moved {
		learned = t.assignPools()
	}
	for key, h := range t.hops {
		t.decide(key, h)
	}
	return learned
}

// assignPools looks up every prefix's pool again.
func (t *Table) assignPools() []route.Learned {
	var learned []route.Learned
	for p, k := range t.prefixes {
		pool := PoolOf(t.in.Pools, p).Name
		if pool == k.pool {
			continue
		}
		next := known{pool: pool, hops: k.hops, stale: k.stale}
		moved := route.Learned{Prefix: p}
		next.each(func(key route.Hop, _ bgp.Hop) {
			moved.Hops = append(moved.Hops, key)
			if t.hops[key] == nil {
				old := t.hops[route.Hop{Addr: key.Addr, Pool: k.pool}]
				t.hops[key] = newHop(old.before)
			}
		})
		t.count(next, +1)
		t.count(k, -1)
		k.each(func(key route.Hop, _ bgp.Hop) { t.forget(key) })
		t.prefixes[p] = next
		learned = append(learned, moved)
	}
	t.changed = t.changed || len(learned) > 0
	return learned
}

// forget drops a next hop that nothing is learned by any more.
func (t *Table) forget(key route.Hop) {
	if h := t.hops[key]; h != nil && h.count == 0 {
		delete(t.hops, key)
		delete(t.targets, key)
	}
}

// SetWays replaces how next hops are reached.
func (t *Table) SetWays(ways map[netip.Addr]Way) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.in.Ways = ways
	for key, h := range t.hops {
		t.decide(key, h)
	}
}

// Addrs are the addresses of all next hops learned.
func (t *Table) Addrs() map[netip.Addr]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	addrs := make(map[netip.Addr]bool)
	for key := range t.hops {
		addrs[key.Addr] = true
	}
	return addrs
}

// Learn takes the routes as they are now, those without next hops being
// withdrawn, and says the same in the words of agent/route.
func (t *Table) Learn(routes []bgp.Route) []route.Learned {
	t.mu.Lock()
	defer t.mu.Unlock()
	learned := make([]route.Learned, len(routes))
	touched := make(map[route.Hop]summary)
	touch := func(key route.Hop, _ bgp.Hop) {
		if _, ok := touched[key]; !ok {
			touched[key] = t.hops[key].summary()
		}
	}
	for i, r := range routes {
		learned[i].Prefix = r.Prefix
		if old, ok := t.prefixes[r.Prefix]; ok {
			old.each(touch)
			t.count(old, -1)
			delete(t.prefixes, r.Prefix)
		}
		if !r.Exists() {
			continue
		}
		k := known{pool: PoolOf(t.in.Pools, r.Prefix).Name, hops: r.Hops, stale: r.Stale}
		t.prefixes[r.Prefix] = k
		k.each(touch)
		k.each(func(key route.Hop, _ bgp.Hop) {
			learned[i].Hops = append(learned[i].Hops, key)
			if t.hops[key] == nil {
				t.hops[key] = newHop(t.before(r.Prefix))
			}
		})
		t.count(k, +1)
	}
	for key, before := range touched {
		t.decide(key, t.hops[key])
		t.changed = t.changed || t.hops[key].summary() != before
		t.forget(key)
	}
	return learned
}

// Take returns the next hops that lead elsewhere since the last Take, and
// whether anything changed that Sends, Heard or Progress tell.
func (t *Table) Take() (targets map[route.Hop]route.Target, changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	targets, t.targets = t.targets, make(map[route.Hop]route.Target)
	changed, t.changed = t.changed, false
	return targets, changed
}

// decide makes the choice for one next hop.
func (t *Table) decide(key route.Hop, h *hop) {
	if h.count == 0 {
		return
	}
	mode := t.mode(key.Pool)
	way, reachable := t.in.Ways[key.Addr]
	if !reachable && CrossSubnet(mode) && h.before.Known {
		// Whether it is on-link is not known at present: what there is stays.
		t.settle(h, choice{Tunnel(mode), h.before.Used, false})
		return
	}
	wanted := Wanted(mode, way.Onlink)
	used := Choose(wanted, t.can(key), h.summary().receives, h.before)
	target := way.Target
	if used != bgp.Native {
		target = route.Target{Device: t.in.Devices[used], Gateway: t.in.Nodes[key.Addr], Onlink: true}
	}
	t.settle(h, choice{wanted, used, wanted == used && reachable})
	if target == (route.Target{}) {
		return // what there is stays until a way is known
	}
	h.before = Before{Known: true, Used: used}
	if target != h.target {
		h.target = target
		t.targets[key] = target
	}
}

func (t *Table) settle(h *hop, next choice) {
	t.changed = t.changed || next != h.choice
	h.choice = next
}

// can are the tunnels through which this node can send to a next hop.
func (t *Table) can(key route.Hop) bgp.Encapsulations {
	if !t.in.Nodes[key.Addr].IsValid() {
		return 0
	}
	can := bgp.EncapsulationsOf(slices.Collect(maps.Keys(t.in.Devices))...)
	if key.Addr.Is6() {
		can &^= bgp.EncapsulationsOf(bgp.IPIP) // RFC 2003: IPv4 in IPv4
	}
	return can
}

func (t *Table) mode(pool string) v1alpha1.PoolMode {
	for i := range t.in.Pools {
		if t.in.Pools[i].Name == pool {
			return t.in.Pools[i].Mode
		}
	}
	return ""
}

// PoolOf is the most specific of the pools that a prefix is in.
func PoolOf(pools []Pool, p netip.Prefix) Pool {
	var best Pool
	for _, pool := range pools {
		if pool.Prefix.Bits() <= p.Bits() && pool.Prefix.Contains(p.Addr()) &&
			(best.Name == "" || pool.Prefix.Bits() > best.Prefix.Bits()) {
			best = pool
		}
	}
	return best
}

func (k known) each(f func(route.Hop, bgp.Hop)) {
	for _, h := range k.hops {
		f(route.Hop{Addr: h.Addr, Pool: k.pool}, h)
	}
}

// count adds a prefix's paths to their next hops' counts, or takes them away.
func (t *Table) count(k known, n int) {
	k.each(func(key route.Hop, path bgp.Hop) {
		h := t.hops[key]
		h.count += n
		for i, tunnel := range tunnels {
			if path.Receives.Has(tunnel) {
				h.receives[i] += n
			}
			if path.Says.Said && path.Says.Sends.Has(tunnel) {
				h.sends[i] += n
			}
		}
		if !path.Says.Said {
			return
		}
		h.said += n
		if !path.Says.Settled {
			h.unsettled += n
		}
		if h.modes[path.Says.Mode] += n; h.modes[path.Says.Mode] == 0 {
			delete(h.modes, path.Says.Mode)
		}
	})
}

func newHop(before Before) *hop {
	return &hop{before: before, modes: make(map[v1alpha1.PoolMode]int)}
}

// summary is what others are told of a next hop.
type summary struct {
	exists          bool
	receives, sends bgp.Encapsulations
	said, settled   bool
	mode            v1alpha1.PoolMode // of all its paths; empty while they differ
}

func (h *hop) summary() summary {
	if h == nil || h.count == 0 {
		return summary{}
	}
	s := summary{exists: true, said: h.said == h.count, settled: h.unsettled == 0}
	for i, tunnel := range tunnels {
		if h.receives[i] == h.count {
			s.receives |= bgp.EncapsulationsOf(tunnel)
		}
		if h.sends[i] > 0 {
			s.sends |= bgp.EncapsulationsOf(tunnel)
		}
	}
	if len(h.modes) == 1 {
		for mode := range h.modes {
			s.mode = mode
		}
	}
	return s
}
