package cni

import (
	"fmt"
	"strings"
	"time"

	"github.com/hoplite-net/hoplite/cni/agentrpc"
)

// gc is never queued: by the time an agent read the list it would be out of
// date, and attachments made since would go. The runtime will ask again.
func (r *invocation) gc() error {
	if r.conf.Valid == nil {
		return fail(codeInvalidConfig, "GC without cni.dev/valid-attachments: nothing was removed; "+
			"an empty list would mean that nothing is valid")
	}
	var done agentrpc.GCResponse
	err := r.patiently(r.conf.Wait, func() (err error) {
		done, err = r.agent.GC(agentrpc.GCRequest{Valid: r.conf.Valid}, gcTimeout)
		return err
	})
	if err != nil {
		return err
	}
	if len(done.Errors) > 0 {
		return &Error{
			Code:    codeGCIncomplete,
			Msg:     fmt.Sprintf("GC removed %d attachments and failed for %d", len(done.Removed), len(done.Errors)),
			Details: strings.Join(done.Errors, "; "),
		}
	}
	return nil
}

// statusWait is short: a runtime asks often, and a node is not unready because
// its agent restarts.
const statusWait = 3 * time.Second

func (r *invocation) status() error {
	var got agentrpc.StatusResponse
	err := r.patiently(min(statusWait, r.conf.Wait), func() (err error) {
		got, err = r.agent.Status(undoTimeout)
		return err
	})
	if err != nil {
		e := asError(err)
		return &Error{Code: codeNotAvailable, Msg: e.Msg, Details: e.Details}
	}
	if len(got.Problems) > 0 {
		return &Error{Code: codeNotAvailable, Msg: "pods cannot be given a network now", Details: strings.Join(got.Problems, "; ")}
	}
	return nil
}
