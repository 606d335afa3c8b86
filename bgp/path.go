package bgp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// NextHops are the addresses own prefixes are announced with: the node's addresses. An IPv6 prefix is announced with
// the IPv6 one also over an IPv4 session (RFC 2545 section 2, RFC 4760 section 3). An invalid one means that this
// family's prefixes can't be announced.
type NextHops struct {
	IPv4 netip.Addr
	IPv6 netip.Addr
}

func (n NextHops) of(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return n.IPv4
	}
	return n.IPv6
}

// Path is a prefix of the node's own and what it tells of itself there.
type Path struct {
	Prefix netip.Prefix
	// Receives are the tunnels that the node takes packets for the prefix out of. Packets without a tunnel it always
	// takes.
	Receives Encapsulations
	Says     Statement
}

// ownPath is what a path of our own is announced with.
type ownPath struct {
	hop      netip.Addr
	receives Encapsulations
	says     Statement
}

// SetPaths makes paths the node's own: those that are new, or have a new next hop or something new to tell, are
// announced, those that are gone withdrawn, the others not touched. A path that changes replaces what it was before,
// without having been withdrawn (RFC 4271 section 3.1). Before Start it only notes them. A path that can't be
// announced fails the call but no other path; call again with the same arguments to retry.
func (s *Speaker) SetPaths(_ context.Context, paths []Path, hops NextHops) error {
	want := make(map[netip.Prefix]ownPath, len(paths))
	var errs []error
	for _, path := range paths {
		p, hop := path.Prefix, hops.of(path.Prefix)
		own := ownPath{hop: hop, receives: path.Receives & Tunnels, says: path.Says.normal()}
		switch before, twice := want[p]; {
		case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("announce %s: not a network address", p))
		case !hop.IsValid() || hop.Is4() != p.Addr().Is4():
			errs = append(errs, fmt.Errorf("announce %s: the node has no next hop of its family (got %s)", p, hop))
		case twice && before != own:
			errs = append(errs, fmt.Errorf("announce %s: it is asked for twice, and differently", p))
		default:
			want[p] = own
		}
	}
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	s.wantOwn = want
	s.mu.Unlock()
	s.updateView(func(v *view) { v.hops = hops })
	if err := s.applyPaths(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// applyPaths brings GoBGP's local paths to what is wanted. The caller holds apply.
func (s *Speaker) applyPaths() error {
	if !s.running.Load() {
		return nil
	}
	var add, del []*apiutil.Path
	var changed []netip.Prefix
	maker := pathMaker{}
	s.mu.Lock()
	want := s.wantOwn
	for p, path := range s.own {
		if _, ok := want[p]; !ok {
			del = append(del, maker.path(p, path))
			changed = append(changed, p)
		}
	}
	for p, path := range want {
		if before, ok := s.own[p]; !ok || before != path {
			add = append(add, maker.path(p, path))
			changed = append(changed, p)
		}
	}
	s.mu.Unlock()

	if len(del) > 0 {
		if err := s.srv.DeletePath(apiutil.DeletePathRequest{Paths: del}); err != nil {
			return fmt.Errorf("withdraw %d own prefixes: %w", len(del), err)
		}
	}
	if len(add) > 0 {
		if _, err := s.srv.AddPath(apiutil.AddPathRequest{Paths: add}); err != nil {
			return fmt.Errorf("announce %d own prefixes: %w", len(add), err)
		}
	}
	s.mu.Lock()
	s.own = maps.Clone(want)
	s.mu.Unlock()
	// A learned route for the same prefix stands behind our own and may have come or gone with it.
	s.dirty.mark(changed...)
	return nil
}

// pathMaker makes paths of our own; those that tell the same share the attribute that says so.
type pathMaker map[ownPath]gobgp.PathAttributeInterface

// path is one with origin IGP, next hop and communities given, the rest added by GoBGP for each peer (RFC 4271
// section 5.1).
func (m pathMaker) path(p netip.Prefix, own ownPath) *apiutil.Path {
	nlri, _ := gobgp.NewIPAddrPrefix(p) // fails only for an invalid prefix
	attrs := []gobgp.PathAttributeInterface{gobgp.NewPathAttributeOrigin(0)}
	family := familyOf(p)
	if family == gobgp.RF_IPv4_UC {
		nh, _ := gobgp.NewPathAttributeNextHop(own.hop)
		attrs = append(attrs, nh)
	} else {
		mp, _ := gobgp.NewPathAttributeMpReachNLRI(family, []gobgp.PathNLRI{{NLRI: nlri}}, own.hop)
		attrs = append(attrs, mp)
	}
	if told := m.told(own); told != nil {
		attrs = append(attrs, told)
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs, Age: time.Now().Unix()}
}

// told is the attribute of extended communities, or nil if there is nothing to tell.
func (m pathMaker) told(own ownPath) gobgp.PathAttributeInterface {
	own.hop = netip.Addr{}
	attr, ok := m[own]
	if !ok {
		if all := communities(own.receives, own.says); len(all) > 0 {
			attr = gobgp.NewPathAttributeExtendedCommunities(all)
		}
		m[own] = attr
	}
	return attr
}

func familyOf(p netip.Prefix) gobgp.Family {
	if p.Addr().Is4() {
		return gobgp.RF_IPv4_UC
	}
	return gobgp.RF_IPv6_UC
}
