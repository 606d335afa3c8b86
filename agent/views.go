package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/hoplite-net/hoplite/agent/cluster"
	"github.com/hoplite-net/hoplite/agent/encap"
	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/tunnel"
	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
	"github.com/hoplite-net/hoplite/ipam"
)

// Routes is what "netctl node routes" shows.
func (n *node) Routes(context.Context) (*agentv1.Routes, error) {
	view := &agentv1.Routes{Node: n.config.NodeName}
	owners := nodeNames(n.last())
	devices := deviceNames{}
	problems := make(map[netip.Prefix]string)
	for _, p := range n.routes.Problems() {
		problems[p.Prefix] = p.Err.Error()
	}
	for _, d := range n.table.Decisions() {
		r := &agentv1.LearnedRoute{
			Prefix: d.Prefix.String(), Owner: owners[d.Hop.Addr], NextHop: d.Hop.Addr.String(),
			Wanted: d.Wanted.String(), Pool: d.Hop.Pool, Mode: string(d.Mode), Why: d.Why,
			Problem: problems[d.Prefix], Stale: d.Stale,
		}
		if target, ok := inKernel(n.routes, d); ok {
			r.Gateway, r.Device = target.Gateway.String(), devices.name(target.Device)
			r.Encapsulation = bgp.Native.String()
			if kind, ok := tunnel.KindOf(r.Device); ok {
				r.Encapsulation = kind.String()
			}
		}
		view.Routes = append(view.Routes, r)
	}
	refused, more := n.speaker.refused()
	for _, r := range refused {
		view.Refused = append(view.Refused, &agentv1.RefusedRoute{Prefix: r.Prefix.String(), Peer: r.Peer.String(), Why: r.Why})
	}
	if more > 0 {
		view.Refused = append(view.Refused, &agentv1.RefusedRoute{Why: fmt.Sprintf("and %d more", more)})
	}
	return view, nil
}

// inKernel is where the kernel sends packets to the prefix by that next hop.
func inKernel(routes *route.Syncer, d encap.Decision) (route.Target, bool) {
	targets := routes.Current(d.Prefix)
	if len(targets) == 1 {
		return targets[0], true
	}
	installed, ok := routes.Installed(d.Hop)
	return installed, ok && len(targets) > 0
}

// nodeNames are the nodes by their addresses.
func nodeNames(state cluster.State) map[netip.Addr]string {
	names := make(map[netip.Addr]string)
	for _, peer := range append([]cluster.Node{state.Self}, state.Peers...) {
		for _, a := range nodeAddrs(peer) {
			names[a] = peer.Name
		}
	}
	return names
}

// deviceNames asks for each device's name once.
type deviceNames map[int]string

func (d deviceNames) name(index int) string {
	if name, ok := d[index]; ok {
		return name
	}
	d[index] = fmt.Sprintf("index %d", index)
	if link, err := netlink.LinkByIndex(index); err == nil {
		d[index] = link.Attrs().Name
	}
	return d[index]
}

// Pools is what "netctl pool list" and "netctl pool show" show.
func (n *node) Pools(ctx context.Context) (*agentv1.Pools, error) {
	state := n.last()
	// Conditions and counts are read anew: they change without anything to apply.
	if fresh, err := n.cluster.State(ctx); err == nil && len(fresh.Pools) > 0 {
		state.Pools = fresh.Pools
	}
	n.mu.Lock()
	verdicts := n.verdicts
	n.mu.Unlock()
	view := &agentv1.Pools{Node: n.config.NodeName}
	blocks, names := n.allocator.Blocks(), nodeNames(state)
	for i := range state.Pools {
		view.Pools = append(view.Pools, n.poolDetail(&state.Pools[i], verdicts, blocks, names))
	}
	return view, nil
}

func (n *node) poolDetail(p *v1alpha1.IPPool, verdicts map[string]ipam.Verdict, blocks []ipam.BlockInfo,
	names map[netip.Addr]string,
) *agentv1.PoolDetail {
	d := &agentv1.PoolDetail{
		Name: p.Name, Cidr: p.Spec.CIDR, BlockSize: uint32(p.BlockBits()), Mode: string(p.Spec.Mode),
		NatOutgoing: p.Spec.NATOutgoing, Disabled: p.Spec.Disabled, Deleting: !p.DeletionTimestamp.IsZero(),
		Capacity: uint64(max(0, p.Status.Capacity)), Blocks: uint64(max(0, p.Status.Blocks)),
	}
	for _, b := range blocks {
		if b.Pool == p.Name {
			d.NodeBlocks++
			d.NodeUsed += uint64(len(b.Used))
			d.NodeAddresses += uint64(b.Size)
		}
	}
	if v, ok := verdicts[p.Name]; ok && !v.Usable() {
		d.Unusable = fmt.Sprintf("%s: %s", v.Reason, v.Message)
	}
	for _, c := range p.Status.Conditions {
		d.Conditions = append(d.Conditions, &agentv1.Condition{
			Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message,
		})
	}
	d.Progress = n.poolProgress(p.Name, p.Spec.Mode, d.NodeBlocks > 0, names)
	for _, one := range d.Progress {
		d.Nodes++
		if one.Ready {
			d.NodesReady++
		}
		if one.Switched {
			d.NodesSwitched++
		}
	}
	return d
}

// poolProgress is how far each owner of blocks of the pool is with its mode.
func (n *node) poolProgress(pool string, mode v1alpha1.PoolMode, own bool, names map[netip.Addr]string) []*agentv1.NodeProgress {
	kind := encap.Tunnel(mode)
	_, unsettled := n.table.Sends()
	var all []*agentv1.NodeProgress
	if own {
		self := &agentv1.NodeProgress{
			Node: n.config.NodeName, Mode: string(mode), Switched: n.synced.Load() && !unsettled[pool],
			Ready: kind == bgp.Native || n.tunnels.Ready().Has(kind),
		}
		self.Info = progressInfo(encap.Progress{Ready: self.Ready, Switched: self.Switched, Mode: mode}, mode)
		all = append(all, self)
	}
	for _, p := range n.table.Progress(pool) {
		name := names[p.Addr]
		if name == "" {
			name = p.Addr.String()
		}
		all = append(all, &agentv1.NodeProgress{
			Node: name, Ready: p.Ready, Switched: p.Switched, Mode: string(p.Mode), Info: progressInfo(p, mode),
		})
	}
	return all
}

func progressInfo(p encap.Progress, mode v1alpha1.PoolMode) string {
	switch {
	case p.Ready && p.Switched:
		return ""
	case !p.Ready && p.Mode != "" && p.Mode != mode:
		return fmt.Sprintf("still at mode %s", p.Mode)
	case !p.Ready:
		return fmt.Sprintf("does not receive %s", encap.Tunnel(mode))
	case p.Mode == "":
		return "does not say how it sends"
	case p.Mode != mode:
		return fmt.Sprintf("still at mode %s", p.Mode)
	}
	return "does not send to all others as the mode asks"
}

// tunnelViews are the tunnels there are, and those a pool wants in vain.
func (n *node) tunnelViews() []*agentv1.Tunnel {
	p := n.planned()
	ready := n.tunnels.Ready()
	addrs := n.tunnels.Addrs()
	var all []*agentv1.Tunnel
	for _, d := range n.tunnels.State() {
		t := &agentv1.Tunnel{Kind: d.Kind.String(), Device: d.Name, Mtu: uint32(d.MTU)}
		if d.Index != 0 {
			for _, a := range addrs {
				t.Addresses = append(t.Addresses, a.String())
			}
		}
		switch {
		case errors.Is(d.Err, tunnel.ErrUnsupported):
			t.State, t.Info = "unsupported", d.Err.Error()
		case d.Err != nil:
			t.State, t.Info = "failed", d.Err.Error()
		case p.leaving[d.Kind] != "":
			t.State, t.Info = "leaving", p.leaving[d.Kind]
		case ready.Has(d.Kind):
			t.State = "ready"
		default:
			t.State, t.Info = "failed", "the device is down"
		}
		all = append(all, t)
	}
	return all
}

// tunnelNames are the devices that have each of the node's own tunnel addresses.
func (n *node) tunnelNames() map[netip.Addr]string {
	var names []string
	for _, d := range n.tunnels.State() {
		if d.Index != 0 {
			names = append(names, d.Name)
		}
	}
	all := make(map[netip.Addr]string)
	for _, a := range n.tunnels.Addrs() {
		all[a] = strings.Join(names, ", ")
	}
	return all
}
