package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// nodeRoutes is "netctl node routes".
type nodeRoutes struct {
	Node    string         `json:"node"`
	Routes  []learnedRoute `json:"routes"`
	Refused []refusedRoute `json:"refused"`
}

type learnedRoute struct {
	Prefix  string `json:"prefix"`
	Owner   string `json:"owner"`
	NextHop string `json:"nextHop"`
	Gateway string `json:"gateway"`
	Device  string `json:"device"`
	// Encapsulation is in use, Wanted is what the pool's mode asks for towards
	// this owner: "native", "ipip" or "vxlan". Empty: the route is not in the kernel.
	Encapsulation string `json:"encapsulation"`
	Wanted        string `json:"wanted"`
	Pool          string `json:"pool"`
	Mode          string `json:"mode"`
	Why           string `json:"why"`
	Problem       string `json:"problem"`
	Stale         bool   `json:"stale"`
}

type refusedRoute struct {
	Prefix string `json:"prefix"`
	Peer   string `json:"peer"`
	Why    string `json:"why"`
}

func newNodeRoutes(o *options) *cobra.Command {
	return question[*agentv1.Routes]{
		use: "routes", short: "How packets for other nodes' pods leave this node, and why so",
		ask: func(ctx context.Context, c agentv1.NodeClient) (*agentv1.Routes, error) {
			return c.GetRoutes(ctx, &agentv1.GetRoutesRequest{})
		},
		view: func(a *agentv1.Routes, _ []string) (view, error) { return nodeRoutesOf(a), nil },
	}.command(o)
}

func nodeRoutesOf(a *agentv1.Routes) nodeRoutes {
	s := nodeRoutes{Node: a.GetNode(), Routes: []learnedRoute{}, Refused: []refusedRoute{}}
	for _, r := range a.GetRoutes() {
		s.Routes = append(s.Routes, learnedRoute{
			Prefix: r.GetPrefix(), Owner: r.GetOwner(), NextHop: r.GetNextHop(), Gateway: r.GetGateway(), Device: r.GetDevice(),
			Encapsulation: r.GetEncapsulation(), Wanted: r.GetWanted(), Pool: r.GetPool(), Mode: r.GetMode(),
			Why: r.GetWhy(), Problem: r.GetProblem(), Stale: r.GetStale(),
		})
	}
	for _, r := range a.GetRefused() {
		s.Refused = append(s.Refused, refusedRoute{Prefix: r.GetPrefix(), Peer: r.GetPeer(), Why: r.GetWhy()})
	}
	slices.SortStableFunc(s.Routes, func(a, b learnedRoute) int {
		if c := comparePrefixes(a.Prefix, b.Prefix); c != 0 {
			return c
		}
		return compareAddresses(a.NextHop, b.NextHop)
	})
	slices.SortStableFunc(s.Refused, func(a, b refusedRoute) int {
		if a.Prefix == "" || b.Prefix == "" { // that there are more comes last
			return strings.Compare(b.Prefix, a.Prefix)
		}
		if c := comparePrefixes(a.Prefix, b.Prefix); c != 0 {
			return c
		}
		return compareAddresses(a.Peer, b.Peer)
	})
	return s
}

func (s nodeRoutes) table(w io.Writer, wide bool) error {
	b := &strings.Builder{}
	fmt.Fprintf(b, "Routes of node %s to other nodes' pods\n", orDash(s.Node))
	if len(s.Routes) == 0 {
		b.WriteString("None: no other node has told of any.\n")
	} else if err := s.learnedTable(b, wide); err != nil {
		return err
	}
	if len(s.Refused) > 0 {
		b.WriteString("\nTold by peers, and refused\n")
		var rows [][]string
		for _, r := range s.Refused {
			rows = append(rows, []string{r.Prefix, r.Peer, r.Why})
		}
		if err := grid(b, []string{"PREFIX", "PEER", "WHY"}, rows); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s nodeRoutes) learnedTable(b *strings.Builder, wide bool) error {
	headings := []string{"PREFIX", "OWNER", "NEXT HOP", "DEVICE", "MODE IN USE", "WHY"}
	if wide {
		headings = append(headings, "GATEWAY", "POOL", "POOL'S MODE", "WANTED", "STALE", "PROBLEM")
	}
	var rows [][]string
	for _, r := range s.Routes {
		why := r.Why
		if r.Problem != "" && !wide {
			why = "problem: " + r.Problem
		}
		row := []string{r.Prefix, r.Owner, r.NextHop, r.Device, r.Encapsulation, why}
		if wide {
			row = append(row, r.Gateway, r.Pool, r.Mode, r.Wanted, strconv.FormatBool(r.Stale), r.Problem)
		}
		rows = append(rows, row)
	}
	return grid(b, headings, rows)
}
