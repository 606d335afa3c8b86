package agent

import (
	"context"
	"fmt"

	"github.com/hoplite-net/hoplite/agent/endpoint"
	"github.com/hoplite-net/hoplite/api"
	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam"
)

// Status is what "netctl node status" shows.
func (n *node) Status() *agentv1.NodeStatus {
	state := n.last()
	status := &agentv1.NodeStatus{
		Node:     n.config.NodeName,
		Version:  api.Version,
		AsNumber: uint32(state.BGP.ASNumber),
	}
	if state.SelfKnown {
		status.RouterId = routerID(state.Self).String()
	}
	for _, p := range n.speaker.peers() {
		status.Peers = append(status.Peers, &agentv1.Peer{
			Address: p.Address.String(), Type: string(p.Type), Name: p.Name, AsNumber: p.ASN,
			State: p.State, Since: p.Since.Unix(), Info: p.Info,
			Received: p.Received, Advertised: p.Advertised,
		})
	}
	status.Tunnels, status.PodMtu = n.tunnelViews(), uint32(n.mtu.Load())
	for _, problem := range n.health.Problems() {
		status.NotReady = append(status.NotReady, &agentv1.Component{Name: problem.Component, Reason: problem.Reason})
	}
	return status
}

// IPAM is what "netctl ipam show" shows.
func (n *node) IPAM(context.Context) (*agentv1.IPAM, error) {
	owners := make(map[string]endpoint.Endpoint)
	for _, e := range n.endpoints.Known() {
		for _, a := range e.Addrs {
			owners[a.String()] = e
		}
	}
	tunnels := n.tunnelNames()
	view := &agentv1.IPAM{Node: n.config.NodeName}
	blocks, used := make(map[string]uint64), make(map[string]uint64)
	for _, b := range n.allocator.Blocks() {
		block := &agentv1.Block{Cidr: b.Prefix.String(), Pool: b.Pool, Size: uint64(b.Size), Used: uint64(len(b.Used))}
		for _, a := range b.Used {
			address := &agentv1.Address{Address: a.String()}
			if e, ok := owners[a.String()]; ok {
				address.Attachment = &agentv1.Attachment{ContainerId: e.ContainerID, Ifname: e.IfName}
				address.PodNamespace, address.PodName, address.HostInterface = e.Pod.Namespace, e.Pod.Name, e.HostIf
			} else {
				address.HostInterface = tunnels[a]
			}
			block.Addresses = append(block.Addresses, address)
		}
		view.Blocks = append(view.Blocks, block)
		blocks[b.Pool]++
		used[b.Pool] += uint64(len(b.Used))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.state.Pools {
		view.Pools = append(view.Pools, poolView(&n.state.Pools[i], n.verdicts, blocks, used))
	}
	return view, nil
}

func poolView(p *v1alpha1.IPPool, verdicts map[string]ipam.Verdict, blocks, used map[string]uint64) *agentv1.Pool {
	view := &agentv1.Pool{
		Name: p.Name, Cidr: p.Spec.CIDR, BlockSize: uint32(p.BlockBits()), Mode: string(p.Spec.Mode),
		NatOutgoing: p.Spec.NATOutgoing, Disabled: p.Spec.Disabled,
		NodeBlocks: blocks[p.Name], NodeUsed: used[p.Name],
	}
	if v := verdicts[p.Name]; !v.Usable() {
		view.Unusable = fmt.Sprintf("%s: %s", v.Reason, v.Message)
	}
	return view
}
