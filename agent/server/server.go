// Package server is the agent's socket: what the CNI plugin and netctl call.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/hoplite-net/hoplite/agent/endpoint"
	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/ipam"
)

// Addresses is where pods' addresses come from: ipam.Allocator.
type Addresses interface {
	Assign(context.Context, ipam.Family) (netip.Addr, error)
	Free(netip.Addr) bool
	// Available is nil when an Assign could succeed now.
	Available(ipam.Family) error
}

// Endpoints plumbs pods: endpoint.Plumber.
type Endpoints interface {
	Add(context.Context, endpoint.Spec) (endpoint.Result, error)
	Del(context.Context, endpoint.Key) ([]netip.Addr, error)
	Check(context.Context, endpoint.Expected) error
	// List reads all from the kernel, and remembers them.
	List(context.Context) ([]endpoint.Endpoint, error)
	// Known are all that Add made or List found and Del has not taken away.
	Known() []endpoint.Endpoint
}

// Node answers netctl's questions.
type Node interface {
	Status() *agentv1.NodeStatus
	IPAM(context.Context) (*agentv1.IPAM, error)
	Routes(context.Context) (*agentv1.Routes, error)
	Pools(context.Context) (*agentv1.Pools, error)
}

// Config is what a Server needs.
type Config struct {
	Addresses Addresses
	Endpoints Endpoints
	Node      Node
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// Server serves the agent's socket.
type Server struct {
	addresses Addresses
	endpoints Endpoints
	node      Node
	log       *slog.Logger
	locks     keyLock[endpoint.Key]
	serving   atomic.Pointer[serving]
	duration  *prometheus.HistogramVec
}

// serving is what an ADD gives a pod, or why it cannot.
type serving struct {
	families []ipam.Family
	err      error
}

// ErrStarting: the agent does not know the cluster yet.
var ErrStarting = errors.New("the agent is starting: it has not heard from the Kubernetes API yet")

// New makes a Server that refuses every ADD until Serve says what to give.
func New(c Config) *Server {
	s := &Server{
		addresses: c.Addresses, endpoints: c.Endpoints, node: c.Node, log: c.Log,
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "hoplite_cni_duration_seconds",
			Help:    "Time the agent took for a CNI command.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"command"}),
	}
	c.Metrics.MustRegister(s.duration)
	s.Refuse(ErrStarting)
	return s
}

// Offer makes every further ADD give an address of each family.
func (s *Server) Offer(families []ipam.Family) {
	s.serving.Store(&serving{families: families})
}

// Refuse makes every further ADD fail, to be tried again later, for that reason.
func (s *Server) Refuse(reason error) { s.serving.Store(&serving{err: reason}) }

func (s *Server) families() ([]ipam.Family, error) {
	now := s.serving.Load()
	return now.families, now.err
}

func (s *Server) timed(command string) func() {
	start := time.Now()
	return func() { s.duration.WithLabelValues(command).Observe(time.Since(start).Seconds()) }
}

// Run serves until ctx ends, then lets calls under way finish for as long as drain.
func (s *Server) Run(ctx context.Context, l net.Listener, drain time.Duration) error {
	g := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20)) // a GC request lists every container of the node
	agentv1.RegisterCNIServer(g, &cniService{Server: s})
	agentv1.RegisterNodeServer(g, &nodeService{Server: s})
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		force := time.AfterFunc(drain, g.Stop)
		defer force.Stop()
		g.GracefulStop()
	}()
	err := g.Serve(l)
	if ctx.Err() == nil {
		return fmt.Errorf("serve the agent's socket: %w", err)
	}
	<-done
	return nil
}

type nodeService struct {
	agentv1.UnimplementedNodeServer
	*Server
}

func (s *nodeService) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.NodeStatus, error) {
	return s.node.Status(), nil
}

func (s *nodeService) GetIPAM(ctx context.Context, _ *agentv1.GetIPAMRequest) (*agentv1.IPAM, error) {
	return s.node.IPAM(ctx)
}

func (s *nodeService) GetRoutes(ctx context.Context, _ *agentv1.GetRoutesRequest) (*agentv1.Routes, error) {
	return s.node.Routes(ctx)
}

func (s *nodeService) GetPools(ctx context.Context, _ *agentv1.GetPoolsRequest) (*agentv1.Pools, error) {
	return s.node.Pools(ctx)
}
