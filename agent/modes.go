package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hoplite-net/hoplite/agent/cluster"
	"github.com/hoplite-net/hoplite/agent/encap"
	"github.com/hoplite-net/hoplite/agent/tunnel"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
	"github.com/hoplite-net/hoplite/ipam"
)

// withdrawalTime is how long a tunnel is no longer offered before its device
// may go. A peer that has not heard of it by then has lost its session: the BGP
// hold time is 9 s.
const withdrawalTime = 15 * time.Second

// lookAgain is when to look again at what no event tells of: a session that is
// down, a connection that still uses a tunnel's address.
const lookAgain = 5 * time.Second

// situation is what there is to go by.
type situation struct {
	state  cluster.State
	usable []ipam.Pool  // that give this node addresses
	pools  []encap.Pool // all that pods may have addresses of
	up     uplink
}

// plan is what the pools' modes ask of the node's tunnels at the moment.
type plan struct {
	wanted  bgp.Encapsulations // by some pool's mode
	kinds   bgp.Encapsulations // the devices that shall be there
	offered bgp.Encapsulations // of those, what others may send us
	// leaving says why a device that no pool wants is still there.
	leaving map[bgp.Encapsulation]string
	// again is when to look again; 0: when something is heard.
	again time.Duration
}

// plan decides which devices there shall be. One that no pool wants any more
// stays until nobody can be sending to it: offered as long as any node says
// that it uses it, or says nothing; then withdrawn; then, when all have heard
// that and no connection needs its address, deleted.
func (n *node) plan(ctx context.Context, s situation, now time.Time) plan {
	p := plan{leaving: make(map[bgp.Encapsulation]string)}
	for _, pool := range s.pools {
		p.wanted |= bgp.EncapsulationsOf(encap.Tunnel(pool.Mode)) & bgp.Tunnels
	}
	p.kinds = p.wanted
	p.offered = p.wanted
	for kind := range (n.present() &^ p.wanted).All() {
		why, offered, again := n.stays(ctx, kind, s.state, now)
		if why == "" {
			continue
		}
		p.leaving[kind] = why
		p.kinds |= bgp.EncapsulationsOf(kind)
		if offered {
			p.offered |= bgp.EncapsulationsOf(kind)
		}
		if again > 0 && (p.again == 0 || again < p.again) {
			p.again = again
		}
	}
	for kind := range n.withdrawn {
		if p.wanted.Has(kind) || !p.kinds.Has(kind) {
			delete(n.withdrawn, kind)
		}
	}
	return p
}

// stays says why a device that no pool wants cannot go yet, empty if it can,
// and whether others may go on sending to it.
func (n *node) stays(ctx context.Context, kind bgp.Encapsulation, state cluster.State, now time.Time) (why string, offered bool, again time.Duration) {
	if why := n.inUse(kind, state); why != "" {
		delete(n.withdrawn, kind)
		return why, true, 0
	}
	since, ok := n.withdrawn[kind]
	if !ok {
		n.withdrawn[kind] = now
		since = now
	}
	if left := withdrawalTime - now.Sub(since); left > 0 {
		return "no node sends through it any more; waiting for all to hear that it goes", false, left
	}
	for _, peer := range n.speaker.peers() {
		if !peer.Established() {
			return fmt.Sprintf("node %s may not have heard that it goes: no BGP session", peer.Name), false, lookAgain
		}
	}
	for _, addr := range n.tunnels.Addrs() {
		// An address that another device goes on having is no matter.
		if n.present() != bgp.EncapsulationsOf(kind) {
			break
		}
		count, err := n.tunnels.InUse(ctx, addr)
		if err != nil {
			return fmt.Sprintf("whether a connection of the host uses its address %s is not known: %v", addr, err), false, lookAgain
		}
		if count > 0 {
			return fmt.Sprintf("%d connections of the host itself use its address %s", count, addr), false, lookAgain
		}
	}
	return "", false, 0
}

// inUse says who may be sending through tunnels of the kind, to or from us.
func (n *node) inUse(kind bgp.Encapsulation, state cluster.State) string {
	if n.sends().Has(kind) {
		return "routes of this node use it"
	}
	for _, peer := range state.Peers {
		sends, heard := n.table.Heard(nodeAddrs(peer)...)
		switch {
		case !heard && len(nodeAddrs(peer)) > 0:
			return fmt.Sprintf("node %s has not said that it does not send through it", peer.Name)
		case sends.Has(kind):
			return fmt.Sprintf("node %s sends through it", peer.Name)
		}
	}
	return ""
}

// present are the tunnel devices there are.
func (n *node) present() bgp.Encapsulations {
	var kinds bgp.Encapsulations
	for _, d := range n.tunnels.State() {
		if d.Index != 0 {
			kinds |= bgp.EncapsulationsOf(d.Kind)
		}
	}
	return kinds
}

// sends are the tunnels that routes of this node use: those it has chosen, and
// what the kernel has where that is something else. Until the peers have told
// all they know there may be routes of an earlier agent, through any device.
func (n *node) sends() bgp.Encapsulations {
	if !n.synced.Load() {
		return n.present()
	}
	all, _ := n.table.Sends()
	kinds := make(map[int]bgp.Encapsulation)
	for _, d := range n.tunnels.State() {
		kinds[d.Index] = d.Kind
	}
	for hop := range n.table.Hops() {
		if target, ok := n.routes.Installed(hop); ok {
			all |= bgp.EncapsulationsOf(kinds[target.Device]) & bgp.Tunnels
		}
	}
	return all
}

// podMTU is the largest packet, in bytes, that pods of this node may send: the
// uplink's, less what the largest tunnel adds that a mode may ask for, that this
// node uses, or that another says it uses. It is decided here and nowhere else.
func (n *node) podMTU(s situation, p plan) int {
	kinds := p.wanted | n.sends()
	for _, peer := range s.state.Peers {
		sends, _ := n.table.Heard(nodeAddrs(peer)...)
		kinds |= sends
	}
	overhead := 0
	for kind := range (kinds & bgp.Tunnels).All() {
		overhead = max(overhead, tunnel.Overhead(kind, address(s.state.Self)))
	}
	return s.up.mtu - overhead
}

// tunnelDesired is what agent/tunnel is to make of it.
func tunnelDesired(s situation, p plan, addrs []netip.Addr) tunnel.Desired {
	self := s.state.Self
	d := tunnel.Desired{Kinds: p.kinds, Local: address(self), UplinkMTU: s.up.mtu, Addrs: addrs}
	for _, peer := range s.state.Peers {
		d.Peers = append(d.Peers, tunnel.Peer{Underlay: underlay(self, peer), NextHops: nodeAddrs(peer)})
	}
	return d
}

// underlay is the peer's address that tunnels from self lead to: of the family
// of self's own, invalid if it has none.
func underlay(self, peer cluster.Node) netip.Addr {
	if address(self).Is4() {
		return peer.IPv4
	}
	return peer.IPv6
}

// encapInputs are what the choices of ways are made from.
func (n *node) encapInputs(s situation) encap.Inputs {
	in := encap.Inputs{
		Pools:   s.pools,
		Devices: make(map[bgp.Encapsulation]int),
		Nodes:   make(map[netip.Addr]bool),
	}
	ready := n.tunnels.Ready()
	for _, d := range n.tunnels.State() {
		if ready.Has(d.Kind) {
			in.Devices[d.Kind] = d.Index
		}
	}
	addrs := n.table.Addrs()
	for _, peer := range s.state.Peers {
		for _, a := range nodeAddrs(peer) {
			in.Nodes[a] = underlay(s.state.Self, peer).IsValid()
			addrs[a] = true
		}
	}
	in.Ways = n.ways.lookAll(addrs)
	return in
}

// encapPools are all pools whose blocks there can be: also those that are
// disabled or being deleted, since pods have addresses of them.
func encapPools(pools []v1alpha1.IPPool, verdicts map[string]ipam.Verdict) []encap.Pool {
	var all []encap.Pool
	for i := range pools {
		v := verdicts[pools[i].Name]
		if v.Reason == ipam.ReasonInvalid || v.Reason == v1alpha1.ReasonOverlapping {
			continue
		}
		mode := pools[i].Spec.Mode
		if mode == "" {
			mode = v1alpha1.ModeNative
		}
		all = append(all, encap.Pool{Name: pools[i].Name, Prefix: v.Pool.Prefix, Mode: mode})
	}
	return all
}

// steer points the kernel's next hops where the choices say, and returns when
// they do.
func (n *node) steer(ctx context.Context, s situation) error {
	if moved := n.table.Configure(n.encapInputs(s)); len(moved) > 0 {
		n.routes.Update(moved)
	}
	targets, _ := n.table.Take()
	n.routes.SetTargets(targets)
	return n.routes.Sync(ctx)
}

// learn takes what BGP has learned into the kernel.
func (n *node) learn(found []bgp.Route) {
	var hops []netip.Addr
	for i := range found {
		for _, hop := range found[i].Hops {
			hops = append(hops, hop.Addr)
		}
	}
	if ways, ok := n.ways.lookNew(hops); ok {
		n.table.SetWays(ways)
	}
	learned := n.table.Learn(found)
	targets, changed := n.table.Take()
	n.routes.SetTargets(targets)
	n.routes.Update(learned)
	if changed {
		signal(n.heard)
	}
}

// paths are the node's blocks as BGP is to announce them.
func (n *node) paths(s situation, p plan) []bgp.Path {
	modes := make(map[string]v1alpha1.PoolMode)
	for _, pool := range s.pools {
		modes[pool.Name] = pool.Mode
	}
	pools := make(map[netip.Prefix]string)
	for _, b := range n.allocator.Blocks() {
		pools[b.Prefix] = b.Pool
	}
	offered := p.offered & n.tunnels.Ready()
	sends := n.sends()
	_, unsettled := n.table.Sends()
	synced := n.synced.Load()
	var paths []bgp.Path
	for _, prefix := range n.allocator.Advertised() {
		pool := pools[prefix]
		paths = append(paths, bgp.Path{Prefix: prefix, Receives: offered, Says: bgp.Statement{
			Said: true, Mode: modes[pool], Settled: synced && !unsettled[pool], Sends: sends,
		}})
	}
	return paths
}

// beforeNow is what the kernel uses for a prefix now, as encap.Table asks when it
// learns it: what an earlier agent chose.
func (n *node) beforeNow(prefix netip.Prefix) encap.Before {
	targets := n.routes.Current(prefix)
	if len(targets) == 0 {
		return encap.Before{}
	}
	for _, d := range n.tunnels.State() {
		if d.Index != 0 && d.Index == targets[0].Device {
			return encap.Before{Known: true, Used: d.Kind}
		}
	}
	return encap.Before{Known: true, Used: bgp.Native}
}

func nodeAddrs(node cluster.Node) []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{node.IPv4, node.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// carryModes makes the node's devices, pods and next hops what the pools' modes
// ask for, in the order that loses no packet: be able to receive, make packets
// small enough, switch; packets grow when all have switched. What to announce
// is told by the plan it returns.
func (n *node) carryModes(ctx context.Context, s situation) (plan, error) {
	p := n.plan(ctx, s, time.Now())
	n.setPlan(p)
	if s.up.name == "" {
		return p, n.steer(ctx, s) // no uplink at present; what there is stays
	}
	addrs, addrsErr := n.tunnelAddrs(ctx, s, p)
	errs := []error{addrsErr}
	if err := n.tunnels.Sync(ctx, tunnelDesired(s, p, addrs)); err != nil && !errors.Is(err, tunnel.ErrUnsupported) {
		errs = append(errs, err)
	}
	n.freeTunnelAddrs(addrs)
	current := int(n.mtu.Load())
	if mtu := n.podMTU(s, p); mtu <= current || current == 0 {
		errs = append(errs, n.setMTU(ctx, mtu))
	}
	errs = append(errs, n.steer(ctx, s))
	if mtu := n.podMTU(s, p); mtu > current {
		errs = append(errs, n.setMTU(ctx, mtu))
	}
	return p, errors.Join(errs...)
}

func (n *node) setMTU(ctx context.Context, mtu int) error {
	n.mtu.Store(int64(mtu))
	return n.endpoints.SetMTU(ctx, mtu)
}

// unsupported are the tunnels that the kernel has no devices for, as far as any
// was wanted.
func (n *node) unsupported() bgp.Encapsulations {
	var kinds bgp.Encapsulations
	for _, d := range n.tunnels.State() {
		if errors.Is(d.Err, tunnel.ErrUnsupported) {
			kinds |= bgp.EncapsulationsOf(d.Kind)
		}
	}
	return kinds
}
