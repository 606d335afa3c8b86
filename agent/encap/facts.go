package encap

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

// Sends are the tunnels that the choices for all next hops use, and whether
// those for each pool's are as its mode asks. A pool without next hops is.
func (t *Table) Sends() (all bgp.Encapsulations, unsettled map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	unsettled = make(map[string]bool)
	for key, h := range t.hops {
		all |= bgp.EncapsulationsOf(h.choice.used) & bgp.Tunnels
		if !h.choice.settled {
			unsettled[key.Pool] = true
		}
	}
	return all, unsettled
}

// Hops are all next hops.
func (t *Table) Hops() []route.Hop {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.hops))
}

// Heard is what the node with one of these addresses says of its own sending.
// ok is false if nothing was learned from it. One that makes no statement, as
// a router or an older agent, sends through no tunnel.
func (t *Table) Heard(addrs ...netip.Addr) (sends bgp.Encapsulations, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, h := range t.hops {
		if slices.Contains(addrs, key.Addr) {
			ok = true
			sends |= h.summary().sends
		}
	}
	return sends, ok
}

// Progress is how far one owner has got with a pool's mode.
type Progress struct {
	Addr netip.Addr
	// Ready: it can be sent to as the mode asks.
	Ready bool
	// Switched: it says that it sends to all others as the mode asks.
	Switched bool
	// Mode is the pool's as that node knows it, empty if it does not say.
	Mode v1alpha1.PoolMode
}

// Progress tells of every owner of blocks of the pool, in order of address.
func (t *Table) Progress(pool string) []Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	mode := t.mode(pool)
	var all []Progress
	for key, h := range t.hops {
		if key.Pool != pool {
			continue
		}
		s := h.summary()
		tunnel := Tunnel(mode)
		all = append(all, Progress{
			Addr: key.Addr, Mode: s.mode,
			Ready:    tunnel == bgp.Native || s.receives.Has(tunnel),
			Switched: s.said && s.settled && s.mode == mode,
		})
	}
	slices.SortFunc(all, func(a, b Progress) int { return a.Addr.Compare(b.Addr) })
	return all
}

// Decision is how packets to a learned prefix travel by one of its next hops.
type Decision struct {
	Prefix       netip.Prefix
	Hop          route.Hop
	Mode         v1alpha1.PoolMode
	Wanted, Used bgp.Encapsulation
	Why          string
	Stale        bool
}

// Decisions are all of them, in order of prefix and next hop.
func (t *Table) Decisions() []Decision {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []Decision
	for p, k := range t.prefixes {
		k.each(func(key route.Hop, _ bgp.Hop) {
			h := t.hops[key]
			d := Decision{
				Prefix: p, Hop: key, Mode: t.mode(key.Pool), Stale: k.stale,
				Wanted: h.choice.wanted, Used: h.choice.used,
			}
			way := t.in.Ways[key.Addr]
			d.Why = Why(d.Mode, way.Onlink, t.in.Nodes[key.Addr].IsValid(), d.Wanted, d.Used, t.can(key), h.summary().receives)
			all = append(all, d)
		})
	}
	slices.SortFunc(all, func(a, b Decision) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), a.Hop.Addr.Compare(b.Hop.Addr))
	})
	return all
}

// Used counts the next hops by how packets travel to them.
func (t *Table) Used() map[bgp.Encapsulation]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	used := map[bgp.Encapsulation]int{bgp.Native: 0, bgp.IPIP: 0, bgp.VXLAN: 0}
	for _, h := range t.hops {
		used[h.choice.used]++
	}
	return used
}
