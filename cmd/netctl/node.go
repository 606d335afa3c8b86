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

// nodeStatus is what -o json and -o yaml print: names are only ever added.
type nodeStatus struct {
	Node     string      `json:"node"`
	Version  string      `json:"version"`
	ASNumber uint32      `json:"asNumber"`
	RouterID string      `json:"routerID"`
	NotReady []component `json:"notReady"`
	Peers    []peer      `json:"peers"`
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

func newNodeStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "BGP sessions of this node, and what is not ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := ask(cmd.Context(), o, func(ctx context.Context, c agentv1.NodeClient) (*agentv1.NodeStatus, error) {
				return c.GetStatus(ctx, &agentv1.GetStatusRequest{})
			})
			if err != nil {
				return err
			}
			s := nodeStatusOf(answer)
			return o.print(cmd.OutOrStdout(), s, func(w io.Writer, wide bool) error {
				return s.table(w, wide, time.Now())
			})
		},
	}
}

func nodeStatusOf(a *agentv1.NodeStatus) nodeStatus {
	s := nodeStatus{
		Node: a.GetNode(), Version: a.GetVersion(), ASNumber: a.GetAsNumber(), RouterID: a.GetRouterId(),
		NotReady: []component{}, Peers: []peer{},
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

func (s nodeStatus) table(w io.Writer, wide bool, now time.Time) error {
	b := &strings.Builder{}
	fmt.Fprintf(b, "Hoplite agent %s is running on node %s (AS %d, router ID %s).\n",
		orDash(s.Version), orDash(s.Node), s.ASNumber, orDash(s.RouterID))
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
		if err := peerTable(b, peers, wide, now); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
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
