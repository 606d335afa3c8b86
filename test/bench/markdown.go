package main

import (
	"fmt"
	"strings"
)

// markdown is report.md.
func (r *Report) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	m := r.Machine
	p("# Hoplite's figures\n\n")
	p("%s, Hoplite %s. %d cores (%s), Linux %s, %s, BIRD %s. Load average at the start: %.2f %.2f %.2f; the run took %.0f s.\n",
		m.Time, m.Version, m.Cores, m.CPU, m.Kernel, m.Go, m.BIRD, m.Load[0], m.Load[1], m.Load[2], r.Seconds)
	p("Every comparison is within this run; with a load average above the number of cores, look at ratios only.\n")
	p("\n## Aims\n\n| figure | measured | aim | met |\n| --- | ---: | ---: | --- |\n")
	for _, a := range r.Aims {
		than, met := "≤", "yes"
		if a.AtLeast {
			than = "≥"
		}
		if !a.Met {
			met = "**no**"
		}
		p("| %s | %s | %s %s | %s |\n", a.What, withUnit(a.Value, a.Unit), than, withUnit(a.Aim, a.Unit), met)
	}
	if r.CNI != nil {
		r.CNI.markdown(p)
	}
	if r.Routes != nil {
		p("\n## Learned routes into the kernel\n\nFrom the first byte of the UPDATEs to the last route, one peer, the same one for both; then the same withdrawn.\nThe floor is the kernel alone, told of the routes in large batches made beforehand. Medians.\n\n")
		p("| routes | Hoplite | floor | BIRD | ratio to BIRD | withdrawn | BIRD | processor time | BIRD | Hoplite, per 1,000 |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
		for _, s := range sizes {
			if v := r.Routes[s.name]; v != nil {
				p("| %s | %.3f s | %.3f s | %.3f s | %.2f | %.3f s | %.3f s | %.2f s | %.2f s | %.1f ms |\n", s.name, v.Seconds, v.FloorSeconds, v.BIRDSeconds, v.RatioToBIRD,
					v.WithdrawSeconds, v.BIRDWithdrawSeconds, v.CPUSeconds, v.BIRDCPUSeconds, v.Seconds*1e6/float64(v.Routes))
			}
		}
	}
	if r.Restart != nil {
		p("\n## An agent's restart\n\nTwo pods on two nodes send each other %d packets a second while the agent of one is stopped and, a second later, started again.\n", packetRate)
		p("Route events are changes in the kernels of all other nodes to routes of pods.\n\n")
		p("| by | restarts | packets | lost | longest gap | route events |\n| --- | ---: | ---: | ---: | ---: | ---: |\n")
		for _, row := range []struct {
			name string
			Interruption
		}{{"SIGTERM", r.Restart.SIGTERM}, {"SIGKILL", r.Restart.SIGKILL}} {
			p("| %s | %d | %d | %d | %.0f ms | %d |\n", row.name, row.Restarts, row.Sent, row.Lost, row.LongestGap, row.RouteEvents)
		}
	}
	if r.Agent != nil {
		p("\n## The agent's memory\n\nOf a fresh agent, left alone for %.0f s. Resident includes the program's own pages, which the kernel can drop; anonymous does not.\n\n", r.Agent.SettleSeconds)
		p("| state | resident | anonymous |\n| --- | ---: | ---: |\n")
		p("| idle, three nodes | %.1f MiB | %.1f MiB |\n", r.Agent.RSS, r.Agent.RSSAnon)
		p("| 100 further peers | %.1f MiB | %.1f MiB |\n", r.Agent.RSS100, r.Agent.Anon100)
		p("| 100,000 routes | %.1f MiB (at most %.1f) | %.1f MiB |\n", r.Agent.RSS100k, r.Agent.Peak100k, r.Agent.Anon100k)
	}
	r.modesMarkdown(p)
	return b.String()
}

func (r *Report) modesMarkdown(p func(string, ...any)) {
	if len(r.Modes) > 0 {
		p("\n## What a mode costs\n\nOne TCP connection between pods of two nodes at full speed, and the median time of a round trip; Hoplite and the floor by turns, medians of %d rounds.\n", rounds)
		p("The floor is the same kernel's same devices, made by hand on machines like the nodes: no rules, no next hop objects, no agent. The CrossSubnet modes are measured across subnets, by way of a router.\n\n")
		p("| mode | throughput | floor | ratio | round trip | floor | ratio | kernel |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n")
		for _, m := range r.Modes {
			p("| %s | %.0f Mbit/s | %.0f Mbit/s | %.3f | %.1f µs | %.1f µs | %.3f | %s |\n",
				m.Mode, m.Mbit, m.FloorMbit, m.ThroughputRatio, m.RoundTrip, m.FloorRoundTrip, m.LatencyRatio, m.Kernel)
		}
	}
	if len(r.ModeChanges) > 0 {
		p("\n## Changing a pool's mode\n\nThree nodes, two on one subnet, a network that knows the pods' blocks. Meanwhile, %d packets a second each way between the pods of all pairs of nodes and between a node and a remote pod,\n", packetRate)
		p("one TCP connection with full segments, and connections that idle. Seconds are from the change of the IPPool to the last node's switch. Segments sent again are those that the receiver had not got.\n\n")
		p("| from | to | packets | lost | doubled | connections broken | seconds | segments sent again | longest gap | kernel |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n")
		for _, c := range r.ModeChanges {
			p("| %s | %s | %d | %d | %d | %d | %.3f | %d | %.0f ms | %s |\n", c.From, c.To, c.Sent, c.Lost, c.Duplicates, c.Broken, c.Seconds, c.Resent, c.LongestGap, c.Kernel)
		}
	}
}

func (r *CNIReport) markdown(p func(string, ...any)) {
	p("\n## CNI\n\n")
	p("Plugins are started by a process in the node as a container runtime would, pods' namespaces are there before. One after the other, the kinds by turns (%d each);\n", r.Add.Samples)
	p("then %[1]d at a time. The floor is starting a program that does nothing, plus the bare netlink work with sockets already open. ptp runs with host-local. Processor time is of one command, all processes together, %[1]d at a time.\n\n", parallel)
	p("| | p50 | p99 | ratio to floor | %[1]d at a time | p50, %[1]d at a time | p99 | processor time |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n", parallel)
	row := func(name string, c Command, floor float64) {
		p("| %s | %.2f ms | %.2f ms | %.2f | %.0f/s | %.1f ms | %.1f ms | %.1f ms |\n",
			name, c.P50, c.P99, c.P50/floor, c.PerSecond, c.ParallelP50, c.ParallelP99, c.CPU)
	}
	floor := func(name string, c Command) {
		p("| %s | %.2f ms | %.2f ms | 1 | %.0f/s | | | %.1f ms |\n", name, c.FloorP50, c.FloorP99, c.FloorPerSecond, c.FloorCPU)
	}
	row("ADD, Hoplite", r.Add, r.Add.FloorP50)
	floor("ADD, floor", r.Add)
	row("ADD, ptp", r.PTP.Add, r.Add.FloorP50)
	row("DEL, Hoplite", r.Del, r.Del.FloorP50)
	floor("DEL, floor", r.Del)
	row("DEL, ptp", r.PTP.Del, r.Del.FloorP50)
	p("\nRequests of the node's agent to the API server during the ADDs: %d, and %d watches begun anew.\n", r.APIRequests, r.APIWatches)
	for _, uri := range r.APIRequestURIs {
		p("- `%s`\n", uri)
	}
}

func withUnit(v float64, unit string) string {
	text := fmt.Sprintf("%.4g", v)
	switch unit {
	case "":
		return text
	case "×", "/s":
		return text + unit
	}
	return text + " " + unit
}
