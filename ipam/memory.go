package ipam

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// This file changes what the allocator knows without asking the store: it
// notes, and grow and Maintain act. Lower-case methods need mu held.

// SetPools says which pools the node may use, in order of preference, and
// which others there are, from which it gives out nothing new (see Usable and Closed).
func (a *Allocator) SetPools(usable []Pool, closed ...Pool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.poolsKnown && slices.Equal(a.pools, usable) && slices.Equal(a.closed, closed) {
		return
	}
	a.pools, a.closed, a.poolsKnown = slices.Clone(usable), slices.Clone(closed), true
	clear(a.shut)
	clear(a.backOff)
	now := a.opts.Now()
	for _, h := range a.blocks { // a pool closed by mistake is reopened soon
		h.idleSince = now
	}
	a.guess()
	signal(a.wake)
}

// Restore tells a new allocator what was before: the blocks that are the
// node's, the addresses in use, and when others were freed. An address in use outside those
// blocks is kept, and its block is claimed again as soon as its pool is known.
// Addresses are given out from the blocks at once, and the store is asked soon whether they are still the node's.
//
// Restore comes before the first Assign.
func (a *Allocator) Restore(owned []OwnedBlock, used iter.Seq[netip.Addr], freed map[netip.Addr]time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.opts.Now()
	for addr, at := range freed {
		if at.After(now) { // the clock was set back
			at = now
		}
		a.freed[addr] = at
	}
	for addr := range used {
		addr = addr.Unmap()
		if _, ok := a.freed[addr]; ok {
			delete(a.freed, addr)
			a.opts.FreedLog.Forget(addr)
		}
		if _, ok := a.used[addr]; !ok {
			a.used[addr] = nil
		}
	}
	for _, block := range owned {
		a.gain(block)
	}
	a.guess()
	a.doubt = true // whoever says what was before may be late
	signal(a.wake)
}

// Reconcile tells what a watch of the node's own blocks shows. Nothing is
// concluded from it but that the store is to be asked: a watch is late.
func (a *Allocator) Reconcile(owned []OwnedBlock) {
	a.mu.Lock()
	defer a.mu.Unlock()
	shown := make(map[netip.Prefix]bool, len(owned))
	for _, block := range owned {
		shown[block.Prefix] = true
		h := a.find(block.Prefix)
		if h == nil {
			a.doubt = true
			continue
		}
		h.seen = true
		if h.state != Owned && h.state != Retiring || block.Releasing && h.state == Owned {
			a.doubt = true
		}
	}
	for _, h := range a.blocks {
		if shown[h.Prefix()] || h.state != Owned {
			continue
		}
		a.doubt = true
		if h.seen { // it was there and is not: until more is known, no new addresses
			a.enter(h, Unconfirmed)
		}
	}
	if a.doubt {
		signal(a.wake)
	}
}

// gain adds a block that is ours, or confirms one. It returns nil for a range
// that the API would not let be a block.
func (a *Allocator) gain(block OwnedBlock) *held {
	if h := a.find(block.Prefix); h != nil {
		h.guessed = false
		h.pool = block.Pool
		a.confirm(h, block.Releasing)
		return h
	}
	for _, h := range slices.Clone(a.blocks) {
		if h.guessed && h.Prefix().Overlaps(block.Prefix) {
			a.drop(h)
		}
	}
	h, err := a.add(block, Owned)
	if err != nil {
		a.opts.Log.Error("block of this node ignored", "block", block.Prefix, "pool", block.Pool, "error", err)
		return nil
	}
	a.opts.Log.Info("block is ours", "block", block.Prefix, "pool", block.Pool, "used", h.Used())
	a.confirm(h, block.Releasing)
	return h
}

// confirm is what follows for a block from the store having it as ours. One
// that is being released may be gone any time: if it is needed, it is to be claimed
// again, and until then nothing is given out from it.
func (a *Allocator) confirm(h *held, releasing bool) {
	switch {
	case releasing && h.Used() > 0:
		a.doubt = true
		if h.state == Owned {
			a.enter(h, Unconfirmed)
		}
	case releasing:
		if h.state != Retiring {
			a.enter(h, Retiring)
		}
		h.asked = true
	case h.state == Unconfirmed || h.state == Lost:
		a.enter(h, Owned)
	}
}

// guess makes, for each stray whose pool is known, the block it must be of.
func (a *Allocator) guess() {
	for addr, h := range a.used {
		if h != nil {
			continue
		}
		for _, pool := range slices.Concat(a.pools, a.closed) {
			if !pool.Prefix.Contains(addr) {
				continue
			}
			prefix, err := addr.Prefix(pool.BlockBits)
			if err != nil || slices.ContainsFunc(a.blocks, func(h *held) bool { return h.Prefix().Overlaps(prefix) }) {
				break
			}
			if h, err := a.add(OwnedBlock{Prefix: prefix, Pool: pool.Name}, Unconfirmed); err == nil {
				h.guessed = true
				a.doubt = true
			}
			break
		}
	}
}

// add puts a block into memory, with what is known of its addresses.
func (a *Allocator) add(block OwnedBlock, state State) (*held, error) {
	b, err := NewBlock(block.Prefix)
	if err != nil {
		return nil, err
	}
	now := a.opts.Now()
	h := &held{Block: b, pool: block.Pool, state: state, since: now, idleSince: now}
	for addr, holder := range a.used {
		if holder == nil && h.Use(addr) {
			a.used[addr] = h
		}
	}
	var waiting []netip.Addr
	for addr := range a.freed {
		if block.Prefix.Contains(addr) {
			waiting = append(waiting, addr)
		}
	}
	slices.SortFunc(waiting, func(x, y netip.Addr) int {
		if c := a.freed[x].Compare(a.freed[y]); c != 0 {
			return c
		}
		return x.Compare(y)
	})
	for _, addr := range waiting {
		h.Wait(addr, a.freed[addr])
		delete(a.freed, addr)
	}
	i, _ := slices.BinarySearchFunc(a.blocks, block.Prefix, func(h *held, p netip.Prefix) int { return h.Prefix().Compare(p) })
	a.blocks = slices.Insert(a.blocks, i, h)
	signal(a.changed)
	return h, nil
}

// drop forgets a block; addresses still in use become strays.
func (a *Allocator) drop(h *held) {
	for addr := range h.UsedAddrs() {
		a.used[addr] = nil
	}
	for addr, at := range h.Waiting() {
		a.freed[addr] = at // the block may come back; review forgets it in time
	}
	a.blocks = slices.DeleteFunc(a.blocks, func(other *held) bool { return other == h })
	signal(a.changed)
}

func (a *Allocator) enter(h *held, state State) {
	h.state, h.since, h.asked = state, a.opts.Now(), false
	signal(a.changed)
}

func (a *Allocator) find(prefix netip.Prefix) *held {
	for _, h := range a.blocks {
		if h.Prefix() == prefix {
			return h
		}
	}
	return nil
}
