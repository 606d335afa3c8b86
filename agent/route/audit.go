package route

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

const (
	// dumpAttempts bounds how often an interrupted dump is started again.
	dumpAttempts = 10
	// auditPause keeps a flapping link from causing dump after dump.
	auditPause = 250 * time.Millisecond
)

// Load reads the routes of our protocol and adopts them: what SetBlocks and
// Update then ask for is compared with them, and the others are stale and stay
// until Prune. Subscribe to notifications before Load, so that no change falls
// between.
func (s *Syncer) Load(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.audit(ctx); err != nil {
		return fmt.Errorf("load routes: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded = nil
	for p, e := range s.entries {
		if e.have == isBlackhole {
			s.loaded = append(s.loaded, p)
		}
	}
	slices.SortFunc(s.loaded, netip.Prefix.Compare)
	return nil
}

// Prune removes the stale routes: to be called once the peers have said all
// they know. From then on any route of our protocol that is not wanted goes.
func (s *Syncer) Prune(ctx context.Context) error {
	s.mu.Lock()
	s.pruned, s.tidy = true, true
	for _, e := range s.entries {
		if e.stale {
			e.stale = false
			s.markDirty(e)
		}
	}
	s.mu.Unlock()
	return s.Sync(ctx)
}

// Audit compares everything with the kernel and repairs what differs.
func (s *Syncer) Audit(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.audit(ctx); err != nil {
		return err
	}
	return s.sync(ctx)
}

// RequestAudit asks Run for an Audit: notifications were lost.
func (s *Syncer) RequestAudit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requestAudit()
	s.wake()
}

func (s *Syncer) requestAudit() {
	if !s.auditDue.IsZero() {
		return
	}
	s.auditDue = s.now()
	if soonest := s.lastAudit.Add(auditPause); soonest.After(s.auditDue) {
		s.auditDue = soonest
	}
}

// audit dumps objects and routes of our protocol and takes note of them.
func (s *Syncer) audit(ctx context.Context) error {
	s.mu.Lock()
	s.audits++
	s.contradiction, s.auditDue, s.strays = false, time.Time{}, nil
	started := s.events
	s.mu.Unlock()
	if err := s.readAll(ctx, started); err != nil {
		s.mu.Lock()
		s.requestAudit()
		s.mu.Unlock()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if e.audit != s.audits && e.event <= started {
			s.unseen(e)
		}
	}
	s.lastAudit = s.now()
	s.stats.Audits++
	return nil
}

// readAll dumps the objects first: routes are known by them.
func (s *Syncer) readAll(ctx context.Context, started uint64) error {
	if err := s.readObjects(ctx, started); err != nil {
		return err
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := s.dump(ctx, family, started); err != nil {
			return err
		}
	}
	return nil
}

// dump reads one family, again if routes changed underneath so that the kernel
// may have skipped some.
func (s *Syncer) dump(ctx context.Context, family uint8, started uint64) error {
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		interrupted, err := s.conn.DumpRoutes(family, s.protocol, s.table, func(r *rtnl.Route) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen(r, started)
		})
		if err != nil {
			return fmt.Errorf("list routes of protocol %d: %w", s.protocol, err)
		}
		if !interrupted {
			return nil
		}
	}
	return fmt.Errorf("list routes of protocol %d: routes changed during each of %d attempts", s.protocol, dumpAttempts)
}

// seen notes a route of our protocol found in a dump.
func (s *Syncer) seen(r *rtnl.Route, started uint64) {
	what := s.kernelState(r)
	if what == isEndpoint {
		if e := s.entries[r.Prefix]; e != nil && e.event <= started {
			e.audit = s.audits
			s.found(e, what)
		}
		return
	}
	if s.misplaced(r) {
		s.addStray(r, what)
		return
	}
	e := s.entry(r.Prefix)
	if e.event > started {
		return // the notification is newer than the dump may be
	}
	if e.audit == s.audits && e.have.ours() {
		if e.have != what {
			s.addStray(r, what)
		}
		return
	}
	e.audit = s.audits
	s.found(e, what)
}

// found compares what the kernel was seen to have with what it was believed to.
func (s *Syncer) found(e *entry, what state) {
	if e.want() == isAbsent && e.have == isAbsent && what.ours() && !s.pruned {
		e.stale = true
	}
	if e.have != what && e.have.ours() {
		s.stats.Repairs++
	}
	s.have(e, what)
	s.adopt(e)
	if !e.settled() {
		s.markDirty(e)
	} else if e.failure != nil {
		s.succeed(e)
	}
}

// unseen handles an entry that the dump did not show.
func (s *Syncer) unseen(e *entry) {
	switch {
	case e.taken:
		// Refused as existing, and not ours: someone else's.
		s.have(e, isForeign)
		s.fail(e, conflict(e.have))
		return
	case e.have.ours():
		s.stats.Repairs++
		s.have(e, isAbsent)
	case e.have == isEndpoint:
		s.have(e, isAbsent)
	}
	e.stale = false
	if !e.settled() && e.failure == nil {
		s.markDirty(e)
	}
	s.forget(e)
}

func (s *Syncer) misplaced(r *rtnl.Route) bool {
	return r.TOS == 0 && r.Metric != defaultMetric(r.Prefix)
}

func (s *Syncer) addStray(r *rtnl.Route, what state) {
	s.strays = append(s.strays, stray{prefix: r.Prefix, metric: r.Metric, body: what.Value()})
}

func (s *Syncer) haveStrays() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pruned && len(s.strays) > 0
}

// buildStrays appends deletions of strays; they wait for Prune as stale routes do.
func (s *Syncer) buildStrays() {
	for s.pruned && len(s.strays) > 0 && len(s.buf) < s.batch {
		last := s.strays[len(s.strays)-1]
		s.strays = s.strays[:len(s.strays)-1]
		q := rtnl.Request{Prefix: last.prefix, Table: s.table, Protocol: s.protocol, Metric: last.metric}
		s.append(op{kind: unix.RTM_DELROUTE}, q, last.body)
	}
}
