package agentrpc

import (
	"fmt"
	"time"

	"github.com/hoplite-net/hoplite/cni/grpcwire"
)

// service is the CNI service's name in the contract.
const service = "/hoplite.agent.v1.CNI/"

// Client calls the agent at a unix socket, one connection a call. Errors are
// grpcwire's. No call takes longer than its timeout.
type Client struct{ Socket string }

// Add gives the attachment an address and plumbs it.
func (c Client) Add(r AddRequest, timeout time.Duration) (AddResponse, error) {
	var resp AddResponse
	err := c.call("Add", r.encode(), resp.decode, timeout)
	return resp, err
}

// Del takes an attachment away; what is not there is no error.
func (c Client) Del(r DelRequest, timeout time.Duration) error {
	return c.call("Del", r.encode(), ignore, timeout)
}

// Check compares an attachment with the kernel.
func (c Client) Check(r CheckRequest, timeout time.Duration) error {
	return c.call("Check", r.encode(), ignore, timeout)
}

// GC takes away every attachment that is not in the list.
func (c Client) GC(r GCRequest, timeout time.Duration) (GCResponse, error) {
	var resp GCResponse
	err := c.call("GC", r.encode(), resp.decode, timeout)
	return resp, err
}

// Status says whether an Add could succeed now.
func (c Client) Status(timeout time.Duration) (StatusResponse, error) {
	var resp StatusResponse
	err := c.call("Status", nil, resp.decode, timeout)
	return resp, err
}

func (c Client) call(method string, request encoder, decode func([]byte) error, timeout time.Duration) error {
	answer, err := grpcwire.Invoke(c.Socket, service+method, request, time.Now().Add(timeout))
	if err != nil {
		return err
	}
	if err := decode(answer); err != nil {
		return &grpcwire.LostError{Err: fmt.Errorf("%s: %w", method, err)}
	}
	return nil
}

func ignore([]byte) error { return nil }
