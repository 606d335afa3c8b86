package server

import (
	"context"
	"time"

	"github.com/hoplite-net/hoplite/agent/endpoint"
	"github.com/hoplite-net/hoplite/api/delqueue"
)

// drainEvery is how often the queue is looked at while the agent runs. It is
// empty then, but for what a plugin put there that could not reach the agent.
const drainEvery = 10 * time.Second

// Drain carries out the DELs that came while no agent ran. It is to be called
// after Listen and before Run: see package delqueue. What fails stays in the
// queue and is tried again by RunDrain.
func (s *Server) Drain(ctx context.Context, dir string) {
	waiting, err := delqueue.List(dir)
	if err != nil {
		s.log.Error("read the queue of DELs", "error", err)
	}
	for _, a := range waiting {
		if err := s.delQueued(ctx, dir, a); err != nil {
			s.log.Error("a queued DEL failed and stays queued", "container", a.ContainerID, "ifname", a.Ifname, "error", err)
			continue
		}
		s.log.Info("carried out a DEL that came while the agent did not answer", "container", a.ContainerID, "ifname", a.Ifname)
	}
}

// RunDrain drains every now and then until ctx ends.
func (s *Server) RunDrain(ctx context.Context, dir string) error {
	ticker := time.NewTicker(drainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			s.Drain(ctx, dir)
		}
	}
}

// delQueued carries a DEL out if it is still queued: an ADD for the same
// attachment may have come between, after taking the DEL off the queue itself.
func (s *Server) delQueued(ctx context.Context, dir string, a delqueue.Attachment) error {
	key := endpoint.Key{ContainerID: a.ContainerID, IfName: a.Ifname}
	defer s.locks.Lock(key)()
	if queued, err := delqueue.Has(dir, a); err != nil || !queued {
		return err
	}
	if err := s.delLocked(ctx, key); err != nil {
		return err
	}
	return delqueue.Remove(dir, a)
}
