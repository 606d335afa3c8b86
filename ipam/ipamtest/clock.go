package ipamtest

import (
	"maps"
	"net/netip"
	"sync"
	"time"
)

// Clock is a clock that stands still until told otherwise.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock stands at some time.
func NewClock() *Clock { return &Clock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

// Now is the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// FreedLog is an ipam.FreedLog in memory, which outlives an Allocator.
type FreedLog struct {
	mu    sync.Mutex
	times map[netip.Addr]time.Time
}

// NewFreedLog is empty.
func NewFreedLog() *FreedLog { return &FreedLog{times: make(map[netip.Addr]time.Time)} }

// Freed implements ipam.FreedLog.
func (l *FreedLog) Freed(addr netip.Addr, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.times[addr] = at
}

// Forget implements ipam.FreedLog.
func (l *FreedLog) Forget(addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.times, addr)
}

// Times are what Restore wants.
func (l *FreedLog) Times() map[netip.Addr]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.times)
}
