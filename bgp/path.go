package bgp

import (
	"context"
	"errors"
	"fmt"
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

// SetPaths makes prefixes the node's own: those that are new or have a new next hop are announced, those that are
// gone withdrawn, the others not touched. Before Start it only notes them. A prefix that can't be announced fails the
// call but no other prefix; call again with the same arguments to retry.
func (s *Speaker) SetPaths(_ context.Context, prefixes []netip.Prefix, hops NextHops) error {
	want := make(map[netip.Prefix]netip.Addr, len(prefixes))
	var errs []error
	for _, p := range prefixes {
		hop := hops.of(p)
		switch {
		case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("announce %s: not a network address", p))
		case !hop.IsValid() || hop.Is4() != p.Addr().Is4():
			errs = append(errs, fmt.Errorf("announce %s: the node has no next hop of its family (got %s)", p, hop))
		default:
			want[p] = hop
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
	s.mu.Lock()
	want := s.wantOwn
	for p, hop := range s.own {
		if _, ok := want[p]; !ok {
			del = append(del, localPath(p, hop))
			changed = append(changed, p)
		}
	}
	for p, hop := range want {
		if s.own[p] != hop {
			add = append(add, localPath(p, hop))
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
	s.own = make(map[netip.Prefix]netip.Addr, len(want))
	for p, hop := range want {
		s.own[p] = hop
	}
	s.mu.Unlock()
	// A learned route for the same prefix stands behind our own and may have come or gone with it.
	s.dirty.mark(changed...)
	return nil
}

// localPath is a path of our own: origin IGP, next hop given, the rest added by GoBGP for each peer (RFC 4271
// section 5.1).
func localPath(p netip.Prefix, hop netip.Addr) *apiutil.Path {
	nlri, _ := gobgp.NewIPAddrPrefix(p) // fails only for an invalid prefix
	attrs := []gobgp.PathAttributeInterface{gobgp.NewPathAttributeOrigin(0)}
	family := familyOf(p)
	if family == gobgp.RF_IPv4_UC {
		nh, _ := gobgp.NewPathAttributeNextHop(hop)
		attrs = append(attrs, nh)
	} else {
		mp, _ := gobgp.NewPathAttributeMpReachNLRI(family, []gobgp.PathNLRI{{NLRI: nlri}}, hop)
		attrs = append(attrs, mp)
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs, Age: time.Now().Unix()}
}

func familyOf(p netip.Prefix) gobgp.Family {
	if p.Addr().Is4() {
		return gobgp.RF_IPv4_UC
	}
	return gobgp.RF_IPv6_UC
}
