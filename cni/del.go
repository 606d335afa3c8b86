package cni

import (
	"errors"
	"os"
	"time"

	"github.com/hoplite-net/hoplite/api/delqueue"
	"github.com/hoplite-net/hoplite/cni/agentrpc"
)

func (r *invocation) del() error { return r.deleteOrQueue() }

// deleteOrQueue takes the attachment away, or leaves that to the next agent.
//
// Queueing is safe without a lock: an agent binds its socket before it drains
// the queue. So either it finds our file, or our second attempt finds its
// socket. A connection that breaks means an agent that is gone, hence one to
// come that drains. Only from an agent that does not answer in time, twice,
// nothing follows; then the file stays, as the last resort, and the DEL fails.
func (r *invocation) deleteOrQueue() error {
	err := r.delete(r.callTimeout)
	if !agentAway(err) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if err := delqueue.Put(r.conf.queue(), r.attachment); err != nil {
		return fail(codeIO, "no agent answers, and the DEL cannot be queued: %v", err)
	}
	if err = r.delete(min(undoTimeout, r.callTimeout)); agentAway(err) {
		return nil
	}
	return err
}

// delete asks the agent, and takes the attachment off the queue when it is gone.
func (r *invocation) delete(timeout time.Duration) error {
	req := agentrpc.DelRequest{Attachment: agentrpc.Attachment(r.attachment), Netns: r.netns}
	if err := r.agent.Del(req, timeout); err != nil {
		return err
	}
	if err := delqueue.Remove(r.conf.queue(), r.attachment); err != nil {
		return fail(codeIO, "%v", err)
	}
	return nil
}
