package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/hoplite-net/hoplite/bgp"
	"github.com/hoplite-net/hoplite/ipam"
)

// tunnelAddrs are the addresses the tunnel devices are to have, one for each
// family that a tunnel carries, out of the node's own blocks: then what the host
// itself sends to a remote pod is answered the way it came. One that is there
// stays, as connections depend on it, until its pool gives out no addresses any
// more and no connection is left.
//
// A node that may not take addresses has tunnels without; its packets then bear
// the node's own address, as in native mode.
func (n *node) tunnelAddrs(ctx context.Context, s situation, p plan) ([]netip.Addr, error) {
	if p.kinds == 0 {
		return nil, nil
	}
	var addrs []netip.Addr
	var errs []error
	for _, family := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		next, err := n.tunnelAddr(ctx, s, p, family)
		if err != nil {
			errs = append(errs, fmt.Errorf("an %s address for the tunnel devices: %w", family, err))
		}
		if next.IsValid() {
			addrs = append(addrs, next)
		}
	}
	return addrs, errors.Join(errs...)
}

// tunnelAddr keeps the family's address, or takes one.
func (n *node) tunnelAddr(ctx context.Context, s situation, p plan, family ipam.Family) (netip.Addr, error) {
	var current netip.Addr
	for _, a := range n.tunnelHeld {
		if familyOf(a) == family {
			current = a // the last one taken, if an older one is still about
		}
	}
	open := slices.ContainsFunc(s.usable, func(pool ipam.Pool) bool { return pool.Family() == family })
	if !open || !carries(p.kinds, family) || current.IsValid() && n.addressHolds(current, s.usable) {
		return current, nil
	}
	if current.IsValid() {
		if count, err := n.tunnels.InUse(ctx, current); err != nil || count > 0 {
			return current, err
		}
	}
	next, err := n.allocator.Assign(ctx, family)
	if err != nil {
		return current, err
	}
	n.log.Info("address for the tunnel devices", "address", next)
	n.tunnelHeld = append(n.tunnelHeld, next)
	return next, nil
}

// addressHolds says whether the address may stay: its block is this node's, and of
// a pool that may be used. A block that is in doubt or not known yet is no reason
// to leave.
func (n *node) addressHolds(a netip.Addr, usable []ipam.Pool) bool {
	for _, b := range n.allocator.Blocks() {
		if b.Prefix.Contains(a) {
			return b.State != ipam.Lost && slices.ContainsFunc(usable, func(p ipam.Pool) bool { return p.Name == b.Pool })
		}
	}
	return true
}

// carries says whether one of the tunnels carries the family. Whether a pool of
// the family asks for it makes no difference: once one does, others send at
// once, since the tunnel has been offered already; and of IPv4, a device without
// an address drops what it would not send back by (with any rp_filter but 0).
func carries(kinds bgp.Encapsulations, family ipam.Family) bool {
	return kinds.Has(bgp.VXLAN) || family == ipam.IPv4 && kinds.Has(bgp.IPIP)
}

// freeTunnelAddrs gives back the addresses that are wanted no more, once no
// device has them.
func (n *node) freeTunnelAddrs(wanted []netip.Addr) {
	have := n.tunnels.Addrs()
	n.tunnelHeld = slices.DeleteFunc(n.tunnelHeld, func(a netip.Addr) bool {
		if slices.Contains(wanted, a) || slices.Contains(have, a) {
			return false
		}
		n.allocator.Free(a)
		n.log.Info("address of the tunnel devices given back", "address", a)
		return true
	})
}

func familyOf(a netip.Addr) ipam.Family {
	if a.Is4() {
		return ipam.IPv4
	}
	return ipam.IPv6
}
