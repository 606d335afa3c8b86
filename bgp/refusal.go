package bgp

import (
	"cmp"
	"net/netip"
	"slices"
)

// Refusal is a prefix that a mesh peer announces and the import policy does not allow.
type Refusal struct {
	Prefix netip.Prefix
	// Peer is who announces it, Name that peer's.
	Peer netip.Addr
	Name string
	// Why is for people: "inside our own block 10.244.1.0/26".
	Why string
	// Ours says that the prefix is inside one of our own blocks: two nodes think that they own it.
	Ours bool
}

// maxRefusals bounds what Refused returns.
const maxRefusals = 100

// Refused returns what mesh peers announce and is not used, those inside our own blocks first and then by prefix and
// peer, and how many more there are than the 100 that it returns at most. It looks at everything that the mesh has
// announced, 0.1 µs for a prefix that is allowed and 0.5 µs for one that is not; it is for people who ask.
func (s *Speaker) Refused() (first []Refusal, more int) {
	s.mu.Lock()
	mesh := s.view.Load().mesh
	var all worst
	for _, sess := range s.peers {
		if sess.peer.Type != NodeMesh {
			continue
		}
		for p := range sess.adjIn {
			if !mesh.allows(p) {
				all.add(Refusal{
					Prefix: p, Peer: sess.peer.Address, Name: sess.peer.Name, Ours: mesh.except.find(p).found,
				})
			}
		}
	}
	s.mu.Unlock()
	first = all.sorted()
	for i := range first {
		first[i].Why = mesh.refuses(first[i].Prefix)
	}
	return first, all.count - len(first)
}

// worst keeps the first maxRefusals of any number, in the memory of twice as many.
type worst struct {
	kept  []Refusal
	count int
}

func (w *worst) add(r Refusal) {
	w.count++
	if w.kept = append(w.kept, r); len(w.kept) == 2*maxRefusals {
		w.kept = w.sorted()
	}
}

func (w *worst) sorted() []Refusal {
	slices.SortFunc(w.kept, func(a, b Refusal) int {
		if a.Ours != b.Ours {
			if a.Ours {
				return -1
			}
			return 1
		}
		return cmp.Or(a.Prefix.Compare(b.Prefix), a.Peer.Compare(b.Peer))
	})
	return w.kept[:min(len(w.kept), maxRefusals)]
}

// maxWarned bounds what is remembered, and logged, of one peer.
const maxWarned = 100

// claim is a prefix inside a block of ours that a mesh peer announces.
type claim struct {
	peer          Peer
	prefix, block netip.Prefix
	last          bool // no more of this peer's are told
}

// claim says whether a prefix that the peer announces is inside one of our own blocks and has not been told of before.
func (ss *session) claim(mesh *importPolicy, p netip.Prefix) (claim, bool) {
	if ss.peer.Type != NodeMesh || len(ss.warned) == maxWarned {
		return claim{}, false
	}
	block := mesh.except.find(p)
	if !block.found {
		return claim{}, false
	}
	if _, before := ss.warned[p]; before {
		return claim{}, false
	}
	if ss.warned == nil {
		ss.warned = map[netip.Prefix]struct{}{}
	}
	ss.warned[p] = struct{}{}
	return claim{ss.peer, p, block.prefix, len(ss.warned) == maxWarned}, true
}

// warn tells of claims. Such a path is never used here, but other nodes have two to choose from.
func (s *Speaker) warn(claims []claim) {
	for _, c := range claims {
		s.log.Warn("another node announces addresses of a block of ours: two nodes think that they own it",
			"prefix", c.prefix, "block", c.block, "peer", c.peer.Address, "name", c.peer.Name)
		if c.last {
			s.log.Warn("no more of this peer's prefixes inside our own blocks are logged", "peer", c.peer.Address,
				"name", c.peer.Name, "logged", maxWarned)
		}
	}
}
