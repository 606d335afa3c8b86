// Package grpcwire makes one unary gRPC call over a unix socket, and nothing more.
//
// It exists because a CNI plugin is a process per call: linking grpc-go costs
// each one as much as the whole of the kernel's work for a pod (docs/cni.md has
// the figures). So this package speaks the little of HTTP/2 (RFC 9113) and of
// gRPC over HTTP/2 that a single call needs, straight on system calls: no net
// package, no TLS, no goroutine.
//
// What a caller must know about a failed call is whether the server may have
// acted on it; the error types say so.
package grpcwire

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// MaxMessage is the size of the largest answer taken, in bytes.
const MaxMessage = 4 << 20

// DialError: no server could be reached; nothing was sent.
type DialError struct {
	Path string
	Err  error
}

func (e *DialError) Error() string { return fmt.Sprintf("connect to %s: %v", e.Path, e.Err) }
func (e *DialError) Unwrap() error { return e.Err }

// UntrustedError: the socket is there, but the process behind it runs as a user
// who is neither root nor the caller; nothing was sent.
type UntrustedError struct {
	Path string
	UID  uint32
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("the process behind %s runs as user %d, not as root: refusing to talk to it", e.Path, e.UID)
}

// LostError: the connection failed, or the deadline passed, before the answer
// was complete.
type LostError struct {
	// Unprocessed: the server said that it has not acted on the call. Otherwise
	// it may have.
	Unprocessed bool
	Err         error
}

func (e *LostError) Error() string { return fmt.Sprintf("no answer: %v", e.Err) }
func (e *LostError) Unwrap() error { return e.Err }

// Status is the server's answer when it is not OK.
type Status struct {
	Code    Code
	Message string
}

func (s *Status) Error() string { return fmt.Sprintf("%s: %s", s.Code, s.Message) }

// Invoke calls method ("/package.Service/Method") on the server at the unix
// socket path with an encoded message, and returns the encoded answer. It gives
// up at the deadline; the server is told of one a little later, so that it is
// always the caller who finds out and hangs up.
//
// The error is one of the types above.
func Invoke(path, method string, request []byte, deadline time.Time) ([]byte, error) {
	c, err := dial(path, deadline)
	if err != nil {
		return nil, err
	}
	defer c.close()
	call := call{conn: c, method: method, request: envelope(request)}
	if err := call.run(); err != nil {
		return nil, lost(err, deadline)
	}
	return call.answer()
}

// lost: whatever ends a call after its deadline is the deadline's doing, for
// instance the server's RST_STREAM when it gives up as well.
func lost(err error, deadline time.Time) *LostError {
	l := &LostError{Err: err}
	_ = errors.As(err, &l) // keeps l where err is of another kind
	if !time.Now().Before(deadline) && !errors.Is(err, os.ErrDeadlineExceeded) {
		return &LostError{Unprocessed: l.Unprocessed, Err: fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)}
	}
	return l
}
