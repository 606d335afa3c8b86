package cni

import (
	"errors"
	"os"
	"time"

	"github.com/hoplite-net/hoplite/api/delqueue"
	"github.com/hoplite-net/hoplite/cni/agentrpc"
	"github.com/hoplite-net/hoplite/cni/grpcwire"
)

// How long the agent may take for one call, beside what waiting for it takes.
// The runtimes' own limit is two minutes or more.
const (
	callTimeout = 30 * time.Second
	gcTimeout   = 90 * time.Second
	// undoTimeout is for a call on the way out of a failure.
	undoTimeout = 5 * time.Second
)

func (r *invocation) add() error {
	if err := r.checkNetns(); err != nil {
		return err
	}
	made, err := r.addPatiently()
	if err != nil {
		return err
	}
	if made.Container.Sandbox == "" {
		made.Container.Sandbox = r.netns
	}
	if r.print(extend(r.conf.PrevResult, made, r.conf.DNS).as(r.conf.CNIVersion)) != 0 {
		// The runtime has not heard of the attachment, so it must not exist.
		_ = r.delete(min(undoTimeout, r.callTimeout))
		return fail(codeIO, "the result could not be written to stdout")
	}
	return nil
}

// addPatiently makes the attachment, waiting for an agent that is restarting.
//
// An agent that dies during the call may or may not have finished it. Asking its
// successor again would then say "exists already"; so what there may be is
// deleted first. The attachment is this call's own (runtimes do not run two
// commands for a container at once), so nobody else can lose it.
//
// A DEL of the same attachment that is still queued is carried out first too:
// a later drain would take the new attachment for the old.
func (r *invocation) addPatiently() (agentrpc.AddResponse, error) {
	remains, err := delqueue.Has(r.conf.queue(), r.attachment)
	if err != nil {
		return agentrpc.AddResponse{}, fail(codeIO, "look for a queued DEL: %v", err)
	}
	var made agentrpc.AddResponse
	err = r.patiently(r.conf.Wait, func() error {
		if remains {
			if err := r.delete(r.callTimeout); err != nil {
				return err
			}
			remains = false
		}
		var err error
		made, err = r.agent.Add(r.addRequest(), r.callTimeout)
		remains = mayHaveActed(err)
		return err
	})
	if remains {
		_ = r.deleteOrQueue()
	}
	return made, err
}

func (r *invocation) addRequest() agentrpc.AddRequest {
	return agentrpc.AddRequest{
		Attachment:   agentrpc.Attachment(r.attachment),
		Netns:        r.netns,
		PodNamespace: r.pod.namespace,
		PodName:      r.pod.name,
		PodUID:       r.pod.uid,
		MTU:          r.conf.MTU,
	}
}

// patiently repeats a call for as long as no agent answers it, but not longer
// than the limit. The first attempt is always made.
func (r *invocation) patiently(limit time.Duration, call func() error) error {
	end := time.Now().Add(limit)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := call()
		if !agentAway(err) || time.Now().Add(pause).After(end) {
			return err
		}
		time.Sleep(pause)
	}
}

// agentAway: there is no agent, it has gone away, or it says that it cannot
// serve yet. An agent that is there and takes too long is not away.
func agentAway(err error) bool {
	var dial *grpcwire.DialError
	var lost *grpcwire.LostError
	var status *grpcwire.Status
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false
	case errors.As(err, &dial):
		return !errors.Is(err, os.ErrPermission)
	case errors.As(err, &lost):
		return true
	case errors.As(err, &status):
		return status.Code == grpcwire.Unavailable
	}
	return false
}

// mayHaveActed: the agent got the call, perhaps, and its answer is missing.
func mayHaveActed(err error) bool {
	var lost *grpcwire.LostError
	return errors.As(err, &lost) && !lost.Unprocessed
}
