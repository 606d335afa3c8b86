package route

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// finish takes note of what the kernel answered to one message.
func (s *Syncer) finish(o *op) {
	e := o.entry
	switch {
	case o.object != nil:
		s.finishObject(o)
		return
	case e == nil:
		s.finishStray(o)
		return
	}
	if e.event > o.event {
		// Someone changed the prefix meanwhile, before or after us. What the
		// notification said stands; if it was before, the kernel will object
		// to the next message, and an audit decides.
		s.markDirty(e)
		return
	}
	switch {
	case o.kind == unix.RTM_DELROUTE:
		s.finishDelete(e, o)
	case o.flags&unix.NLM_F_REPLACE != 0:
		s.finishReplace(e, o)
	default:
		s.finishCreate(e, o)
	}
}

func (s *Syncer) finishCreate(e *entry, o *op) {
	switch {
	case o.err == nil:
		s.installed(e, o.want)
	case !errors.Is(o.err, unix.EEXIST):
		s.have(e, isAbsent)
		s.fail(e, o.err)
		s.suspectObject(o)
	case e.have == isForeign, e.have == isEndpoint:
		s.fail(e, conflict(e.have))
	default:
		// Ours, unknown to us, or someone else's: only a dump can tell.
		e.taken, s.contradiction = true, true
		s.markDirty(e)
	}
}

func (s *Syncer) finishReplace(e *entry, o *op) {
	switch {
	case o.err == nil:
		s.installed(e, o.want)
	case errors.Is(o.err, unix.ENOENT), errors.Is(o.err, unix.ESRCH):
		s.have(e, isAbsent)
		s.markDirty(e)
	default:
		// The kernel keeps the route as it was.
		if errors.Is(o.err, unix.EEXIST) {
			s.requestAudit()
		}
		s.fail(e, o.err)
		s.suspectObject(o)
	}
}

// suspectObject looks whether a route was refused because its next hop object
// went with its device, of which there is no notification.
func (s *Syncer) suspectObject(o *op) {
	if o.want.Value().object != nil && errors.Is(o.err, unix.EINVAL) {
		s.requestAudit()
	}
}

// finishStray: an IPv6 route by a next hop object answers to a deletion that
// names another's gateways, so what went may be the route beside the stray.
func (s *Syncer) finishStray(o *op) {
	if o.err == nil {
		s.contradiction = true
	}
}

func (s *Syncer) finishDelete(e *entry, o *op) {
	switch {
	case o.err == nil:
		s.have(e, isAbsent)
	case errors.Is(o.err, unix.ESRCH):
		// Gone already; but an IPv6 route may be there with other next hops
		// than those named.
		if e.prefix.Addr().Is6() {
			s.requestAudit()
		}
		s.have(e, isAbsent)
	default:
		s.fail(e, o.err)
		return
	}
	if e.settled() {
		s.succeed(e)
	} else {
		s.markDirty(e) // wanted again meanwhile
	}
}

func (s *Syncer) installed(e *entry, what state) {
	s.have(e, what)
	if e.settled() {
		s.succeed(e)
	} else {
		s.markDirty(e)
	}
}

// have notes what the kernel holds at e's key.
func (s *Syncer) have(e *entry, what state) {
	if e.have != what {
		s.count(e.have, -1)
		s.count(what, +1)
		e.have = what
	}
	e.taken = false
}

// succeed notes that e is as it should be.
func (s *Syncer) succeed(e *entry) {
	if e.failure != nil {
		e.failure = nil
		delete(s.failing, e)
	}
	s.forget(e)
}

// fail notes that e could not be written and when to try again.
func (s *Syncer) fail(e *entry, err error) {
	if e.failure == nil {
		e.failure = &failure{since: s.now()}
		s.failing[e] = struct{}{}
	}
	s.pause(e.failure, err)
}

// failHop notes that h's object could not be written and when to try again.
func (s *Syncer) failHop(h *hop, err error) {
	if h.failure == nil {
		h.failure = &failure{since: s.now()}
		s.stuck[h] = struct{}{}
	}
	s.pause(h.failure, err)
}

// succeedHop notes that h's object is as it should be.
func (s *Syncer) succeedHop(h *hop) {
	if h.failure != nil {
		h.failure = nil
		delete(s.stuck, h)
	}
}

func (s *Syncer) pause(f *failure, err error) {
	now := s.now()
	pause := firstRetry << min(f.attempts, 5)
	f.err, f.attempts, f.next = err, f.attempts+1, now.Add(min(pause, lastRetry))
	if s.nextRetry.IsZero() || f.next.Before(s.nextRetry) {
		s.nextRetry = f.next
	}
}

// queueRetries queues the failed whose pause is over.
func (s *Syncer) queueRetries() {
	now := s.now()
	if s.nextRetry.IsZero() || now.Before(s.nextRetry) {
		return
	}
	s.nextRetry = time.Time{}
	due := func(f *failure) bool {
		if !f.next.After(now) {
			return true
		}
		if s.nextRetry.IsZero() || f.next.Before(s.nextRetry) {
			s.nextRetry = f.next
		}
		return false
	}
	for h := range s.stuck {
		if due(h.failure) {
			s.queueHop(h)
		}
	}
	for e := range s.failing {
		if due(e.failure) {
			s.markDirty(e)
		}
	}
}

// retryNow makes all the failed due.
func (s *Syncer) retryNow() {
	if len(s.failing)+len(s.stuck) == 0 {
		return
	}
	for h := range s.stuck {
		h.failure.attempts = 0
		s.queueHop(h)
	}
	for e := range s.failing {
		e.failure.attempts = 0
		s.markDirty(e)
	}
	s.wake()
}

// logFailures says once per batch what went wrong, by one example.
func (s *Syncer) logFailures(grown int) {
	for i := range s.ops {
		o := &s.ops[i]
		if e := o.entry; e != nil && e.failure != nil && e.failure.attempts == 1 {
			s.log.Warn("routes could not be written, will try again",
				"count", grown, "first", e.prefix, "error", e.failure.err)
			return
		}
		if o.object != nil && o.object.hop != nil && o.object.hop.failure != nil {
			s.log.Warn("next hops could not be set, will try again",
				"count", grown, "first", o.object.hop.Hop, "error", o.object.hop.failure.err)
			return
		}
	}
}

func conflict(have state) error {
	if have == isEndpoint {
		return fmt.Errorf("%w: a local pod has this address", ErrConflict)
	}
	return ErrConflict
}
