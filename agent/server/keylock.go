package server

import "sync"

// keyLock is a lock for each key, kept only while somebody holds or awaits it.
type keyLock[K comparable] struct {
	mu    sync.Mutex
	locks map[K]*waiters
}

type waiters struct {
	sync.Mutex
	n int
}

// Lock waits for the key's lock and returns what gives it back.
func (l *keyLock[K]) Lock(key K) (unlock func()) {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = make(map[K]*waiters)
	}
	w := l.locks[key]
	if w == nil {
		w = &waiters{}
		l.locks[key] = w
	}
	w.n++
	l.mu.Unlock()

	w.Lock()
	return func() {
		w.Unlock()
		l.mu.Lock()
		if w.n--; w.n == 0 {
			delete(l.locks, key)
		}
		l.mu.Unlock()
	}
}
