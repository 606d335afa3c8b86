package agent

import (
	"context"
	"errors"
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

// sessionSettled is how long after a session came up all has been told over it.
const sessionSettled = 5 * time.Second

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

// plan decides which devices there shall be: those that pools want, and those
// that cannot go yet.
func (n *node) plan(ctx context.Context, s situation, now time.Time) plan {
	p := plan{leaving: make(map[bgp.Encapsulation]string)}
	for _, pool := range s.pools {
		p.wanted |= bgp.EncapsulationsOf(encap.Tunnel(pool.Mode)) & bgp.Tunnels
	}
	p.kinds = p.wanted
	p.offered = p.wanted
	present, sends := n.present(), n.sends()
	for kind := range bgp.Tunnels.All() {
		if p.wanted.Has(kind) || !present.Has(kind) {
			delete(n.retiring, kind)
			continue
		}
		if n.retiring[kind] == nil {
			n.retiring[kind] = &encap.Retirement{}
		}
		stay := n.retiring[kind].Look(now, sends.Has(kind), n.tunnelPeers(s.state, kind, now), func() (int, error) {
			return n.connectionsOf(ctx, kind)
		})
		if stay.Why == "" {
			continue
		}
		p.leaving[kind] = stay.Why
		p.kinds |= bgp.EncapsulationsOf(kind)
		if stay.Offered {
			p.offered |= bgp.EncapsulationsOf(kind)
		}
		p.lookAgain(stay.Again)
	}
	return p
}

func (p *plan) lookAgain(after time.Duration) {
	if after > 0 && (p.again == 0 || after < p.again) {
		p.again = after
	}
}

// tunnelPeers are the other nodes, with what they say of a tunnel.
func (n *node) tunnelPeers(state cluster.State, kind bgp.Encapsulation, now time.Time) []encap.Peer {
	up := make(map[string]bool)
	for _, p := range n.speaker.peers() {
		// One that came up just now may not have told it all we say yet.
		up[p.Name] = p.Established() && now.Sub(p.Since) > sessionSettled
	}
	var peers []encap.Peer
	for _, peer := range state.Peers {
		if len(nodeAddrs(peer)) == 0 {
			continue // no node yet
		}
		sends, heard := n.table.Heard(nodeAddrs(peer)...)
		session, configured := up[peer.Name]
		peers = append(peers, encap.Peer{Name: peer.Name, Heard: heard, Sends: sends.Has(kind), Session: session || !configured})
	}
	return peers
}

// connectionsOf counts the host's connections that would break with the device:
// those with an address of its that no other device has.
func (n *node) connectionsOf(ctx context.Context, kind bgp.Encapsulation) (total int, err error) {
	if n.present() != bgp.EncapsulationsOf(kind) {
		return 0, nil // all have the same addresses
	}
	for _, addr := range n.tunnels.Addrs() {
		count, err := n.tunnels.InUse(ctx, addr)
		if err != nil {
			return 0, err
		}
		total += count
	}
	return total, nil
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
	for _, hop := range n.table.Hops() {
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
		under := underlay(self, peer)
		var gateways []netip.Addr
		for _, a := range nodeAddrs(peer) {
			gateways = append(gateways, tunnel.Gateway(a, under))
		}
		d.Peers = append(d.Peers, tunnel.Peer{Underlay: under, NextHops: gateways})
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
		Nodes:   make(map[netip.Addr]netip.Addr),
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
			if under := underlay(s.state.Self, peer); under.IsValid() {
				in.Nodes[a] = tunnel.Gateway(a, under)
			}
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
	offered := p.offered & n.tunnels.Ready()
	sends := n.sends()
	_, unsettled := n.table.Sends()
	synced := n.synced.Load()
	var paths []bgp.Path
	for _, prefix := range n.allocator.Advertised() {
		pool := encap.PoolOf(s.pools, prefix)
		paths = append(paths, bgp.Path{Prefix: prefix, Receives: offered, Says: bgp.Statement{
			Said: true, Mode: pool.Mode, Settled: synced && !unsettled[pool.Name], Sends: sends,
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
// small enough, switch; packets grow when all have switched.
func (n *node) carryModes(ctx context.Context, s situation, p *plan) error {
	if s.up.name == "" {
		n.setPlan(*p)
		return n.steer(ctx, s) // no uplink at present; what there is stays
	}
	addrs, err := n.tunnelAddrs(ctx, s, p)
	if err != nil {
		// Tunnels work without; the host's packets then have the node's address.
		n.log.Warn("tunnel devices lack an address; trying again", "error", err)
		p.lookAgain(lastRetry)
	}
	n.setPlan(*p)
	var errs []error
	if err := n.tunnels.Sync(ctx, tunnelDesired(s, *p, addrs)); err != nil && !errors.Is(err, tunnel.ErrUnsupported) {
		errs = append(errs, err)
	}
	n.freeTunnelAddrs(addrs)
	current := int(n.mtu.Load())
	if mtu := n.podMTU(s, *p); mtu <= current || current == 0 {
		errs = append(errs, n.setMTU(ctx, mtu))
	}
	errs = append(errs, n.steer(ctx, s))
	if mtu := n.podMTU(s, *p); mtu > current {
		errs = append(errs, n.setMTU(ctx, mtu))
	}
	return errors.Join(errs...)
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
