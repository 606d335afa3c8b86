package route

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unique"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

type kind uint8

const (
	absent    kind = iota
	blackhole      // ours
	unicast        // ours, via hops
	nowhere        // wanted, but nobody knows yet via what; never in the kernel
	pending        // wanted, but its next hop object is not there yet
	mixed          // wanted via a gateway of the other family; never in the kernel
	odd            // ours by protocol, but nothing we write: to be replaced
	endpoint       // a local pod's, agent/endpoint's business
	foreign        // another protocol's
)

// body is a route without its prefix. Bodies are interned, as a hundred
// thousand routes share a handful of them.
type body struct {
	kind   kind
	object *object // the next hop object that it uses, nil if none
	hops   string  // packed (rtnl.Hop.Pack), in order
}

// state is what the kernel has, or is to have, at a key.
type state struct{ unique.Handle[body] }

func stateOf(k kind, o *object, hops string) state { return state{unique.Make(body{k, o, hops})} }

var (
	isAbsent    = stateOf(absent, nil, "")
	isBlackhole = stateOf(blackhole, nil, "")
	isNowhere   = stateOf(nowhere, nil, "")
	isPending   = stateOf(pending, nil, "")
	isMixed     = stateOf(mixed, nil, "")
	isOdd       = stateOf(odd, nil, "")
	isEndpoint  = stateOf(endpoint, nil, "")
	isForeign   = stateOf(foreign, nil, "")
)

func (s state) kind() kind { return s.Value().kind }

// ours tells whether we may replace and delete it.
func (s state) ours() bool {
	k := s.kind()
	return k == blackhole || k == unicast || k == odd
}

// entry is all that is known about one prefix.
type entry struct {
	prefix  netip.Prefix
	way     *way // how it was learned to be reached; nil if it was not
	have    state
	failure *failure
	event   uint64 // Syncer.events at the last notification about it
	audit   uint64 // Syncer.audits when last seen in a dump
	place   int32  // in way.entries
	block   bool   // one of the node's own blocks
	stale   bool   // from before our time; kept until Prune
	queued  bool   // in Syncer.dirty
	taken   bool   // creating it was refused: the key is held by someone
}

type failure struct {
	err      error
	since    time.Time
	next     time.Time
	attempts int
}

// stray is a route of ours that sits where none is ever wanted: at another
// metric, or a second one at the same key.
type stray struct {
	prefix netip.Prefix
	metric uint32
	body   body
}

func (e *entry) want() state {
	switch {
	case e.block:
		return isBlackhole
	case e.way == nil:
		return isAbsent
	case e.way.state.kind() == unicast && e.way.is6 != e.prefix.Addr().Is6():
		return isMixed
	}
	return e.way.state
}

// settled tells whether there is nothing to write.
func (e *entry) settled() bool {
	want := e.want()
	switch {
	case want == e.have:
		return true
	case want == isNowhere, want == isPending:
		// What there is stays until there is something better.
		return true
	case want == isAbsent:
		// Only ours are ever deleted, and stale ones not yet.
		return e.stale || !e.have.ours()
	case want == isBlackhole && e.have == isEndpoint:
		// A block of one address, and a pod has it. The blackhole returns when
		// the pod's route goes.
		return true
	}
	return false
}

// waits tells whether e goes the way w and is held up by w's state; a route that
// leads where a next hop not yet known may do so is not.
func (e *entry) waits(w *way) bool {
	switch want := e.want(); want {
	case isNowhere:
		return e.have.kind() != unicast
	default:
		return want == w.state
	}
}

// entry returns the prefix's entry, made if need be.
func (s *Syncer) entry(p netip.Prefix) *entry {
	e := s.entries[p]
	if e == nil {
		e = &entry{prefix: p, have: isAbsent}
		s.entries[p] = e
	}
	return e
}

func (s *Syncer) markDirty(e *entry) {
	if !e.queued {
		e.queued = true
		s.dirty = append(s.dirty, e)
	}
}

// forget drops an entry that says nothing any more.
func (s *Syncer) forget(e *entry) {
	if e.want() == isAbsent && !e.have.ours() && !e.queued && e.failure == nil {
		delete(s.entries, e.prefix)
	}
}

// inline makes the canonical state for packed next hops; duplicates count once.
func inline(packed []string) state {
	slices.Sort(packed)
	return stateOf(unicast, nil, strings.Join(slices.Compact(packed), ""))
}

// kernelState reads what a route of our protocol is.
func (s *Syncer) kernelState(r *rtnl.Route) state {
	switch {
	case r.NextHop != 0:
		return s.object(r.NextHop).state
	case r.Endpoint():
		return isEndpoint
	case r.Type == unix.RTN_BLACKHOLE:
		return isBlackhole
	case r.Type != unix.RTN_UNICAST || r.Special || r.Bare:
		return isOdd
	}
	if len(r.Hops) == 1 {
		return stateOf(unicast, nil, string(r.Hops[0].Pack(nil)))
	}
	packed := make([]string, len(r.Hops))
	for i, hop := range r.Hops {
		packed[i] = string(hop.Pack(nil))
	}
	return inline(packed)
}

// defaultMetric is the metric of all our routes: what the kernel makes of none.
func defaultMetric(p netip.Prefix) uint32 {
	if p.Addr().Is6() {
		return 1024 // IP6_RT_PRIO_USER
	}
	return 0
}
