package server

import (
	"context"

	"github.com/hoplite-net/hoplite/agent/endpoint"
	"github.com/hoplite-net/hoplite/api/delqueue"
)

// Drain carries out the DELs that came while no agent ran. It is to be called
// after Listen and before Run: see package delqueue. What fails stays in the
// queue for the next start.
func (s *Server) Drain(ctx context.Context, dir string) {
	waiting, err := delqueue.List(dir)
	if err != nil {
		s.log.Error("read the queue of DELs", "error", err)
	}
	for _, a := range waiting {
		if err := s.del(ctx, endpoint.Key{ContainerID: a.ContainerID, IfName: a.Ifname}); err != nil {
			s.log.Error("a queued DEL failed and stays queued", "error", err)
			continue
		}
		if err := delqueue.Remove(dir, a); err != nil {
			s.log.Error("a queued DEL was carried out but stays queued", "error", err)
		}
	}
	if len(waiting) > 0 {
		s.log.Info("carried out DELs that came while no agent ran", "count", len(waiting))
	}
}
