package ipam_test

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/hoplite-net/hoplite/ipam"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
)

func smallPool(cidr string, bits int) ipam.Pool {
	return ipam.Pool{Name: "small", Prefix: netip.MustParsePrefix(cidr), BlockBits: bits}
}

func TestNodesThatClaimAtOnceNeverShareAnAddress(t *testing.T) {
	for _, pool := range []ipam.Pool{smallPool("10.9.0.0/24", 28), smallPool("fd00:9::/112", 124)} {
		for seed := range uint64(5) {
			ipamtest.Claimants{
				NewStore: ipamtest.NewMemory().Store, Pool: pool, Nodes: 8, Steps: 1500, Seed: seed,
			}.Run(t)
		}
	}
}

func TestNodesNeverShareAnAddressWhenCallsFailOrLandLate(t *testing.T) {
	for seed := range uint64(20) {
		memory := ipamtest.NewMemory()
		memory.SetFaults(randomFaults(seed))
		ipamtest.Claimants{
			NewStore: memory.Store, Pool: smallPool("10.9.0.0/24", 28), Nodes: 8, Steps: 1500, Seed: seed,
			Faulty: true,
			Mend: func() {
				memory.SetFaults(nil)
				for memory.Land() {
				}
			},
		}.Run(t)
	}
}

// randomFaults makes a third of the calls go wrong, each in its own way.
func randomFaults(seed uint64) func(node, call string) ipamtest.Fault {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 99))
	return func(string, string) ipamtest.Fault {
		mu.Lock()
		defer mu.Unlock()
		switch r.IntN(9) {
		case 0:
			return ipamtest.Refused
		case 1:
			return ipamtest.LostAnswer
		case 2:
			return ipamtest.Late
		}
		return ipamtest.None
	}
}
