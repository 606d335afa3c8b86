package encap

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

var (
	node2 = netip.MustParseAddr("172.30.1.12")
	node3 = netip.MustParseAddr("172.30.2.13")
	both  = bgp.EncapsulationsOf(bgp.IPIP, bgp.VXLAN)
)

const vxlanIndex, ipipIndex, uplinkIndex = 7, 6, 2

func inputs(mode v1alpha1.PoolMode) Inputs {
	return Inputs{
		Pools:   []Pool{{Name: "default", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Mode: mode}},
		Devices: map[bgp.Encapsulation]int{bgp.VXLAN: vxlanIndex, bgp.IPIP: ipipIndex},
		Nodes:   map[netip.Addr]netip.Addr{node2: node2, node3: node3},
		Ways: map[netip.Addr]Way{
			node2: {Onlink: true, Target: route.Target{Device: uplinkIndex, Gateway: node2}},
			node3: {Target: route.Target{Device: uplinkIndex, Gateway: netip.MustParseAddr("172.30.1.1")}},
		},
	}
}

func learned(prefix string, hop netip.Addr, receives bgp.Encapsulations, says bgp.Statement) bgp.Route {
	return bgp.Route{Prefix: netip.MustParsePrefix(prefix), Hops: []bgp.Hop{{Addr: hop, Receives: receives, Says: says}}}
}

func nothingBefore(netip.Prefix) Before { return Before{} }

func newTable(in Inputs) *Table {
	t := NewTable(nothingBefore)
	t.Configure(in)
	return t
}

func hopOf(a netip.Addr) route.Hop { return route.Hop{Addr: a, Pool: "default"} }

func take(t *testing.T, table *Table, want map[route.Hop]route.Target) {
	t.Helper()
	got, _ := table.Take()
	if !maps.Equal(got, want) {
		t.Errorf("next hops that changed: %+v, want %+v", got, want)
	}
}

func TestSendersWaitForAllPathsOfTheOwner(t *testing.T) {
	table := newTable(inputs(v1alpha1.ModeVXLAN))
	plain := route.Target{Device: uplinkIndex, Gateway: node2}
	tunnel := route.Target{Device: vxlanIndex, Gateway: node2, Onlink: true}
	table.Learn([]bgp.Route{
		learned("10.244.1.0/26", node2, 0, bgp.Statement{}),
		learned("10.244.1.64/26", node2, 0, bgp.Statement{}),
	})
	take(t, table, map[route.Hop]route.Target{hopOf(node2): plain})
	table.Learn([]bgp.Route{learned("10.244.1.0/26", node2, both, bgp.Statement{})})
	take(t, table, map[route.Hop]route.Target{})
	table.Learn([]bgp.Route{learned("10.244.1.64/26", node2, both, bgp.Statement{})})
	take(t, table, map[route.Hop]route.Target{hopOf(node2): tunnel})
}

func TestAModeChangeTouchesNextHopsNotPrefixes(t *testing.T) {
	table := newTable(inputs(v1alpha1.ModeNative))
	var routes []bgp.Route
	for i := range 1000 {
		hop := node2
		if i%2 == 1 {
			hop = node3
		}
		routes = append(routes, learned(fmt.Sprintf("10.244.%d.%d/26", i/4, i%4*64), hop, both, bgp.Statement{}))
	}
	table.Learn(routes)
	table.Take()
	if moved := table.Configure(inputs(v1alpha1.ModeVXLANCrossSubnet)); len(moved) != 0 {
		t.Errorf("%d prefixes are to be written again", len(moved))
	}
	// node2 is on-link.
	take(t, table, map[route.Hop]route.Target{hopOf(node3): {Device: vxlanIndex, Gateway: node3, Onlink: true}})
	for range 3 {
		table.Configure(inputs(v1alpha1.ModeVXLANCrossSubnet))
		take(t, table, map[route.Hop]route.Target{})
	}
}

func TestWhatWasUsedBeforeARestartGoesOn(t *testing.T) {
	table := NewTable(func(p netip.Prefix) Before { return Before{Known: true, Used: bgp.VXLAN} })
	table.Configure(inputs(v1alpha1.ModeIPIP))
	table.Learn([]bgp.Route{learned("10.244.1.0/26", node2, bgp.EncapsulationsOf(bgp.VXLAN), bgp.Statement{})})
	take(t, table, map[route.Hop]route.Target{hopOf(node2): {Device: vxlanIndex, Gateway: node2, Onlink: true}})
}

func TestWithoutAWayWhatThereIsStays(t *testing.T) {
	table := newTable(inputs(v1alpha1.ModeVXLANCrossSubnet))
	table.Learn([]bgp.Route{
		learned("10.244.1.0/26", node2, both, bgp.Statement{}), learned("10.244.2.0/26", node3, both, bgp.Statement{}),
	})
	table.Take()
	table.SetWays(nil)
	take(t, table, map[route.Hop]route.Target{})
	if sends, unsettled := table.Sends(); !sends.Has(bgp.VXLAN) || !unsettled["default"] {
		t.Errorf("sends %v, unsettled %v", sends, unsettled)
	}
	table.SetWays(inputs("").Ways)
	take(t, table, map[route.Hop]route.Target{})
}

func TestOnlyNodesAreReachedByTunnel(t *testing.T) {
	in := inputs(v1alpha1.ModeVXLAN)
	delete(in.Nodes, node2)
	table := newTable(in)
	table.Learn([]bgp.Route{learned("10.244.1.0/26", node2, both, bgp.Statement{})})
	take(t, table, map[route.Hop]route.Target{hopOf(node2): {Device: uplinkIndex, Gateway: node2}})
}

func TestIPv6NeverTravelsInIPIP(t *testing.T) {
	hop := netip.MustParseAddr("fd00::12")
	in := inputs(v1alpha1.ModeIPIP)
	delete(in.Devices, bgp.VXLAN)
	in.Pools = append(in.Pools, Pool{Name: "six", Prefix: netip.MustParsePrefix("fd00:244::/48"), Mode: v1alpha1.ModeIPIP})
	in.Nodes[hop] = hop
	in.Ways[hop] = Way{Onlink: true, Target: route.Target{Device: uplinkIndex, Gateway: hop}}
	table := newTable(in)
	table.Learn([]bgp.Route{learned("fd00:244::/122", hop, both, bgp.Statement{})})
	take(t, table, map[route.Hop]route.Target{{Addr: hop, Pool: "six"}: {Device: uplinkIndex, Gateway: hop}})
}

func TestProgressIsWhatTheOwnersSay(t *testing.T) {
	table := newTable(inputs(v1alpha1.ModeVXLAN))
	said := bgp.Statement{Said: true, Mode: v1alpha1.ModeVXLAN, Settled: true, Sends: bgp.EncapsulationsOf(bgp.VXLAN)}
	old := bgp.Statement{Said: true, Mode: v1alpha1.ModeNative, Settled: true}
	table.Learn([]bgp.Route{
		learned("10.244.1.0/26", node2, both, said), learned("10.244.1.64/26", node2, both, said),
		learned("10.244.2.0/26", node3, 0, old),
	})
	want := []Progress{
		{Addr: node2, Ready: true, Switched: true, Mode: v1alpha1.ModeVXLAN},
		{Addr: node3, Mode: v1alpha1.ModeNative},
	}
	if got := table.Progress("default"); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if sends, ok := table.Heard(node2); !ok || sends != said.Sends {
		t.Errorf("heard of node2: %v %v", sends, ok)
	}
	if _, ok := table.Heard(netip.MustParseAddr("172.30.1.99")); ok {
		t.Error("heard of a node that told nothing")
	}
	table.Learn([]bgp.Route{learned("10.244.2.0/26", node3, both, said)})
	if _, changed := table.Take(); !changed {
		t.Error("that node3 has switched is no change")
	}
	table.Learn([]bgp.Route{learned("10.244.2.0/26", node3, both, said)})
	if _, changed := table.Take(); changed {
		t.Error("hearing the same again is a change")
	}
}

// Whatever came in whatever order, the table tells what one would that heard
// only how it ended, and what it has told of next hops adds up to where they lead.
func TestHistoryDoesNotMatter(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		table := NewTable(nothingBefore)
		current := make(map[netip.Prefix]bgp.Route)
		told := make(map[route.Hop]route.Target)
		pooled := make(map[netip.Prefix]route.Hop)
		note := func(all []route.Learned) {
			for _, l := range all {
				delete(pooled, l.Prefix)
				for _, hop := range l.Hops {
					pooled[l.Prefix] = hop
				}
			}
			targets, _ := table.Take()
			maps.Copy(told, targets)
		}
		var in Inputs
		for range 60 {
			if random.IntN(3) == 0 {
				in = randomInputs(random)
				note(table.Configure(in))
				continue
			}
			var batch []bgp.Route
			for range 1 + random.IntN(4) {
				r := randomRoute(random)
				if r.Exists() {
					current[r.Prefix] = r
				} else {
					delete(current, r.Prefix)
				}
				batch = append(batch, r)
			}
			note(table.Learn(batch))
		}
		compareWithFresh(t, seed, table, in, current, told, pooled)
	}
}

func compareWithFresh(t *testing.T, seed uint64, table *Table, in Inputs, current map[netip.Prefix]bgp.Route,
	told map[route.Hop]route.Target, pooled map[netip.Prefix]route.Hop,
) {
	t.Helper()
	// The fresh one is told what was in use, which is all that history may leave.
	used := make(map[netip.Prefix]Before)
	table.mu.Lock()
	for p, k := range table.prefixes {
		k.each(func(key route.Hop, _ bgp.Hop) { used[p] = table.hops[key].before })
	}
	table.mu.Unlock()
	fresh := NewTable(func(p netip.Prefix) Before { return used[p] })
	fresh.Configure(in)
	fresh.Learn(slices.Collect(maps.Values(current)))
	for key, h := range fresh.hops {
		mine := table.hops[key]
		if mine == nil || mine.summary() != h.summary() || mine.choice != h.choice || mine.count != h.count {
			t.Fatalf("seed %d: %v is %+v, afresh %+v", seed, key, mine, h)
		}
		if h.target != (route.Target{}) && told[key] != h.target {
			t.Fatalf("seed %d: %v leads to %+v, and was told to lead to %+v; mine %+v; fresh %+v in %+v", seed, key, h.target, told[key], mine, h, in)
		}
	}
	if len(table.hops) != len(fresh.hops) || len(table.prefixes) != len(current) || len(pooled) != len(current) {
		t.Fatalf("seed %d: %d next hops, afresh %d; %d prefixes, told %d, of %d", seed,
			len(table.hops), len(fresh.hops), len(table.prefixes), len(pooled), len(current))
	}
	for p, key := range pooled {
		if table.prefixes[p].pool != key.Pool {
			t.Fatalf("seed %d: %s is in pool %q, and was told to be in %q", seed, p, table.prefixes[p].pool, key.Pool)
		}
	}
}

func randomInputs(random *rand.Rand) Inputs {
	in := inputs(modes[random.IntN(len(modes))])
	if random.IntN(3) == 0 {
		in.Pools = append(in.Pools, Pool{Name: "narrow", Prefix: netip.MustParsePrefix("10.244.2.0/24"), Mode: modes[random.IntN(len(modes))]})
	}
	for _, drop := range []func(){
		func() { delete(in.Devices, bgp.IPIP) }, func() { delete(in.Devices, bgp.VXLAN) },
		func() { delete(in.Ways, node3) }, func() { in.Ways[node2] = in.Ways[node3] }, func() { delete(in.Nodes, node2) },
	} {
		if random.IntN(5) == 0 {
			drop()
		}
	}
	return in
}

func randomRoute(random *rand.Rand) bgp.Route {
	prefix := fmt.Sprintf("10.244.%d.%d/26", 1+random.IntN(3), random.IntN(2)*64)
	if random.IntN(5) == 0 {
		return bgp.Route{Prefix: netip.MustParsePrefix(prefix)}
	}
	hop := []netip.Addr{node2, node3}[random.IntN(2)]
	says := bgp.Statement{Said: random.IntN(4) > 0, Settled: random.IntN(2) == 0, Sends: sets[random.IntN(4)]}
	return learned(prefix, hop, sets[random.IntN(4)], says)
}
