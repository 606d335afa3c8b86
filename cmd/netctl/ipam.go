package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// ipamStatus is "netctl ipam show".
type ipamStatus struct {
	Node   string  `json:"node"`
	Pools  []pool  `json:"pools"`
	Blocks []block `json:"blocks"`

	addresses bool // asked for in the table
}

type pool struct {
	Name        string `json:"name"`
	CIDR        string `json:"cidr"`
	BlockSize   uint32 `json:"blockSize"`
	Mode        string `json:"mode"`
	NATOutgoing bool   `json:"natOutgoing"`
	Disabled    bool   `json:"disabled"`
	Unusable    string `json:"unusable"`
	NodeBlocks  uint64 `json:"nodeBlocks"`
	NodeUsed    uint64 `json:"nodeUsed"`
}

type block struct {
	CIDR      string    `json:"cidr"`
	Pool      string    `json:"pool"`
	Size      uint64    `json:"size"`
	Used      uint64    `json:"used"`
	Free      uint64    `json:"free"`
	Addresses []address `json:"addresses"`
}

type address struct {
	Address       string `json:"address"`
	PodNamespace  string `json:"podNamespace"`
	PodName       string `json:"podName"`
	HostInterface string `json:"hostInterface"`
	ContainerID   string `json:"containerID"`
	Ifname        string `json:"ifname"`
}

func newIPAMShow(o *options) *cobra.Command {
	addresses := false
	cmd := question[*agentv1.IPAM]{
		use: "show", short: "Pools and this node's blocks, with what is in use",
		ask: func(ctx context.Context, c agentv1.NodeClient) (*agentv1.IPAM, error) {
			return c.GetIPAM(ctx, &agentv1.GetIPAMRequest{})
		},
		view: func(a *agentv1.IPAM, _ []string) (view, error) {
			s := ipamStatusOf(a)
			s.addresses = addresses
			return s, nil
		},
	}.command(o)
	cmd.Flags().BoolVar(&addresses, "addresses", false, "list every address in use and its pod (json and yaml always do)")
	return cmd
}

func ipamStatusOf(a *agentv1.IPAM) ipamStatus {
	s := ipamStatus{Node: a.GetNode(), Pools: []pool{}, Blocks: []block{}}
	for _, p := range a.GetPools() {
		s.Pools = append(s.Pools, pool{
			Name: p.GetName(), CIDR: p.GetCidr(), BlockSize: p.GetBlockSize(), Mode: p.GetMode(),
			NATOutgoing: p.GetNatOutgoing(), Disabled: p.GetDisabled(), Unusable: p.GetUnusable(),
			NodeBlocks: p.GetNodeBlocks(), NodeUsed: p.GetNodeUsed(),
		})
	}
	for _, b := range a.GetBlocks() {
		out := block{CIDR: b.GetCidr(), Pool: b.GetPool(), Size: b.GetSize(), Used: b.GetUsed(), Addresses: []address{}}
		if out.Used < out.Size {
			out.Free = out.Size - out.Used
		}
		for _, x := range b.GetAddresses() {
			out.Addresses = append(out.Addresses, address{
				Address: x.GetAddress(), PodNamespace: x.GetPodNamespace(), PodName: x.GetPodName(),
				HostInterface: x.GetHostInterface(),
				ContainerID:   x.GetAttachment().GetContainerId(), Ifname: x.GetAttachment().GetIfname(),
			})
		}
		slices.SortStableFunc(out.Addresses, func(a, b address) int { return compareAddresses(a.Address, b.Address) })
		s.Blocks = append(s.Blocks, out)
	}
	slices.SortStableFunc(s.Pools, func(a, b pool) int { return comparePrefixes(a.CIDR, b.CIDR) })
	slices.SortStableFunc(s.Blocks, func(a, b block) int { return comparePrefixes(a.CIDR, b.CIDR) })
	return s
}

func (s ipamStatus) table(w io.Writer, wide bool) error {
	b := &strings.Builder{}
	if err := s.poolTable(b); err != nil {
		return err
	}
	if err := s.blockTable(b); err != nil {
		return err
	}
	if s.addresses || wide {
		if err := s.addressTable(b, wide); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s ipamStatus) poolTable(b *strings.Builder) error {
	b.WriteString("Pools\n")
	if len(s.Pools) == 0 {
		b.WriteString(noPools)
		return nil
	}
	var rows [][]string
	for _, p := range s.Pools {
		note := p.Unusable
		if p.Disabled && note == "" {
			note = "disabled"
		}
		rows = append(rows, []string{p.Name, p.CIDR, "/" + strconv.FormatUint(uint64(p.BlockSize), 10), p.Mode,
			strconv.FormatBool(p.NATOutgoing), number(p.NodeBlocks), number(p.NodeUsed), note})
	}
	return grid(b, []string{"POOL", "CIDR", "BLOCK SIZE", "MODE", "NAT OUTGOING", "BLOCKS HERE", "IN USE HERE", "NOTE"}, rows)
}

func (s ipamStatus) blockTable(b *strings.Builder) error {
	fmt.Fprintf(b, "\nBlocks of node %s\n", orDash(s.Node))
	if len(s.Blocks) == 0 {
		b.WriteString("None yet: the first pod claims one.\n")
		return nil
	}
	var rows [][]string
	for _, x := range s.Blocks {
		percent := ""
		if x.Size > 0 {
			percent = fmt.Sprintf(" (%d%%)", x.Used*100/x.Size)
		}
		rows = append(rows, []string{x.CIDR, x.Pool, number(x.Size), number(x.Used) + percent, number(x.Free)})
	}
	return grid(b, []string{"BLOCK", "POOL", "ADDRESSES", "IN USE", "FREE"}, rows)
}

func (s ipamStatus) addressTable(b *strings.Builder, wide bool) error {
	b.WriteString("\nAddresses in use\n")
	headings := []string{"ADDRESS", "POD", "HOST INTERFACE"}
	if wide {
		headings = append(headings, "BLOCK", "CONTAINER", "INTERFACE")
	}
	var rows [][]string
	for _, x := range s.Blocks {
		for _, a := range x.Addresses {
			pod := a.PodName
			if a.PodNamespace != "" {
				pod = a.PodNamespace + "/" + pod
			}
			row := []string{a.Address, pod, a.HostInterface}
			if wide {
				row = append(row, x.CIDR, a.ContainerID, a.Ifname)
			}
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		b.WriteString("None.\n")
		return nil
	}
	return grid(b, headings, rows)
}

const noPools = "There are none: create an IPPool, without one pods get no addresses.\n"

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func comparePrefixes(a, b string) int {
	x, errX := netip.ParsePrefix(a)
	y, errY := netip.ParsePrefix(b)
	if errX != nil || errY != nil {
		return strings.Compare(a, b)
	}
	if c := x.Addr().Compare(y.Addr()); c != 0 {
		return c
	}
	return x.Bits() - y.Bits()
}
