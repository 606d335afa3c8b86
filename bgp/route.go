package bgp

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// Route is how a learned prefix is reached: the next hop of the best path and of every path equal to it. A Route
// without next hops is no route.
type Route struct {
	Prefix netip.Prefix
	// Hops are sorted by address, each of which is there once.
	Hops []Hop
	// Peer is where the best path came from.
	Peer netip.Addr
	// PeerType is that peer's.
	PeerType PeerType
	// Stale is true while the peer is restarting and has not announced the best path again (RFC 4724 section 4.2).
	Stale bool
}

// Exists says whether there is a route at all.
func (r Route) Exists() bool { return len(r.Hops) > 0 }

// Hop is a next hop, and what the paths that lead there tell of it.
type Hop struct {
	Addr netip.Addr
	// Receives are the tunnels that it takes packets for the prefix out of: of several paths, those that all name.
	// It is empty where the path says nothing of the kind, as an external router's does.
	Receives Encapsulations
	Says     Statement
}

// withHop adds a hop, or what a further path by way of the same address tells.
func withHop(hops []Hop, h Hop) []Hop {
	for i := range hops {
		if hops[i].Addr == h.Addr {
			hops[i].Receives &= h.Receives
			hops[i].Says = hops[i].Says.with(h.Says)
			return hops
		}
	}
	return append(hops, h)
}

// lookupBatch is how many prefixes are read from the RIB in one go. A go costs about 0.2 ms whatever its size, and
// GoBGP stands still meanwhile.
const lookupBatch = 4096

// Lookup reads one prefix's learned route. See LookupAll, which is much cheaper for many.
func (s *Speaker) Lookup(prefix netip.Prefix) (Route, bool, error) {
	routes, err := s.LookupAll([]netip.Prefix{prefix})
	if err != nil {
		return Route{}, false, err
	}
	return routes[0], routes[0].Exists(), nil
}

// LookupAll reads the prefixes' learned routes from the RIB; the result has the argument's order. Where there is no
// route (nothing learned, or not allowed, or the prefix is our own) the Route has its Prefix only. After an error,
// ErrNotRunning above all, nothing is known about any of them.
func (s *Speaker) LookupAll(prefixes []netip.Prefix) ([]Route, error) {
	out := make([]Route, len(prefixes))
	var at [2][]int // positions in out, by family
	for i, p := range prefixes {
		out[i].Prefix = p
		f := 0
		if !p.Addr().Is4() {
			f = 1
		}
		at[f] = append(at[f], i)
	}
	for f, positions := range at {
		for batch := range slices.Chunk(positions, lookupBatch) {
			if err := s.lookupBatch(families[f], batch, out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (s *Speaker) lookupBatch(family gobgp.Family, batch []int, out []Route) error {
	keys := make([]*apiutil.LookupPrefix, len(batch))
	byPrefix := make(map[netip.Prefix]int, len(batch))
	for i, pos := range batch {
		keys[i] = &apiutil.LookupPrefix{Prefix: out[pos].Prefix.String()}
		byPrefix[out[pos].Prefix] = pos
	}
	return s.list(family, keys, func(r Route) {
		if pos, ok := byPrefix[r.Prefix]; ok {
			out[pos] = r
		}
	})
}

// Routes reads all learned routes. GoBGP stands still for about a microsecond a prefix; it is for audits, not for
// following changes.
func (s *Speaker) Routes() ([]Route, error) {
	var out []Route
	for _, f := range families {
		if err := s.list(f, nil, func(r Route) { out = append(out, r) }); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// list calls fn with the routes of the given prefixes, or of all if there are none given.
func (s *Speaker) list(family gobgp.Family, keys []*apiutil.LookupPrefix, fn func(Route)) error {
	if !s.running.Load() {
		return ErrNotRunning
	}
	v := s.view.Load()
	err := s.srv.ListPath(apiutil.ListPathRequest{
		TableType: api.TableType_TABLE_TYPE_GLOBAL,
		Family:    family,
		Prefixes:  keys,
	}, func(nlri gobgp.NLRI, paths []*apiutil.Path) {
		if n, ok := nlri.(*gobgp.IPAddrPrefix); ok {
			if r := s.choose(v, n.Prefix, paths); r.Exists() {
				fn(r)
			}
		}
	})
	// A stop that came between empties the RIB without anything having been withdrawn.
	if s.stopping.Load() {
		return ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("read the BGP RIB: %w", err)
	}
	return nil
}

// choose makes a prefix's route of its paths, which GoBGP gives best first (RFC 4271 section 9.1.2.2).
func (s *Speaker) choose(v *view, prefix netip.Prefix, paths []*apiutil.Path) Route {
	r := Route{Prefix: prefix}
	var best merit
	for _, p := range paths {
		if !p.PeerAddress.IsValid() {
			return Route{Prefix: prefix} // our own
		}
		m, hop := s.appraise(p)
		if p.IsNexthopInvalid || !v.usable(prefix, p.PeerAddress, hop.Addr) {
			continue
		}
		switch {
		case !r.Exists():
			best = m
			r.Peer, r.PeerType, r.Stale = p.PeerAddress, v.types[p.PeerAddress], p.Stale
		case m != best:
			continue
		}
		r.Hops = withHop(r.Hops, hop)
	}
	slices.SortFunc(r.Hops, func(a, b Hop) int { return a.Addr.Compare(b.Addr) })
	return r
}

// merit is what the decision process compares before it comes to breaking ties (RFC 4271 section 9.1.2.2, up to e):
// paths equal in it are equally good to send packets along.
type merit struct {
	external  bool
	localPref uint32
	asPathLen int
	origin    uint8
	med       uint32
}

// appraise reads a path's merit and next hop.
func (s *Speaker) appraise(p *apiutil.Path) (merit, Hop) {
	m := merit{external: p.PeerASN != s.cfg.ASN, localPref: 100}
	var hop Hop
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *gobgp.PathAttributeOrigin:
			m.origin = a.Value
		case *gobgp.PathAttributeAsPath:
			for _, segment := range a.Value {
				m.asPathLen += segment.ASLen()
			}
		case *gobgp.PathAttributeNextHop:
			hop.Addr = a.Value.Unmap()
		case *gobgp.PathAttributeMpReachNLRI:
			hop.Addr = a.Nexthop.Unmap()
		case *gobgp.PathAttributeMultiExitDisc:
			m.med = a.Value
		case *gobgp.PathAttributeLocalPref:
			m.localPref = a.Value
		case *gobgp.PathAttributeExtendedCommunities:
			hop.Receives, hop.Says = readCommunities(a.Value)
		}
	}
	return m, hop
}
