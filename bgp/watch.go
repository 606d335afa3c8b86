package bgp

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// watch follows GoBGP's events. They are used for nothing but marking prefixes dirty and keeping the sessions'
// records; what a prefix's route is, is read from the RIB when somebody asks.
//
// Of GoBGP's ways to hear about paths this is the cheap one: one event for each UPDATE received, however many prefixes
// it carries, where a watch of best paths has one event a prefix, each handed over twice between goroutines. An event
// comes before GoBGP has put the UPDATE into the RIB, but while it holds the lock that a lookup must take: a lookup
// that starts after the event sees the UPDATE's effect.
//
// One watch for everything, so that its events are in the order in which they happened.
func (s *Speaker) watch(ctx context.Context) error {
	return s.srv.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPathUpdate: s.onUpdate,
		OnPathEor:    s.onEndOfRIB,
		OnPeerUpdate: s.onPeer,
	}, server.WatchPeer(), server.WatchEor(false), server.WatchUpdate(false, "", ""))
}

// onUpdate takes the paths of one UPDATE, which all come from one peer.
func (s *Speaker) onUpdate(paths []*apiutil.Path, _ time.Time) {
	if s.stopping.Load() || len(paths) == 0 {
		return
	}
	changed := make([]netip.Prefix, 0, len(paths))
	var claims []claim
	s.mu.Lock()
	// Loaded under mu: either this sees a new policy, or SetImport sees these prefixes.
	mesh := &s.view.Load().mesh
	sess := s.peers[paths[0].PeerAddress]
	for _, path := range paths {
		nlri, ok := path.Nlri.(*gobgp.IPAddrPrefix)
		if !ok {
			continue
		}
		changed = append(changed, nlri.Prefix)
		if sess == nil {
			continue
		}
		if path.Withdrawal {
			delete(sess.adjIn, nlri.Prefix)
		} else {
			sess.adjIn[nlri.Prefix] = false
			if c, ok := sess.claim(mesh, nlri.Prefix); ok {
				claims = append(claims, c)
			}
		}
	}
	s.mu.Unlock()
	s.warn(claims)
	s.dirty.mark(changed...)
}

func (s *Speaker) onEndOfRIB(path *apiutil.Path, _ time.Time) {
	if s.stopping.Load() {
		return
	}
	s.mu.Lock()
	sess := s.peers[path.PeerAddress]
	var changed []netip.Prefix
	if sess != nil {
		changed = sess.endOfRIB(path.Family)
	}
	s.mu.Unlock()
	s.dirty.mark(changed...)
	s.checkSynced()
}

// onPeer takes a change of a session's state.
func (s *Speaker) onPeer(ev *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
	if s.stopping.Load() || ev.Type == apiutil.PEER_EVENT_END_OF_INIT {
		return
	}
	state := &ev.Peer.State
	s.mu.Lock()
	sess := s.peers[state.NeighborAddress]
	if sess == nil {
		s.mu.Unlock()
		return
	}
	was := sess.state
	sess.state = state.SessionState
	sess.up.Store(sess.state == gobgp.BGP_FSM_ESTABLISHED)
	var changed []netip.Prefix
	switch {
	case sess.state == gobgp.BGP_FSM_ESTABLISHED:
		negotiated, graceful := capabilities(state.RemoteCap)
		sess.established(negotiated, graceful)
	case was == gobgp.BGP_FSM_ESTABLISHED:
		changed = sess.lost(state.DisconnectReason == api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART)
		sess.noteDown(state.DisconnectReason, state.DisconnectMessage)
	case sess.state == gobgp.BGP_FSM_IDLE:
		// A peer that was restarting did not come back in time, or failed to: GoBGP gives its routes up.
		changed = sess.dropStale()
		sess.noteDown(state.DisconnectReason, state.DisconnectMessage)
	}
	peer, why, kept := sess.peer, sess.why, len(sess.adjIn)
	s.mu.Unlock()

	s.dirty.mark(changed...)
	switch {
	case state.SessionState == gobgp.BGP_FSM_ESTABLISHED:
		s.log.Info("BGP session is up", "peer", peer.Address, "name", peer.Name)
		s.checkSynced()
	case was == gobgp.BGP_FSM_ESTABLISHED:
		s.log.Info("BGP session is down", "peer", peer.Address, "name", peer.Name, "why", why, "stale_routes", kept)
	}
}

// capabilities reads the families common to both sides (RFC 4760 section 8; without the capability a speaker does
// IPv4 unicast), and among them those with graceful restart (RFC 4724 section 3).
func capabilities(caps []gobgp.ParameterCapabilityInterface) (negotiated, graceful []gobgp.Family) {
	said := false
	for _, c := range caps {
		switch c := c.(type) {
		case *gobgp.CapMultiProtocol:
			said = true
			if slices.Contains(families, c.CapValue) {
				negotiated = append(negotiated, c.CapValue)
			}
		case *gobgp.CapGracefulRestart:
			for _, t := range c.Tuples {
				graceful = append(graceful, gobgp.NewFamily(t.AFI, t.SAFI))
			}
		}
	}
	if !said {
		negotiated = []gobgp.Family{gobgp.RF_IPv4_UC}
	}
	return negotiated, graceful
}
