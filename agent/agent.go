// Package agent is the node daemon: Run wires its parts together.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/connrotation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/agent/cluster"
	"github.com/hoplite-net/hoplite/agent/encap"
	"github.com/hoplite-net/hoplite/agent/endpoint"
	"github.com/hoplite-net/hoplite/agent/health"
	"github.com/hoplite-net/hoplite/agent/nat"
	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/server"
	"github.com/hoplite-net/hoplite/agent/sysctl"
	"github.com/hoplite-net/hoplite/agent/tunnel"
	"github.com/hoplite-net/hoplite/agent/watch"
	"github.com/hoplite-net/hoplite/bgp"
	"github.com/hoplite-net/hoplite/ipam"
)

// drainTime is how long CNI calls under way may take to finish when the agent is told to stop.
const drainTime = 5 * time.Second

// Run is the agent's life, from an empty memory to the end of ctx. The order is
// what makes a restart no event: rebuild from the kernel, take the DELs that
// came meanwhile, serve; then hear from the cluster, advertise what is ours,
// meet the peers; and only when they have told all they know, delete what
// nobody knows of. Stopping deletes nothing.
func Run(ctx context.Context, config Config) error {
	if err := config.validate(); err != nil {
		return err
	}
	log := config.Log
	unlock, err := lock(ctx, config.Dir, log)
	if err != nil {
		return err
	}
	defer unlock()

	n, err := newNode(config)
	if err != nil {
		return err
	}
	defer n.close()
	listener, err := server.Listen(config.socket(), log)
	if err != nil {
		return err
	}
	if err := n.rebuild(ctx); err != nil {
		return err
	}
	// The socket exists, so no further DEL is queued; nothing is served before
	// the queue is empty, so no ADD can come between.
	n.server.Drain(ctx, config.delQueue())

	group, ctx := errgroup.WithContext(ctx)
	run := func(what string, f func(context.Context) error) {
		group.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	run("metrics", func(ctx context.Context) error {
		return serveHTTP(ctx, config.MetricsAddress, n.health.Handler(n.metrics))
	})
	run("kernel watch", n.watch.Run)
	run("endpoints", n.runEndpoints)
	run("routes", n.routes.Run)
	run("tunnels", n.tunnels.Run)
	run("nat", n.nat.Run)
	run("sysctls", n.sysctls.Run)
	run("socket", func(ctx context.Context) error { return n.server.Run(ctx, listener, drainTime) })
	run("queue of DELs", func(ctx context.Context) error { return n.server.RunDrain(ctx, config.delQueue()) })
	run("addresses", func(ctx context.Context) error { n.allocator.Run(ctx); return nil })
	run("cluster watch", n.cluster.Run)
	run("conditions", n.runPublish)
	run("health", n.runHealth)
	run("node", n.run)
	log.Info("agent started", "node", config.NodeName)
	err = group.Wait()
	log.Info("agent stopped; pods, routes and peers' routes stay as they are")
	return err
}

// lock waits for an agent that is about to go, as during a rolling update.
func lock(ctx context.Context, dir string, log *slog.Logger) (unlock func(), err error) {
	for said := false; ; {
		unlock, err := server.Lock(dir)
		if err == nil || !errors.Is(err, server.ErrLocked) {
			return unlock, err
		}
		if !said {
			log.Warn("waiting for the other agent to stop", "error", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// newNode makes all parts; none runs yet.
func newNode(config Config) (*node, error) {
	n := &node{
		config:        config,
		log:           config.Log,
		metrics:       prometheus.NewRegistry(),
		health:        &health.Registry{},
		suspects:      newSuspects(),
		uplinkChanged: make(chan struct{}, 1),
		waysChanged:   make(chan struct{}, 1),
		heard:         make(chan struct{}, 1),
		publish:       make(chan struct{}, 1),
		retiring:      make(map[bgp.Encapsulation]*encap.Retirement),
	}
	n.table = encap.NewTable(n.beforeNow)
	n.connections = connrotation.NewDialer((&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 10 * time.Second}).DialContext)
	config.API.Dial = n.connections.DialContext
	api, err := client.New(config.API, client.Options{Scheme: cluster.Scheme(), Mapper: cluster.Mapper()})
	if err != nil {
		return nil, fmt.Errorf("make a client for the Kubernetes API: %w", err)
	}
	n.api = api
	if n.cluster, err = cluster.New(config.API, config.NodeName); err != nil {
		return nil, err
	}
	freed, err := server.NewFreedLog(config.freedDir(), config.Log)
	if err != nil {
		return nil, err
	}
	n.freed = freed
	n.allocator = ipam.New(config.NodeName, ipam.NewAPIStore(api, config.NodeName), ipam.Options{Log: config.Log, FreedLog: freed})
	if err := n.openKernel(); err != nil {
		return nil, err
	}
	n.speaker = &speaker{log: config.Log, routes: n.routes, learn: n.learn, synced: func() {
		n.synced.Store(true)
		signal(n.heard)
	}}
	n.server = server.New(server.Config{
		Addresses: n.allocator, Endpoints: n.endpoints, Node: n, Metrics: n.metrics, Log: config.Log,
	})
	n.registerMetrics()
	return n, nil
}

// rebuild fills the memory from the kernel: which pods there are, which
// addresses they have, which routes.
func (n *node) rebuild(ctx context.Context) error {
	endpoints, err := n.endpoints.List(ctx)
	if err != nil {
		return fmt.Errorf("read the pods' interfaces from the kernel: %w", err)
	}
	if err := n.routes.Load(ctx); err != nil {
		return fmt.Errorf("read the routes from the kernel: %w", err)
	}
	if err := n.tunnels.Load(ctx); err != nil {
		return fmt.Errorf("read the tunnel devices from the kernel: %w", err)
	}
	n.tunnelHeld = n.tunnels.Addrs()
	freed, err := n.freed.Load()
	if err != nil {
		return err
	}
	used := func(yield func(netip.Addr) bool) {
		for _, e := range endpoints {
			for _, a := range e.Addrs {
				if !yield(a) {
					return
				}
			}
		}
		for _, a := range n.tunnelHeld {
			if !yield(a) {
				return
			}
		}
	}
	blocks := n.ownedBefore()
	n.allocator.Restore(blocks, used, freed)
	n.log.Info("rebuilt from the kernel", "pods", len(endpoints), "blocks", len(blocks))
	return nil
}

// ownedBefore are the blocks the agent before this one held: those with a
// blackhole route, if it wrote down as well which pools they are of. The API
// is asked about all others, and about these as soon as it answers.
func (n *node) ownedBefore() []ipam.OwnedBlock {
	state, _, err := cluster.Remembered(n.config.Dir)
	if err != nil {
		n.log.Warn("what was known of the cluster cannot be read; the API will tell", "error", err)
		return nil
	}
	inKernel := n.routes.Blocks()
	return slices.DeleteFunc(ipam.OwnedBlocks(state.Blocks), func(b ipam.OwnedBlock) bool { return !slices.Contains(inKernel, b.Prefix) })
}

// openKernel opens everything that speaks to the kernel, in this network
// namespace. The subscription comes before anything is read, so that no change
// falls between.
func (n *node) openKernel() error {
	var err error
	if n.endpoints, err = endpoint.New(endpoint.Config{Protocol: route.Protocol, Log: n.log}); err != nil {
		return err
	}
	if n.routes, err = route.New(route.Config{Log: n.log}); err != nil {
		return err
	}
	if n.nat, err = nat.New(nat.Config{
		Log: n.log, Mode: nat.Mode(n.config.IPTablesMode),
		Report: func(err error) { n.health.Set("nat", err) },
	}); err != nil {
		return err
	}
	if n.tunnels, err = tunnel.New(tunnel.Config{Log: n.log, VXLANChecksumOffload: n.config.VXLANChecksumOffload}); err != nil {
		return err
	}
	n.sysctls = sysctl.New(sysctl.Config{Log: n.log, Record: n.config.sysctlRecord()})
	if n.watch, err = watch.New(watch.Config{Log: n.log, IgnorePorts: []uint32{n.routes.PortID(), n.tunnels.PortID()}}); err != nil {
		return err
	}
	n.watch.Listen(n.listener())
	return nil
}

func (n *node) close() {
	n.speaker.stop()
	n.endpoints.Close()
	n.nat.Close()
	n.tunnels.Close()
	if err := n.routes.Close(); err != nil {
		n.log.Warn("close the routes' socket", "error", err)
	}
}

func serveHTTP(ctx context.Context, address string, handler http.Handler) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for metrics and health checks (--metrics-address): %w", err)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stopped := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stopped()
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
