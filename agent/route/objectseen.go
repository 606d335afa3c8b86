package route

import (
	"context"
	"errors"
	"fmt"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// NexthopEvent takes note that someone else changed a next hop object. An
// object that goes with its device, as it does even if that only loses its
// carrier, goes without a notification: see LinkEvent.
func (s *Syncer) NexthopEvent(ev rtnl.NextHopEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[ev.ID]
	if o == nil {
		if ev.Deleted || ev.Protocol != s.protocol {
			return
		}
		o = s.object(ev.ID)
	}
	s.events++
	o.event = s.events
	if ev.Deleted {
		s.lost(o)
		s.tidy = true
	} else {
		s.foundObject(o, &ev.NextHop)
	}
	s.wake()
}

// foundObject compares what an object was seen to be with what it was believed to be.
func (s *Syncer) foundObject(o *object, n *rtnl.NextHop) {
	is, target := others, Target{}
	if n.Protocol == s.protocol {
		is = us
		if !n.Special {
			target = Target{Device: int(n.Device), Gateway: n.Gateway, Onlink: n.Onlink}
		}
	}
	if o.holder == is && o.target == target {
		if o.hop == nil {
			s.tidy = true
		}
		return
	}
	if o.holder == us && o.hop != nil {
		s.stats.Repairs++
	}
	o.holder, o.target = is, target
	switch {
	case o.hop == nil:
		s.tidy = true
	case is == others:
		s.unbind(o) // it gets another; its routes are then made to use that
	default:
		s.refresh(&o.hop.alone)
		s.queueHop(o.hop)
	}
}

// readObjects dumps all objects and takes note of them. The number of an object
// that others have is of interest, too: it is taken.
func (s *Syncer) readObjects(ctx context.Context, started uint64) error {
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		interrupted, err := s.conn.DumpNextHops(func(n rtnl.NextHop) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seenObject(&n, started)
		})
		switch {
		case errors.Is(err, rtnl.ErrNoNextHops):
			s.withoutObjects(err)
			return nil
		case err != nil:
			return fmt.Errorf("list next hop objects: %w", err)
		case !interrupted:
			s.unseenObjects(started)
			return nil
		}
	}
	return fmt.Errorf("list next hop objects: they changed during each of %d attempts", dumpAttempts)
}

// withoutObjects goes on without objects: next hops are written into the routes.
func (s *Syncer) withoutObjects(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objectsRead = true
	if s.inline {
		return
	}
	s.log.Info("routes are written with their next hops: a change of one rewrites all that go by it", "reason", err)
	s.inline = true
	for _, h := range s.hops {
		s.refresh(&h.alone)
	}
}

func (s *Syncer) seenObject(n *rtnl.NextHop, started uint64) {
	ours := n.Protocol == s.protocol || n.ID >= firstObject && n.ID <= lastObject
	if s.objects[n.ID] == nil && !ours {
		return
	}
	o := s.object(n.ID)
	o.audit = s.audits
	if o.event <= started { // else the notification is newer than the dump may be
		s.foundObject(o, n)
	}
}

// unseenObjects handles the objects that the dump did not show.
func (s *Syncer) unseenObjects(started uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objectsRead = true
	for _, o := range s.objects {
		if o.holder == nobody || o.audit == s.audits || o.event > started {
			continue
		}
		s.lost(o)
		s.tidy = true
	}
}
