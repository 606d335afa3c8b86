package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options of an Allocator. The zero value is what an agent wants, but for FreedLog.
type Options struct {
	Now func() time.Time // time.Now
	Log *slog.Logger     // slog.Default()

	// CallTimeout bounds everything one Assign asks of the Store; 5 s.
	CallTimeout time.Duration
	// Linger is how long a block stays empty before it is released; 5 min. One of a pool that is closed
	// stays no longer than ReuseDelay, and one of a pool being deleted goes at once.
	Linger time.Duration
	// PrefetchAt is the part of a node's addresses in use from which on Run claims another block ahead
	// of need; 0.8. Negative: never.
	PrefetchAt float64
	// FreedLog keeps the times of freed addresses across a restart; none.
	FreedLog FreedLog
}

// FreedLog is where an Allocator's caller keeps the time each address was
// freed, to hand it to Restore. It is called with the allocator's lock
// held, so that its order is that of events: it is to be quick, and not to call back.
type FreedLog interface {
	Freed(addr netip.Addr, at time.Time)
	// Forget: the address has been given out again, or its block is not ours any more.
	Forget(addr netip.Addr)
}

type noFreedLog struct{}

func (noFreedLog) Freed(netip.Addr, time.Time) {}
func (noFreedLog) Forget(netip.Addr)           {}

// State is how sure the node is of a block.
type State string

// The states of a block.
const (
	// Owned: addresses are given out from it.
	Owned State = "Owned"
	// Unconfirmed: addresses of it are in use here, and it may have been deleted from the
	// API. None are given out until that is settled.
	Unconfirmed State = "Unconfirmed"
	// Retiring: empty, and on its way to being released.
	Retiring State = "Retiring"
	// Lost: addresses of it are in use here, and another node has claimed it.
	Lost State = "Lost"
)

// BlockInfo is a block as the node sees it.
type BlockInfo struct {
	OwnedBlock
	State State
	Size  int
	Used  []netip.Addr // ascending
}

// Allocator is a node's blocks. Its methods may be called from several goroutines.
//
// Two locks: mu guards the memory and is never held across a call of the Store;
// turn is held across such calls, by one goroutine at a time, so that what the
// store was asked and what memory says of it cannot cross, and so that Assigns that
// all need a new block share the one that is claimed.
type Allocator struct {
	node    string
	store   Store
	opts    Options
	changed chan struct{}
	wake    chan struct{}
	turn    chan struct{}

	mu         sync.Mutex
	pools      []Pool // usable, in order of preference
	closed     []Pool
	poolsKnown bool
	blocks     []*held                  // by prefix
	used       map[netip.Addr]*held     // nil: a stray, whose block is not known
	freed      map[netip.Addr]time.Time // from Restore, for blocks that are not ours now
	doubt      bool                     // ask the store which blocks are ours
	shut       map[string]failure       // pools not to be searched for a block now
	down       failure                  // the store does not answer
	backOff    map[Family]time.Time     // until when not to prefetch
}

// held is a block and the node's hold on it.
type held struct {
	*Block
	pool      string
	state     State
	since     time.Time // in this state
	idleSince time.Time // no address in use since; meaningless otherwise
	seen      bool      // the watch has shown it
	guessed   bool      // its size is the pool's say-so, no object was ever seen
	asked     bool      // Retiring: its release has been asked for, so it may be gone any time
}

// failure is what to answer without asking again, and until when.
type failure struct {
	err   error
	until time.Time
}

// While the store does not answer, or a pool has no block to be had, Assigns in a row
// get the same error for this long, rather than each waiting for the same answer.
const (
	downFor = time.Second
	shutFor = 5 * time.Second
)

// New is an allocator for the node of that name; it has no pools and no blocks yet.
func New(node string, store Store, opts Options) *Allocator {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.FreedLog == nil {
		opts.FreedLog = noFreedLog{}
	}
	opts.Log = cmp.Or(opts.Log, slog.Default())
	opts.CallTimeout = cmp.Or(opts.CallTimeout, 5*time.Second)
	opts.Linger = cmp.Or(opts.Linger, 5*time.Minute)
	opts.PrefetchAt = cmp.Or(opts.PrefetchAt, 0.8)
	return &Allocator{
		node: node, store: store, opts: opts,
		changed: make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		turn:    make(chan struct{}, 1),
		used:    make(map[netip.Addr]*held),
		freed:   make(map[netip.Addr]time.Time),
		shut:    make(map[string]failure),
		backOff: make(map[Family]time.Time),
	}
}

// Changed receives when a block was gained or lost, or changed its state, since the last receive.
func (a *Allocator) Changed() <-chan struct{} { return a.changed }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Assign gives out an address. As long as one of the node's blocks has room it
// asks nobody; otherwise it claims another block, within Options.CallTimeout.
//
// Errors: ErrNoPool, ErrExhausted, ctx's own, and those of the Store.
func (a *Allocator) Assign(ctx context.Context, family Family) (netip.Addr, error) {
	if addr, _, err := a.take(family, nil); addr.IsValid() || err != nil {
		return addr, err
	}
	if err := a.begin(ctx); err != nil {
		return netip.Addr{}, err
	}
	defer a.end()
	for {
		addr, pool, err := a.take(family, nil)
		if addr.IsValid() || err != nil {
			return addr, err
		}
		if err := a.grow(ctx, pool); err != nil {
			if ctx.Err() != nil {
				return netip.Addr{}, err
			}
			addr, _, err = a.take(family, err) // a pool further down may have room
			return addr, err
		}
	}
}

// begin waits for the turn to talk to the store.
func (a *Allocator) begin(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a block to be claimed: %w", context.Cause(ctx))
	}
}

func (a *Allocator) end() { <-a.turn }

// take gives an address from memory, or says which pool to claim a block of, or
// why there is none to be had. With an error it has no choice but memory.
func (a *Allocator) take(family Family, failed error) (netip.Addr, Pool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h, pool, err := a.choose(family, failed)
	if h == nil {
		return netip.Addr{}, pool, err
	}
	return a.give(h), Pool{}, nil
}

// Available is nil when an Assign could succeed now: from memory, or from a block still
// to be claimed, as far as is known. Otherwise it is the error that Assign would give.
func (a *Allocator) Available(family Family) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, _, err := a.choose(family, nil)
	return err
}

// choose is take without the taking. It needs mu held.
func (a *Allocator) choose(family Family, failed error) (*held, Pool, error) {
	now := a.opts.Now()
	var tried []string
	var denied error
	for _, pool := range a.pools {
		if pool.Family() != family {
			continue
		}
		if h := a.best(pool, now); h != nil {
			return h, Pool{}, nil
		}
		tried = append(tried, fmt.Sprintf("%s (%s)", pool.Name, pool.Prefix))
		shut := a.shut[pool.Name]
		if failed == nil && !now.Before(a.down.until) && !now.Before(shut.until) {
			return nil, pool, nil
		}
		if errors.Is(shut.err, ErrDenied) {
			denied = shut.err
		}
	}
	if failed == nil && now.Before(a.down.until) {
		failed = a.down.err
	}
	failed = cmp.Or(failed, denied)
	switch {
	case len(tried) == 0:
		return nil, Pool{}, fmt.Errorf("%w for %s on node %s: create one with an %s cidr, or see the Ready conditions and node selectors of those there are",
			ErrNoPool, family, a.node, family)
	case failed != nil:
		return nil, Pool{}, fmt.Errorf("node %s has no free address left in its %s blocks and could not claim another: %w", a.node, family, failed)
	}
	return nil, Pool{}, fmt.Errorf("%w: node %s has none left in its %s blocks, and every block of pool %s is claimed: delete pods, or create another IPPool",
		ErrExhausted, a.node, family, strings.Join(tried, ", "))
}

// best is the block of the pool to take the next address from, nil when none has room:
// the first that has one which may be reused by now, so that blocks fill
// one after the other; else the one with the address freed longest ago.
func (a *Allocator) best(pool Pool, now time.Time) *held {
	var (
		oldest *held
		since  time.Time
	)
	for _, h := range a.blocks {
		if h.state != Owned || !a.from(h, pool) {
			continue
		}
		_, freed, ok := h.Next()
		if !ok {
			continue
		}
		if freed.IsZero() || now.Sub(freed) >= ReuseDelay {
			return h
		}
		if oldest == nil || freed.Before(since) {
			oldest, since = h, freed
		}
	}
	return oldest
}

// from says whether the block is one the pool is cut into now; a pool may have been
// deleted and created again with another range or block size.
func (a *Allocator) from(h *held, pool Pool) bool {
	return h.pool == pool.Name && pool.fits(h.Prefix())
}

func (a *Allocator) give(h *held) netip.Addr {
	addr, _ := h.Take() // best saw one
	a.used[addr] = h
	a.opts.FreedLog.Forget(addr)
	if float64(h.Used()) >= a.opts.PrefetchAt*float64(h.Size()) {
		signal(a.wake)
	}
	return addr
}

// Free takes an address back; false when it was not in use.
func (a *Allocator) Free(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	h, ok := a.used[addr]
	if !ok {
		return false
	}
	now := a.opts.Now()
	delete(a.used, addr)
	a.opts.FreedLog.Freed(addr, now)
	if h == nil {
		a.freed[addr] = now
		return true
	}
	h.Free(addr, now)
	if h.Used() == 0 {
		h.idleSince = now
		if a.ending(h) {
			signal(a.wake)
		}
	}
	return true
}

// Blocks are the node's blocks, by prefix.
func (a *Allocator) Blocks() []BlockInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	infos := make([]BlockInfo, len(a.blocks))
	for i, h := range a.blocks {
		infos[i] = BlockInfo{
			OwnedBlock: OwnedBlock{Prefix: h.Prefix(), Pool: h.pool},
			State:      h.state, Size: h.Size(),
			Used: slices.Collect(h.UsedAddrs()),
		}
	}
	return infos
}

// Advertised are the blocks that the node is to advertise and to have a blackhole route for,
// by prefix: not those another node has, nor those about to be released.
func (a *Allocator) Advertised() []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	var prefixes []netip.Prefix
	for _, h := range a.blocks {
		if h.state == Owned || h.state == Unconfirmed {
			prefixes = append(prefixes, h.Prefix())
		}
	}
	return prefixes
}

// Used says whether the address is in use.
func (a *Allocator) Used(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.used[addr]
	return ok
}

// Strays are the addresses in use that are of no block the node knows, ascending.
func (a *Allocator) Strays() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	var strays []netip.Addr
	for addr, h := range a.used {
		if h == nil {
			strays = append(strays, addr)
		}
	}
	slices.SortFunc(strays, netip.Addr.Compare)
	return strays
}
