package bgp

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Import says which prefixes the node-to-node mesh may give us: those inside one of Within, and no longer than its
// blocks, that are not inside one of Except (our own blocks). Peers of other types are configured by an operator and
// not held to it.
//
// It is applied when a route is looked up, path by path and before the best is chosen, so a change takes effect at
// once without asking peers again, and nothing of it can hit own prefixes.
type Import struct {
	Within []Pool
	Except []netip.Prefix
}

// Pool is a range whose blocks the mesh may give us.
type Pool struct {
	Prefix netip.Prefix
	// BlockBits is the prefix length of the pool's blocks. A longer prefix would take single pods away from a
	// block's owner and is refused; a shorter one, several blocks in one, is not. 0 means that any length will do.
	BlockBits int
}

// SetImport replaces the mesh's import policy. Learned prefixes that it now treats otherwise are marked dirty.
// Until it is called nothing from the mesh is used.
func (s *Speaker) SetImport(im Import) {
	next := newImportPolicy(im)
	s.apply.Lock()
	defer s.apply.Unlock()
	last := s.view.Load().mesh
	if next.equal(last) {
		return // a caller that says everything every time need not be slow with many prefixes learned
	}
	s.updateView(func(v *view) { v.mesh = next })

	var changed []netip.Prefix
	var claims []claim
	s.mu.Lock()
	for _, sess := range s.peers {
		if sess.peer.Type != NodeMesh {
			continue
		}
		for p, stale := range sess.adjIn {
			if last.allows(p) != next.allows(p) {
				changed = append(changed, p)
			}
			// What is stale the peer does not say any more; it may just have lost the block to us.
			if stale {
				continue
			}
			if c, ok := sess.claim(&next, p); ok {
				claims = append(claims, c)
			}
		}
	}
	s.mu.Unlock()
	s.warn(claims)
	s.dirty.mark(changed...)
}

// view is what a lookup needs to know besides the RIB. It is never changed, only replaced.
type view struct {
	mesh  importPolicy
	types map[netip.Addr]PeerType
	hops  NextHops
}

// usable says whether a path for prefix from peer may be used.
func (v *view) usable(prefix netip.Prefix, peer, hop netip.Addr) bool {
	typ, ok := v.types[peer]
	if !ok || !hop.IsValid() {
		return false
	}
	// RFC 4271 section 5.1.3: a speaker must not install a route with itself as the next hop.
	if hop == v.hops.IPv4 || hop == v.hops.IPv6 {
		return false
	}
	return typ != NodeMesh || v.mesh.allows(prefix)
}

// updateView replaces the view. The caller holds apply, which makes it the only writer.
func (s *Speaker) updateView(change func(*view)) {
	next := *s.view.Load()
	change(&next)
	s.view.Store(&next)
}

// importPolicy is Import made ready for lookups that cost the same for one own block and for thousands.
type importPolicy struct{ within, except prefixSet }

func newImportPolicy(im Import) importPolicy {
	ip := importPolicy{within: newPrefixSet(len(im.Within)), except: newPrefixSet(len(im.Except))}
	for _, pool := range im.Within {
		ip.within.add(pool.Prefix, pool.BlockBits)
	}
	for _, block := range im.Except {
		ip.except.add(block, 0)
	}
	return ip
}

func (ip importPolicy) equal(o importPolicy) bool {
	return maps.Equal(ip.within.members, o.within.members) && maps.Equal(ip.except.members, o.except.members)
}

func (ip importPolicy) allows(p netip.Prefix) bool {
	pool := ip.within.find(p)
	return pool.found && p.Bits() <= pool.longest && !ip.except.find(p).found
}

// refuses says in words why a prefix is not allowed; it is empty for one that is.
func (ip importPolicy) refuses(p netip.Prefix) string {
	block, pool := ip.except.find(p), ip.within.find(p)
	switch {
	case block.found:
		return fmt.Sprintf("inside our own block %s", block.prefix)
	case !pool.found:
		return "outside all pools"
	case p.Bits() > pool.longest:
		return fmt.Sprintf("longer than a block: those of pool %s are /%d", pool.prefix, pool.longest)
	}
	return ""
}

// prefixSet answers whether a prefix is inside (or is) one of its members. It holds them by their lengths, of which
// there are few: a pool has one, a block another.
type prefixSet struct {
	lengths []int
	members map[netip.Prefix]int // to the longest that a prefix inside may be
}

// member is what find finds.
type member struct {
	found   bool
	prefix  netip.Prefix
	longest int
}

func newPrefixSet(size int) prefixSet { return prefixSet{members: make(map[netip.Prefix]int, size)} }

// add adds a member whose inner prefixes may have at most longest bits, or any number if that is 0.
func (set *prefixSet) add(p netip.Prefix, longest int) {
	if !p.IsValid() {
		return
	}
	if longest == 0 {
		longest = p.Addr().BitLen()
	}
	set.members[p.Masked()] = max(longest, set.members[p.Masked()])
	if !slices.Contains(set.lengths, p.Bits()) {
		set.lengths = append(set.lengths, p.Bits())
	}
}

// find returns a member that p is inside of; where there are several, one that p is not too long for.
func (set *prefixSet) find(p netip.Prefix) (m member) {
	for _, bits := range set.lengths {
		if bits > p.Bits() {
			continue
		}
		parent, err := p.Addr().Prefix(bits)
		if err != nil { // longer than the family's addresses
			continue
		}
		longest, ok := set.members[parent]
		if !ok {
			continue
		}
		m = member{true, parent, longest}
		if p.Bits() <= longest {
			break
		}
	}
	return m
}
