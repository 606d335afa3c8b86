package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/api"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// PeerType says why a peer is configured. The text is what people see.
type PeerType string

const (
	// NodeMesh is another node of the full mesh.
	NodeMesh PeerType = "node-to-node mesh"
	// Global is a peer that every node has.
	Global PeerType = "global"
	// NodeSpecific is a peer that only chosen nodes have.
	NodeSpecific PeerType = "node specific"
)

// Peer is one desired session. Peers are comparable; two that differ only in Name share a session.
type Peer struct {
	// Name is for people: the node's or the object's name.
	Name string
	// Address is the peer's address and its identity: one session an address.
	Address netip.Addr
	// Port is the peer's TCP port; 0 means 179.
	Port int
	// ASN is the AS the peer must be in.
	ASN  uint32
	Type PeerType
	// LocalAddress is the address we connect from and the only one at which we accept the peer; invalid means any.
	// Within the mesh it also decides who connects: the node with the higher address. Two connections that cross
	// would have to be resolved (RFC 4271 section 6.8), and GoBGP drops a restarting peer's routes when one of them
	// closes.
	LocalAddress netip.Addr
	// Password is for TCP MD5 (RFC 2385); empty means none.
	Password Secret
	// HoldTime 0 means 9 s within the mesh and 90 s elsewhere; keepalives are sent at a third of it.
	HoldTime time.Duration
}

// Secret is a string that formats and logs as stars.
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps the secret out of JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const (
	meshHoldTime = 9 * time.Second
	hold         = 90 * time.Second
	// connectRetry and idleHold bound how long a session stays down after what kept it down is gone. GoBGP's
	// defaults are 120 s and 30 s.
	connectRetry = 3 * time.Second
	idleHold     = 5 * time.Second
	// meshDeferral is the selection deferral (RFC 4724 section 4.1) towards mesh peers. They get only own prefixes
	// from us, which are in the RIB before them, so there is nothing to wait for. GoBGP's default is 360 s, its
	// smallest 1 s.
	meshDeferral = time.Second
)

// globalFamilies are GoBGP's numbers for IPv4 and IPv6 unicast. Without them it makes tables for every family it
// knows, 150 KiB each.
var globalFamilies = []uint32{0, 1}

var families = []gobgp.Family{gobgp.RF_IPv4_UC, gobgp.RF_IPv6_UC}

func (p Peer) validate() error {
	switch {
	case !p.Address.IsValid() || p.Address.Is4In6() || p.Address.IsUnspecified() || p.Address.IsMulticast():
		return fmt.Errorf("%q is not an address a peer can have", p.Address)
	case p.ASN == 0:
		return errors.New("the AS number is 0")
	case p.Port < 0 || p.Port > 65535:
		return fmt.Errorf("port %d is not between 1 and 65535", p.Port)
	case p.LocalAddress.IsValid() && p.LocalAddress.Is4() != p.Address.Is4():
		return fmt.Errorf("local address %s is of another family", p.LocalAddress)
	case p.HoldTime != 0 && p.HoldTime < 3*time.Second: // RFC 4271 section 4.2
		return fmt.Errorf("hold time %s is below 3s", p.HoldTime)
	}
	return nil
}

func (p Peer) passive() bool {
	return p.Type == NodeMesh && p.LocalAddress.IsValid() && p.LocalAddress.Less(p.Address)
}

func (p Peer) holdTime() time.Duration {
	switch {
	case p.HoldTime != 0:
		return p.HoldTime
	case p.Type == NodeMesh:
		return meshHoldTime
	default:
		return hold
	}
}

// sameSession says whether a session for p can go on as one for q.
func (p Peer) sameSession(q Peer) bool {
	p.Name = q.Name
	return p == q
}

// neighbor is p in GoBGP's terms. A restarting speaker says so in its OPEN and marks its forwarding state as
// preserved (RFC 4724 section 4.1).
func (s *Speaker) neighbor(p Peer, restarting bool) *api.Peer {
	deferral := max(s.cfg.EORDeadline, time.Second)
	if p.Type == NodeMesh {
		deferral = meshDeferral
	}
	n := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Address.String(),
			PeerAsn:         p.ASN,
			AuthPassword:    string(p.Password),
		},
		Transport: &api.Transport{RemotePort: uint32(p.Port), PassiveMode: p.passive()},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry:           seconds(connectRetry),
			IdleHoldTimeAfterReset: seconds(idleHold),
			HoldTime:               seconds(p.holdTime()),
			KeepaliveInterval:      max(1, seconds(p.holdTime()/3)),
		}},
		GracefulRestart: &api.GracefulRestart{
			Enabled:         true,
			RestartTime:     uint32(seconds(s.cfg.RestartTime)),
			DeferralTime:    uint32(seconds(deferral)),
			LocalRestarting: restarting,
		},
	}
	if p.LocalAddress.IsValid() {
		n.Transport.LocalAddress = p.LocalAddress.String()
	}
	// Both families on every session: without AfiSafis GoBGP offers only that of the peer's address.
	for _, f := range families {
		n.AfiSafis = append(n.AfiSafis, &api.AfiSafi{
			Config: &api.AfiSafiConfig{
				Enabled: true,
				Family:  &api.Family{Afi: api.Family_Afi(f.Afi()), Safi: api.Family_Safi(f.Safi())},
			},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
	}
	return n
}

func seconds(d time.Duration) uint64 { return uint64(d / time.Second) }

// SetPeers makes peers the sessions we have: new ones are opened, those that are gone closed with a Cease (their
// routes go, as do ours at them), changed ones closed and opened, the others not touched. Before Start it only notes
// them. A peer that can't be had fails the call but no other peer.
//
// The peers of the first call, and any set before Synced is closed, are those a restarting speaker comes back to.
func (s *Speaker) SetPeers(ctx context.Context, peers []Peer) error {
	want := make(map[netip.Addr]Peer, len(peers))
	var errs []error
	for _, p := range peers {
		if err := p.validate(); err != nil {
			errs = append(errs, fmt.Errorf("peer %s (%s): %w", p.Address, p.Name, err))
			continue
		}
		if q, ok := want[p.Address]; ok {
			errs = append(errs, fmt.Errorf("peer %s (%s): %s has this address too", p.Address, p.Name, q.Name))
			continue
		}
		want[p.Address] = p
	}
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	s.wantPeer = want
	s.peersSet = true
	s.mu.Unlock()
	if err := s.applyPeers(ctx); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// applyPeers brings GoBGP's neighbors to what is wanted. The caller holds apply.
func (s *Speaker) applyPeers(ctx context.Context) error {
	if !s.running.Load() {
		return nil
	}
	var del, add []Peer
	s.mu.Lock()
	for addr, sess := range s.peers {
		switch p, ok := s.wantPeer[addr]; {
		case !ok || !sess.peer.sameSession(p):
			del = append(del, sess.peer)
		default:
			sess.peer = p
		}
	}
	for addr, p := range s.wantPeer {
		if sess := s.peers[addr]; sess == nil || !sess.peer.sameSession(p) {
			add = append(add, p)
		}
	}
	s.mu.Unlock()

	var errs []error
	for _, p := range del {
		if err := s.deletePeer(ctx, p); err != nil {
			errs = append(errs, err)
		}
	}
	restarting := s.register(add)
	for _, p := range add {
		if err := s.srv.AddPeer(ctx, &api.AddPeerRequest{Peer: s.neighbor(p, restarting)}); err != nil {
			s.forget(p.Address)
			errs = append(errs, fmt.Errorf("add peer %s (%s): %w", p.Address, p.Name, err))
			continue
		}
		s.log.Info("BGP peer added", "peer", p.Address, "name", p.Name, "type", string(p.Type), "asn", p.ASN)
	}
	s.publishTypes()
	s.checkSynced()
	return errors.Join(errs...)
}

// register makes the peers' records, before GoBGP can have anything to say about them. It tells whether we come back
// to these peers from a restart: until the first End-of-RIBs are in we do.
func (s *Speaker) register(peers []Peer) (restarting bool) {
	deadline := time.Now().Add(s.cfg.EORDeadline)
	s.mu.Lock()
	restarting = !s.isSynced
	for _, p := range peers {
		sess := newSession(p, deadline)
		if restarting {
			sess.timer = time.AfterFunc(s.cfg.EORDeadline, s.checkSynced)
		}
		s.peers[p.Address] = sess
	}
	s.mu.Unlock()
	s.publishTypes()
	return restarting
}

func (s *Speaker) deletePeer(ctx context.Context, p Peer) error {
	if p.Password != "" {
		// DeletePeer leaves the password on the listening socket, where it would shut out a later peer without one.
		bare := p
		bare.Password = ""
		if _, err := s.srv.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: s.neighbor(bare, false)}); err != nil {
			s.log.Warn("removing a BGP peer's password", "peer", p.Address, "err", err)
		}
	}
	if err := s.srv.DeletePeer(ctx, &api.DeletePeerRequest{Address: p.Address.String()}); err != nil {
		return fmt.Errorf("remove peer %s (%s): %w", p.Address, p.Name, err)
	}
	s.forget(p.Address)
	s.log.Info("BGP peer removed", "peer", p.Address, "name", p.Name)
	return nil
}

// forget drops a session's record; what it had learned must be looked at again.
func (s *Speaker) forget(addr netip.Addr) {
	s.mu.Lock()
	sess := s.peers[addr]
	delete(s.peers, addr)
	s.mu.Unlock()
	if sess.timer != nil {
		sess.timer.Stop()
	}
	s.dirty.mark(sess.learned()...)
}

// publishTypes puts the peers into the view. The caller holds apply.
func (s *Speaker) publishTypes() {
	s.mu.Lock()
	types := make(map[netip.Addr]PeerType, len(s.peers))
	for addr, sess := range s.peers {
		types[addr] = sess.peer.Type
	}
	s.mu.Unlock()
	s.updateView(func(v *view) { v.types = types })
}
