package bgp

import "github.com/hoplite-net/hoplite/api/v1alpha1"

// Statement is what a Hoplite node says on a path of its own about how it sends.
type Statement struct {
	// Said is false when there is no statement, or none that can be read; then nothing else is set.
	Said bool
	// Mode is that of the block's pool as the node knows it; empty if it knows none, or one that we do not know.
	Mode v1alpha1.PoolMode
	// Settled says that all the node's routes to that pool's blocks are as the mode asks.
	Settled bool
	// Sends are the tunnels that any of the node's routes uses, whichever pool's.
	Sends Encapsulations
}

// with is what two statements of one node together allow to believe: the worse of each. A path that says nothing takes
// nothing away from one that does, since a router on the way may have dropped it.
func (s Statement) with(o Statement) Statement {
	switch {
	case !o.Said:
		return s
	case !s.Said:
		return o
	}
	if s.Mode != o.Mode {
		s.Mode = ""
	}
	s.Settled = s.Settled && o.Settled
	s.Sends |= o.Sends
	return s
}

// normal is s as it can be told: without what has no place on the wire.
func (s Statement) normal() Statement {
	if !s.Said {
		return Statement{}
	}
	s.Mode = modeNumbered(numberOf(s.Mode))
	s.Sends &= Tunnels
	return s
}
