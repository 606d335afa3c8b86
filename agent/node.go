package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
	"github.com/hoplite-net/hoplite/ipam"
)

// node is this machine: its parts, and what the cluster asks of it.
type node struct {
	config  Config
	log     *slog.Logger
	metrics *prometheus.Registry
	health  *health.Registry
	api     client.Client
	// connections are those to the API server.
	connections *connrotation.Dialer

	cluster   *cluster.Cluster
	allocator *ipam.Allocator
	freed     *server.FreedLog
	server    *server.Server
	speaker   *speaker

	watch     *watch.Watcher
	endpoints *endpoint.Plumber
	routes    *route.Syncer
	nat       *nat.Syncer
	sysctls   *sysctl.Keeper
	tunnels   *tunnel.Devices
	table     *encap.Table
	ways      ways

	suspects *suspects
	// What to look at again: the uplink; how other nodes are reached; what was
	// learned of their tunnels.
	uplinkChanged chan struct{}
	waysChanged   chan struct{}
	heard         chan struct{}
	publish       chan struct{}

	// synced: all peers have told what they know, and routes that nobody knows of are gone.
	synced atomic.Bool

	mtu atomic.Int64 // of this node's pods, in bytes; 0 before it is known

	// Of run's goroutine alone:
	retiring   map[bgp.Encapsulation]*encap.Retirement // tunnels that no pool wants any more
	tunnelHeld []netip.Addr                            // addresses taken for the tunnel devices

	mu       sync.Mutex
	state    cluster.State // as last applied
	uplink   uplink        // zero while there is none
	verdicts map[string]ipam.Verdict
	lastPlan plan
}

const (
	// apiPatience is how long a starting agent waits for the API before it goes by what it remembers.
	apiPatience = 3 * time.Second
	firstRetry  = 200 * time.Millisecond
	lastRetry   = 10 * time.Second
)

// run carries out the cluster's wishes, anew whenever they, our blocks or the
// node's devices change, and again after a while where something failed. Until
// the API answers they are the wishes remembered, if it takes long.
func (n *node) run(ctx context.Context) error {
	n.health.Set("cluster", server.ErrStarting)
	synced := make(chan struct{})
	go func() {
		if n.cluster.WaitForSync(ctx) {
			close(synced)
		}
	}()
	select {
	case <-synced:
	case <-ctx.Done():
		return nil
	case <-time.After(apiPatience):
		n.log.Warn("no Kubernetes API: going by what was known of the cluster")
	}
	look := n.recall
	retry := firstRetry
	for {
		select {
		case <-synced:
			n.health.Set("cluster", nil)
			look, synced = n.observe, nil
		default:
		}
		err := look(ctx)
		wait := time.Duration(1<<63 - 1)
		if again := n.planned().again; again > 0 {
			wait = again
		}
		if err != nil && ctx.Err() == nil {
			n.log.Error("not all the cluster asks for is done; trying again", "error", err, "in", retry)
			wait, retry = min(wait, retry), min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		if !n.awaitChange(ctx, synced, wait) {
			return nil
		}
	}
}

// awaitChange returns when there may be something to do, at the latest after
// wait; false when ctx has ended.
func (n *node) awaitChange(ctx context.Context, synced <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-synced:
			return true
		case <-n.cluster.Changed():
			return true
		case <-n.allocator.Changed():
			return true
		case <-n.tunnels.Changed():
			return true
		case <-n.heard:
			return true
		case <-n.waysChanged:
			if n.ways.moved() {
				return true
			}
		case <-n.uplinkChanged:
			if n.uplinkMoved() {
				return true
			}
		case <-timer.C:
			return true
		}
	}
}

// uplinkMoved says whether the device with the node's address is another than
// when it was last looked for, or has another MTU.
func (n *node) uplinkMoved() bool {
	n.mu.Lock()
	self, last := n.state.Self, n.uplink
	n.mu.Unlock()
	now, err := findUplink(address(self))
	return err != nil || now != last
}

// recall goes by the state an agent before this one wrote down, for the API
// server does not answer: pods come and go and routes stay while it is away.
func (n *node) recall(ctx context.Context) error {
	state, ok, err := cluster.Remembered(n.config.Dir)
	if err != nil || !ok {
		return err
	}
	return n.apply(ctx, state)
}

// observe reads the cluster and applies what it says.
func (n *node) observe(ctx context.Context) error {
	state, err := n.cluster.State(ctx)
	if err != nil {
		return err
	}
	if !state.SelfKnown {
		// The Node was deleted, or is not there yet. Its pods go on as they are.
		if n.last().SelfKnown {
			state.Self, state.SelfKnown, state.Labels = n.last().Self, true, n.last().Labels
		}
		err := fmt.Errorf("there is no Node named %s: it was deleted, or --node-name is wrong", n.config.NodeName)
		n.health.Set("node", err)
		if !state.SelfKnown {
			n.server.Refuse(err)
			return nil
		}
	} else {
		n.health.Set("node", nil)
	}
	err = n.apply(ctx, state)
	signal(n.publish)
	return errors.Join(err, cluster.Remember(n.config.Dir, state))
}

func (n *node) planned() plan {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lastPlan
}

func (n *node) setPlan(p plan) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lastPlan = p
}

func (n *node) last() cluster.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// apply makes the node what the state says. Each part is told all it needs;
// one that fails does not keep the others from their work.
func (n *node) apply(ctx context.Context, state cluster.State) error {
	usable, verdicts := ipam.Usable(state.Pools, state.Labels)
	up, uplinkErr := findUplink(address(state.Self))
	n.mu.Lock()
	n.state, n.verdicts, n.uplink = state, verdicts, up
	n.mu.Unlock()

	n.allocator.SetPools(usable, ipam.Closed(verdicts)...)
	n.allocator.Reconcile(ipam.OwnedBlocks(state.Blocks))

	s := situation{state: state, usable: usable, pools: encapPools(state.Pools, verdicts), up: up}
	p := n.plan(ctx, s, time.Now())
	kinds := p.wanted | n.present() // one that goes is still there
	ranges := poolPrefixes(state.Pools)
	host := sysctl.Desired{IPv4: true, IPv6: slices.ContainsFunc(ranges, isIPv6), Asymmetric: kinds != 0}
	if uplinkErr == nil {
		host.Uplinks = []string{up.name}
	}
	n.sysctls.Set(host)
	_, _ = n.sysctls.Ensure() // its Run says what is wrong
	n.routes.SetBlocks(n.allocator.Advertised())
	err := n.nat.Sync(ctx, natDesired(state, kinds))
	modesErr := n.carryModes(ctx, s, &p)
	n.offer(usable, uplinkErr)
	return errors.Join(err, n.report("modes", modesErr), n.report("bgp", n.speaker.apply(ctx, state, n.paths(s, p))))
}

func (n *node) report(component string, err error) error {
	n.health.Set(component, err)
	return err
}

// offer says what a pod gets from now on, or why none can come.
func (n *node) offer(usable []ipam.Pool, uplinkErr error) {
	err := errNoPool
	var families []ipam.Family
	for _, family := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		if slices.ContainsFunc(usable, func(p ipam.Pool) bool { return p.Family() == family }) {
			families, err = append(families, family), nil
		}
	}
	if err == nil {
		err = uplinkErr
	}
	n.health.Set("pods", err)
	if err != nil {
		n.server.Refuse(err)
		return
	}
	n.server.Offer(families)
}

var errNoPool = fmt.Errorf("%w on this node: create one, or look at the conditions of those there are (kubectl get ippools)", ipam.ErrNoPool)

// address is what the node is known by: its IPv4 address if it has one.
func address(n cluster.Node) netip.Addr {
	if n.IPv4.IsValid() {
		return n.IPv4
	}
	return n.IPv6
}

func isIPv6(p netip.Prefix) bool { return p.Addr().Is6() }

// poolPrefixes are all pools' ranges, also of those that are disabled: pods
// may have their addresses.
func poolPrefixes(pools []v1alpha1.IPPool) []netip.Prefix {
	var prefixes []netip.Prefix
	for i := range pools {
		if prefix, err := pools[i].Prefix(); err == nil {
			prefixes = append(prefixes, prefix.Masked())
		}
	}
	return prefixes
}

func natDesired(state cluster.State, tunnels bgp.Encapsulations) nat.Desired {
	d := nat.Desired{Tunnels: tunnels}
	for i := range state.Pools {
		if prefix, err := state.Pools[i].Prefix(); err == nil {
			d.Pools = append(d.Pools, nat.Pool{Prefix: prefix.Masked(), NATOutgoing: state.Pools[i].Spec.NATOutgoing})
		}
	}
	for _, node := range append([]cluster.Node{state.Self}, state.Peers...) {
		for _, a := range []netip.Addr{node.IPv4, node.IPv6} {
			if a.IsValid() {
				d.Nodes = append(d.Nodes, a)
			}
		}
	}
	return d
}
