package route

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

type linkState struct {
	up, running, pod bool
}

// RouteEvent takes note that someone else changed a route. Changes made by this
// Syncer should not come here (see PortID); they would do no harm but cost time.
func (s *Syncer) RouteEvent(ev rtnl.RouteEvent) {
	if ev.Table != s.table || ev.Cloned || ev.TOS != 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ours := ev.Protocol == s.protocol
	if s.misplaced(ev.Route) {
		if ours && !ev.Deleted && s.kernelState(ev.Route) != isEndpoint {
			s.requestAudit()
			s.wake()
		}
		return
	}
	e := s.entries[ev.Prefix]
	if e == nil {
		if !ours || ev.Deleted || s.kernelState(ev.Route) == isEndpoint {
			return
		}
		e = s.entry(ev.Prefix)
	}
	s.events++
	e.event = s.events
	if ours {
		s.ownEvent(e, ev)
	} else {
		s.foreignEvent(e, ev)
	}
	s.wake()
}

// ownEvent handles a change of a route that bears our protocol number.
func (s *Syncer) ownEvent(e *entry, ev rtnl.RouteEvent) {
	what := s.kernelState(ev.Route)
	switch {
	case ev.Appended:
		// A second one at the key, or a next hop more: a dump shows which.
		s.requestAudit()
		return
	case !ev.Deleted:
		s.found(e, what)
		return
	case what == isEndpoint && e.have != isEndpoint:
		return // a pod's route beside ours
	}
	if e.have.ours() && e.want() != isAbsent {
		s.stats.Repairs++
	}
	s.have(e, isAbsent)
	e.stale = false
	s.markDirty(e)
}

// foreignEvent handles a change of another protocol's route at a key of ours.
func (s *Syncer) foreignEvent(e *entry, ev rtnl.RouteEvent) {
	switch {
	case ev.Deleted:
		if e.have == isForeign {
			s.have(e, isAbsent)
		}
		s.markDirty(e)
	case ev.Appended && e.have.ours():
		// Behind ours, which still holds the key. In IPv6 it may have joined
		// ours as one more next hop.
		if e.prefix.Addr().Is6() {
			s.requestAudit()
		}
	default:
		s.have(e, isForeign)
		if e.want() != isAbsent {
			s.fail(e, conflict(e.have))
		}
	}
}

// LinkEvent takes note of a device's change. The kernel removes IPv4 routes
// through a device that goes down without a notification about any of them, and
// next hop objects even when it only loses its carrier, so that calls for an
// audit; a device that comes up may be what failed routes waited for. Pods'
// veths carry no learned routes and are ignored.
func (s *Syncer) LinkEvent(ev rtnl.LinkEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, known := s.links[ev.Index]
	if ev.Deleted {
		delete(s.links, ev.Index)
	} else {
		s.links[ev.Index] = linkState{up: ev.Up, running: ev.Running, pod: podVeth(ev.Name)}
	}
	if podVeth(ev.Name) || before.pod {
		return
	}
	if ev.Deleted || !known && !ev.Up || known && before.up != ev.Up || !ev.Running && s.leadsOutOf(ev.Index) {
		s.requestAudit()
		s.wake()
	}
	if !known || before.up != ev.Up || before.running != ev.Running {
		s.retryNow()
	}
}

// leadsOutOf tells whether an object of ours leads out of a device.
func (s *Syncer) leadsOutOf(device int) bool {
	for _, o := range s.objects {
		if o.holder == us && o.target.Device == device {
			return true
		}
	}
	return false
}

// AddrEvent takes note of an address's change: with the last of a device's
// addresses the kernel silently removes routes through it, and a new one may
// make a next hop reachable.
func (s *Syncer) AddrEvent(ev rtnl.AddrEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links[ev.Index].pod || ev.Prefix.Addr().IsLinkLocalUnicast() {
		return
	}
	if ev.Deleted {
		s.requestAudit()
		s.wake()
	}
	s.retryNow()
}

// podVeth knows a pod's host veth by its name, hop and eleven hex digits, from
// the tunnel devices, hop.something.
func podVeth(name string) bool {
	return len(name) > 4 && strings.HasPrefix(name, "hop") && name[3] != '.'
}

// Run keeps the kernel in line until ctx ends: it writes what was asked for,
// repairs what notifications told of, tries failed routes again, and audits
// everything once in a while. It returns nil when ctx ends.
func (s *Syncer) Run(ctx context.Context) error {
	for {
		wait := s.every*4/5 + rand.N(s.every*2/5+1)
		if err := s.Sync(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("routes could not be brought in line, will try again", "error", err)
			wait = firstRetry
		} else {
			wait = min(wait, s.nextDue())
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.kick:
			timer.Stop()
		case <-timer.C:
			s.scheduledAudit()
		}
	}
}

// scheduledAudit asks for an audit if none took place for long.
func (s *Syncer) scheduledAudit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.lastAudit) >= s.every*4/5 {
		s.requestAudit()
	}
}

// nextDue returns how long from now the next retry or requested audit is.
func (s *Syncer) nextDue() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.every * 2
	for _, t := range []time.Time{s.auditDue, s.nextRetry} {
		if !t.IsZero() {
			due = min(due, max(0, t.Sub(s.now())))
		}
	}
	return due
}
