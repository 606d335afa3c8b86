package route

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

const (
	// batchBytes is how much goes to the kernel in one system call. More does
	// not help, and the errors of all its messages, about 1 KiB each, must fit
	// into the socket's receive buffer. When they did not, the size is halved,
	// down to one message at a time.
	batchBytes = 32 << 10
	minBatch   = 1
	// rounds bounds how often one Sync chases the kernel's answers, such as a
	// route gone that was to be replaced and is now to be created.
	rounds = 4

	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

var errMixed = errors.New("a gateway is not of the prefix's address family, which is not supported")

// op is one message: what was asked for which entry, object, or (neither) stray.
type op struct {
	entry  *entry
	want   state
	object *object // instead of an entry
	target Target
	event  uint64 // Syncer.events when it was asked
	kind   uint16
	flags  uint16
	err    *rtnl.Error
}

// Sync writes what differs and returns when the kernel has it. The error is of
// the socket or ctx; a route that the kernel refuses stops no other, shows up
// in Problems and is tried again by a later Sync once its pause is over. A
// second Sync with nothing new sends nothing.
func (s *Syncer) Sync(ctx context.Context) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.sync(ctx)
}

func (s *Syncer) sync(ctx context.Context) error {
	for range rounds {
		if err := s.read(ctx); err != nil {
			return err
		}
		if err := s.write(ctx); err != nil {
			return err
		}
		if !s.unfinished() {
			return nil
		}
	}
	s.comeBack()
	return nil
}

// read dumps what is to be looked at before anything is written.
func (s *Syncer) read(ctx context.Context) error {
	s.mu.Lock()
	audit := s.contradiction || !s.auditDue.IsZero() && !s.now().Before(s.auditDue)
	objects, started := !s.objectsRead, s.events
	s.mu.Unlock()
	switch {
	case audit:
		return s.audit(ctx)
	case objects:
		return s.readObjects(ctx, started)
	}
	return nil
}

// comeBack has Run go on after a pause: someone keeps changing what we write.
func (s *Syncer) comeBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if soon := s.now().Add(firstRetry); s.nextRetry.IsZero() || s.nextRetry.After(soon) {
		s.nextRetry = soon
	}
}

// unfinished tells whether the kernel's answers left something to do.
func (s *Syncer) unfinished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.dirty) > 0 || len(s.dirtyHops) > 0 || s.contradiction
}

// write sends the difference of everything queued, batch by batch: next hop
// objects, then routes, then the deletion of objects that these leave unused.
func (s *Syncer) write(ctx context.Context) error {
	if err := s.writeObjects(ctx); err != nil {
		return err
	}
	if err := s.writeRoutes(ctx); err != nil {
		return err
	}
	return s.deleteObjects(ctx)
}

func (s *Syncer) writeRoutes(ctx context.Context) error {
	work := s.takeDirty()
	for len(work) > 0 || s.haveStrays() {
		err := ctx.Err()
		if err == nil {
			work = s.buildBatch(work)
			err = s.sendBatch()
		}
		if err != nil {
			s.mu.Lock()
			s.dirty = append(s.dirty, work...)
			s.mu.Unlock()
			return err
		}
	}
	return nil
}

// takeDirty takes all that is to be looked at now.
func (s *Syncer) takeDirty() []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	work := s.dirty
	s.dirty = nil
	return work
}

// buildBatch turns entries into messages until a batch is full, and returns
// the entries left over.
func (s *Syncer) buildBatch(work []*entry) []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf, s.ops = s.buf[:0], s.ops[:0]
	s.buildStrays()
	for len(work) > 0 && len(s.buf) < s.batch {
		e := work[0]
		work = work[1:]
		e.queued = false
		if e.settled() {
			s.succeed(e)
			continue
		}
		s.build(e)
	}
	return work
}

// build appends the message that makes e as wanted.
func (s *Syncer) build(e *entry) {
	want := e.want()
	if want == isMixed {
		s.fail(e, errMixed)
		return
	}
	o := op{entry: e, want: want, event: s.events, kind: unix.RTM_NEWROUTE}
	q := rtnl.Request{Prefix: e.prefix, Table: s.table, Protocol: s.protocol}
	of := want.Value()
	switch {
	case want == isAbsent:
		o.kind = unix.RTM_DELROUTE
		of = e.have.Value()
	case e.have.ours():
		o.flags = unix.NLM_F_REPLACE
	default:
		o.flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	s.append(o, q, of)
}

func (s *Syncer) append(o op, q rtnl.Request, of body) {
	q.Kind, q.Flags, q.Seq, q.Hops = o.kind, o.flags, uint32(len(s.ops)), of.hops
	if of.object != nil {
		q.NextHop = of.object.id
	}
	switch of.kind {
	case unicast:
		q.Type = unix.RTN_UNICAST
	case blackhole:
		q.Type = unix.RTN_BLACKHOLE
	}
	// A stray shares its key with a route to keep: it is told apart by its hops.
	if o.kind == unix.RTM_DELROUTE && o.entry != nil {
		narrowDeletion(&q, of)
	}
	s.buf = q.Append(s.buf)
	s.ops = append(s.ops, o)
	s.stats.Messages++
}

// narrowDeletion makes a deletion hit no more than ours at the key. IPv4
// compares protocol, type and scope, and a pod's route has another scope. IPv6
// compares neither type nor scope, so name what only ours has: the next hop
// object, the gateways (the kernel takes next hops one by one, which does no
// harm to a route that goes), or the device of a blackhole, the loopback device,
// whose index is always 1.
func narrowDeletion(q *rtnl.Request, of body) {
	if q.Prefix.Addr().Is4() {
		q.NextHop, q.Hops = 0, ""
	} else if of.kind == blackhole {
		q.Device = 1
	}
}

// sendBatch sends the messages built, and takes note of each one's outcome.
func (s *Syncer) sendBatch() error {
	if len(s.ops) == 0 {
		return nil
	}
	err := s.exchange()
	if err == nil {
		s.finishBatch()
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Any of them may have been carried out or not.
	s.contradiction = true
	for i := range s.ops {
		if e := s.ops[i].entry; e != nil {
			s.markDirty(e)
		} else if o := s.ops[i].object; o != nil && o.hop != nil {
			s.queueHop(o.hop)
		}
	}
	if errors.Is(err, unix.ENOBUFS) {
		// More answers than the socket holds; they are gone.
		s.batch = max(s.batch/2, minBatch)
		return nil
	}
	return fmt.Errorf("write %d routes and next hops: %w", len(s.ops), err)
}

func (s *Syncer) finishBatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch = min(s.batch+256, batchBytes)
	failed := len(s.failing) + len(s.stuck)
	for i := range s.ops {
		s.finish(&s.ops[i])
	}
	if grown := len(s.failing) + len(s.stuck) - failed; grown > 0 {
		s.logFailures(grown)
	}
}

// exchange sends s.buf and fills in the operations' errors. Only the last
// message asks for an acknowledgement: the kernel answers failures anyway, and
// in order.
func (s *Syncer) exchange() error {
	base := s.conn.NextSeq(len(s.ops))
	rtnl.Renumber(s.buf, base, unix.NLM_F_ACK)
	if err := s.conn.Send(s.buf); err != nil {
		return err
	}
	for {
		datagram, err := s.conn.Receive()
		if err != nil {
			return err
		}
		for m := range rtnl.Messages(datagram) {
			i := m.Seq - base
			if m.Type != unix.NLMSG_ERROR || i >= uint32(len(s.ops)) {
				continue
			}
			s.ops[i].err = m.Result()
			if int(i) == len(s.ops)-1 {
				return nil
			}
		}
	}
}
