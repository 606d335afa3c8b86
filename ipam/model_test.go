package ipam_test

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hoplite-net/hoplite/ipam"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
)

// modelNode is one node under test, with what must be true of it kept in the plainest form.
type modelNode struct {
	memory *ipamtest.Memory
	store  ipam.Store
	clock  *ipamtest.Clock
	log    *ipamtest.FreedLog
	pool   ipam.Pool
	alloc  *ipam.Allocator

	used  map[netip.Addr]bool
	freed map[netip.Addr]time.Time // when last, of those not in use
	down  bool
}

func (n *modelNode) start(owned []ipam.OwnedBlock) {
	n.alloc = ipam.New("n1", n.store, ipam.Options{Now: n.clock.Now, FreedLog: n.log, Log: quiet()})
	n.alloc.Restore(owned, maps.Keys(n.used), n.log.Times())
	n.alloc.SetPools([]ipam.Pool{n.pool})
}

// rests says whether an address was freed so lately that it is to be left alone.
func (n *modelNode) rests(addr netip.Addr) bool {
	at, ok := n.freed[addr]
	return ok && n.clock.Now().Sub(at) < ipam.ReuseDelay
}

// ready are the free addresses of our blocks that may be reused by now.
func (n *modelNode) ready(blocks []ipam.BlockInfo) (ready []netip.Addr) {
	for _, b := range blocks {
		for addr := b.Prefix.Addr(); b.State == ipam.Owned && b.Prefix.Contains(addr); addr = addr.Next() {
			if !n.used[addr] && !n.rests(addr) {
				ready = append(ready, addr)
			}
		}
	}
	return ready
}

func (n *modelNode) assign(t *rapid.T) {
	before := n.alloc.Blocks()
	line := n.log.Times() // times still known; the allocator may forget those older than the delay
	addr, err := n.alloc.Assign(t.Context(), n.pool.Family())
	room := slices.ContainsFunc(before, func(b ipam.BlockInfo) bool { return b.State == ipam.Owned && len(b.Used) < b.Size })
	if err != nil {
		if room {
			t.Fatalf("our blocks have room, and no address was given: %v", err)
		}
		if !n.down && !errors.Is(err, ipam.ErrExhausted) {
			t.Fatalf("the store is up, and no block was claimed: %v", err)
		}
		return
	}
	if n.used[addr] {
		t.Fatalf("%s was given out twice", addr)
	}
	i := slices.IndexFunc(n.alloc.Blocks(), func(b ipam.BlockInfo) bool { return b.Prefix.Contains(addr) })
	if i < 0 {
		t.Fatalf("%s is of no block of ours", addr)
	}
	block := n.alloc.Blocks()[i].Prefix
	if owner := n.memory.Owner(block); owner != "n1" {
		t.Fatalf("%s is of block %s, which is %q's", addr, block, owner)
	}
	if ready := n.ready(before); n.rests(addr) && len(ready) > 0 {
		t.Fatalf("%s was freed %s ago and given out again, though %v are free", addr, n.clock.Now().Sub(n.freed[addr]), ready)
	}
	if at, ok := line[addr]; ok {
		for other := block.Addr(); block.Contains(other); other = other.Next() {
			if otherAt, waits := line[other]; !n.used[other] && (!waits || otherAt.Before(at)) {
				t.Fatalf("%s, freed %s, was given out before %s (freed: %t, %s)", addr, at, other, waits, otherAt)
			}
		}
	}
	n.used[addr] = true
	delete(n.freed, addr)
}

func (n *modelNode) free(t *rapid.T) {
	if len(n.used) == 0 {
		return
	}
	addr := rapid.SampledFrom(slices.SortedFunc(maps.Keys(n.used), netip.Addr.Compare)).Draw(t, "addr")
	if !n.alloc.Free(addr) {
		t.Fatalf("%s was in use and is not known", addr)
	}
	if n.alloc.Free(addr) {
		t.Fatalf("%s was freed twice", addr)
	}
	delete(n.used, addr)
	n.freed[addr] = n.clock.Now()
}

func (n *modelNode) reconcile(t *rapid.T) {
	if owned, err := n.store.Owned(t.Context()); err == nil {
		n.alloc.Reconcile(owned)
	}
}

// check: nothing is ever lost, and the log holds the times a restart needs.
func (n *modelNode) check(t *rapid.T) {
	known := n.alloc.Strays()
	for _, b := range n.alloc.Blocks() {
		known = append(known, b.Used...)
	}
	slices.SortFunc(known, netip.Addr.Compare)
	if want := slices.SortedFunc(maps.Keys(n.used), netip.Addr.Compare); !slices.Equal(known, want) {
		t.Fatalf("in use: %v; the allocator has %v", want, known)
	}
	log := n.log.Times()
	for addr := range n.freed {
		if at, ok := log[addr]; n.rests(addr) && (!ok || !at.Equal(n.freed[addr])) {
			t.Fatalf("%s was freed at %s; the log has %s, %t", addr, n.freed[addr], at, ok)
		}
	}
}

func TestANodeAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		memory := ipamtest.NewMemory()
		n := &modelNode{
			memory: memory, store: memory.Store("n1"), clock: ipamtest.NewClock(), log: ipamtest.NewFreedLog(),
			pool: rapid.SampledFrom([]ipam.Pool{smallPool("10.9.0.0/27", 29), smallPool("fd00:9::/124", 126)}).Draw(t, "pool"),
			used: make(map[netip.Addr]bool), freed: make(map[netip.Addr]time.Time),
		}
		fault := ipamtest.None
		memory.SetFaults(func(string, string) ipamtest.Fault { return fault })
		n.start(nil)
		t.Repeat(map[string]func(*rapid.T){
			"assign":  n.assign,
			"assign2": n.assign,
			"free":    n.free,
			"time passes": func(t *rapid.T) {
				n.clock.Advance(time.Duration(rapid.SampledFrom([]int{1, 10, 59, 60, 400}).Draw(t, "seconds")) * time.Second)
			},
			"maintain": func(t *rapid.T) {
				if err := n.alloc.Maintain(t.Context()); err != nil && !n.down {
					t.Fatal(err)
				}
			},
			"reconcile": n.reconcile,
			"restart": func(t *rapid.T) {
				if owned, err := n.store.Owned(t.Context()); err == nil {
					n.start(owned)
				} else { // the API is down: the kernel is all there is
					n.start(nil)
				}
			},
			"store fails or mends": func(t *rapid.T) {
				fault = rapid.SampledFrom([]ipamtest.Fault{ipamtest.None, ipamtest.None, ipamtest.Refused, ipamtest.LostAnswer, ipamtest.Late}).Draw(t, "fault")
				n.down = fault != ipamtest.None
				n.clock.Advance(time.Second) // errors are remembered for a second
			},
			"a late call lands": func(*rapid.T) { memory.Land() },
			"another node claims": func(t *rapid.T) {
				bits := n.pool.BlockBits - n.pool.Prefix.Bits()
				addr := n.pool.Prefix.Addr()
				for range rapid.IntRange(0, 1<<bits-1).Draw(t, "block") << (addr.BitLen() - n.pool.BlockBits) {
					addr = addr.Next()
				}
				block := netip.PrefixFrom(addr, n.pool.BlockBits)
				for u := range n.used { // one whose object is yet to come back is not to be had; see the Lost test
					if block.Contains(u) {
						return
					}
				}
				memory.Put("n2", n.pool.Name, block)
			},
			"": n.check,
		})
	})
}
