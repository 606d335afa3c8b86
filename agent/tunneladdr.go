package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
	"github.com/hoplite-net/hoplite/ipam"
)

// tunnelAddrs are the addresses the tunnel devices are to have, one for each
// family that a tunnel carries, out of the node's own blocks: then what the host
// itself sends to a remote pod is answered the way it came. One that is there
// stays, as connections depend on it, until its pool gives out no addresses any
// more and no connection is left; then another pool's takes its place. It keeps
// no pool from being deleted: if there is no other, there is none.
//
// A node that may not take addresses has tunnels without; its packets then bear
// the node's own address, as in native mode.
func (n *node) tunnelAddrs(ctx context.Context, s situation, p *plan) ([]netip.Addr, error) {
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
func (n *node) tunnelAddr(ctx context.Context, s situation, p *plan, family ipam.Family) (netip.Addr, error) {
	var current netip.Addr
	for _, a := range n.tunnelHeld {
		if familyOf(a) == family {
			current = a // the last one taken, if an older one is still about
		}
	}
	open := slices.ContainsFunc(s.usable, func(pool ipam.Pool) bool { return pool.Family() == family })
	if current.IsValid() {
		pool, ours := n.poolOf(current)
		switch {
		case pool == "", ours && usable(s.usable, pool), !open && !deleting(s.state.Pools, pool):
			return current, nil
		}
		if count, err := n.tunnels.InUse(ctx, current); err != nil || count > 0 {
			p.lookAgain(lastRetry)
			return current, err
		}
	}
	if !open || !carries(p.kinds, family) {
		return netip.Addr{}, nil
	}
	next, err := n.allocator.Assign(ctx, family)
	if err != nil {
		return current, err
	}
	n.log.Info("address for the tunnel devices", "address", next)
	n.tunnelHeld = append(n.tunnelHeld, next)
	return next, nil
}

// poolOf is the pool of the node's block that the address is in, empty while that
// is not known. ours is false if another node has claimed the block.
func (n *node) poolOf(a netip.Addr) (pool string, ours bool) {
	for _, b := range n.allocator.Blocks() {
		if b.Prefix.Contains(a) {
			return b.Pool, b.State != ipam.Lost
		}
	}
	return "", false
}

func usable(pools []ipam.Pool, name string) bool {
	return slices.ContainsFunc(pools, func(p ipam.Pool) bool { return p.Name == name })
}

func deleting(pools []v1alpha1.IPPool, name string) bool {
	return slices.ContainsFunc(pools, func(p v1alpha1.IPPool) bool { return p.Name == name && !p.DeletionTimestamp.IsZero() })
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
