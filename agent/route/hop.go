package route

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// Hop names a next hop. Prefixes that are reached the same way share one, so
// that changing where it leads is one message to the kernel, however many
// prefixes there are.
type Hop struct {
	Addr netip.Addr // BGP's next hop: the owner's node address
	Pool string     // the pool whose mode decides how to get there; "" outside all pools
}

func (h Hop) String() string {
	if h.Pool == "" {
		return h.Addr.String()
	}
	return h.Addr.String() + " for pool " + h.Pool
}

// Target is where a Hop leads: out of a device, via a gateway. The zero
// Target: nowhere yet.
type Target struct {
	Device  int // interface index
	Gateway netip.Addr
	Onlink  bool // the gateway need not be on a subnet of the device: a tunnel's far end
}

// leads tells whether t leads anywhere.
func (t Target) leads() bool { return t.Device > 0 && t.Gateway.IsValid() }

func (t Target) pack(b []byte) []byte {
	return rtnl.Hop{Device: uint32(t.Device), Gateway: t.Gateway, Onlink: t.Onlink}.Pack(b)
}

// ErrNoTarget means that nobody has said yet where a next hop leads.
var ErrNoTarget = errors.New("no way to next hop")

// hop is what is known of a Hop.
type hop struct {
	Hop
	serial uint32 // tells it from others in the key of a way
	target Target
	since  time.Time // when the target was last found to lead nowhere
	alone  way       // it alone
	among  []*way    // it and others
}

// way is a set of next hops that prefixes are reached by: one, or several that
// are equally good. Prefixes are found by their next hops through it.
type way struct {
	key     string
	hops    []*hop
	entries []*entry
	// state is what a route that goes this way is, of family is6.
	state state
	is6   bool
}

// SetTargets says where the given hops lead; it says nothing of others. While a
// hop's target is zero, routes that are in the kernel stay as they are.
func (s *Syncer) SetTargets(targets map[Hop]Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, t := range targets {
		key.Addr = key.Addr.Unmap()
		t.Gateway = t.Gateway.Unmap().WithZone("")
		if s.hops[key] == nil && !t.leads() {
			continue
		}
		h := s.hop(key)
		if h.target == t {
			continue
		}
		h.target = t
		if !t.leads() {
			h.since = s.now()
		}
		s.refreshHop(h)
		s.forgetHop(h)
	}
	s.wake()
}

// Current returns where the kernel's route to p leads, as far as is known: by
// Load, or what was written or heard of since. It is empty for a prefix that
// has no route of ours, or one that leads nowhere.
func (s *Syncer) Current(p netip.Prefix) []Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[p.Masked()]; e != nil {
		return s.current(e)
	}
	return nil
}

func (s *Syncer) current(e *entry) []Target {
	have := e.have.Value()
	var targets []Target
	for hop := range rtnl.Unpack(have.hops, e.prefix.Addr().Is6()) {
		targets = append(targets, Target{Device: int(hop.Device), Gateway: hop.Gateway, Onlink: hop.Onlink})
	}
	return targets
}

// Installed returns where the kernel's routes by way of h lead: false if they
// differ, or there is none.
func (s *Syncer) Installed(h Hop) (Target, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Addr = h.Addr.Unmap()
	known := s.hops[h]
	if known == nil {
		return Target{}, false
	}
	var installed Target
	for _, w := range known.ways() {
		for _, e := range w.entries {
			t, ok := s.leadsTo(e, known)
			switch {
			case !ok:
			case !installed.leads():
				installed = t
			case installed != t:
				return Target{}, false
			}
		}
	}
	return installed, installed.leads()
}

// leadsTo returns where e's route leads by way of h. Of several next hops it
// is the one that was written for h, or else the one whose gateway h is.
func (s *Syncer) leadsTo(e *entry, h *hop) (Target, bool) {
	targets := s.current(e)
	if e.way == &h.alone {
		if len(targets) == 1 {
			return targets[0], true
		}
		return Target{}, false
	}
	if len(targets) > 0 && e.have == e.way.state {
		return h.target, true
	}
	i := slices.IndexFunc(targets, func(t Target) bool { return t.Gateway == h.Addr })
	if i < 0 {
		return Target{}, false
	}
	return targets[i], true
}

func (h *hop) ways() []*way { return append([]*way{&h.alone}, h.among...) }

// hop returns what is known of a Hop, made if need be.
func (s *Syncer) hop(key Hop) *hop {
	h := s.hops[key]
	if h == nil {
		s.serial++
		h = &hop{Hop: key, serial: s.serial, since: s.now()}
		h.alone = way{hops: []*hop{h}, state: isNowhere}
		s.hops[key] = h
	}
	return h
}

// forgetHop drops a hop of which nothing is known and that nothing goes by.
func (s *Syncer) forgetHop(h *hop) {
	if !h.target.leads() && len(h.alone.entries) == 0 && len(h.among) == 0 {
		delete(s.hops, h.Hop)
	}
}

// way returns the way by the given hops; nil for none.
func (s *Syncer) way(keys []Hop) *way {
	switch len(keys) {
	case 0:
		return nil
	case 1:
		key := keys[0]
		key.Addr = key.Addr.Unmap()
		return &s.hop(key).alone
	}
	hops := make([]*hop, 0, len(keys))
	for _, key := range keys {
		key.Addr = key.Addr.Unmap()
		hops = append(hops, s.hop(key))
	}
	slices.SortFunc(hops, func(a, b *hop) int { return int(a.serial) - int(b.serial) })
	hops = slices.Compact(hops)
	if len(hops) == 1 {
		return &hops[0].alone
	}
	var key []byte
	for _, h := range hops {
		key = fmt.Appendf(key, "%d ", h.serial)
	}
	w := s.ways[string(key)]
	if w == nil {
		w = &way{key: string(key), hops: hops}
		s.ways[w.key] = w
		for _, h := range hops {
			h.among = append(h.among, w)
		}
		w.state = s.stateOf(w)
	}
	return w
}

// goBy makes w, or nothing if nil, the way that e is to go.
func (s *Syncer) goBy(e *entry, w *way) {
	old, place := e.way, e.place
	if old == w {
		return
	}
	e.way = w
	if w != nil {
		e.place, w.entries = len(w.entries), append(w.entries, e)
	}
	if old != nil {
		s.leave(old, place)
	}
}

// leave takes out an entry of a way, and drops the way if that was the last.
func (s *Syncer) leave(w *way, place int) {
	last := len(w.entries) - 1
	if place < last {
		w.entries[place] = w.entries[last]
		w.entries[place].place = place
	}
	w.entries[last] = nil
	w.entries = w.entries[:last]
	if last > 0 {
		return
	}
	w.entries = nil
	if w.key != "" {
		delete(s.ways, w.key)
		for _, h := range w.hops {
			h.among = slices.DeleteFunc(h.among, func(other *way) bool { return other == w })
		}
	}
	for _, h := range w.hops {
		s.forgetHop(h)
	}
}

// waiting yields the routes that are not there because a next hop's target is
// not known.
func (s *Syncer) waiting() iter.Seq[Problem] {
	return func(yield func(Problem) bool) {
		for _, h := range s.hops {
			if h.target.leads() {
				continue
			}
			err := fmt.Errorf("%w %s is known", ErrNoTarget, h.Hop)
			for _, w := range h.ways() {
				for _, e := range w.entries {
					if e.want() != isNowhere || e.have.kind() == unicast || e.failure != nil || w.nowhere() != h {
						continue
					}
					if !yield(Problem{Prefix: e.prefix, Err: err, Since: h.since}) {
						return
					}
				}
			}
		}
	}
}

// nowhere returns the first hop that leads nowhere.
func (w *way) nowhere() *hop {
	for _, h := range w.hops {
		if !h.target.leads() {
			return h
		}
	}
	return nil
}

// refreshHop works out anew what routes by way of h are, and queues those that
// are to change.
func (s *Syncer) refreshHop(h *hop) {
	s.refresh(&h.alone)
	for _, w := range h.among {
		s.refresh(w)
	}
}

func (s *Syncer) refresh(w *way) {
	next := s.stateOf(w)
	if next == w.state {
		return
	}
	w.state = next
	for _, e := range w.entries {
		s.markDirty(e)
	}
}

// stateOf works out what a route that goes the way w is.
func (s *Syncer) stateOf(w *way) state {
	w.is6 = w.hops[0].target.Gateway.Is6()
	for _, h := range w.hops {
		switch {
		case !h.target.leads():
			return isNowhere
		case h.target.Gateway.Is6() != w.is6:
			return isMixed
		}
	}
	packed := make([]string, len(w.hops))
	for i, h := range w.hops {
		packed[i] = string(h.target.pack(nil))
	}
	return inline(packed)
}
