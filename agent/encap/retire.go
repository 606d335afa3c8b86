package encap

import (
	"fmt"
	"time"
)

const (
	// OfferTime is how long a tunnel that no pool wants any more is still offered:
	// a node that has heard the offer until then, and switched, has said so by
	// the end. What is announced takes at most the BGP hold time, 9 s within the mesh, or
	// the session is down; the offer and the answer take two of them.
	OfferTime = 20 * time.Second
	// WithdrawalTime is how long a tunnel is no longer offered before its device
	// may go.
	WithdrawalTime = 15 * time.Second
)

// lookAgain is when to look again at what nobody tells of: a session that is
// down, a connection that still uses a tunnel's address.
const lookAgain = 5 * time.Second

// Peer is another node, as far as a tunnel device that no pool wants any more
// is concerned.
type Peer struct {
	Name string
	// Heard: it has said how it sends, or is of a kind that never sends through a tunnel.
	Heard bool
	// Sends: it has said that it sends through the tunnel.
	Sends bool
	// Session: what we announce reaches it.
	Session bool
}

// Retirement is the way of a tunnel device that no pool wants any more to its
// end: offered for a while, and as long as any node says that it sends through
// it, or says nothing; then withdrawn; then, when all have heard that and no
// connection needs its address, deleted. The zero Retirement has not begun.
type Retirement struct {
	begun, withdrawn time.Time
}

// Stay is what Retirement has decided.
type Stay struct {
	// Why says what the device waits for; empty when it may go.
	Why string
	// Offered: others may go on sending through it.
	Offered bool
	// Again is when to look again; 0: when something is heard.
	Again time.Duration
}

// Look decides anew. own says that this node's routes use the device,
// connections how many connections of the host have one of its addresses.
func (r *Retirement) Look(now time.Time, own bool, peers []Peer, connections func() (int, error)) Stay {
	if r.begun.IsZero() {
		r.begun = now
	}
	if why := sender(own, peers); why != "" {
		r.withdrawn = time.Time{}
		return Stay{Why: why, Offered: true, Again: lookAgain}
	}
	if left := OfferTime - now.Sub(r.begun); left > 0 {
		return Stay{Why: "no pool wants it any more; waiting for what nodes have to say", Offered: true, Again: left}
	}
	if r.withdrawn.IsZero() {
		r.withdrawn = now
	}
	if left := WithdrawalTime - now.Sub(r.withdrawn); left > 0 {
		return Stay{Why: "no node sends through it any more; waiting for all to hear that it goes", Again: left}
	}
	switch count, err := connections(); {
	case err != nil:
		return Stay{Why: fmt.Sprintf("whether connections of the host use its address is not known: %v", err), Again: lookAgain}
	case count > 0:
		return Stay{Why: fmt.Sprintf("%d connections of the host itself use its address", count), Again: lookAgain}
	}
	return Stay{}
}

// sender says who may be sending through the tunnel, this node or another.
func sender(own bool, peers []Peer) string {
	if own {
		return "routes of this node use it"
	}
	for _, p := range peers {
		switch {
		case !p.Heard:
			return fmt.Sprintf("node %s has not said that it does not send through it", p.Name)
		case p.Sends:
			return fmt.Sprintf("node %s sends through it", p.Name)
		case !p.Session:
			return fmt.Sprintf("node %s cannot be heard: no BGP session", p.Name)
		}
	}
	return ""
}
