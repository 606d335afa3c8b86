package main

import (
	"testing"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// Every change is made once, and begins where the one before has ended; with all
// modes, without those that need ipip, and with the rest.
func TestTourMakesEveryChangeOnce(t *testing.T) {
	for name, take := range map[string]func(change) bool{
		"all":          func(change) bool { return true },
		"without ipip": func(c change) bool { return !hasIPIP(c.from) && !hasIPIP(c.to) },
		"with ipip":    func(c change) bool { return hasIPIP(c.from) || hasIPIP(c.to) },
	} {
		var pairs []change
		for _, from := range allModes {
			for _, to := range allModes {
				if from != to && take(change{from, to}) {
					pairs = append(pairs, change{from, to})
				}
			}
		}
		at, seen := v1alpha1.ModeNative, map[change]bool{}
		for _, c := range tour(pairs) {
			if c.from != at || seen[c] || !take(c) {
				t.Errorf("%s: %v, coming from %s, is not to be made now", name, c, at)
			}
			at, seen[c] = c.to, true
		}
		if len(seen) != len(pairs) || at != v1alpha1.ModeNative {
			t.Errorf("%s: %d changes of %d, ending in %s", name, len(seen), len(pairs), at)
		}
	}
}
