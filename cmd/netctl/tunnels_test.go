package main

import (
	"context"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// tunnels is a node of a cluster that is in the middle of changes.
type tunnels struct {
	agentv1.UnimplementedNodeServer
}

func (tunnels) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.NodeStatus, error) {
	return &agentv1.NodeStatus{
		Node: "node-a", Version: "v1.2.3", AsNumber: 64512, RouterId: "192.0.2.1", PodMtu: 1450,
		Peers: []*agentv1.Peer{
			{Address: "192.0.2.9", Type: "node-to-node mesh", Name: "node-b", AsNumber: 64512, State: "Established", Since: 1735732799, Received: 3, Advertised: 2},
		},
		Tunnels: []*agentv1.Tunnel{
			{Kind: "vxlan", Device: "hop.vxlan", State: "ready", Addresses: []string{"10.244.9.65", "fd00:10:244::41"}, Mtu: 1450},
			{Kind: "ipip", Device: "hop.ipip", State: "unsupported", Info: "this kernel has no such tunnel devices"},
		},
	}, nil
}

func (tunnels) GetRoutes(context.Context, *agentv1.GetRoutesRequest) (*agentv1.Routes, error) {
	return &agentv1.Routes{
		Node: "node-a",
		Routes: []*agentv1.LearnedRoute{
			{Prefix: "10.244.20.0/26", Owner: "node-c", NextHop: "198.51.100.3", Gateway: "198.51.100.3", Device: "hop.vxlan", Encapsulation: "vxlan", Wanted: "vxlan", Pool: "default", Mode: "VXLANCrossSubnet", Why: "mode VXLANCrossSubnet, and the owner is not on-link"},
			{Prefix: "10.244.9.192/26", Owner: "node-b", NextHop: "192.0.2.9", Gateway: "192.0.2.9", Device: "eth0", Encapsulation: "native", Wanted: "native", Pool: "default", Mode: "VXLANCrossSubnet", Why: "mode VXLANCrossSubnet, and the owner is on-link", Stale: true},
			{Prefix: "10.245.0.16/28", Owner: "node-b", NextHop: "192.0.2.9", Gateway: "192.0.2.9", Device: "eth0", Encapsulation: "native", Wanted: "ipip", Pool: "small", Mode: "IPIP", Why: "mode IPIP, but the owner does not receive ipip"},
			{Prefix: "10.244.30.0/26", NextHop: "203.0.113.9", Wanted: "native", Pool: "default", Mode: "VXLANCrossSubnet", Why: "mode VXLANCrossSubnet, and the owner is on-link", Problem: "no route to 203.0.113.9"},
		},
		Refused: []*agentv1.RefusedRoute{
			{Prefix: "fd00:66::/64", Peer: "192.0.2.9", Why: "outside all pools"},
			{Prefix: "10.66.0.0/16", Peer: "198.51.100.7", Why: "outside all pools"},
			{Prefix: "10.66.0.0/16", Peer: "192.0.2.9", Why: "outside all pools"},
			{Why: "and 7 more"},
		},
	}, nil
}

func (tunnels) GetPools(context.Context, *agentv1.GetPoolsRequest) (*agentv1.Pools, error) {
	ready := func(status, reason, message string) *agentv1.Condition {
		return &agentv1.Condition{Type: "Ready", Status: status, Reason: reason, Message: message}
	}
	return &agentv1.Pools{
		Node: "node-a",
		Pools: []*agentv1.PoolDetail{
			{
				Name: "small", Cidr: "10.245.0.0/24", BlockSize: 28, Mode: "IPIP", Capacity: 256, Blocks: 2, Nodes: 2, NodesReady: 1,
				Unusable: "NotSelected: spec.nodeSelector \"zone=b\" does not match this node's labels",
				Conditions: []*agentv1.Condition{
					ready("True", "Usable", "nodes claim blocks of /28 from 10.245.0.0/24"),
					{Type: "ModeSupported", Status: "False", Reason: "NodesWithoutSupport", Message: "node-a: the kernel has no ipip; towards and from it packets go on travelling as before"},
				},
				Progress: []*agentv1.NodeProgress{
					{Node: "node-c", Ready: true, Mode: "IPIP", Info: "does not send to all others as the mode asks"},
					{Node: "node-b", Mode: "Native", Info: "still at mode Native"},
				},
			},
			{
				Name: "default", Cidr: "10.244.0.0/16", BlockSize: 26, Mode: "VXLANCrossSubnet", NatOutgoing: true, Capacity: 65536, Blocks: 5,
				NodeBlocks: 2, NodeUsed: 3, NodeAddresses: 128, Nodes: 3, NodesReady: 3, NodesSwitched: 3,
				Conditions: []*agentv1.Condition{ready("True", "Usable", "nodes claim blocks of /26 from 10.244.0.0/16")},
				Progress: []*agentv1.NodeProgress{
					{Node: "node-a", Ready: true, Switched: true, Mode: "VXLANCrossSubnet"},
					{Node: "node-b", Ready: true, Switched: true, Mode: "VXLANCrossSubnet"},
					{Node: "node-c", Ready: true, Switched: true, Mode: "VXLANCrossSubnet"},
				},
			},
			{
				Name: "old", Cidr: "10.246.0.0/24", BlockSize: 26, Mode: "Native", Deleting: true, Capacity: 256, Blocks: 1, Nodes: 1, NodesReady: 1, NodesSwitched: 1,
				Unusable: "Deleting: the pool is being deleted",
				Conditions: []*agentv1.Condition{
					ready("False", "Deleting", "the pool is being deleted"),
					{Type: "InUse", Status: "True", Reason: "BlocksClaimed", Message: "1 block still in use on node-b; the pool goes when the last pod with an address of it has gone"},
				},
				Progress: []*agentv1.NodeProgress{{Node: "node-b", Ready: true, Switched: true, Mode: "Native"}},
			},
			{Name: "unborn", Cidr: "10.247.0.0/24", BlockSize: 26, Mode: "Native", Disabled: true, Capacity: 256, Unusable: "Disabled: spec.disabled is true: addresses in use stay in use, and no new ones are given out"},
		},
	}, nil
}
