package ipam_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/ipam"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// lone is a node with a store of its own.
type lone struct {
	*ipam.Allocator
	t      *testing.T
	memory *ipamtest.Memory
	clock  *ipamtest.Clock
	log    *ipamtest.FreedLog
	pools  []ipam.Pool
}

func newLone(t *testing.T, pools ...ipam.Pool) *lone {
	n := &lone{t: t, memory: ipamtest.NewMemory(), clock: ipamtest.NewClock(), log: ipamtest.NewFreedLog(), pools: pools}
	n.restart(nil, nil)
	return n
}

func (n *lone) restart(owned []ipam.OwnedBlock, used []netip.Addr) {
	n.Allocator = ipam.New("n1", n.memory.Store("n1"), ipam.Options{
		Now: n.clock.Now, FreedLog: n.log, Log: quiet(), CallTimeout: 50 * time.Millisecond,
	})
	n.Restore(owned, slices.Values(used), n.log.Times())
	n.SetPools(n.pools)
}

func (n *lone) assign(count int) (addrs []netip.Addr) {
	n.t.Helper()
	for range count {
		addr, err := n.Assign(n.t.Context(), n.pools[0].Family())
		if err != nil {
			n.t.Fatal(err)
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

func (n *lone) maintain() {
	n.t.Helper()
	if err := n.Maintain(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *lone) owned() []ipam.OwnedBlock {
	n.t.Helper()
	owned, err := n.memory.Store("n1").Owned(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return owned
}

func (n *lone) fail(fault ipamtest.Fault) {
	n.memory.SetFaults(func(string, string) ipamtest.Fault { return fault })
}

func (n *lone) states() string {
	var s []string
	for _, b := range n.Blocks() {
		s = append(s, string(b.State))
	}
	return strings.Join(s, " ")
}

func (n *lone) expect(states string) {
	n.t.Helper()
	if got := n.states(); got != states {
		n.t.Fatalf("blocks are %q, want %q", got, states)
	}
}

var p26 = smallPool("10.244.0.0/16", 26)

func TestAssignAsksNobodyWhileABlockHasRoom(t *testing.T) {
	n := newLone(t, p26)
	n.assign(1)
	n.fail(ipamtest.Refused)
	addrs := n.assign(63)
	for _, addr := range addrs[:10] {
		n.Free(addr)
	}
	n.assign(10)
	if calls := n.memory.Calls("Claim"); calls != 1 {
		t.Errorf("%d claims for 64 addresses", calls)
	}
}

func TestEveryAddressOfABlockIsGivenOut(t *testing.T) {
	n := newLone(t, p26)
	addrs := n.assign(64)
	block := n.Blocks()[0].Prefix
	if addrs[0] != block.Addr() || len(n.Blocks()) != 1 || len(n.Blocks()[0].Used) != 64 {
		t.Errorf("64 addresses from %s: %v", block, addrs)
	}
}

func TestAssignsThatNeedABlockShareOne(t *testing.T) {
	n := newLone(t, p26)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if _, err := n.Assign(t.Context(), ipam.IPv4); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if calls := n.memory.Calls("Claim"); calls != 1 || len(n.Blocks()) != 1 {
		t.Errorf("%d claims, blocks: %v", calls, n.Blocks())
	}
}

func TestAssignEndsSoonAndClearlyWhenTheAPIDoesNotAnswer(t *testing.T) {
	n := newLone(t, p26)
	n.fail(ipamtest.Hang)
	var wg sync.WaitGroup
	for range 20 { // together they wait for one answer, not for twenty
		wg.Go(func() {
			_, err := n.Assign(t.Context(), ipam.IPv4)
			if err == nil || !strings.Contains(err.Error(), "did not answer within 50ms") || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error: %v", err)
			}
		})
	}
	wg.Wait()
	if calls := n.memory.Calls("Claim") + n.memory.Calls("Owned"); calls != 1 {
		t.Errorf("20 Assigns at once asked %d times", calls)
	}
	n.fail(ipamtest.None)
	n.clock.Advance(time.Second)
	n.assign(1)
}

func TestAssignEndsWithItsContext(t *testing.T) {
	n := newLone(t, p26)
	n.fail(ipamtest.Hang)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Assign(ctx, ipam.IPv4); !errors.Is(err, context.Canceled) {
		t.Errorf("error: %v", err)
	}
	n.fail(ipamtest.None)
	n.assign(1) // one caller's impatience is no failure of the API
}

func TestABlockWhoseClaimWasNotAnsweredIsNotLeftBehind(t *testing.T) {
	for _, fault := range []ipamtest.Fault{ipamtest.LostAnswer, ipamtest.Late} {
		n := newLone(t, p26)
		n.fail(fault)
		if _, err := n.Assign(t.Context(), ipam.IPv4); !errors.Is(err, ipamtest.ErrInjected) {
			t.Fatalf("error: %v", err)
		}
		n.fail(ipamtest.None)
		n.memory.Land()
		n.clock.Advance(time.Second)
		n.assign(1)
		if owned := n.owned(); len(owned) != 1 {
			t.Errorf("the node has %v", owned)
		}
	}
}

// lossy loses the answers of the claims that succeed.
type lossy struct {
	ipam.Store
	on bool
}

func (l *lossy) Claim(ctx context.Context, pool ipam.Pool, block netip.Prefix) error {
	err := l.Store.Claim(ctx, pool, block)
	if err == nil && l.on {
		return ipamtest.ErrInjected
	}
	return err
}

func TestTheOnlyFreeBlockIsFoundThoughItsClaimWasNotAnswered(t *testing.T) {
	pool := smallPool("10.9.0.0/26", 30)
	for free := range 16 { // found by a probe for some, in the listing for others
		memory, clock := ipamtest.NewMemory(), ipamtest.NewClock()
		for i := range 16 {
			if i != free {
				memory.Put("n2", pool.Name, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i * 4)}), 30))
			}
		}
		store := &lossy{memory.Store("n1"), true}
		alloc := ipam.New("n1", store, ipam.Options{Now: clock.Now, Log: quiet()})
		alloc.SetPools([]ipam.Pool{pool})
		if _, err := alloc.Assign(t.Context(), ipam.IPv4); !errors.Is(err, ipamtest.ErrInjected) {
			t.Fatalf("error: %v", err)
		}
		store.on = false
		clock.Advance(time.Second)
		if _, err := alloc.Assign(t.Context(), ipam.IPv4); err != nil {
			t.Errorf("block %d is ours: %v", free, err)
		}
	}
}

func TestAnExhaustedPoolIsNamed(t *testing.T) {
	n := newLone(t, smallPool("10.9.0.0/30", 31))
	n.assign(4)
	_, err := n.Assign(t.Context(), ipam.IPv4)
	if !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), "small (10.9.0.0/30)") {
		t.Errorf("error: %v", err)
	}
	if _, err := n.Assign(t.Context(), ipam.IPv6); !errors.Is(err, ipam.ErrNoPool) {
		t.Errorf("error for a family without a pool: %v", err)
	}
	lists := n.memory.Calls("Claimed")
	for range 50 {
		n.Assign(t.Context(), ipam.IPv4)
	}
	if more := n.memory.Calls("Claimed") - lists; more != 0 {
		t.Errorf("50 Assigns in a row listed an exhausted pool %d times", more)
	}
}

func TestTheNextPoolServesWhenTheFirstIsExhaustedOrOutOfReach(t *testing.T) {
	first := ipam.Pool{Name: "first", Prefix: netip.MustParsePrefix("10.9.0.0/31"), BlockBits: 31}
	n := newLone(t, first, p26)
	addrs := n.assign(3)
	if !first.Prefix.Contains(addrs[1]) || !p26.Prefix.Contains(addrs[2]) {
		t.Fatalf("given out: %v", addrs)
	}
	n.Free(addrs[0])
	n.Free(addrs[1])
	if back := n.assign(2); back[0] != addrs[0] || back[1] != addrs[1] {
		t.Errorf("the first pool has room again, and %v are given out", back)
	}
	n.clock.Advance(time.Minute)
	n.fail(ipamtest.Refused)
	if addr := n.assign(1)[0]; !p26.Prefix.Contains(addr) {
		t.Errorf("%s given out while the API is down", addr)
	}
}

func TestAFreedAddressRestsForAMinuteAcrossARestart(t *testing.T) {
	n := newLone(t, smallPool("10.9.0.0/30", 30))
	addrs := n.assign(2)
	n.Free(addrs[0])
	n.clock.Advance(59 * time.Second)
	n.restart(n.owned(), addrs[1:])
	if got := n.assign(2); slices.Contains(got, addrs[0]) {
		t.Fatalf("%s was given out again after 59 s: %v", addrs[0], got)
	}
	if got := n.assign(1); got[0] != addrs[0] { // nothing else is free
		t.Fatalf("given out: %v", got)
	}
	if len(n.log.Times()) != 0 {
		t.Errorf("the log of freed addresses still has %v", n.log.Times())
	}
}

func TestAClockSetBackDoesNotKeepABlockForEver(t *testing.T) {
	n := newLone(t, p26)
	addr := n.assign(1)[0]
	n.log.Freed(addr, n.clock.Now().Add(30*24*time.Hour))
	n.pools = nil
	n.restart(n.owned(), nil)
	for range 2 {
		n.clock.Advance(time.Hour)
		n.maintain()
	}
	if len(n.owned()) != 0 {
		t.Errorf("blocks: %v", n.Blocks())
	}
}

func TestAddressesInUseKeepTheirBlockThoughItsObjectIsGone(t *testing.T) {
	n := newLone(t, p26)
	addrs := n.assign(3)
	block := n.Blocks()[0].Prefix
	n.memory.Delete(block)
	n.restart(nil, addrs)
	n.expect("Unconfirmed")
	if got := n.Advertised(); !slices.Equal(got, []netip.Prefix{block}) {
		t.Errorf("advertised while in doubt: %v", got)
	}
	n.maintain()
	n.expect("Owned")
	if n.memory.Owner(block) != "n1" {
		t.Error("the block was not claimed again")
	}
	if got := n.assign(1); slices.Contains(addrs, got[0]) || !block.Contains(got[0]) {
		t.Errorf("given out: %v", got)
	}
}

func TestAddressesInUseOfADisabledPoolKeepTheirBlock(t *testing.T) {
	n := newLone(t, p26)
	addrs := n.assign(1)
	n.memory.Delete(n.Blocks()[0].Prefix)
	n.pools = nil
	n.restart(nil, addrs)
	if !slices.Equal(n.Strays(), addrs) {
		t.Fatalf("strays: %v", n.Strays())
	}
	n.SetPools(nil, p26)
	n.maintain()
	n.expect("Owned")
	if _, err := n.Assign(t.Context(), ipam.IPv4); !errors.Is(err, ipam.ErrNoPool) {
		t.Errorf("a closed pool gave out an address, or: %v", err)
	}
}

func TestUsedAndBlocksAgreeAfterEverythingIsFreed(t *testing.T) {
	n := newLone(t, p26)
	addrs := n.assign(70)
	for _, addr := range addrs {
		if !n.Used(addr) || !n.Free(addr) || n.Used(addr) || n.Free(addr) {
			t.Fatalf("%s: wrong before or after it is freed", addr)
		}
	}
	if got := len(maps.Clone(n.log.Times())); got != 70 {
		t.Errorf("%d freed times are kept", got)
	}
}
