package encap

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestADeviceGoesStepByStep(t *testing.T) {
	quiet := Peer{Name: "node2", Heard: true, Session: true}
	sends, unheard, away := quiet, quiet, quiet
	sends.Sends, unheard.Heard, away.Session = true, false, false
	type step struct {
		after       time.Duration // since the step before
		own         bool
		peer        Peer
		connections int
		err         error
		offered     bool
		why         string // part of it; empty: the device may go
	}
	for name, steps := range map[string][]step{
		"nobody needs it": {
			{peer: quiet, offered: true, why: "waiting for what nodes have to say"},
			{after: OfferTime - 1, peer: quiet, offered: true, why: "waiting for what nodes have to say"},
			{after: 1, peer: quiet, why: "waiting for all to hear"},
			{after: WithdrawalTime - 1, peer: quiet, why: "waiting for all to hear"},
			{after: 1, peer: quiet},
		},
		"somebody sends, after a long time": {
			{peer: quiet, offered: true, why: "nodes have to say"},
			{after: OfferTime, peer: quiet, why: "all to hear"},
			{after: WithdrawalTime - 1, peer: sends, offered: true, why: "node node2 sends"},
			{after: time.Hour, peer: quiet, why: "all to hear"},
			{after: WithdrawalTime - 1, peer: quiet, why: "all to hear"},
			{after: 1, peer: quiet},
		},
		"own routes use it":         {{after: time.Hour, own: true, peer: quiet, offered: true, why: "routes of this node"}},
		"a node without statements": {{after: time.Hour, peer: unheard, offered: true, why: "node2 has not said"}},
		"a node without a session":  {{after: time.Hour, peer: away, offered: true, why: "no BGP session"}},
		"connections of the host": {
			{peer: quiet, offered: true, why: "nodes have to say"},
			{after: OfferTime, peer: quiet, why: "all to hear"},
			{after: WithdrawalTime, peer: quiet, connections: 2, why: "2 connections"},
			{after: time.Hour, peer: quiet, err: errors.New("broken"), why: "broken"},
			{after: 1, peer: quiet},
		},
	} {
		now := time.Unix(1e9, 0)
		var r Retirement
		for i, s := range steps {
			now = now.Add(s.after)
			stay := r.Look(now, s.own, []Peer{s.peer}, func() (int, error) { return s.connections, s.err })
			if stay.Offered != s.offered || (stay.Why == "") != (s.why == "") || !strings.Contains(stay.Why, s.why) {
				t.Errorf("%s, step %d: %+v", name, i+1, stay)
			}
			if (stay.Why != "") != (stay.Again > 0) {
				t.Errorf("%s, step %d: looks again after %s with %q", name, i+1, stay.Again, stay.Why)
			}
		}
	}
}
