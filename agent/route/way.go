package route

import (
	"fmt"
	"iter"
	"slices"
	"time"
)

// hop is what is known of a Hop.
type hop struct {
	Hop
	serial uint32 // tells it from others in the key of a way
	target Target
	since  time.Time // when the target was last found to lead nowhere
	alone  way       // it alone
	among  []*way    // it and others
	object *object   // that routes by way of it alone use; nil: none yet
	// failure is why the object is not as it should be.
	failure *failure
	queued  bool // in Syncer.dirtyHops
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
	if !h.target.leads() && h.object == nil && len(h.alone.entries) == 0 && len(h.among) == 0 {
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
		e.place, w.entries = int32(len(w.entries)), append(w.entries, e)
		if len(w.entries) == 1 && w.key == "" {
			s.queueHop(w.hops[0])
		}
	}
	if old != nil {
		s.leave(old, place)
	}
}

// leave takes out an entry of a way, and drops the way if that was the last.
func (s *Syncer) leave(w *way, place int32) {
	last := int32(len(w.entries)) - 1
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
	if w.key == "" {
		s.queueHop(w.hops[0])
		s.tidy = true // there may be an object of no use any more
	} else {
		delete(s.ways, w.key)
		for _, h := range w.hops {
			h.among = slices.DeleteFunc(h.among, func(other *way) bool { return other == w })
		}
	}
	for _, h := range w.hops {
		s.forgetHop(h)
	}
}

// waiting yields the routes that are not as they should be because a next hop
// is not: nobody said where it leads, or the kernel refuses its object.
func (s *Syncer) waiting() iter.Seq[Problem] {
	return func(yield func(Problem) bool) {
		for _, h := range s.hops {
			for _, w := range h.ways() {
				why := h.problem(w)
				if why.err == nil {
					continue
				}
				for _, e := range w.entries {
					if e.failure == nil && e.waits(w) && !yield(Problem{Prefix: e.prefix, Err: why.err, Since: why.since}) {
						return
					}
				}
			}
		}
	}
}

// problem is what keeps routes that go the way w, one of h's, from being right.
func (h *hop) problem(w *way) failure {
	switch {
	case w.nowhere() == h:
		return failure{err: fmt.Errorf("%w %s is known", ErrNoTarget, h.Hop), since: h.since}
	case w == &h.alone && h.target.leads() && h.failure != nil:
		return failure{err: fmt.Errorf("next hop %s: %w", h.Hop, h.failure.err), since: h.failure.since}
	}
	return failure{}
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
	first := w.hops[0]
	w.is6 = first.target.Gateway.Is6()
	for _, h := range w.hops {
		switch {
		case !h.target.leads():
			return isNowhere
		case h.target.Gateway.Is6() != w.is6:
			return isMixed
		}
	}
	if len(w.hops) == 1 && !s.inline {
		if o := first.object; o != nil && o.holder == us {
			return o.state
		}
		return isPending
	}
	packed := make([]string, len(w.hops))
	for i, h := range w.hops {
		packed[i] = string(h.target.wire().Pack(nil))
	}
	return inline(packed)
}
