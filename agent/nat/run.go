package nat

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// debounce lets a burst of changes end before it is looked at.
	debounce = 50 * time.Millisecond
	// fightPause is the longest pause between two repairs of what somebody else
	// undoes each time: what he deletes must still be back within a second.
	fightPause = 400 * time.Millisecond
	// failurePause is the longest pause between two attempts that failed.
	failurePause = 30 * time.Second
)

// Run repairs until ctx ends: what somebody deletes is back within a second.
// It looks at the rules when the kernel says that they changed (nft), or when
// a table's size or entry points did (legacy, polled without a process); at the
// sets, which nobody tells of, every PollInterval; and at everything every
// AuditInterval. While it runs, Sync starts no process for rules that are known
// to be right.
func (s *Syncer) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	stop, err := s.watch(changed)
	if err != nil {
		return err
	}
	defer stop()
	s.setWatching(true)
	defer s.setWatching(false)

	s.wake()
	poll := time.NewTicker(s.cfg.PollInterval)
	defer poll.Stop()
	audit := time.NewTimer(s.auditAfter())
	defer audit.Stop()
	pace := pacer{}
	for {
		whole := true
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			whole = false
		case <-audit.C:
			audit.Reset(s.auditAfter())
		case <-changed:
		case <-s.kick:
		}
		if whole && !wait(ctx, debounce) || !wait(ctx, pace.left()) {
			return nil
		}
		// What came in the meantime is seen by this look, if it is a whole one.
		whole = drain(changed) || whole
		whole = drain(s.kick) || whole
		wrote, err := s.look(ctx, whole)
		pace.note(wrote, err)
	}
}

// look reconciles; whole says not to trust what is known of the rules.
func (s *Syncer) look(ctx context.Context, whole bool) (wrote bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if whole {
		for _, f := range s.families {
			f.rulesKnown = false
		}
	}
	before := s.writes.Load()
	err = s.reconcile(ctx)
	if ctx.Err() != nil {
		return false, nil
	}
	if n := s.writes.Load() - before; n > 0 {
		s.log.Warn("iptables rules or ipsets were not as they should be, repaired", "writes", n)
		wrote = true
	}
	if msg := errText(err); msg != s.lastError {
		s.lastError = msg
		if err != nil {
			s.log.Error("iptables rules or ipsets cannot be repaired, trying again", "error", err)
		}
	}
	return wrote, err
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s *Syncer) setWatching(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watching = on
	for _, f := range s.families {
		f.rulesKnown = false
	}
}

func (s *Syncer) auditAfter() time.Duration {
	d := s.cfg.AuditInterval
	return d - d/5 + rand.N(2*d/5+1)
}

// pacer spaces looks that did not find everything in order: 100 ms, and from
// the tenth of a kind in a row on twice as long each time, up to a limit.
type pacer struct {
	next          time.Time
	fights, fails int
}

func (p *pacer) note(wrote bool, err error) {
	switch {
	case err != nil:
		p.fails++
		p.next = time.Now().Add(pause(p.fails, failurePause))
	case wrote:
		p.fails = 0
		p.fights++
		p.next = time.Now().Add(pause(p.fights, fightPause))
	default:
		*p = pacer{}
	}
}

func pause(row int, limit time.Duration) time.Duration {
	return min(100*time.Millisecond<<min(max(row-10, 0), 20), limit)
}

func (p *pacer) left() time.Duration { return time.Until(p.next) }

// wait waits for d, and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// drain empties c, and reports whether there was something.
func drain(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
