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
	if e == nil {
		return // a stray: gone, or found again by the next audit
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
	e.have = what
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
	now := s.now()
	if e.failure == nil {
		e.failure = &failure{since: now}
		s.failing[e] = struct{}{}
	}
	f := e.failure
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
	for e := range s.failing {
		switch {
		case !e.failure.next.After(now):
			s.markDirty(e)
		case s.nextRetry.IsZero() || e.failure.next.Before(s.nextRetry):
			s.nextRetry = e.failure.next
		}
	}
}

// retryNow makes all the failed due.
func (s *Syncer) retryNow() {
	if len(s.failing) == 0 {
		return
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
		if e := s.ops[i].entry; e != nil && e.failure != nil && e.failure.attempts == 1 {
			s.log.Warn("routes could not be written, will try again",
				"count", grown, "first", e.prefix, "error", e.failure.err)
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
