package nat

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/coreos/go-iptables/iptables"

	"github.com/hoplite-net/hoplite/bgp"
)

const (
	chainPrefix      = "HOPLITE-"
	chainPostrouting = chainPrefix + "POSTROUTING"
	chainForward     = chainPrefix + "FORWARD"
)

// family is the rules and sets of one IP family.
type family struct {
	s           *Syncer
	v6          bool
	name        string
	unavailable error // why there is no iptables for it
	ipt         *iptables.IPTables
	chains      []chain
	sets        sets
	// tunnels are the kinds that the chains are about; noBPF: see syncInput.
	tunnels bgp.Encapsulations
	noBPF   bool

	// rulesKnown: the rules were read and right, and Run would hear of a change.
	// Pools and nodes then come and go without a single process being started.
	rulesKnown bool
	// info is what legacy tables looked like before the rules were last read.
	info [2]tableInfo
	// gone: nothing of ours is left, as this family is not wanted.
	gone bool
	// nodesGone: nor of the set that tunnels need.
	nodesGone bool
	// otherClean: the other back end holds nothing of an earlier run.
	otherClean bool
}

// chain is one own chain and the built-in one that jumps to it.
type chain struct {
	table, builtin, name string
	jump                 []string
	rules                [][]string
}

func (s *Syncer) newFamily(v6 bool) *family {
	f := &family{s: s, v6: v6, name: "IPv4", sets: newSets(s, v6)}
	if v6 {
		f.name = "IPv6"
	}
	if f.ipt, f.unavailable = openIPTables(s.mode, v6); f.unavailable == nil {
		f.makeChains()
	}
	return f
}

// wantedChains are all the rules there are. What FORWARD accepts:
//
//   - pools ↔ pools and nodes, whatever the devices: this node may be a transit
//     hop between others, or the packet may come out of a tunnel. Both ends must
//     be the cluster's: a source address alone is no proof, and would let
//     anybody with a forged one through to other networks behind this node.
//   - for the same reason not everything out of a tunnel (hop.ipip, hop.vxlan),
//     which anybody can send to: RETURN leaves it to the node's other rules.
//   - everything from and to pods' own devices (hop+).
//
// A chain without rules is not wanted.
func wantedChains(set sets, randomFully bool, tunnel tunnelRules) []chain {
	match := func(name, dir string) []string { return []string{"-m", "set", "--match-set", name, dir} }
	comment := func(c string) []string { return []string{"-m", "comment", "--comment", c} }
	masquerade := []string{"-j", "MASQUERADE"}
	if randomFully {
		masquerade = append(masquerade, "--random-fully")
	}
	return []chain{{
		table: "nat", builtin: "POSTROUTING", name: chainPostrouting,
		jump: slices.Concat(comment("hoplite: natOutgoing"), []string{"-j", chainPostrouting}),
		rules: [][]string{
			slices.Concat(match(set.masq, "src"), []string{"-m", "set", "!", "--match-set", set.cluster, "dst"},
				comment("hoplite: from natOutgoing pools to outside all pools and nodes"), masquerade),
		},
	}, {
		table: "filter", builtin: "FORWARD", name: chainForward,
		jump: slices.Concat(comment("hoplite: traffic of pods"), []string{"-j", chainForward}),
		rules: append(tunnel.forward,
			slices.Concat(match(set.pools, "src"), match(set.cluster, "dst"), comment("hoplite: pools to pools and nodes"), []string{"-j", "ACCEPT"}),
			slices.Concat(match(set.cluster, "src"), match(set.pools, "dst"), comment("hoplite: pools and nodes to pools"), []string{"-j", "ACCEPT"}),
			slices.Concat([]string{"-i", "hop.+"}, comment("hoplite: nothing else out of tunnels"), []string{"-j", "RETURN"}),
			slices.Concat([]string{"-i", "hop+"}, comment("hoplite: from pods"), []string{"-j", "ACCEPT"}),
			slices.Concat([]string{"-o", "hop+"}, comment("hoplite: to pods"), []string{"-j", "ACCEPT"}),
		),
	}, {
		table: "filter", builtin: "INPUT", name: chainInput,
		jump:  slices.Concat(comment("hoplite: tunnel packets"), []string{"-j", chainInput}),
		rules: tunnel.input,
	}}
}

// reconcile brings the family to want: sets first, since rules refer to them, and
// since a rule must never match against a set that is not filled yet.
func (f *family) reconcile(ctx context.Context, want entries) error {
	if len(want.cluster) == 0 {
		return f.forget(ctx)
	}
	if f.unavailable != nil {
		if len(want.pools) == 0 {
			return nil // only nodes have such addresses: pods can do without
		}
		return f.unavailable
	}
	f.gone = false
	f.setTunnels(want.tunnels)
	if err := f.sets.sync(want); err != nil {
		return err
	}
	if err := f.syncChains(); err != nil {
		return err
	}
	if want.tunnels == 0 && !f.nodesGone {
		if err := f.sets.destroy(ctx, f.sets.nodes); err != nil {
			return err
		}
	}
	f.nodesGone = want.tunnels == 0
	if !f.otherClean {
		if err := f.removeFrom(ctx, f.s.mode.other()); err != nil {
			return err
		}
		f.otherClean = true
	}
	return nil
}

// syncChains reads and repairs the rules, unless they are known to be right.
func (f *family) syncChains() error {
	if f.s.watching && f.s.mode == ModeLegacy {
		// Read before the rules are: a change in between shows next time.
		info, err := legacyInfo(f.v6)
		if err != nil {
			return err
		}
		if info != f.info {
			f.rulesKnown = false
		}
		f.info = info
	}
	if f.rulesKnown {
		return nil
	}
	before := f.s.writes.Load()
	for _, c := range f.chains {
		sync := f.syncChain
		if c.name == chainInput {
			sync = f.syncInput
		}
		if err := sync(c); err != nil {
			return fmt.Errorf("chain %s in table %s: %w", c.name, c.table, err)
		}
	}
	// Rules just written are known when they have been read back: somebody may
	// have undone that already, and then the tables look as they did before.
	f.rulesKnown = f.s.watching && f.s.writes.Load() == before
	return nil
}

// forget removes what is left of a family that has no pool and no node.
func (f *family) forget(ctx context.Context) error {
	if f.gone {
		return nil
	}
	if err := f.removeAll(ctx); err != nil {
		return err
	}
	f.gone = true
	return nil
}

// removeAll removes the family's chains from both back ends, then its sets.
func (f *family) removeAll(ctx context.Context) error {
	f.rulesKnown, f.gone, f.nodesGone = false, false, false
	return errors.Join(f.removeFrom(ctx, ModeNFT), f.removeFrom(ctx, ModeLegacy), f.sets.destroy(ctx, f.sets.masq, f.sets.pools, f.sets.cluster, f.sets.nodes))
}

// Cleanup removes every chain, rule and set of ours, in both back ends and
// families, and nothing else, and makes the Syncer forget what was desired, so
// that a running Run puts nothing back. Repeating it is fine.
func (s *Syncer) Cleanup(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.desired = nil
	return s.ns.Do(func() error {
		var errs []error
		for _, f := range s.families {
			errs = append(errs, f.removeAll(ctx))
		}
		return errors.Join(errs...)
	})
}

// removeFrom removes the family's chains from a back end, if the node has it.
func (f *family) removeFrom(ctx context.Context, m Mode) error {
	ipt, err := openIPTables(m, f.v6)
	if err != nil {
		return nil
	}
	return f.remove(ctx, m, ipt)
}

func (f *family) remove(ctx context.Context, m Mode, ipt *iptables.IPTables) error {
	var errs []error
	for _, c := range wantedChains(f.sets, true, tunnelRules{}) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !tableInUse(m, f.v6, c.table) {
			continue
		}
		if err := f.removeChain(ipt, c); err != nil {
			errs = append(errs, fmt.Errorf("remove %s chain %s (%s): %w", f.name, c.name, m, err))
		}
	}
	return errors.Join(errs...)
}
