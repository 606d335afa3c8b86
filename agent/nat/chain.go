package nat

import (
	"errors"
	"fmt"
	"slices"

	"github.com/coreos/go-iptables/iptables"
)

// syncChain makes one chain and the jump to it what they should be. The jump
// comes last: a chain is entered when it is whole.
func (f *family) syncChain(c chain) error {
	have, exists, err := listRules(f.ipt, c.table, c.name)
	if err != nil {
		return err
	}
	if !exists {
		if err := f.ipt.NewChain(c.table, c.name); err != nil {
			return err
		}
		f.wrote("chain made", c)
	}
	if err := f.syncRules(c, have); err != nil {
		return err
	}
	return f.syncJump(c)
}

// syncRules inserts what is missing at its place, then deletes what does not
// belong, so that no packet meets a chain with less in it than before.
func (f *family) syncRules(c chain, have []rule) error {
	at := 0
	for _, words := range c.rules {
		want := newRule(words)
		if k := slices.IndexFunc(have[at:], want.equal); k >= 0 {
			at += k + 1
			continue
		}
		if err := f.ipt.Insert(c.table, c.name, at+1, words...); err != nil {
			return err
		}
		have = slices.Insert(have, at, want)
		at++
		f.wrote("rule inserted", c, "rule", words)
	}
	last := len(c.rules) - 1
	for i := len(have) - 1; i >= 0; i-- {
		if last >= 0 && have[i].equal(newRule(c.rules[last])) {
			last--
			continue
		}
		if err := f.ipt.DeleteById(c.table, c.name, i+1); err != nil {
			return err
		}
		f.wrote("stray rule deleted", c, "rule", have[i])
	}
	return nil
}

// syncJump makes exactly one reachable jump to c.
func (f *family) syncJump(c chain) error {
	all, _, err := listRules(f.ipt, c.table, c.builtin)
	if err != nil {
		return err
	}
	want := newRule(c.jump)
	good := 0
	reachable := true
	for _, r := range all {
		switch {
		case r.endsChain():
			reachable = false
		case r.target() != c.name:
		case !r.equal(want) || !reachable || good > 0:
			good = -1
		case good == 0:
			good = 1
		}
		if good < 0 {
			break
		}
	}
	if good == 1 {
		return nil
	}
	if good < 0 {
		if err := f.removeJumps(f.ipt, c, all); err != nil {
			return err
		}
	}
	if err := f.ipt.Insert(c.table, c.builtin, 1, c.jump...); err != nil {
		return err
	}
	f.wrote("jump inserted", c, "builtin", c.builtin)
	return nil
}

// removeJumps deletes rules that jump to c by what they say, never by their
// number: between reading and deleting, others may have moved them.
func (f *family) removeJumps(ipt *iptables.IPTables, c chain, all []rule) error {
	for _, r := range all {
		if r.target() != c.name {
			continue
		}
		if err := ipt.Delete(c.table, c.builtin, r.words()...); err != nil && !absent(err) {
			return err
		}
		f.wrote("jump deleted", c, "builtin", c.builtin, "rule", r)
	}
	return nil
}

// removeChain takes c and the jumps to it away.
func (f *family) removeChain(ipt *iptables.IPTables, c chain) error {
	// Nothing jumps to a chain that is not there.
	_, exists, err := listRules(ipt, c.table, c.name)
	if err != nil || !exists {
		return err
	}
	all, _, err := listRules(ipt, c.table, c.builtin)
	if err != nil {
		return err
	}
	if err := f.removeJumps(ipt, c, all); err != nil {
		return err
	}
	if err := ipt.ClearAndDeleteChain(c.table, c.name); err != nil {
		return err
	}
	f.wrote("chain deleted", c)
	return nil
}

func (f *family) wrote(what string, c chain, args ...any) {
	f.s.wrote(what, append([]any{"family", f.name, "table", c.table, "chain", c.name}, args...)...)
}

// listRules reads a chain. A chain that does not exist is no error.
func listRules(ipt *iptables.IPTables, table, name string) (rules []rule, exists bool, err error) {
	lines, err := ipt.List(table, name)
	if err != nil {
		if absent(err) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("list %s: %w", name, err)
	}
	for _, line := range lines {
		if r, ok := parseRule(line); ok {
			rules = append(rules, r)
		}
	}
	return rules, true, nil
}

// absent reports whether iptables failed since a chain or rule is not there. It
// goes by the exit status, since the nft back end calls a chain that does not
// exist an incompatible one. If that was the truth, making it fails loudly.
func absent(err error) bool {
	var failed *iptables.Error
	return errors.As(err, &failed) && failed.ExitStatus() == 1
}
