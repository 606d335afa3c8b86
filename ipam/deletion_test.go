package ipam_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
)

func deleting(p ipam.Pool) ipam.Pool {
	p.Deleting = true
	return p
}

func deletedAt(p v1alpha1.IPPool) v1alpha1.IPPool {
	now := metav1.NewTime(epoch)
	p.DeletionTimestamp = &now
	return p
}

func TestAPoolBeingDeletedGivesNothingAndStandsInTheWay(t *testing.T) {
	pools := []v1alpha1.IPPool{
		deletedAt(ippool("going", "10.1.0.0/16", 0)),
		deletedAt(ippool("going-off", "10.2.0.0/16", 0, disabled)),
		deletedAt(ippool("going-elsewhere", "10.3.0.0/16", 0, inRack("7"))),
		deletedAt(ippool("going-later", "10.1.0.0/24", 1)),
		ippool("next", "10.1.0.0/16", 2),
		ippool("off", "10.4.0.0/8", 3, disabled), ippool("off-too", "11.0.0.0/8", 3, disabled),
	}
	usable, verdicts := ipam.Usable(pools, nil)
	if len(usable) != 0 {
		t.Errorf("usable: %v", usable)
	}
	for _, name := range []string{"going", "going-off", "going-elsewhere", "going-later"} {
		if v := verdicts[name]; v.Reason != v1alpha1.ReasonDeleting || !v.ClusterWide() || !v.Pool.Deleting {
			t.Errorf("verdict on %s: %+v", name, v)
		}
	}
	if v := verdicts["next"]; v.Reason != v1alpha1.ReasonOverlapping || !strings.Contains(v.Message, "being deleted, and when it has gone this one can be used") {
		t.Errorf("verdict on the pool that waits for another to go: %+v", v)
	}
	var names []string
	for _, p := range ipam.Closed(verdicts) {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, " "); got != "off-too going-later going going-elsewhere going-off" {
		t.Errorf("closed: %s", got)
	}
	conditions, changed := ipam.Conditions(&pools[0], verdicts["going"], epoch)
	if !changed || conditions[0].Status != metav1.ConditionFalse || conditions[0].Reason != v1alpha1.ReasonDeleting {
		t.Errorf("conditions: %v", conditions)
	}
}

func TestAPoolBeingDeletedIsKeptByItsPodsAndLetGoWithTheLast(t *testing.T) {
	n := newLone(t, smallPool("10.9.0.0/24", 30))
	addrs := n.assign(5) // two blocks
	n.SetPools(nil, deleting(n.pools[0]))
	n.clock.Advance(time.Hour)
	n.maintain()
	n.expect("Owned Owned")
	if len(n.Advertised()) != 2 {
		t.Errorf("advertised: %v", n.Advertised())
	}
	if _, err := n.Assign(t.Context(), ipam.IPv4); !errors.Is(err, ipam.ErrNoPool) {
		t.Errorf("a pool being deleted gave out an address, or: %v", err)
	}
	n.Free(addrs[4])
	n.maintain() // withdrawn at once
	if len(n.Advertised()) != 1 || len(n.owned()) != 2 {
		t.Fatalf("advertised: %v, in the API: %v", n.Advertised(), n.owned())
	}
	n.clock.Advance(5 * time.Second)
	n.maintain() // and released
	if len(n.owned()) != 1 {
		t.Fatalf("in the API: %v", n.owned())
	}
	for _, addr := range addrs[:4] {
		n.Free(addr)
	}
	n.maintain()
	n.clock.Advance(5 * time.Second)
	n.maintain()
	if len(n.owned()) != 0 || len(n.Blocks()) != 0 {
		t.Errorf("in the API: %v, in memory: %v", n.owned(), n.Blocks())
	}
}

func TestARunningNodeLetsAPoolGoWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := ipamtest.NewMemory()
		alloc := ipam.New("n1", memory.Store("n1"), ipam.Options{Log: quiet()})
		alloc.SetPools([]ipam.Pool{p26})
		go alloc.Run(t.Context())
		addr, err := alloc.Assign(t.Context(), ipam.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		block := alloc.Blocks()[0].Prefix
		alloc.SetPools(nil, deleting(p26))
		time.Sleep(time.Hour)
		if memory.Owner(block) != "n1" {
			t.Fatal("a block in use was released")
		}
		time.Sleep(3 * time.Second) // not on the beat of anything
		alloc.Free(addr)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if owner := memory.Owner(block); owner != "" {
			t.Errorf("5 s after its last address was freed, the block is still %s's", owner)
		}
	})
}

func TestAnEmptyBlockOfAClosedPoolGoesWhenItsAddressesMayBeReused(t *testing.T) {
	n := newLone(t, p26)
	n.Free(n.assign(1)[0])
	n.clock.Advance(time.Hour)
	n.SetPools(nil, p26) // maybe by mistake: the block lingers from now on
	n.clock.Advance(ipam.ReuseDelay - time.Second)
	n.maintain()
	n.expect("Owned")
	n.clock.Advance(time.Second)
	n.maintain()
	n.expect("Retiring")
}

func TestAPoolThatIsToHaveNoOtherBlockIsPassedOver(t *testing.T) {
	first := ipam.Pool{Name: "first", Prefix: netip.MustParsePrefix("10.9.0.0/24"), BlockBits: 26}
	n := newLone(t, first, p26)
	denied := 0
	n.memory.SetFaults(func(_, call string) ipamtest.Fault {
		if call == "Claim" && denied == 0 {
			denied++
			return ipamtest.Denied
		}
		return ipamtest.None
	})
	if addr := n.assign(1)[0]; !p26.Prefix.Contains(addr) {
		t.Errorf("given out: %s", addr)
	}
	n.clock.Advance(time.Minute) // it was a misunderstanding
	if addr := n.assign(1)[0]; !first.Prefix.Contains(addr) {
		t.Errorf("given out: %s", addr)
	}
}

func TestThatNoPoolIsToHaveAnotherBlockIsSaid(t *testing.T) {
	n := newLone(t, p26)
	n.memory.SetFaults(func(_, call string) ipamtest.Fault {
		if call == "Claim" {
			return ipamtest.Denied
		}
		return ipamtest.None
	})
	for range 50 {
		if _, err := n.Assign(t.Context(), ipam.IPv4); !errors.Is(err, ipam.ErrDenied) {
			t.Fatalf("error: %v", err)
		}
	}
	if err := n.Available(ipam.IPv4); !errors.Is(err, ipam.ErrDenied) {
		t.Errorf("available: %v", err)
	}
	if calls := n.memory.Calls("Claim"); calls != 1 {
		t.Errorf("50 Assigns in a row asked %d times", calls)
	}
	n.fail(ipamtest.None)
	n.SetPools([]ipam.Pool{smallPool("10.7.0.0/16", 26)}) // the pools have changed: ask again at once
	n.assign(1)
}
