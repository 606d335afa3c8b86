package ipam

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	tick = 10 * time.Second
	// withdrawal is how long a block is no longer advertised before it is released, for
	// other nodes' routes to be gone when its next owner comes.
	withdrawal = 5 * time.Second
	// askAgain is how often a block that another node has is asked for again.
	askAgain = time.Minute
	// prefetchAgain is how long a failed prefetch is not repeated.
	prefetchAgain = 30 * time.Second
)

// Run looks after the node's blocks until ctx ends: it settles what Reconcile
// has put in doubt, releases blocks that are not needed and claims one ahead of need.
// Assign and Free work without it.
func (a *Allocator) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := a.Maintain(ctx); err != nil && ctx.Err() == nil {
			a.opts.Log.Warn("blocks not looked after; trying again soon", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-time.After(a.pause()):
		}
	}
}

// pause is how long there is nothing to do unless something happens: a tick, or until a
// block that has been withdrawn can be released.
func (a *Allocator) pause() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	pause := tick
	for _, h := range a.blocks {
		if h.state == Retiring && !h.asked {
			pause = min(pause, withdrawal-a.opts.Now().Sub(h.since))
		}
	}
	return max(pause, time.Second) // also when the API keeps refusing
}

// Maintain is one round of Run. It changes nothing when called twice.
func (a *Allocator) Maintain(ctx context.Context) error {
	if err := a.begin(ctx); err != nil {
		return err
	}
	defer a.end()
	bounded, cancel := context.WithTimeout(ctx, a.opts.CallTimeout)
	defer cancel()
	a.review()
	if err := a.settle(bounded); err != nil {
		a.mu.Lock()
		a.doubt = true
		a.mu.Unlock()
		return err
	}
	if err := a.release(bounded); err != nil {
		return err
	}
	return errors.Join(a.prefetch(bounded, IPv4), a.prefetch(bounded, IPv6))
}

// review moves blocks on that need no call: lost ones nobody uses, and empty ones.
func (a *Allocator) review() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.opts.Now()
	for addr, at := range a.freed {
		if now.Sub(at) >= ReuseDelay {
			delete(a.freed, addr)
			a.opts.FreedLog.Forget(addr)
		}
	}
	for i := len(a.blocks) - 1; i >= 0; i-- {
		h := a.blocks[i]
		switch {
		case h.state == Lost && h.Used() == 0:
			a.drop(h)
		case h.state == Lost && now.Sub(h.since) >= askAgain:
			a.doubt = true
		case a.surplus(h, now):
			a.enter(h, Retiring)
			a.opts.Log.Info("block not needed", "block", h.Prefix(), "pool", h.pool)
		}
	}
}

// surplus says whether a block is to be released: nothing used it for long, and
// if its pool is one to take addresses from, the node has others of it, with room.
// Nobody else can take over a block of a pool that is being deleted, so one that is
// empty has nothing to wait for.
func (a *Allocator) surplus(h *held, now time.Time) bool {
	if h.state != Owned || h.Used() > 0 || !a.poolsKnown {
		return false
	}
	if a.ending(h) {
		return true
	}
	linger := a.opts.Linger
	if slices.ContainsFunc(a.closed, func(p Pool) bool { return p.Name == h.pool }) {
		linger = min(linger, ReuseDelay)
	}
	if now.Sub(h.idleSince) < linger || now.Sub(h.LastFreed()) < ReuseDelay {
		return false
	}
	for _, pool := range a.pools {
		if !a.from(h, pool) {
			continue
		}
		siblings := 0
		for _, other := range a.blocks {
			if other != h && other.state == Owned && a.from(other, pool) {
				siblings++
			}
		}
		return siblings > 0 && !a.tight(pool.Family(), h)
	}
	return true
}

// ending says whether the block's pool is being deleted. The name decides, as it does for whoever
// waits for the pool's blocks to go.
func (a *Allocator) ending(h *held) bool {
	return slices.ContainsFunc(a.closed, func(p Pool) bool { return p.Deleting && p.Name == h.pool })
}

// tight says whether so many of the node's addresses are in use that it should
// have another block, not counting the one given.
func (a *Allocator) tight(family Family, but *held) bool {
	if a.opts.PrefetchAt < 0 {
		return false
	}
	used, size := 0, 0
	for _, pool := range a.pools {
		for _, h := range a.blocks {
			if h != but && pool.Family() == family && h.state == Owned && a.from(h, pool) {
				used += h.Used()
				size += h.Size()
			}
		}
	}
	return float64(used) >= a.opts.PrefetchAt*float64(size)
}

// settle asks the store which blocks are ours, when there is doubt, and brings
// memory in line. The caller has the turn.
func (a *Allocator) settle(ctx context.Context) error {
	a.mu.Lock()
	doubt := a.doubt
	a.doubt = false
	a.mu.Unlock()
	if !doubt {
		return nil
	}
	owned, err := a.store.Owned(ctx)
	if err != nil {
		return err
	}
	for _, h := range a.compare(owned) {
		a.claimAgain(ctx, h)
	}
	return nil
}

// compare takes over what the store says is ours, drops what it does not and
// nobody needs, and returns what it does not but is needed.
func (a *Allocator) compare(owned []OwnedBlock) (missing []*held) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ours := make(map[*held]bool)
	for _, block := range owned {
		if h := a.gain(block); h != nil {
			ours[h] = !block.Releasing || h.state == Retiring
		}
	}
	a.guess()
	now := a.opts.Now()
	for i := len(a.blocks) - 1; i >= 0; i-- {
		h := a.blocks[i]
		switch {
		case ours[h]:
		case h.Used() > 0 || now.Sub(h.LastFreed()) < ReuseDelay && h.state != Retiring:
			missing = append(missing, h)
		default:
			a.drop(h)
		}
	}
	return missing
}

// claimAgain claims a block that has addresses in use here but no object of ours. A claim that
// is refused (its pool may be gone or changed) keeps the node from no other block.
func (a *Allocator) claimAgain(ctx context.Context, h *held) {
	pool := Pool{Name: h.pool, Prefix: h.Prefix(), BlockBits: h.Prefix().Bits()}
	err := a.store.Claim(ctx, pool, h.Prefix())
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err == nil:
		a.opts.Log.Warn("block was deleted or being released while its addresses are in use; claimed again",
			"block", h.Prefix(), "pool", h.pool, "used", h.Used())
		a.gain(OwnedBlock{Prefix: h.Prefix(), Pool: h.pool})
	case errors.Is(err, ErrClaimed):
		a.opts.Log.Error("another node has claimed a block whose addresses are in use here; restart the pods that have them",
			"block", h.Prefix(), "pool", h.pool, "used", h.Used(), "error", err)
		a.enter(h, Lost)
	default:
		a.opts.Log.Warn("block was deleted while its addresses are in use, and cannot be claimed again yet",
			"block", h.Prefix(), "pool", h.pool, "used", h.Used(), "error", err)
		a.doubt = true
		if h.state == Owned {
			a.enter(h, Unconfirmed)
		}
	}
}

// release gives back the blocks that are retiring, after their routes are withdrawn.
func (a *Allocator) release(ctx context.Context) error {
	var retiring []*held
	a.mu.Lock()
	now := a.opts.Now()
	for _, h := range a.blocks {
		if h.state == Retiring && now.Sub(h.since) >= withdrawal {
			h.asked = true
			retiring = append(retiring, h)
		}
	}
	a.mu.Unlock()
	for _, h := range retiring {
		if err := a.store.Release(ctx, h.Prefix()); err != nil {
			return fmt.Errorf("block %s is not needed: %w", h.Prefix(), err)
		}
		a.mu.Lock()
		a.drop(h)
		a.mu.Unlock()
		a.opts.Log.Info("block released", "block", h.Prefix(), "pool", h.pool)
	}
	return nil
}

// prefetch claims a block ahead of need, the first one included.
func (a *Allocator) prefetch(ctx context.Context, family Family) error {
	pool, ok := a.wanting(family)
	if !ok || a.keep(pool) {
		return nil
	}
	err := a.claimOne(ctx, pool)
	if err == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.backOff[family] = a.opts.Now().Add(prefetchAgain)
	if errors.Is(err, errShut) {
		return nil // whoever needs an address will hear of it
	}
	a.doubt = true
	return err
}

// wanting is the pool to prefetch a block from; ok is false when there is no need, or none to be had.
func (a *Allocator) wanting(family Family) (pool Pool, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.opts.Now()
	if a.opts.PrefetchAt < 0 || now.Before(a.backOff[family]) || !a.tight(family, nil) {
		return Pool{}, false
	}
	for _, pool := range a.pools {
		if pool.Family() == family && !now.Before(a.shut[pool.Name].until) {
			return pool, true
		}
	}
	return Pool{}, false
}
