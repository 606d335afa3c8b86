package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// nodeStatus is "netctl node status".
type nodeStatus struct {
	Node     string      `json:"node"`
	Version  string      `json:"version"`
	ASNumber uint32      `json:"asNumber"`
	RouterID string      `json:"routerID"`
	NotReady []component `json:"notReady"`
	Peers    []peer      `json:"peers"`
	Tunnels  []tunnel    `json:"tunnels"`
	// PodMTU is in bytes; 0: not known.
	PodMTU uint32 `json:"podMTU"`
}

type component struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

type peer struct {
	Address  string `json:"address"`
	Type     string `json:"type"`
	Name     string `json:"name"`
	ASNumber uint32 `json:"asNumber"`
	// State is "up", "start" or "down"; BGPState is the session's (RFC 4271 section 8.2.2).
	State      string     `json:"state"`
	BGPState   string     `json:"bgpState"`
	Since      *time.Time `json:"since"`
	Info       string     `json:"info"`
	Received   uint64     `json:"received"`
	Advertised uint64     `json:"advertised"`
}

// tunnel is one kind, "ipip" or "vxlan"; State is "ready", "unsupported", "failed" or "leaving".
type tunnel struct {
	Kind      string   `json:"kind"`
	Device    string   `json:"device"`
	State     string   `json:"state"`
	Addresses []string `json:"addresses"`
	MTU       uint32   `json:"mtu"`
	Info      string   `json:"info"`
}

func newNodeStatus(o *options) *cobra.Command {
	return question[*agentv1.NodeStatus]{
		use: "status", short: "BGP sessions and tunnels of this node, and what is not ready",
		ask: func(ctx context.Context, c agentv1.NodeClient) (*agentv1.NodeStatus, error) {
			return c.GetStatus(ctx, &agentv1.GetStatusRequest{})
		},
		view: func(a *agentv1.NodeStatus, _ []string) (view, error) { return nodeStatusOf(a), nil },
	}.command(o)
}

func nodeStatusOf(a *agentv1.NodeStatus) nodeStatus {
	s := nodeStatus{
		Node: a.GetNode(), Version: a.GetVersion(), ASNumber: a.GetAsNumber(), RouterID: a.GetRouterId(),
		NotReady: []component{}, Peers: []peer{}, Tunnels: []tunnel{}, PodMTU: a.GetPodMtu(),
	}
	for _, c := range a.GetNotReady() {
		s.NotReady = append(s.NotReady, component{c.GetName(), c.GetReason()})
	}
	for _, p := range a.GetPeers() {
		out := peer{
			Address: p.GetAddress(), Type: p.GetType(), Name: p.GetName(), ASNumber: p.GetAsNumber(),
			State: shortState(p.GetState()), BGPState: p.GetState(), Info: p.GetInfo(),
			Received: p.GetReceived(), Advertised: p.GetAdvertised(),
		}
		if p.GetSince() != 0 {
			t := time.Unix(p.GetSince(), 0).UTC()
			out.Since = &t
		}
		s.Peers = append(s.Peers, out)
	}
	for _, x := range a.GetTunnels() {
		s.Tunnels = append(s.Tunnels, tunnel{
			Kind: x.GetKind(), Device: x.GetDevice(), State: x.GetState(),
			Addresses: append([]string{}, x.GetAddresses()...), MTU: x.GetMtu(), Info: x.GetInfo(),
		})
	}
	slices.SortStableFunc(s.Tunnels, func(a, b tunnel) int { return strings.Compare(a.Kind, b.Kind) })
	slices.SortStableFunc(s.Peers, func(a, b peer) int { return compareAddresses(a.Address, b.Address) })
	return s
}

// shortState is the state as Calico's users know it.
func shortState(bgp string) string {
	switch strings.ToLower(bgp) {
	case "established":
		return "up"
	case "connect", "active", "opensent", "openconfirm", "idle":
		return "start"
	}
	return "down"
}

func (s nodeStatus) table(w io.Writer, wide bool) error {
	b := &strings.Builder{}
	fmt.Fprintf(b, "Hoplite agent %s is running on node %s (AS %d, router ID %s).\n",
		orDash(s.Version), orDash(s.Node), s.ASNumber, orDash(s.RouterID))
	if s.PodMTU > 0 {
		fmt.Fprintf(b, "Pods have an MTU of %d.\n", s.PodMTU)
	}
	for i, c := range s.NotReady {
		if i == 0 {
			b.WriteString("\nNot ready:\n")
		}
		fmt.Fprintf(b, "  %s: %s\n", c.Name, c.Reason)
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		var peers []peer
		for _, p := range s.Peers {
			if familyOf(p.Address) == family {
				peers = append(peers, p)
			}
		}
		fmt.Fprintf(b, "\n%s BGP status\n", family)
		if len(peers) == 0 {
			fmt.Fprintf(b, "No %s peers found.\n", family)
			continue
		}
		if err := peerTable(b, peers, wide, time.Now()); err != nil {
			return err
		}
	}
	if err := s.tunnelTable(b); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// tunnelTable is nothing where nobody has asked for a tunnel.
func (s nodeStatus) tunnelTable(b *strings.Builder) error {
	if len(s.Tunnels) == 0 {
		return nil
	}
	b.WriteString("\nTunnels\n")
	var rows [][]string
	for _, x := range s.Tunnels {
		mtu := ""
		if x.MTU > 0 {
			mtu = number(uint64(x.MTU))
		}
		rows = append(rows, []string{x.Kind, x.Device, x.State, strings.Join(x.Addresses, ", "), mtu, x.Info})
	}
	return grid(b, []string{"KIND", "DEVICE", "STATE", "ADDRESSES", "MTU", "INFO"}, rows)
}

func peerTable(w io.Writer, peers []peer, wide bool, now time.Time) error {
	headings := []string{"PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"}
	if wide {
		headings = append(headings, "NAME", "AS", "RECEIVED", "ADVERTISED")
	}
	var rows [][]string
	for _, p := range peers {
		info := p.BGPState
		if p.Info != "" {
			info = strings.TrimPrefix(info+": "+p.Info, ": ")
		}
		row := []string{p.Address, p.Type, p.State, since(p.Since, now), info}
		if wide {
			row = append(row, p.Name, strconv.FormatUint(uint64(p.ASNumber), 10),
				strconv.FormatUint(p.Received, 10), strconv.FormatUint(p.Advertised, 10))
		}
		rows = append(rows, row)
	}
	return grid(w, headings, rows)
}

// since is the time of day today, else the date.
func since(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	local := t.In(now.Location())
	if local.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return local.Format(time.TimeOnly)
	}
	return local.Format(time.DateOnly)
}

func familyOf(address string) string {
	if a, err := netip.ParseAddr(address); err == nil && a.Is6() && !a.Is4In6() {
		return "IPv6"
	}
	return "IPv4"
}

func compareAddresses(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return strings.Compare(a, b)
	}
	return x.Compare(y)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
