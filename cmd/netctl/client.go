package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// ask makes one call to the node's agent.
func ask[T any](ctx context.Context, o *options, call func(context.Context, agentv1.NodeClient) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	// grpc wraps what went wrong in its own words: dial first, and say it in ours.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", o.socket)
	if err != nil {
		return none, explainDial(o.socket, err)
	}
	used := false
	client, err := grpc.NewClient("passthrough:///agent",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if !used {
				used = true
				return conn, nil
			}
			return (&net.Dialer{}).DialContext(ctx, "unix", o.socket)
		}))
	if err != nil {
		return none, errors.Join(err, conn.Close())
	}
	defer func() { _ = client.Close() }()
	answer, err := call(ctx, agentv1.NewNodeClient(client))
	if err != nil {
		return none, explainCall(o, err)
	}
	return answer, nil
}

func explainDial(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no agent's socket at %s: is the agent running on this node? "+
			"See kubectl -n kube-system get pods -o wide, or give another place with --socket", socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens on %s: the agent has stopped; its log says why", socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("not allowed to use %s: run netctl as root", socket)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the agent at %s does not take the connection; its log may say why", socket)
	}
	return fmt.Errorf("connect to the agent: %w", err)
}

func explainCall(o *options, err error) error {
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.DeadlineExceeded:
		return fmt.Errorf("the agent has not answered within %s; its log may say why, --timeout waits longer", o.wait)
	case codes.Unimplemented:
		return fmt.Errorf("the agent is of another version and does not know this question: %s", s.Message())
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("the agent refuses to answer: run netctl as root (%s)", s.Message())
	case codes.Unavailable:
		return fmt.Errorf("the agent is not ready to answer: %s", s.Message())
	}
	return fmt.Errorf("the agent: %s", s.Message())
}
