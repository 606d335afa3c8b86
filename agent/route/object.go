package route

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// The numbers of our next hop objects begin with the letters ho. One that
// someone else has is passed over.
const (
	firstObject = 0x686f0000
	lastObject  = 0x686fffff
)

// holder is whose an object in the kernel is, by its protocol.
type holder uint8

const (
	nobody holder = iota // it is not there
	us
	others
)

// object is a next hop object. The kernel finds the routes that use it: it is
// replaced with one message, and all of them lead elsewhere at once; deleted,
// it takes them along.
type object struct {
	id     uint32
	state  state // what a route is that uses it
	holder holder
	target Target // zero if it is nothing that we would write
	hop    *hop   // for which it was made, or which adopted it; nil: nobody claims it
	refs   int    // our routes in the kernel that use it, as far as is known
	event  uint64 // Syncer.events at the last notification about it
	audit  uint64 // Syncer.audits when last seen in a dump
}

// object returns what is known of the object of that number, made if need be.
func (s *Syncer) object(id uint32) *object {
	o := s.objects[id]
	if o == nil {
		o = &object{id: id}
		o.state = stateOf(unicast, o, "")
		s.objects[id] = o
	}
	return o
}

// forgetObject drops an object that means nothing.
func (s *Syncer) forgetObject(o *object) {
	unneeded := o.holder == nobody || o.holder == others && (o.id < firstObject || o.id > lastObject)
	if unneeded && o.refs == 0 && o.hop == nil {
		delete(s.objects, o.id)
	}
}

// count notes that a route of that state came to the kernel or went.
func (s *Syncer) count(what state, routes int) {
	o := what.Value().object
	if o == nil {
		return
	}
	if o.refs += routes; o.refs == 0 {
		s.tidy = true
	}
}

// adopt lets a hop go on with the object that e's route uses, made by the agent
// before this one: so that a restart changes nothing.
func (s *Syncer) adopt(e *entry) {
	o := e.have.Value().object
	if o == nil || s.inline || e.way == nil || len(e.way.hops) > 1 {
		return
	}
	if h := e.way.hops[0]; h.object == nil && o.holder == us && o.hop == nil && o.target.leads() {
		s.bind(h, o)
		s.queueHop(h)
	}
}

func (s *Syncer) bind(h *hop, o *object) {
	h.object, o.hop = o, h
	s.refresh(&h.alone)
}

func (s *Syncer) unbind(o *object) {
	if h := o.hop; h != nil {
		h.object, o.hop = nil, nil
		s.refresh(&h.alone)
		s.queueHop(h)
	}
}

// newObject gives a hop a number that is free by all that is known.
func (s *Syncer) newObject(h *hop) *object {
	for range lastObject - firstObject {
		if s.lastID++; s.lastID < firstObject || s.lastID > lastObject {
			s.lastID = firstObject
		}
		if o := s.object(s.lastID); o.holder == nobody && o.hop == nil && o.refs == 0 {
			s.bind(h, o)
			return o
		}
	}
	return nil
}

// queueHop has a hop's object looked at with the next Sync.
func (s *Syncer) queueHop(h *hop) {
	if !h.queued {
		h.queued = true
		s.dirtyHops = append(s.dirtyHops, h)
	}
}

// writeObjects makes and replaces objects. It is done before any route is
// written, and not in the same system call: a route by an object that could not
// be made, because its number is taken, would lead where someone else wants.
func (s *Syncer) writeObjects(ctx context.Context) error {
	s.mu.Lock()
	s.queueRetries()
	work := s.dirtyHops
	s.dirtyHops = nil
	s.mu.Unlock()
	for len(work) > 0 {
		err := ctx.Err()
		if err == nil {
			work = s.buildObjects(work)
			err = s.sendBatch()
		}
		if err != nil {
			s.mu.Lock()
			s.dirtyHops = append(s.dirtyHops, work...)
			s.mu.Unlock()
			return err
		}
	}
	return nil
}

// buildObjects turns hops into messages until a batch is full, and returns the
// hops left over.
func (s *Syncer) buildObjects(work []*hop) []*hop {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf, s.ops = s.buf[:0], s.ops[:0]
	for len(work) > 0 && len(s.buf) < s.batch {
		h := work[0]
		work = work[1:]
		h.queued = false
		s.buildObject(h)
	}
	return work
}

func (s *Syncer) buildObject(h *hop) {
	o := h.object
	if s.inline || len(h.alone.entries) == 0 || !h.target.leads() || o != nil && o.holder == us && o.target == h.target {
		s.succeedHop(h)
		return
	}
	flags := uint16(unix.NLM_F_REPLACE)
	if o == nil {
		if o = s.newObject(h); o == nil {
			s.failHop(h, errNumbers)
			return
		}
	}
	if o.holder == nobody {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	s.appendObject(op{object: o, target: h.target, kind: unix.RTM_NEWNEXTHOP, flags: flags})
}

var errNumbers = fmt.Errorf("all numbers of next hop objects from %#x to %#x are taken", firstObject, lastObject)

func (s *Syncer) appendObject(p op) {
	n := rtnl.NextHop{ID: p.object.id, Protocol: s.protocol, Hop: p.target.wire()}
	s.buf = n.Append(s.buf, p.kind, p.flags, uint32(len(s.ops)))
	p.event = s.events
	s.ops = append(s.ops, p)
	s.stats.Messages++
}

// deleteObjects deletes the objects that no route uses. It comes after all
// routes, since an object takes its routes along.
func (s *Syncer) deleteObjects(ctx context.Context) error {
	for s.buildDeletions() {
		if err := ctx.Err(); err != nil {
			s.wantTidy()
			return err
		}
		if err := s.sendBatch(); err != nil {
			s.wantTidy()
			return err
		}
	}
	return nil
}

func (s *Syncer) wantTidy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tidy = true
}

// buildDeletions makes a batch of deletions; false if there are none.
func (s *Syncer) buildDeletions() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf, s.ops = s.buf[:0], s.ops[:0]
	if !s.tidy {
		return false
	}
	s.tidy = false
	for _, o := range s.objects {
		if len(s.buf) >= s.batch {
			s.tidy = true
			break
		}
		if s.spare(o) {
			s.appendObject(op{object: o, kind: unix.RTM_DELNEXTHOP})
		} else {
			s.forgetObject(o)
		}
	}
	return len(s.ops) > 0
}

// spare tells whether o is of no use. What an agent before this one left is kept
// until Prune, as its routes are.
func (s *Syncer) spare(o *object) bool {
	switch {
	case o.holder != us || o.refs > 0:
		return false
	case o.hop == nil:
		return s.pruned
	}
	return len(o.hop.alone.entries) == 0
}

// finishObject takes note of what the kernel answered to one message about an
// object.
func (s *Syncer) finishObject(p *op) {
	o := p.object
	replaced := p.flags&unix.NLM_F_REPLACE != 0
	switch {
	case o.event > p.event:
		// As with a route: what the notification said stands.
		if o.hop != nil {
			s.queueHop(o.hop)
		}
		s.tidy = true
	case p.kind == unix.RTM_DELNEXTHOP:
		s.finishDeletion(p)
	case p.err == nil:
		o.holder, o.target = us, p.target
		s.refresh(&o.hop.alone)
		if o.hop.target == p.target {
			s.succeedHop(o.hop)
		} else {
			s.queueHop(o.hop)
		}
	case replaced && errors.Is(p.err, unix.ENOENT):
		s.lost(o)
	case !replaced && errors.Is(p.err, unix.EEXIST):
		// Whose it is tells a dump, and which other numbers are taken.
		o.holder, s.contradiction = others, true
		s.unbind(o)
	default:
		s.failHop(o.hop, p.err)
	}
}

func (s *Syncer) finishDeletion(p *op) {
	if p.err != nil && !errors.Is(p.err, unix.ENOENT) {
		s.log.Warn("an unused next hop object could not be deleted", "id", p.object.id, "error", p.err)
		return // the next audit tries again
	}
	h := p.object.hop
	s.lost(p.object)
	s.unbind(p.object)
	s.forgetObject(p.object)
	if h != nil {
		s.forgetHop(h)
	}
}

// lost notes that an object is not in the kernel any more, and so neither are
// the routes that used it.
func (s *Syncer) lost(o *object) {
	o.holder, o.target = nobody, Target{}
	if h := o.hop; h != nil {
		for _, e := range h.alone.entries {
			e.event = s.events
			if e.have == o.state {
				s.stats.Repairs++
				s.have(e, isAbsent)
			}
		}
		s.refresh(&h.alone)
		s.queueHop(h)
	}
	if o.refs > 0 {
		s.requestAudit()
	}
}
