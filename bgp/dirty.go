package bgp

import (
	"net/netip"
	"sync"
)

// dirtySet collects prefixes to look at again, each once however often it changed.
type dirtySet struct {
	mu     sync.Mutex
	keys   map[netip.Prefix]struct{}
	signal chan struct{} // holds one token while keys is not empty and nobody has been told
}

func newDirtySet() dirtySet {
	return dirtySet{keys: map[netip.Prefix]struct{}{}, signal: make(chan struct{}, 1)}
}

// mark adds the prefixes and wakes the reader once for all of them.
func (d *dirtySet) mark(prefixes ...netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	d.mu.Lock()
	for _, p := range prefixes {
		d.keys[p] = struct{}{}
	}
	d.mu.Unlock()
	select {
	case d.signal <- struct{}{}:
	default:
	}
}

// take empties the set.
func (d *dirtySet) take() []netip.Prefix {
	d.mu.Lock()
	keys := d.keys
	if len(keys) > 0 {
		d.keys = map[netip.Prefix]struct{}{}
	}
	d.mu.Unlock()
	out := make([]netip.Prefix, 0, len(keys))
	for p := range keys {
		out = append(out, p)
	}
	return out
}

// Changes has a value whenever TakeDirty has something to give. One value stands for any number of prefixes.
func (s *Speaker) Changes() <-chan struct{} { return s.dirty.signal }

// TakeDirty returns the prefixes whose learned route may have changed since they were last taken, in no order, and
// forgets them. Marking a prefix that did not change is allowed and happens; missing one that did is a bug. Once Stop
// has been called it returns nothing, so that what Stop tears down is not taken for withdrawals.
func (s *Speaker) TakeDirty() []netip.Prefix {
	if s.stopping.Load() {
		return nil
	}
	return s.dirty.take()
}
