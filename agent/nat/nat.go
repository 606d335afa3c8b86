// Package nat keeps the node's iptables rules and ipsets for pods: natOutgoing,
// the acceptance of pods' traffic in FORWARD, and who may send tunnel packets.
//
// Everything of ours is in own chains and sets for each family:
//
//	nat    POSTROUTING → HOPLITE-POSTROUTING  masquerade hoplite-masq → not hoplite-cluster
//	filter FORWARD     → HOPLITE-FORWARD      accept hop+, and hoplite-pools ↔ hoplite-cluster
//	filter INPUT       → HOPLITE-INPUT        tunnel packets from hoplite-nodes only
//
//	hoplite-masq     pools with natOutgoing
//	hoplite-pools    all pools
//	hoplite-cluster  all pools and all nodes' addresses: where pods keep their own
//	hoplite-nodes    all nodes' addresses
//
// The last chain and set, and rules in FORWARD, are there while the node has
// tunnels. Otherwise the rules never change; pools and nodes coming and going
// change entries of the sets, one netlink message each. A set is never empty in
// between: what is new is added before what is old is taken away, and in an order
// in which no packet between pods and nodes is masqueraded for a moment.
//
// Our jumps go first into the built-in chains. Others may put rules before
// them later; a jump is moved back to the front only when an unconditional
// verdict before it means that it is never reached.
//
// Sync is level-triggered. Run repairs: what somebody deletes is back within a
// second.
package nat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/home"
	"github.com/hoplite-net/hoplite/bgp"
)

// Pool is an IPPool as far as NAT is concerned.
type Pool struct {
	Prefix netip.Prefix
	// NATOutgoing: packets from this pool to anything outside all pools and
	// nodes leave with the node's address.
	NATOutgoing bool
}

// Desired is what the rules are to express. A family is wanted when it has a
// pool or a node address.
type Desired struct {
	// Pools are all pools, disabled ones too while they have pods.
	Pools []Pool
	// Nodes are all nodes' addresses, this node's among them.
	Nodes []netip.Addr
	// Tunnels are the kinds of packets this node decapsulates. Only Nodes may
	// send it such; of a kind that is not here nothing is touched.
	Tunnels bgp.Encapsulations
}

// Config is how a Syncer works. The zero value is a good one.
type Config struct {
	Log *slog.Logger // nil: slog.Default

	// Mode is the iptables back end; ModeAuto finds out (see detect).
	Mode Mode

	// Report, if not nil, is told the result of every Sync and repair: nil, or
	// why the node's rules are not what they should be.
	Report func(error)

	// PollInterval is the time between two cheap looks at what the kernel sends
	// no notifications of: ipsets, and legacy tables. 0: 300 ms.
	PollInterval time.Duration

	// AuditInterval is the time between two full audits, give or take a fifth. 0: 10 min.
	AuditInterval time.Duration
}

// Syncer owns the node's chains and sets. Its methods may be called from
// several goroutines; they take effect in the network namespace in which New
// was called.
type Syncer struct {
	log  *slog.Logger
	cfg  Config
	mode Mode
	ns   *home.Namespace
	nl   *netlink.Handle // NETLINK_NETFILTER, opened in ns
	// socket is another such, for reading.
	socket *nl.SocketHandle

	mu        sync.Mutex
	desired   *[2]entries // each family's sets; nil: not told yet, or cleaned up
	families  [2]*family
	watching  bool          // Run hears of changes
	lastError string        // of Run, logged once
	kick      chan struct{} // look again soon

	writes atomic.Uint64
}

// New finds iptables and its back end. Nothing is written. It fails when the
// binaries or the kernel's ipsets are missing, saying which.
func New(cfg Config) (*Syncer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.PollInterval <= 0 {
		cfg.PollInterval = 300 * time.Millisecond
	}
	if cfg.AuditInterval <= 0 {
		cfg.AuditInterval = 10 * time.Minute
	}
	ns, err := home.Open()
	if err != nil {
		return nil, err
	}
	s := &Syncer{log: cfg.Log, cfg: cfg, ns: ns, kick: make(chan struct{}, 1)}
	if err := ns.Do(s.open); err != nil {
		ns.Close()
		return nil, err
	}
	s.log.Info("iptables found", "mode", s.mode, "ipv6", s.families[1].unavailable == nil)
	return s, nil
}

func (s *Syncer) open() error {
	var err error
	if s.mode, err = detect(s.cfg.Mode); err != nil {
		return err
	}
	if s.nl, err = netlink.NewHandle(unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("open a netfilter netlink socket: %w", err)
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		s.nl.Close()
		return fmt.Errorf("open a netfilter netlink socket: %w", err)
	}
	s.socket = &nl.SocketHandle{Socket: socket}
	if _, _, err := s.nl.IpsetProtocol(); err != nil {
		s.closeSockets()
		return fmt.Errorf("the kernel has no ipset (CONFIG_IP_SET, module ip_set): %w", err)
	}
	for i, v6 := range []bool{false, true} {
		s.families[i] = s.newFamily(v6)
	}
	if err := s.families[0].unavailable; err != nil {
		s.closeSockets()
		return err
	}
	return nil
}

func (s *Syncer) closeSockets() {
	s.nl.Close()
	s.socket.Close()
}

// Close releases the Syncer's sockets. It changes nothing in the kernel's
// tables: a restarting agent leaves them as they are. Run must have returned.
func (s *Syncer) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeSockets()
	s.ns.Close()
}

// Mode is the iptables back end in use.
func (s *Syncer) Mode() Mode { return s.mode }

// Writes counts the changes made so far, one a set entry or iptables command.
func (s *Syncer) Writes() uint64 { return s.writes.Load() }

// Sync makes the kernel's state what d says, reading it first and writing only
// the difference. Do not call it before pools and nodes are known: an empty
// Desired takes the rules away. After an error Run tries again.
func (s *Syncer) Sync(ctx context.Context, d Desired) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want, err := wantedEntries(d)
	if err != nil {
		return err
	}
	s.desired = &want
	err = s.reconcile(ctx)
	if err != nil {
		s.wake()
	}
	return err
}

// wake makes Run look again.
func (s *Syncer) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// reconcile brings both families to s.desired, going on past one's error. s.mu is held.
func (s *Syncer) reconcile(ctx context.Context) error {
	if s.desired == nil {
		return nil
	}
	err := s.ns.Do(func() error {
		var errs []error
		for i, f := range s.families {
			if err := ctx.Err(); err != nil {
				return errors.Join(append(errs, err)...)
			}
			if err := f.reconcile(ctx, s.desired[i]); err != nil {
				errs = append(errs, fmt.Errorf("%s rules: %w", f.name, err))
			}
		}
		return errors.Join(errs...)
	})
	if s.cfg.Report != nil && ctx.Err() == nil {
		s.cfg.Report(err)
	}
	return err
}

// wrote notes one change, for the log and the count.
func (s *Syncer) wrote(what string, args ...any) {
	s.writes.Add(1)
	s.log.Debug(what, args...)
}
