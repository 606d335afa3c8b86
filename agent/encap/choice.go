// Package encap decides how packets to other nodes' blocks travel: as they are,
// or in which tunnel. It talks to no kernel and to no network; Table is told
// what was learned and what is possible, and says where next hops lead.
package encap

import (
	"fmt"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

// Tunnel is the tunnel that a mode may use; Native for the mode of that name.
func Tunnel(mode v1alpha1.PoolMode) bgp.Encapsulation {
	switch mode {
	case v1alpha1.ModeIPIP, v1alpha1.ModeIPIPCrossSubnet:
		return bgp.IPIP
	case v1alpha1.ModeVXLAN, v1alpha1.ModeVXLANCrossSubnet:
		return bgp.VXLAN
	}
	return bgp.Native
}

// CrossSubnet says whether the mode uses its tunnel only towards nodes that are not on-link.
func CrossSubnet(mode v1alpha1.PoolMode) bool {
	return mode == v1alpha1.ModeIPIPCrossSubnet || mode == v1alpha1.ModeVXLANCrossSubnet
}

// Wanted is what a pool's mode asks for towards an owner that is on-link or not.
func Wanted(mode v1alpha1.PoolMode, onlink bool) bgp.Encapsulation {
	if onlink && CrossSubnet(mode) {
		return bgp.Native
	}
	return Tunnel(mode)
}

// Before is what was used until now; the zero Before is nothing.
type Before struct {
	Known bool
	Used  bgp.Encapsulation
}

// Choose is the sender's decision towards one owner. can is what this node is
// able to send to it, receives what the owner has said that it decapsulates.
// Nothing is ever sent through a tunnel that is not in both.
func Choose(wanted bgp.Encapsulation, can, receives bgp.Encapsulations, before Before) bgp.Encapsulation {
	possible := can & receives
	switch {
	case wanted == bgp.Native || possible.Has(wanted):
		return wanted
	case before.Known && (before.Used == bgp.Native || possible.Has(before.Used)):
		return before.Used
	}
	// Another tunnel gets through where plain packets may not.
	for other := range possible.All() {
		return other
	}
	return bgp.Native
}

// Why says in words how it came to used.
func Why(mode v1alpha1.PoolMode, onlink, node bool, wanted, used bgp.Encapsulation, can, receives bgp.Encapsulations) string {
	switch {
	case mode == "":
		return "in no pool"
	case wanted == used && CrossSubnet(mode) && onlink:
		return fmt.Sprintf("mode %s, and the owner is on-link", mode)
	case wanted == used && CrossSubnet(mode):
		return fmt.Sprintf("mode %s, and the owner is not on-link", mode)
	case wanted == used:
		return fmt.Sprintf("mode %s", mode)
	case !node:
		return fmt.Sprintf("mode %s, but the next hop is no node that shares an address family with this one", mode)
	case !can.Has(wanted):
		return fmt.Sprintf("mode %s, but this node has no working %s device", mode, wanted)
	case !receives.Has(wanted):
		return fmt.Sprintf("mode %s, but the owner does not receive %s", mode, wanted)
	}
	return fmt.Sprintf("mode %s", mode)
}
