package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"netctl": main})
}

// TestScripts runs testdata/*.txtar: netctl as a process against real gRPC
// servers with fixed answers, each on a socket in the script's folder.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:             "testdata",
		UpdateScripts:   os.Getenv("UPDATE_GOLDEN") != "",
		ContinueOnError: true,
		Setup: func(e *testscript.Env) error {
			// The folder's own path can be longer than a socket's may be.
			dir, err := os.MkdirTemp("", "ctl")
			if err != nil {
				return err
			}
			e.Defer(func() { _ = os.RemoveAll(dir) })
			for name, s := range map[string]agentv1.NodeServer{"full": full{}, "tunnels": tunnels{}, "fresh": fresh{}, "old": agentv1.UnimplementedNodeServer{}, "starting": starting{}, "slow": slow{}} {
				if err := serve(e, filepath.Join(dir, name), s); err != nil {
					return err
				}
			}
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "dead"), Net: "unix"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			e.Setenv("S", dir)
			e.Setenv("TZ", "UTC")
			return l.Close()
		},
	})
}

func serve(e *testscript.Env, path string, node agentv1.NodeServer) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	agentv1.RegisterNodeServer(s, node)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	e.Defer(func() { s.Stop(); <-done })
	return nil
}

// full is a node with something of everything.
type full struct {
	agentv1.UnimplementedNodeServer
}

func (full) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.NodeStatus, error) {
	return &agentv1.NodeStatus{
		Node: "node-a", Version: "v1.2.3", AsNumber: 64512, RouterId: "192.0.2.1",
		NotReady: []*agentv1.Component{{Name: "cluster", Reason: "the API server does not answer"}},
		Peers: []*agentv1.Peer{
			{Address: "192.0.2.10", Type: "node-to-node mesh", Name: "node-c", AsNumber: 64512, State: "Active", Since: 1735689600, Info: "connection refused"},
			{Address: "192.0.2.9", Type: "node-to-node mesh", Name: "node-b", AsNumber: 64512, State: "Established", Since: 1735732799, Received: 3, Advertised: 2},
			{Address: "2001:db8::1", Type: "global", Name: "tor", AsNumber: 65000, State: "Established", Since: 1735732799, Received: 120000, Advertised: 1},
			{Address: "198.51.100.7", Type: "node specific", Name: "lab", AsNumber: 65001, Info: "disabled"},
		},
	}, nil
}

func (full) GetIPAM(context.Context, *agentv1.GetIPAMRequest) (*agentv1.IPAM, error) {
	return &agentv1.IPAM{
		Node: "node-a",
		Pools: []*agentv1.Pool{
			{Name: "small", Cidr: "10.245.0.0/24", BlockSize: 28, Mode: "VXLAN", Unusable: "its nodeSelector does not match this node"},
			{Name: "default", Cidr: "10.244.0.0/16", BlockSize: 26, Mode: "Native", NatOutgoing: true, NodeBlocks: 2, NodeUsed: 3},
			{Name: "later", Cidr: "10.246.0.0/24", BlockSize: 26, Mode: "Native", Disabled: true},
		},
		Blocks: []*agentv1.Block{
			{Cidr: "10.244.10.0/26", Pool: "default", Size: 64, Used: 1, Addresses: []*agentv1.Address{
				{Address: "10.244.10.1", PodNamespace: "default", PodName: "web-1", HostInterface: "hop00000000003", Attachment: &agentv1.Attachment{ContainerId: "c3", Ifname: "eth0"}}}},
			{Cidr: "10.244.9.64/26", Pool: "default", Size: 64, Used: 2, Addresses: []*agentv1.Address{
				{Address: "10.244.9.70", HostInterface: "hop00000000002", Attachment: &agentv1.Attachment{ContainerId: "c2", Ifname: "eth0"}},
				{Address: "10.244.9.65", PodNamespace: "default", PodName: "web-0", HostInterface: "hop00000000001", Attachment: &agentv1.Attachment{ContainerId: "c1", Ifname: "eth0"}}}},
		},
	}, nil
}

// fresh is a node with nothing yet.
type fresh struct {
	agentv1.UnimplementedNodeServer
}

func (fresh) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.NodeStatus, error) {
	return &agentv1.NodeStatus{Node: "node-a", Version: "v1.2.3", AsNumber: 64512, RouterId: "192.0.2.1"}, nil
}

func (fresh) GetIPAM(context.Context, *agentv1.GetIPAMRequest) (*agentv1.IPAM, error) {
	return &agentv1.IPAM{Node: "node-a"}, nil
}

func (fresh) GetRoutes(context.Context, *agentv1.GetRoutesRequest) (*agentv1.Routes, error) {
	return &agentv1.Routes{Node: "node-a"}, nil
}

func (fresh) GetPools(context.Context, *agentv1.GetPoolsRequest) (*agentv1.Pools, error) {
	return &agentv1.Pools{Node: "node-a"}, nil
}

type starting struct {
	agentv1.UnimplementedNodeServer
}

func (starting) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.NodeStatus, error) {
	return nil, status.Error(codes.Unavailable, "still reading the cluster's pools")
}

type slow struct {
	agentv1.UnimplementedNodeServer
}

func (slow) GetStatus(ctx context.Context, _ *agentv1.GetStatusRequest) (*agentv1.NodeStatus, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestSinceIsATimeTodayAndADateBefore(t *testing.T) {
	now := time.Date(2025, 1, 2, 12, 0, 0, 0, time.UTC)
	at := func(s string) *time.Time {
		v, err := time.Parse(time.DateTime, s)
		if err != nil {
			t.Fatal(err)
		}
		return &v
	}
	for want, when := range map[string]*time.Time{
		"00:00:00": at("2025-01-02 00:00:00"), "11:59:59": at("2025-01-02 11:59:59"),
		"2025-01-01": at("2025-01-01 23:59:59"), "2024-01-02": at("2024-01-02 12:00:00"), "": nil,
	} {
		if got := since(when, now); got != want {
			t.Errorf("%v: %q, want %q", when, got, want)
		}
	}
}

func TestStatesAreCalicos(t *testing.T) {
	for bgp, want := range map[string]string{"Established": "up", "ESTABLISHED": "up", "Idle": "start", "Active": "start",
		"Connect": "start", "OpenSent": "start", "OpenConfirm": "start", "": "down"} {
		if got := shortState(bgp); got != want {
			t.Errorf("%s: %s, want %s", bgp, got, want)
		}
	}
}
