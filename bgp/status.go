package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/osrg/gobgp/v4/api"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// PeerStatus is how a session is doing.
type PeerStatus struct {
	Peer
	// State is the session's state in RFC 4271's words (section 8.2.2): Idle, Connect, Active, OpenSent,
	// OpenConfirm, Established.
	State string
	// Since is when the session came up or, if it is not, when it went down or was configured.
	Since time.Time
	// Info says in words why the session is not up; empty when it is.
	Info string
	// Received is how many prefixes are held from the peer, stale ones and those the import policy hides included.
	Received uint64
	// Advertised is how many own prefixes the peer is sent.
	Advertised uint64
}

// Established says whether the session is up.
func (p PeerStatus) Established() bool { return p.State == stateNames[gobgp.BGP_FSM_ESTABLISHED] }

var stateNames = map[gobgp.FSMState]string{
	gobgp.BGP_FSM_IDLE:        "Idle",
	gobgp.BGP_FSM_CONNECT:     "Connect",
	gobgp.BGP_FSM_ACTIVE:      "Active",
	gobgp.BGP_FSM_OPENSENT:    "OpenSent",
	gobgp.BGP_FSM_OPENCONFIRM: "OpenConfirm",
	gobgp.BGP_FSM_ESTABLISHED: "Established",
}

// Peers returns the state of every session, by address. It asks nothing of GoBGP and is cheap.
func (s *Speaker) Peers() []PeerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	own := map[gobgp.Family]uint64{}
	for p := range s.own {
		own[familyOf(p)]++
	}
	out := make([]PeerStatus, 0, len(s.peers))
	for _, sess := range s.peers {
		st := PeerStatus{
			Peer:     sess.peer,
			State:    stateNames[sess.state],
			Since:    sess.since,
			Info:     sess.info(),
			Received: uint64(len(sess.adjIn)),
		}
		for _, f := range sess.families {
			st.Advertised += own[f]
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.Address.Compare(b.Address) })
	return out
}

func (ss *session) info() string {
	switch {
	case ss.state == gobgp.BGP_FSM_ESTABLISHED:
		return ""
	case ss.why != "":
		return ss.why
	case ss.peer.passive():
		return "waiting for the peer to connect: the node with the higher address does"
	default:
		return "connecting"
	}
}

// noteDown puts into words why a session ended or failed to come up. What the log told about it is more exact and
// stays (see logHandler).
func (ss *session) noteDown(reason api.PeerState_DisconnectReason, message string) {
	switch reason {
	case api.PeerState_DISCONNECT_REASON_IDLE_TIMER_EXPIRED, api.PeerState_DISCONNECT_REASON_UNSPECIFIED:
	case api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART:
		if ss.why == "" {
			ss.why = "the connection broke; the peer may be restarting"
		}
		if len(ss.adjIn) > 0 {
			ss.why += "; its routes are kept meanwhile"
		}
	case api.PeerState_DISCONNECT_REASON_RESTART_TIMER_EXPIRED:
		ss.why = "the peer did not come back within its restart time; its routes are gone"
	case api.PeerState_DISCONNECT_REASON_HOLD_TIMER_EXPIRED:
		ss.why = fmt.Sprintf("hold timer expired: nothing heard for %s", ss.peer.holdTime())
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED:
		if ss.why == "" {
			ss.why = ss.closedEarly()
		}
	case api.PeerState_DISCONNECT_REASON_INVALID_MSG:
		if ss.why == "" {
			ss.why = "the peer sent something else than BGP expects here; it may have refused us, see its log"
		}
	default:
		if ss.why == "" {
			ss.why = strings.ReplaceAll(message, "-", " ")
		}
	}
}

// noteConnectError puts into words why no connection could be made.
func (ss *session) noteConnectError(text string) {
	port := ss.peer.Port
	if port == 0 {
		port = defaultListenPort
	}
	at := netip.AddrPortFrom(ss.peer.Address, uint16(port))
	switch {
	case strings.Contains(text, "connection refused"):
		ss.why = fmt.Sprintf("connection refused: nothing listens at %s", at)
	case strings.Contains(text, "no route to host"), strings.Contains(text, "network is unreachable"):
		ss.why = fmt.Sprintf("no route to %s", ss.peer.Address)
	case strings.Contains(text, "timeout"), strings.Contains(text, "timed out"):
		ss.why = fmt.Sprintf("no answer from %s: the host is down or a firewall drops packets", at)
	case strings.Contains(text, "cannot assign requested address"):
		ss.why = fmt.Sprintf("can't connect from %s: this node does not have the address", ss.peer.LocalAddress)
	default:
		ss.why = "can't connect: " + text
	}
}

// noteNotification puts a NOTIFICATION, sent or received, into words (RFC 4271 section 4.5).
func (ss *session) noteNotification(sent bool, code, subcode uint8) {
	switch {
	case sent && code == gobgp.BGP_ERROR_HOLD_TIMER_EXPIRED:
		ss.why = fmt.Sprintf("hold timer expired: nothing heard for %s", ss.peer.holdTime())
	case sent && code == gobgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == gobgp.BGP_ERROR_SUB_BAD_PEER_AS:
		ss.why = fmt.Sprintf("wrong AS: the peer says it is not in AS %d, which is configured for it", ss.peer.ASN)
	case sent && code == gobgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == gobgp.BGP_ERROR_SUB_BAD_BGP_IDENTIFIER:
		ss.why = "the peer has our own router ID"
	case sent && code == gobgp.BGP_ERROR_FSM_ERROR:
		ss.why = "the peer refused our OPEN; it may expect another AS of us, see its log"
	case sent:
		ss.why = "we ended the session: " + gobgp.NewNotificationErrorCode(code, subcode).String()
	case code == gobgp.BGP_ERROR_CEASE && subcode == gobgp.BGP_ERROR_SUB_PEER_DECONFIGURED:
		ss.why = "the peer removed us from its configuration"
	case code == gobgp.BGP_ERROR_HOLD_TIMER_EXPIRED:
		ss.why = "the peer heard nothing from us for its hold time"
	default:
		ss.why = "the peer ended the session: " + gobgp.NewNotificationErrorCode(code, subcode).String()
	}
}

// closedEarly is for a peer that takes the connection and closes it without a word.
func (ss *session) closedEarly() string {
	return "the peer closed the connection at once; it may not have us as a peer, or is restarting"
}
