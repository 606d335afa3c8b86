package nat

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	// debounce lets a burst of changes end before it is looked at.
	debounce = 50 * time.Millisecond
	// maxBackoff is the longest pause between two repairs that did not hold: a
	// fight with somebody, or an iptables that fails.
	maxBackoff = 30 * time.Second
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
	pause := pacer{}
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
		if whole && !wait(ctx, debounce) || !wait(ctx, pause.left()) {
			return nil
		}
		drain(changed)
		drain(s.kick)
		wrote, err := s.look(ctx, whole)
		pause.note(wrote || err != nil)
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

// pacer spaces looks that did not find everything in order: 100 ms, doubling.
// One that did resets it, so that a single repair is never held up.
type pacer struct {
	next    time.Time
	backoff time.Duration
}

func (p *pacer) note(trouble bool) {
	if !trouble {
		*p = pacer{}
		return
	}
	p.backoff = min(max(2*p.backoff, 100*time.Millisecond), maxBackoff)
	p.next = time.Now().Add(p.backoff)
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

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}
