package endpoint

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// keyLocks are locks that exist while somebody wants them.
type keyLocks struct {
	mu sync.Mutex
	m  map[Key]*keyLock
}

type keyLock struct {
	held  chan struct{} // capacity 1
	wants int
}

func (l *keyLocks) init() { l.m = map[Key]*keyLock{} }

// lock waits for k's lock, or for ctx to end.
func (l *keyLocks) lock(ctx context.Context, k Key) (unlock func(), err error) {
	l.mu.Lock()
	e := l.m[k]
	if e == nil {
		e = &keyLock{held: make(chan struct{}, 1)}
		l.m[k] = e
	}
	e.wants++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.wants--; e.wants == 0 {
			delete(l.m, k)
		}
	}
	if err := ctx.Err(); err != nil {
		leave()
		return nil, err
	}
	select {
	case e.held <- struct{}{}:
		return func() { <-e.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// keys are those that somebody holds or waits for.
func (l *keyLocks) keys() map[Key]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	keys := make(map[Key]struct{}, len(l.m))
	for k := range l.m {
		keys[k] = struct{}{}
	}
	return keys
}

// table is what is plumbed, so that a lost veth can be made again. It is a
// copy of what the kernel knows, plus the namespaces' paths.
type table struct {
	mu    sync.Mutex
	eps   map[Key]Endpoint
	index map[int]Key
}

func (t *table) init() {
	t.eps = map[Key]Endpoint{}
	t.index = map[int]Key{}
}

func (t *table) put(e Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.index, t.eps[e.Key].HostIndex)
	t.eps[e.Key] = e
	t.index[e.HostIndex] = e.Key
}

func (t *table) get(k Key) (Endpoint, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.eps[k]
	e.Addrs = slices.Clone(e.Addrs)
	return e, ok
}

func (t *table) drop(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.index, t.eps[k].HostIndex)
	delete(t.eps, k)
}

func (t *table) byIndex(i int) (Endpoint, bool) {
	t.mu.Lock()
	k, ok := t.index[i]
	t.mu.Unlock()
	if !ok {
		return Endpoint{}, false
	}
	return t.get(k)
}

func (t *table) all() []Endpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Endpoint, 0, len(t.eps))
	for _, e := range t.eps {
		e.Addrs = slices.Clone(e.Addrs)
		all = append(all, e)
	}
	return all
}

// morgue knows the veths that are out of service and not yet deleted.
type morgue struct {
	mu    sync.Mutex
	links map[string]*corpse // by host veth
	// work is held by whoever deletes; wake tells Run that there is something to.
	work chan struct{}
	wake chan struct{}
}

// corpse is one veth. A later one may have the same name.
type corpse struct{ addrs []netip.Addr }

func (m *morgue) init() {
	m.links = map[string]*corpse{}
	m.work = make(chan struct{}, 1)
	m.wake = make(chan struct{}, 1)
}

// lay adds a veth that is in the group already.
func (m *morgue) lay(link string, addrs []netip.Addr) {
	m.mu.Lock()
	m.links[link] = &corpse{addrs}
	m.mu.Unlock()
	m.rouse()
}

// holds says whether a veth in the morgue still has one of addrs.
func (m *morgue) holds(addrs []netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, dead := range m.links {
		if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(dead.addrs, a) }) {
			return true
		}
	}
	return false
}

// empty says whether nothing is in the morgue, nor being deleted out of it.
func (m *morgue) empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.links) == 0
}

// all are those in the morgue now.
func (m *morgue) all() map[string]*corpse {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.links)
}

// bury forgets those that were deleted. The kernel frees a name long before it
// answers, so one may have come back, and been laid here anew: that one stays.
func (m *morgue) bury(dead map[string]*corpse) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, c := range dead {
		if m.links[name] == c {
			delete(m.links, name)
		}
	}
}

// rouse wakes Run.
func (m *morgue) rouse() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}
