package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hoplite-net/hoplite/agent/cluster"
	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

const (
	// stopTime is how long GoBGP may take to close its connections.
	stopTime = 3 * time.Second
	// peerPatience is how long a starting agent waits for a peer's routes before it
	// deletes those that nobody has told of. After a broken connection GoBGP
	// refuses a peer for 5 s, so that a session takes up to 8 s to come back.
	peerPatience = 15 * time.Second
)

// speaker keeps one bgp.Speaker running, a new one when the AS, the port or the
// node's address changes, and carries what it learns into the kernel.
type speaker struct {
	log    *slog.Logger
	routes *route.Syncer
	learn  func([]bgp.Route) // takes what was learned into the kernel
	synced func()            // every peer has told all it knows

	mu      sync.Mutex
	current *bgp.Speaker
	config  bgpIdentity
	stopped func() // ends current's follow and waits for it
	// leftover are the prefixes the speaker before this one had learned.
	leftover []netip.Prefix
}

// bgpIdentity is what a bgp.Speaker cannot change while it lives.
type bgpIdentity struct {
	asn  uint32
	port int
	self cluster.Node
}

// apply makes the speaker what the cluster asks for.
func (s *speaker) apply(ctx context.Context, state cluster.State, paths []bgp.Path) error {
	self := state.Self
	blocks := make([]netip.Prefix, len(paths))
	for i := range paths {
		blocks[i] = paths[i].Prefix
	}
	if !address(self).IsValid() {
		return fmt.Errorf("Node %s has no InternalIP address: BGP waits for one", self.Name)
	}
	identity := bgpIdentity{uint32(state.BGP.ASNumber), int(state.BGP.ListenPort), self}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && identity != s.config {
		s.log.Info("the node's BGP identity changes: starting BGP anew", "asn", identity.asn, "port", identity.port, "address", address(self))
		s.stopLocked()
	}
	next := s.current
	if next == nil {
		next = bgp.New(bgp.Config{
			ASN: identity.asn, RouterID: routerID(self), ListenPort: identity.port, ListenAddresses: addresses(self),
			EORDeadline: peerPatience, Log: s.log,
		})
	}
	next.SetImport(bgp.Import{Within: importPools(state.Pools), Except: blocks})
	var errs []error
	if err := next.SetPaths(ctx, paths, bgp.NextHops{IPv4: self.IPv4, IPv6: self.IPv6}); err != nil {
		errs = append(errs, err)
	}
	if s.current == nil {
		if err := next.Start(ctx); err != nil {
			return errors.Join(append(errs, err)...)
		}
		s.current, s.config = next, identity
		s.follow(next)
	}
	return errors.Join(append(errs, next.SetPeers(ctx, meshPeers(state)))...)
}

// importPools are all pools, also those that are disabled: pods may have their addresses.
func importPools(pools []v1alpha1.IPPool) []bgp.Pool {
	var all []bgp.Pool
	for i := range pools {
		if prefix, err := pools[i].Prefix(); err == nil {
			all = append(all, bgp.Pool{Prefix: prefix.Masked(), BlockBits: pools[i].BlockBits()})
		}
	}
	return all
}

func meshPeers(state cluster.State) []bgp.Peer {
	var peers []bgp.Peer
	if !*state.BGP.NodeMesh {
		return nil
	}
	for _, node := range state.Peers {
		remote, local := node.IPv4, state.Self.IPv4
		if !remote.IsValid() || !local.IsValid() {
			remote, local = node.IPv6, state.Self.IPv6
		}
		// A node without an address has not come up yet, or shares no family with us.
		if !remote.IsValid() || !local.IsValid() {
			continue
		}
		peers = append(peers, bgp.Peer{
			Name: node.Name, Address: remote, LocalAddress: local,
			Port: int(state.BGP.ListenPort), ASN: uint32(state.BGP.ASNumber), Type: bgp.NodeMesh,
		})
	}
	return peers
}

// follow carries what sp learns into the kernel until it is stopped.
func (s *speaker) follow(sp *bgp.Speaker) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.stopped = func() { cancel(); <-done }
	leftover := s.leftover
	s.leftover = nil
	go func() {
		defer close(done)
		synced := sp.Synced()
		for {
			select {
			case <-ctx.Done():
				return
			case <-sp.Changes():
				s.carry(sp, sp.TakeDirty())
			case <-synced:
				synced = nil
				s.carry(sp, append(sp.TakeDirty(), leftover...))
				if err := s.routes.Prune(ctx); err != nil && ctx.Err() == nil {
					s.log.Error("stale routes stay until the next restart", "error", err)
				}
				s.log.Info("peers have told their routes; those nobody has any more are deleted")
				s.synced()
			}
		}
	}()
}

// carry brings the kernel's routes for the prefixes in line with what sp has learned.
func (s *speaker) carry(sp *bgp.Speaker, prefixes []netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	found, err := sp.LookupAll(prefixes)
	if err != nil {
		// Stopped meanwhile: the kernel keeps what it has.
		return
	}
	s.learn(found)
}

// refused is what peers announce and the node does not use.
func (s *speaker) refused() (first []bgp.Refusal, more int) {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current == nil {
		return nil, 0
	}
	return current.Refused()
}

// peers is the state of every session, in order of address.
func (s *speaker) peers() []bgp.PeerStatus {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current == nil {
		return nil
	}
	peers := current.Peers()
	slices.SortFunc(peers, func(a, b bgp.PeerStatus) int { return a.Address.Compare(b.Address) })
	return peers
}

// stop ends BGP so that no neighbour sees a route change for a while (RFC 4724).
func (s *speaker) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.stopLocked()
	}
}

func (s *speaker) stopLocked() {
	routes, err := s.current.Routes()
	if err != nil {
		s.log.Warn("what BGP had learned is not known; it stays until the agent restarts", "error", err)
	}
	for _, r := range routes {
		s.leftover = append(s.leftover, r.Prefix)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	if err := s.current.Stop(ctx); err != nil {
		s.log.Warn("BGP did not stop in order", "error", err)
	}
	s.stopped()
	s.current = nil
}

// routerID is the node's IPv4 address or, where it has none, an identifier made
// from its name: it must be unique in the AS, and need not be an address (RFC 6286).
func routerID(n cluster.Node) netip.Addr {
	if n.IPv4.IsValid() {
		return n.IPv4
	}
	sum := sha256.Sum256([]byte(n.Name))
	// Never 0.0.0.0, nor multicast.
	return netip.AddrFrom4([4]byte{1 + sum[0]%127, sum[1], sum[2], sum[3]})
}

func addresses(n cluster.Node) []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{n.IPv4, n.IPv6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}
