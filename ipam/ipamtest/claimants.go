package ipamtest

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/ipam"
)

// Claimants is a test of many nodes that want addresses of one small pool at once.
type Claimants struct {
	// NewStore is the Store under test, as the node of that name sees it.
	NewStore func(node string) ipam.Store
	// Pool is what they fight over. No block of it may be claimed when Run begins; none is when it ends.
	Pool  ipam.Pool
	Nodes int
	// Steps is how many things each node does.
	Steps int
	// Seed makes a run's choices repeatable, apart from how the goroutines run.
	Seed uint64
	// Faulty: the Store is one that fails at times, so that errors are to be expected...
	Faulty bool
	// Mend ends that, before the reckoning.
	Mend func()
}

// Run has every node assign, free, release, restart and reconcile at random,
// all at the same time, and fails the test when an address is given out twice, is forgotten while in use,
// is given out from a block of another's, or when in the end a block is left behind.
func (c Claimants) Run(t *testing.T) {
	t.Helper()
	t.Logf("%d nodes, %d steps each, pool %s in blocks of /%d, seed %d", c.Nodes, c.Steps, c.Pool.Prefix, c.Pool.BlockBits, c.Seed)
	ledger := &ledger{owner: make(map[netip.Addr]string)}
	nodes := make([]*claimant, c.Nodes)
	var all sync.WaitGroup
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i)
		n := &claimant{
			t: t, c: c, name: name, store: c.NewStore(name), ledger: ledger,
			rand:  rand.New(rand.NewPCG(c.Seed, uint64(i))),
			clock: NewClock(), freed: NewFreedLog(), used: make(map[netip.Addr]struct{}),
		}
		nodes[i] = n
		all.Go(n.run)
	}
	all.Wait()
	if c.Mend != nil {
		c.Mend()
	}
	for _, n := range nodes {
		n.reckon()
	}
	for _, n := range nodes {
		n.leave()
	}
	left, err := c.NewStore("onlooker").Claimed(t.Context(), c.Pool)
	if err != nil || len(left) != 0 {
		t.Errorf("blocks left when every node has released all of its own: %v (error: %v)", left, err)
	}
}

// ledger is who has which address, over all nodes.
type ledger struct {
	mu    sync.Mutex
	owner map[netip.Addr]string
}

func (l *ledger) take(addr netip.Addr, node string) (other string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, taken := l.owner[addr]; taken {
		return other, false
	}
	l.owner[addr] = node
	return "", true
}

func (l *ledger) give(addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.owner, addr)
}

type claimant struct {
	t      *testing.T
	c      Claimants
	name   string
	store  ipam.Store
	ledger *ledger
	rand   *rand.Rand
	clock  *Clock
	freed  *FreedLog
	used   map[netip.Addr]struct{}
	alloc  *ipam.Allocator
}

func (n *claimant) run() {
	n.start(nil)
	for range n.c.Steps {
		switch p := n.rand.IntN(100); {
		case p < 50:
			n.assign()
		case p < 75:
			n.free()
		case p < 78: // all pods leave, so that blocks become empty
			for len(n.used) > 0 {
				n.free()
			}
		case p < 88:
			n.clock.Advance(time.Duration(n.rand.IntN(180)) * time.Second)
			n.maintain()
		case p < 95:
			if owned, err := n.store.Owned(n.t.Context()); n.tolerate(err) {
				n.alloc.Reconcile(owned)
			}
		default:
			if owned, err := n.store.Owned(n.t.Context()); n.tolerate(err) {
				n.start(owned)
			}
		}
	}
}

// start is the agent's: from the API, the kernel and the files of freed addresses.
func (n *claimant) start(owned []ipam.OwnedBlock) {
	n.alloc = ipam.New(n.name, n.store, ipam.Options{
		Now: n.clock.Now, FreedLog: n.freed, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	n.alloc.Restore(owned, maps.Keys(n.used), n.freed.Times())
	n.alloc.SetPools([]ipam.Pool{n.c.Pool})
}

func (n *claimant) assign() {
	addr, err := n.alloc.Assign(n.t.Context(), n.c.Pool.Family())
	if errors.Is(err, ipam.ErrExhausted) || !n.tolerate(err) {
		return
	}
	if other, ok := n.ledger.take(addr, n.name); !ok {
		n.t.Errorf("%s is %s's and was given out by %s as well", addr, other, n.name)
		return
	}
	n.used[addr] = struct{}{}
}

func (n *claimant) free() {
	for addr := range n.used {
		n.ledger.give(addr)
		if !n.alloc.Free(addr) {
			n.t.Errorf("%s was in use on %s and is unknown there", addr, n.name)
		}
		delete(n.used, addr)
		return
	}
}

func (n *claimant) maintain() {
	n.tolerate(n.alloc.Maintain(n.t.Context()))
}

// tolerate fails the test on an error nobody injected; true when there is none.
func (n *claimant) tolerate(err error) bool {
	if err != nil && (!n.c.Faulty || errors.Is(err, ipam.ErrNoPool)) {
		n.t.Errorf("%s: %v", n.name, err)
	}
	return err == nil
}

// reckon compares what the node and the store say in the end.
func (n *claimant) reckon() {
	owned, err := n.store.Owned(n.t.Context())
	if err != nil {
		n.t.Errorf("%s: %v", n.name, err)
		return
	}
	n.alloc.Reconcile(owned)
	if err := n.alloc.Maintain(n.t.Context()); err != nil {
		n.t.Errorf("%s: %v", n.name, err)
	}
	for addr := range n.used {
		in := func(b ipam.OwnedBlock) bool { return b.Prefix.Contains(addr) }
		if !n.alloc.Used(addr) || !slices.ContainsFunc(owned, in) {
			n.t.Errorf("%s is in use on %s; the node knows it: %t; it is of one of the node's blocks: %t",
				addr, n.name, n.alloc.Used(addr), slices.ContainsFunc(owned, in))
		}
	}
	for _, b := range n.alloc.Blocks() {
		if b.State == ipam.Lost || b.State == ipam.Unconfirmed {
			n.t.Errorf("block %s of %s is %s, though nobody interfered", b.Prefix, n.name, b.State)
		}
	}
}

// leave frees everything and waits, by the node's clock, until its blocks are released.
func (n *claimant) leave() {
	for len(n.used) > 0 {
		n.free()
	}
	n.alloc.SetPools(nil, n.c.Pool)
	for range 3 {
		n.clock.Advance(time.Hour)
		if err := n.alloc.Maintain(n.t.Context()); err != nil {
			n.t.Errorf("%s: %v", n.name, err)
		}
	}
}
