package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// poolList is "netctl pool list".
type poolList struct {
	Node  string       `json:"node"`
	Pools []poolDetail `json:"pools"`
}

// poolDetail is "netctl pool show".
type poolDetail struct {
	Name        string `json:"name"`
	CIDR        string `json:"cidr"`
	BlockSize   uint32 `json:"blockSize"`
	Mode        string `json:"mode"`
	NATOutgoing bool   `json:"natOutgoing"`
	Disabled    bool   `json:"disabled"`
	Deleting    bool   `json:"deleting"`
	// Capacity is in addresses; Blocks are all nodes'.
	Capacity      uint64 `json:"capacity"`
	Blocks        uint64 `json:"blocks"`
	NodeBlocks    uint64 `json:"nodeBlocks"`
	NodeUsed      uint64 `json:"nodeUsed"`
	NodeAddresses uint64 `json:"nodeAddresses"`
	// Nodes have blocks of the pool, as far as this node hears.
	Nodes         uint32         `json:"nodes"`
	NodesReady    uint32         `json:"nodesReady"`
	NodesSwitched uint32         `json:"nodesSwitched"`
	Unusable      string         `json:"unusable"`
	Conditions    []condition    `json:"conditions"`
	Progress      []nodeProgress `json:"progress"`
}

type condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// nodeProgress is one node's part in the pool's mode: Ready, it takes packets
// so; Switched, it sends so. Mode is the pool's as that node knows it.
type nodeProgress struct {
	Node     string `json:"node"`
	Ready    bool   `json:"ready"`
	Switched bool   `json:"switched"`
	Mode     string `json:"mode"`
	Info     string `json:"info"`
}

func askPools(ctx context.Context, c agentv1.NodeClient) (*agentv1.Pools, error) {
	return c.GetPools(ctx, &agentv1.GetPoolsRequest{})
}

func newPoolList(o *options) *cobra.Command {
	return question[*agentv1.Pools]{
		use: "list", short: "Pools, and how many nodes are as their modes ask",
		ask:  askPools,
		view: func(a *agentv1.Pools, _ []string) (view, error) { return poolListOf(a), nil },
	}.command(o)
}

func newPoolShow(o *options) *cobra.Command {
	return question[*agentv1.Pools]{
		use: "show NAME", short: "All about one pool, with the nodes that are not as its mode asks",
		args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("name one pool: netctl pool show NAME (netctl pool list tells which there are)")
			}
			return nil
		},
		ask: askPools,
		view: func(a *agentv1.Pools, args []string) (view, error) {
			return poolListOf(a).find(args[0])
		},
	}.command(o)
}

func poolListOf(a *agentv1.Pools) poolList {
	s := poolList{Node: a.GetNode(), Pools: []poolDetail{}}
	for _, p := range a.GetPools() {
		s.Pools = append(s.Pools, poolDetailOf(p))
	}
	slices.SortStableFunc(s.Pools, func(a, b poolDetail) int { return comparePrefixes(a.CIDR, b.CIDR) })
	return s
}

func poolDetailOf(p *agentv1.PoolDetail) poolDetail {
	d := poolDetail{
		Name: p.GetName(), CIDR: p.GetCidr(), BlockSize: p.GetBlockSize(), Mode: p.GetMode(),
		NATOutgoing: p.GetNatOutgoing(), Disabled: p.GetDisabled(), Deleting: p.GetDeleting(),
		Capacity: p.GetCapacity(), Blocks: p.GetBlocks(),
		NodeBlocks: p.GetNodeBlocks(), NodeUsed: p.GetNodeUsed(), NodeAddresses: p.GetNodeAddresses(),
		Nodes: p.GetNodes(), NodesReady: p.GetNodesReady(), NodesSwitched: p.GetNodesSwitched(),
		Unusable: p.GetUnusable(), Conditions: []condition{}, Progress: []nodeProgress{},
	}
	for _, c := range p.GetConditions() {
		d.Conditions = append(d.Conditions, condition{Type: c.GetType(), Status: c.GetStatus(), Reason: c.GetReason(), Message: c.GetMessage()})
	}
	for _, n := range p.GetProgress() {
		d.Progress = append(d.Progress, nodeProgress{
			Node: n.GetNode(), Ready: n.GetReady(), Switched: n.GetSwitched(), Mode: n.GetMode(), Info: n.GetInfo(),
		})
	}
	slices.SortStableFunc(d.Progress, func(a, b nodeProgress) int { return strings.Compare(a.Node, b.Node) })
	return d
}

func (s poolList) find(name string) (view, error) {
	var names []string
	for _, p := range s.Pools {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("there is no pool %s, nor any other", name)
	}
	return nil, fmt.Errorf("there is no pool %s; there are: %s", name, strings.Join(names, ", "))
}

func (s poolList) table(w io.Writer, wide bool) error {
	if len(s.Pools) == 0 {
		_, err := io.WriteString(w, noPools)
		return err
	}
	headings := []string{"NAME", "CIDR", "MODE", "BLOCKS", "USED HERE", "READY", "SWITCHED", "STATUS"}
	if wide {
		headings = append(headings, "BLOCK SIZE", "NAT OUTGOING", "CAPACITY", "BLOCKS HERE", "NOTE")
	}
	var rows [][]string
	for _, p := range s.Pools {
		row := []string{p.Name, p.CIDR, p.Mode, number(p.Blocks), number(p.NodeUsed),
			of(p.NodesReady, p.Nodes), of(p.NodesSwitched, p.Nodes), p.status()}
		if wide {
			row = append(row, "/"+number(uint64(p.BlockSize)), strconv.FormatBool(p.NATOutgoing), number(p.Capacity), number(p.NodeBlocks), p.Unusable)
		}
		rows = append(rows, row)
	}
	return grid(w, headings, rows)
}

// of is a part of the nodes, "-" when there are none.
func of(part, all uint32) string {
	if all == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", part, all)
}

// status is in a word whether this node takes addresses from the pool, and what else is wrong with it.
func (p poolDetail) status() string {
	words := []string{"Usable"}
	if p.Unusable != "" {
		words[0], _, _ = strings.Cut(p.Unusable, ":")
	}
	for _, c := range p.Conditions {
		if c.Type != "Ready" && c.Status == "False" {
			words = append(words, c.Reason)
		}
	}
	return strings.Join(words, ", ")
}
