package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/hoplite-net/hoplite/cni/grpcwire"
)

// Error is a CNI error result.
type Error struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}

// Codes below 100 are the specification's, the others our own. docs/cni.md explains each.
const (
	codeIncompatibleVersion = 1
	codeInvalidEnvironment  = 4
	codeIO                  = 5
	codeDecode              = 6
	codeInvalidConfig       = 7
	codeInvalidNetns        = 8
	codeTryAgainLater       = 11
	codeNotAvailable        = 50
	codeExists              = 100
	codeCheckFailed         = 101
	codeAgentFailed         = 102
	codeUntrustedAgent      = 103
	codeGCIncomplete        = 104
)

func fail(code uint, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// asError gives any error of an invocation its code.
func asError(err error) *Error {
	var own *Error
	var dial *grpcwire.DialError
	var untrusted *grpcwire.UntrustedError
	var lost *grpcwire.LostError
	var status *grpcwire.Status
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &dial):
		return &Error{Code: codeTryAgainLater, Msg: noAgent(dial), Details: dial.Error()}
	case errors.As(err, &untrusted):
		return &Error{Code: codeUntrustedAgent, Msg: untrusted.Error()}
	case errors.As(err, &lost):
		return &Error{Code: codeTryAgainLater, Msg: "the agent stopped answering; see its log", Details: lost.Error()}
	case errors.As(err, &status):
		return &Error{Code: statusCode(status.Code), Msg: status.Message}
	}
	return &Error{Code: codeAgentFailed, Msg: err.Error()}
}

func noAgent(e *grpcwire.DialError) string {
	switch {
	case errors.Is(e, fs.ErrNotExist), errors.Is(e, syscall.ECONNREFUSED):
		return "no agent answers on this node: see whether the hoplite-agent pod runs here"
	case errors.Is(e, fs.ErrPermission):
		return "the agent's socket is for root only: run the plugin as root"
	}
	return "the agent cannot be reached"
}

func statusCode(c grpcwire.Code) uint {
	switch c {
	case grpcwire.InvalidArgument:
		return codeInvalidEnvironment
	case grpcwire.AlreadyExists:
		return codeExists
	case grpcwire.FailedPrecondition:
		return codeCheckFailed
	case grpcwire.Unavailable, grpcwire.ResourceExhausted, grpcwire.DeadlineExceeded, grpcwire.Cancelled, grpcwire.Aborted:
		return codeTryAgainLater
	}
	return codeAgentFailed
}
