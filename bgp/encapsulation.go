package bgp

import (
	"fmt"
	"iter"
	"strings"
)

// Encapsulation is how a packet travels to the node that a path leads to. The
// tunnels' numbers are IANA's ("BGP Tunnel Encapsulation Attribute Tunnel
// Types", RFC 9012 section 4.1), Native is no tunnel.
type Encapsulation uint8

// The encapsulations Hoplite knows.
const (
	Native Encapsulation = 0
	IPIP   Encapsulation = 7
	VXLAN  Encapsulation = 8
)

// Tunnels are all encapsulations but Native.
var Tunnels = EncapsulationsOf(IPIP, VXLAN)

func (e Encapsulation) String() string {
	switch e {
	case Native:
		return "native"
	case IPIP:
		return "ipip"
	case VXLAN:
		return "vxlan"
	}
	return fmt.Sprintf("tunnel type %d", uint8(e))
}

// Encapsulations is a set of them. The zero value is the empty set.
type Encapsulations uint16

// EncapsulationsOf is the set of those given.
func EncapsulationsOf(all ...Encapsulation) Encapsulations {
	var set Encapsulations
	for _, e := range all {
		set |= 1 << e
	}
	return set
}

// Has says whether e is in the set.
func (s Encapsulations) Has(e Encapsulation) bool { return s&(1<<e) != 0 }

// All yields the members in order of number.
func (s Encapsulations) All() iter.Seq[Encapsulation] {
	return func(yield func(Encapsulation) bool) {
		for e := Native; e <= VXLAN; e++ {
			if s.Has(e) && !yield(e) {
				return
			}
		}
	}
}

func (s Encapsulations) String() string {
	var names []string
	for e := range s.All() {
		names = append(names, e.String())
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ",")
}
