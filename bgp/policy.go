package bgp

import (
	"net/netip"
	"slices"
)

// Import says which prefixes the node-to-node mesh may give us: those inside one of Within (the pools) that are not
// inside one of Except (our own blocks). Peers of other types are configured by an operator and not held to it.
//
// It is applied when a route is looked up, path by path and before the best is chosen, so a change takes effect at
// once without asking peers again, and nothing of it can hit own prefixes.
type Import struct {
	Within []netip.Prefix
	Except []netip.Prefix
}

// SetImport replaces the mesh's import policy. Learned prefixes that it now treats otherwise are marked dirty.
// Until it is called nothing from the mesh is used.
func (s *Speaker) SetImport(im Import) {
	next := newImportPolicy(im)
	s.apply.Lock()
	defer s.apply.Unlock()
	last := s.view.Load().mesh
	s.updateView(func(v *view) { v.mesh = next })

	var changed []netip.Prefix
	s.mu.Lock()
	for _, sess := range s.peers {
		if sess.peer.Type != NodeMesh {
			continue
		}
		for p := range sess.adjIn {
			if last.allows(p) != next.allows(p) {
				changed = append(changed, p)
			}
		}
	}
	s.mu.Unlock()
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
	return importPolicy{within: newPrefixSet(im.Within), except: newPrefixSet(im.Except)}
}

func (ip importPolicy) allows(p netip.Prefix) bool {
	return ip.within.covers(p) && !ip.except.covers(p)
}

// prefixSet answers whether a prefix is inside (or is) one of its members. It holds them by their lengths, of which
// there are few: a pool has one, a block another.
type prefixSet struct {
	lengths []int
	members map[netip.Prefix]struct{}
}

func newPrefixSet(prefixes []netip.Prefix) prefixSet {
	set := prefixSet{members: make(map[netip.Prefix]struct{}, len(prefixes))}
	for _, p := range prefixes {
		if !p.IsValid() {
			continue
		}
		set.members[p.Masked()] = struct{}{}
		if !slices.Contains(set.lengths, p.Bits()) {
			set.lengths = append(set.lengths, p.Bits())
		}
	}
	return set
}

func (set prefixSet) covers(p netip.Prefix) bool {
	for _, bits := range set.lengths {
		if bits > p.Bits() {
			continue
		}
		parent, err := p.Addr().Prefix(bits)
		if err != nil { // longer than the family's addresses
			continue
		}
		if _, ok := set.members[parent]; ok {
			return true
		}
	}
	return false
}
