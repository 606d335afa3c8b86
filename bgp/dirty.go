package bgp

import (
	"net/netip"
	"sync"
	"time"
)

// signalGap is the least time between two signals. A reader that is woken for every UPDATE of a long sequence would
// look up few prefixes at a time, and a lookup costs GoBGP 0.2 ms and 300 KiB of garbage however few they are.
const signalGap = 10 * time.Millisecond

// dirtySet collects prefixes to look at again, each once however often it changed.
type dirtySet struct {
	signal chan struct{} // holds a token when the reader should look

	mu    sync.Mutex
	keys  map[netip.Prefix]struct{}
	last  time.Time // of the last signal
	armed bool      // a signal is on its way
}

func newDirtySet() *dirtySet {
	return &dirtySet{keys: map[netip.Prefix]struct{}{}, signal: make(chan struct{}, 1)}
}

// mark adds the prefixes. The reader is woken at once, or as soon as signalGap has passed since it last was.
func (d *dirtySet) mark(prefixes ...netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range prefixes {
		d.keys[p] = struct{}{}
	}
	if d.armed {
		return
	}
	d.armed = true
	if wait := signalGap - time.Since(d.last); wait > 0 {
		time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.wake()
		})
		return
	}
	d.wake()
}

// wake signals. The caller holds mu.
func (d *dirtySet) wake() {
	d.armed, d.last = false, time.Now()
	select {
	case d.signal <- struct{}{}:
	default:
	}
}

// take empties the set.
func (d *dirtySet) take() []netip.Prefix {
	d.mu.Lock()
	keys := d.keys
	d.keys = map[netip.Prefix]struct{}{}
	d.mu.Unlock()
	out := make([]netip.Prefix, 0, len(keys))
	for p := range keys {
		out = append(out, p)
	}
	return out
}

// Changes has a value when TakeDirty has something to give. One value stands for any number of prefixes, and values
// come at least 10 ms apart.
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
