package ipam_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/ipam"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
)

func TestAnEmptyBlockIsReleasedAfterAWhile(t *testing.T) {
	n := newLone(t, smallPool("10.9.0.0/24", 30))
	addrs := n.assign(5)
	n.expect("Owned Owned")
	for _, addr := range addrs {
		n.Free(addr)
	}
	n.clock.Advance(5*time.Minute - time.Second)
	n.maintain()
	n.expect("Owned Owned")
	n.clock.Advance(time.Second)
	n.maintain()
	if !strings.Contains(n.states(), "Retiring") || len(n.Advertised()) != 1 || len(n.owned()) != 2 {
		t.Fatalf("a block is first withdrawn, then released; states: %s, advertised: %v, ours: %v", n.states(), n.Advertised(), n.owned())
	}
	n.clock.Advance(5 * time.Second)
	n.maintain()
	if n.expect("Owned"); len(n.owned()) != 1 {
		t.Errorf("the API has %v", n.owned())
	}
	for range 5 { // the last one stays
		n.clock.Advance(time.Hour)
		n.maintain()
	}
	n.expect("Owned")
}

func TestABlockIsNotReleasedWhileItIsNeeded(t *testing.T) {
	n := newLone(t, smallPool("10.9.0.0/24", 30))
	addrs := n.assign(5)
	n.Free(addrs[4])
	n.clock.Advance(time.Hour)
	n.maintain() // the other is full: it would be claimed again at once
	n.expect("Owned Owned")
	for _, addr := range addrs[:2] {
		n.Free(addr)
	}
	n.maintain()
	if !strings.Contains(n.states(), "Retiring") {
		t.Fatalf("states: %s", n.states())
	}
	n.assign(3) // needed after all: kept, and no other claimed
	n.expect("Owned Owned")
}

func TestTheLastBlockOfAClosedPoolIsReleased(t *testing.T) {
	n := newLone(t, p26)
	n.Free(n.assign(1)[0])
	n.clock.Advance(time.Hour)
	n.SetPools(nil, p26) // maybe by mistake: the block lingers from now on
	n.maintain()
	n.expect("Owned")
	for range 2 {
		n.clock.Advance(6 * time.Minute)
		n.maintain()
	}
	if len(n.owned()) != 0 || len(n.Blocks()) != 0 {
		t.Errorf("blocks: %v, in the API: %v", n.Blocks(), n.owned())
	}
}

func TestABlockThatMayBeGoneIsNotUsed(t *testing.T) {
	for _, restart := range []bool{false, true} {
		n := newLone(t, smallPool("10.9.0.0/24", 30))
		for _, addr := range n.assign(5) {
			n.Free(addr)
		}
		n.clock.Advance(time.Hour)
		n.maintain()
		n.clock.Advance(time.Minute)
		n.memory.SetFaults(func(_, call string) ipamtest.Fault {
			if call == "Delete" {
				return ipamtest.Late
			}
			return ipamtest.None
		})
		if err := n.Maintain(t.Context()); err == nil {
			t.Fatal("the release was not to be answered")
		}
		n.memory.SetFaults(nil)
		if restart {
			n.restart(n.owned(), nil)
		}
		given := n.assign(8)
		n.memory.Land()
		for _, addr := range given {
			block, _ := addr.Prefix(30)
			if n.memory.Owner(block) != "n1" {
				t.Errorf("restart: %t: %s was given out of %s, whose deletion was on its way", restart, addr, block)
			}
		}
	}
}

func TestTheLastBlockOfAPoolStays(t *testing.T) {
	memory, clock := ipamtest.NewMemory(), ipamtest.NewClock()
	alloc := ipam.New("n1", memory.Store("n1"), ipam.Options{Now: clock.Now, Log: quiet(), PrefetchAt: -1})
	n := &lone{t: t, Allocator: alloc, memory: memory, clock: clock, pools: []ipam.Pool{p26}}
	n.SetPools(n.pools)
	n.Free(n.assign(1)[0])
	for range 3 {
		clock.Advance(time.Hour)
		n.maintain()
	}
	n.expect("Owned")
}

func TestABlockIsClaimedAheadOfNeed(t *testing.T) {
	n := newLone(t, p26)
	n.maintain() // the first one too: no pod waits for it
	n.expect("Owned")
	n.assign(51)
	n.maintain()
	n.expect("Owned")
	n.assign(1) // 52 of 64: more than 80 %
	n.maintain()
	n.maintain()
	n.expect("Owned Owned")
	n.fail(ipamtest.Refused)
	n.assign(76)
}

func TestRunSettlesWhatReconcileDoubts(t *testing.T) {
	n := newLone(t, p26)
	n.assign(1)
	block := n.Blocks()[0].Prefix
	n.Reconcile(n.owned())
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { n.Run(ctx) })
	defer run.Wait()
	defer cancel()
	n.memory.Delete(block)
	n.Reconcile(nil)
	for n.memory.Owner(block) != "n1" || n.states() != "Owned" {
		select {
		case <-n.Changed():
		case <-time.After(10 * time.Second):
			t.Fatalf("deleted by hand while in use, the block is %s and %q's", n.states(), n.memory.Owner(block))
		}
	}
}

func TestABlockTakenByAnotherNodeIsLost(t *testing.T) {
	var log bytes.Buffer
	memory, clock := ipamtest.NewMemory(), ipamtest.NewClock()
	alloc := ipam.New("n1", memory.Store("n1"), ipam.Options{Now: clock.Now, Log: slog.New(slog.NewTextHandler(&log, nil))})
	alloc.SetPools([]ipam.Pool{p26})
	n := &lone{t: t, Allocator: alloc, memory: memory, clock: clock, pools: []ipam.Pool{p26}}
	addrs := n.assign(2)
	block := n.Blocks()[0].Prefix
	n.Reconcile(n.owned())
	memory.Delete(block)
	memory.Put("n2", "small", block)
	n.Reconcile(nil)
	n.expect("Unconfirmed")
	n.maintain()
	if !strings.Contains(n.states(), "Lost") {
		t.Fatalf("states: %s", n.states())
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), block.String()) {
		t.Errorf("the log says only:\n%s", log.String())
	}
	if slices.Contains(n.Advertised(), block) {
		t.Error("a block of another node is advertised")
	}
	if got := n.assign(1); block.Contains(got[0]) {
		t.Errorf("%s is given out of another node's block", got[0])
	}
	memory.Delete(block) // n2 has gone: ours again, since the pods are still here
	clock.Advance(time.Minute)
	n.maintain()
	if memory.Owner(block) != "n1" || strings.Contains(n.states(), "Lost") {
		t.Errorf("states: %s, owner %q", n.states(), memory.Owner(block))
	}
	for _, addr := range addrs {
		if !n.Used(addr) {
			t.Errorf("%s was forgotten", addr)
		}
	}
}

func TestABlockThatWentWhileTheAgentWasDownIsNotUsedForLong(t *testing.T) {
	n := newLone(t, p26)
	n.assign(1)
	before := n.owned()
	n.memory.Delete(before[0].Prefix)
	n.memory.Put("n2", "small", before[0].Prefix)
	n.restart(before, nil) // from a record older than that
	n.maintain()
	if got := n.assign(1); before[0].Prefix.Contains(got[0]) {
		t.Errorf("%s is given out of another node's block", got[0])
	}
}

func TestAStaleWatchDoesNoHarm(t *testing.T) {
	n := newLone(t, p26)
	n.Reconcile(nil)
	n.assign(1)
	n.Reconcile(nil) // the watch has not seen the claim yet
	n.expect("Owned")
	n.fail(ipamtest.Refused)
	n.assign(1) // and room is room, whatever a late watch makes of it
	n.fail(ipamtest.None)
	n.maintain()
	n.expect("Owned")
	n.Reconcile([]ipam.OwnedBlock{n.owned()[0], {Prefix: netip.MustParsePrefix("10.244.255.0/26"), Pool: "small"}}) // released long ago
	n.maintain()
	if n.expect("Owned"); len(n.owned()) != 1 {
		t.Errorf("the API has %v", n.owned())
	}
}

// picky refuses claims of one block, as an admission policy does.
type picky struct {
	ipam.Store
	refused netip.Prefix
}

func (p *picky) Claim(ctx context.Context, pool ipam.Pool, block netip.Prefix) error {
	if block == p.refused {
		return ipamtest.ErrInjected
	}
	return p.Store.Claim(ctx, pool, block)
}

func TestABlockThatCannotBeClaimedAgainHindersNoOther(t *testing.T) {
	memory, clock := ipamtest.NewMemory(), ipamtest.NewClock()
	store := &picky{Store: memory.Store("n1")}
	alloc := ipam.New("n1", store, ipam.Options{Now: clock.Now, Log: quiet(), PrefetchAt: -1})
	n := &lone{t: t, Allocator: alloc, memory: memory, clock: clock, pools: []ipam.Pool{p26}}
	n.SetPools(n.pools)
	addr := n.assign(1)[0]
	n.Reconcile(n.owned())
	store.refused = n.Blocks()[0].Prefix
	memory.Delete(store.refused)
	other := ipam.Pool{Name: "other", Prefix: netip.MustParsePrefix("10.7.0.0/16"), BlockBits: 26}
	n.SetPools([]ipam.Pool{other}, p26)
	n.Reconcile(nil)
	if got := n.assign(1)[0]; !other.Prefix.Contains(got) || !n.Used(addr) {
		t.Errorf("given out: %s; %s known: %t", got, addr, n.Used(addr))
	}
	store.refused = netip.Prefix{}
	n.maintain()
	n.expect("Owned Owned")
}

func TestAnIdleBlockDeletedByHandIsLetGo(t *testing.T) {
	n := newLone(t, p26)
	n.maintain()
	n.Reconcile(n.owned())
	n.memory.Delete(n.Blocks()[0].Prefix)
	n.Reconcile(nil)
	n.SetPools(nil)
	n.maintain()
	if len(n.Blocks()) != 0 || len(n.owned()) != 0 {
		t.Errorf("blocks: %v, in the API: %v", n.Blocks(), n.owned())
	}
}

func TestABlockOfAFormerBlockSizeIsNotGivenFrom(t *testing.T) {
	n := newLone(t, p26)
	addr := n.assign(1)[0]
	block := n.Blocks()[0].Prefix
	n.SetPools([]ipam.Pool{smallPool("10.244.0.0/16", 28)})
	for _, next := range n.assign(20) {
		if block.Contains(next) {
			t.Fatalf("%s is of %s, claimed when the pool had other blocks", next, block)
		}
	}
	if !n.Used(addr) {
		t.Error("an address in use was forgotten")
	}
}
