package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// Conn connects to the agent's socket, for a gRPC client of api/agent/v1. The caller closes it.
func (a *Agent) Conn() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///agent",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", a.node.Path(AgentSocket))
		}))
}

// Status is what `netctl node status` gets from the agent.
func (a *Agent) Status(ctx context.Context) (*agentv1.NodeStatus, error) {
	conn, err := a.Conn()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return agentv1.NewNodeClient(conn).GetStatus(ctx, &agentv1.GetStatusRequest{})
}

// IPAM is what `netctl ipam show` gets from the agent.
func (a *Agent) IPAM(ctx context.Context) (*agentv1.IPAM, error) {
	conn, err := a.Conn()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return agentv1.NewNodeClient(conn).GetIPAM(ctx, &agentv1.GetIPAMRequest{})
}

// WaitMesh waits until every node's agent has an established session with every other node.
func (l *Lab) WaitMesh(ctx context.Context) error {
	nodes := l.Nodes()
	for _, n := range nodes {
		err := until(ctx, 50*time.Millisecond, "wait for the BGP sessions of "+n.Name, func() error {
			status, err := n.Agent.Status(ctx)
			if err != nil {
				return err
			}
			state := map[string]string{}
			for _, p := range status.GetPeers() {
				state[p.GetAddress()] = p.GetState()
			}
			for _, other := range nodes {
				if other != n && state[other.IP().String()] != "Established" {
					return fmt.Errorf("session with %s: %q", other.Name, state[other.IP().String()])
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// WaitRoutes waits until every node's kernel sends packets for every pod to the pod's node.
func (l *Lab) WaitRoutes(ctx context.Context) error {
	for _, n := range l.Nodes() {
		for _, other := range l.Nodes() {
			if other == n {
				continue
			}
			for _, p := range other.Pods() {
				if err := n.WaitRoute(ctx, p.IP(), other.IP()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// WaitRoute waits until the node's kernel sends packets for the address by way of the gateway.
func (n *Node) WaitRoute(ctx context.Context, to, gateway netip.Addr) error {
	what := fmt.Sprintf("wait until %s routes %s by way of %s", n.Name, to, gateway)
	return until(ctx, 20*time.Millisecond, what, func() error {
		return n.Netlink(func(h *netlink.Handle) error {
			routes, err := h.RouteGet(to.AsSlice())
			if err != nil {
				return err
			}
			for _, r := range routes {
				if gw, ok := netip.AddrFromSlice(r.Gw); ok && gw.Unmap() == gateway {
					return nil
				}
			}
			return errors.New("it does not")
		})
	})
}

// Until calls ready every 20 ms until it returns nil, and returns its last
// error, with what was waited for, when ctx ends.
func Until(ctx context.Context, what string, ready func() error) error {
	return until(ctx, 20*time.Millisecond, what, ready)
}
