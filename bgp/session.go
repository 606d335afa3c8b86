package bgp

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// session is what we know about one peer, kept from GoBGP's events. Guarded by Speaker.mu.
type session struct {
	peer     Peer
	state    gobgp.FSMState
	since    time.Time // when it came up, or went down
	why      string    // why it is not up, as far as known; empty when it is
	families []gobgp.Family
	up       atomic.Bool // state is Established; read by the log handler on GoBGP's hot path

	// adjIn are the prefixes GoBGP holds from this peer (the keys of its Adj-RIB-In), and whether they are stale:
	// learned before the peer's restart and not yet announced again. GoBGP reports what a peer says but not every
	// withdrawal it makes itself, so we must know what to look at when a session ends.
	adjIn    map[netip.Prefix]bool
	warned   map[netip.Prefix]struct{} // see claim
	graceful []gobgp.Family            // families the peer keeps forwarding in while it restarts (RFC 4724 section 3)

	// initial synchronisation, see Speaker.Synced
	awaited  []gobgp.Family // families whose End-of-RIB is still to come in this session
	eorSeen  bool           // a session of this peer has sent all of them
	deadline time.Time
	timer    *time.Timer
}

func newSession(p Peer, deadline time.Time) *session {
	return &session{peer: p, since: time.Now(), deadline: deadline, adjIn: map[netip.Prefix]bool{}}
}

// learned returns the prefixes held from the peer.
func (ss *session) learned() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ss.adjIn))
	for p := range ss.adjIn {
		out = append(out, p)
	}
	return out
}

// established notes that the session is up. What an earlier session left, other than as stale, is gone.
func (ss *session) established(negotiated, graceful []gobgp.Family) {
	ss.since, ss.why = time.Now(), ""
	ss.families, ss.graceful = negotiated, graceful
	ss.awaited = slices.Clone(negotiated)
	for p, stale := range ss.adjIn {
		if !stale {
			delete(ss.adjIn, p)
		}
	}
}

// lost notes that the session ended, and returns the prefixes this may have changed. If gracefully, GoBGP keeps those
// of the families the peer keeps forwarding in.
func (ss *session) lost(gracefully bool) (changed []netip.Prefix) {
	ss.since = time.Now()
	ss.families, ss.awaited = nil, nil
	for p := range ss.adjIn {
		if gracefully && slices.Contains(ss.graceful, familyOf(p)) {
			ss.adjIn[p] = true
			continue
		}
		delete(ss.adjIn, p)
		changed = append(changed, p)
	}
	return changed
}

// dropStale forgets what the peer did not announce again in time, and returns it.
func (ss *session) dropStale() (changed []netip.Prefix) {
	for p, stale := range ss.adjIn {
		if stale {
			delete(ss.adjIn, p)
			changed = append(changed, p)
		}
	}
	return changed
}

// endOfRIB notes the peer's End-of-RIB marker for a family, and returns the prefixes this may have changed: once all
// families have theirs, GoBGP withdraws what is still stale (RFC 4724 section 4.2).
func (ss *session) endOfRIB(f gobgp.Family) (changed []netip.Prefix) {
	ss.awaited = slices.DeleteFunc(ss.awaited, func(g gobgp.Family) bool { return g == f })
	if len(ss.awaited) == 0 {
		ss.eorSeen = true
		return ss.dropStale()
	}
	// GoBGP counts only families with graceful restart and may have withdrawn already.
	for p, stale := range ss.adjIn {
		if stale {
			changed = append(changed, p)
		}
	}
	return changed
}
