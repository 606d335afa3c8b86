package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

const (
	probes   = 6  // claims tried blindly before all blocks are listed
	attempts = 16 // claims tried per listing
	listings = 3
)

// errShut is claimOne's answer when a listing shows no free block, or the pool is to have
// no other; a.shut holds which, and until when that is taken for granted.
var errShut = errors.New("no block is to be had")

// grow gives the pool's blocks room: by settling doubts, by keeping a block
// that was about to be released, or by claiming one. The caller has the turn.
// What went wrong is remembered, for take.
func (a *Allocator) grow(ctx context.Context, pool Pool) error {
	bounded, cancel := context.WithTimeoutCause(ctx, a.opts.CallTimeout,
		fmt.Errorf("the Kubernetes API did not answer within %s", a.opts.CallTimeout))
	defer cancel()
	err := a.settle(bounded)
	if err == nil && !a.roomIn(pool) && !a.keep(pool) {
		err = a.claimOne(bounded, pool)
	}
	if err == nil || errors.Is(err, errShut) {
		return nil // take sees which
	}
	if cause := context.Cause(bounded); cause != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.doubt = true // a call that failed may have been carried out
	if ctx.Err() == nil {
		a.down = failure{err, a.opts.Now().Add(downFor)}
	}
	return err
}

func (a *Allocator) roomIn(pool Pool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.best(pool, a.opts.Now()) != nil
}

// keep takes back the decision to release a block of the pool, if there is one
// whose release has not been asked for.
func (a *Allocator) keep(pool Pool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.blocks {
		if h.state == Retiring && !h.asked && a.from(h, pool) {
			a.enter(h, Owned)
			h.idleSince = h.since
			return true
		}
	}
	return false
}

// claimOne claims a block of the pool: the first few of this node's order are
// tried blindly, since most pools are mostly free; then one listing tells which are.
func (a *Allocator) claimOne(ctx context.Context, pool Pool) error {
	order := newOrder(a.node, pool)
	tried := 0
	for block := range order.all() {
		if tried++; tried > probes {
			break
		}
		if a.holds(block) {
			continue
		}
		if err := a.claim(ctx, pool, block); !errors.Is(err, ErrClaimed) {
			return a.shutIfDenied(pool, err)
		}
	}
	for range listings {
		claimed, err := a.store.Claimed(ctx, pool)
		if err != nil {
			return err
		}
		tried = 0
		for block := range order.free(claimed) {
			if a.holds(block) {
				continue
			}
			if tried++; tried > attempts {
				break
			}
			if err := a.claim(ctx, pool, block); !errors.Is(err, ErrClaimed) {
				return a.shutIfDenied(pool, err)
			}
		}
		if tried == 0 {
			return a.shutPool(pool, errShut)
		}
	}
	return fmt.Errorf("claim a block of pool %s: other nodes were faster, %d times", pool.Name, probes+listings*attempts)
}

// shutIfDenied turns from a pool that is to have no other block, as one that is being
// deleted, before this node has heard of it: other pools may have one.
func (a *Allocator) shutIfDenied(pool Pool, err error) error {
	if !errors.Is(err, ErrDenied) {
		return err
	}
	a.opts.Log.Warn("no block is to be had of a pool; taking another pool if there is one", "pool", pool.Name, "error", err)
	return a.shutPool(pool, err)
}

func (a *Allocator) shutPool(pool Pool, why error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shut[pool.Name] = failure{why, a.opts.Now().Add(shutFor)}
	return errShut
}

// claim claims one block and, when it is ours, adds it to memory.
func (a *Allocator) claim(ctx context.Context, pool Pool, block netip.Prefix) error {
	if err := a.store.Claim(ctx, pool, block); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gain(OwnedBlock{Prefix: block, Pool: pool.Name})
	return nil
}

// holds says whether any part of the block is of one in memory.
func (a *Allocator) holds(block netip.Prefix) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.blocks, func(h *held) bool { return h.Prefix().Overlaps(block) })
}
