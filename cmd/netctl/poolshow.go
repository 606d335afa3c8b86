package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

func (p poolDetail) table(w io.Writer, wide bool) error {
	b := &strings.Builder{}
	if err := p.facts(b); err != nil {
		return err
	}
	if err := p.conditionTable(b); err != nil {
		return err
	}
	if err := p.progressTable(b, wide); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (p poolDetail) facts(b *strings.Builder) error {
	status := p.status()
	if p.Unusable != "" {
		status = p.Unusable
	}
	t := tabwriter.NewWriter(b, 0, 0, 3, ' ', 0)
	for _, fact := range [][2]string{
		{"Pool", p.Name},
		{"CIDR", fmt.Sprintf("%s, %d addresses in blocks of /%d", p.CIDR, p.Capacity, p.BlockSize)},
		{"Mode", p.Mode},
		{"NAT outgoing", strconv.FormatBool(p.NATOutgoing)},
		{"Status here", status},
		{"Blocks", p.blocks()},
		{"Nodes", fmt.Sprintf("with blocks: %d; ready for the mode: %d; switched to it: %d", p.Nodes, p.NodesReady, p.NodesSwitched)},
	} {
		if _, err := fmt.Fprintf(t, "%s\t%s\n", fact[0], orDash(fact[1])); err != nil {
			return err
		}
	}
	return t.Flush()
}

func (p poolDetail) blocks() string {
	if p.NodeBlocks == 0 {
		return fmt.Sprintf("in the cluster: %d; here: none", p.Blocks)
	}
	return fmt.Sprintf("in the cluster: %d; here: %d, with %d of %d addresses in use", p.Blocks, p.NodeBlocks, p.NodeUsed, p.NodeAddresses)
}

func (p poolDetail) conditionTable(b *strings.Builder) error {
	b.WriteString("\nConditions\n")
	if len(p.Conditions) == 0 {
		b.WriteString("None yet.\n")
		return nil
	}
	var rows [][]string
	for _, c := range p.Conditions {
		rows = append(rows, []string{c.Type, c.Status, c.Reason, c.Message})
	}
	return grid(b, []string{"TYPE", "STATUS", "REASON", "MESSAGE"}, rows)
}

// progressTable lists the nodes that are not as the mode asks, or all of them.
func (p poolDetail) progressTable(b *strings.Builder, all bool) error {
	var rows [][]string
	for _, n := range p.Progress {
		if all || !n.Ready || !n.Switched {
			rows = append(rows, []string{n.Node, yes(n.Ready), yes(n.Switched), n.Mode, n.Info})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if all {
		b.WriteString("\nNodes\n")
	} else {
		b.WriteString("\nNodes that are not as the mode asks yet\n")
	}
	return grid(b, []string{"NODE", "READY", "SWITCHED", "MODE THERE", "INFO"}, rows)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
