package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
)

// measureCNI has the runner time ADDs and DELs in a node, and counts what its
// agent asks the API server meanwhile.
func (b *bench) measureCNI(ctx context.Context) error {
	trivial, err := b.buildTrivial(ctx)
	if err != nil {
		return err
	}
	outcome, err := b.runRunner(ctx, Plan{Trivial: trivial, Adds: b.adds, Rounds: b.repeat})
	if err != nil {
		return err
	}
	floor, ours, ptp := outcome.Kinds[floorName], outcome.Kinds[hopliteName], outcome.Kinds[ptpName]
	r := &CNIReport{
		Add: summary(ours.Add, ours.ParallelAdd, ours.AddRates, ours.AddCPU),
		Del: summary(ours.Del, ours.ParallelDel, ours.DelRates, ours.DelCPU),
	}
	r.Add.beside(ours.Add, floor.Add, floor.AddRates, floor.AddCPU)
	r.Del.beside(ours.Del, floor.Del, floor.DelRates, floor.DelCPU)
	r.PTP.Add = summary(ptp.Add, ptp.ParallelAdd, ptp.AddRates, ptp.AddCPU)
	r.PTP.Del = summary(ptp.Del, ptp.ParallelDel, ptp.DelRates, ptp.DelCPU)
	if err := b.countRequests(r, outcome.Warm); err != nil {
		return err
	}
	b.report.CNI = r
	b.say("  ADD p50 %.2f ms, floor %.2f, ptp %.2f; %.0f/s 16 at a time, floor %.0f, ptp %.0f; DEL p50 %.2f ms",
		r.Add.P50, r.Add.FloorP50, r.PTP.Add.P50, r.Add.PerSecond, r.Add.FloorPerSecond, r.PTP.Add.PerSecond, r.Del.P50)
	return nil
}

// buildTrivial builds the program that does nothing, as small as the plugin is built.
func (b *bench) buildTrivial(ctx context.Context) (string, error) {
	program := filepath.Join(b.root, "build/bench/trivial")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./bench/trivial")
	cmd.Dir = filepath.Join(b.root, "test")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program that does nothing: %w: %s", err, out)
	}
	return program, nil
}

func (b *bench) runRunner(ctx context.Context, plan Plan) (*Outcome, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	input, err := json.Marshal(plan)
	if err != nil {
		return nil, err
	}
	cmd := b.l.Node(podNode).Command(ctx, self, "runner")
	cmd.Stdin = bytes.NewReader(input)
	output, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	outcome := &Outcome{}
	if err := json.Unmarshal(output, outcome); err != nil {
		return nil, fmt.Errorf("what the runner said: %w: %s", err, output)
	}
	return outcome, nil
}

func summary(sequential, parallel []time.Duration, rates []float64, cpu []time.Duration) Command {
	return Command{
		Samples: len(sequential), P50: ms(median(sequential)), P99: ms(quantile(sequential, 0.99)),
		PerSecond: round(middle(rates), 1), ParallelP50: ms(median(parallel)), ParallelP99: ms(quantile(parallel, 0.99)),
		CPU: ms(median(cpu)),
	}
}

// beside puts the floor's figures next to ours.
func (c *Command) beside(ours, floor []time.Duration, rates []float64, cpu []time.Duration) {
	c.FloorP50, c.FloorP99 = ms(median(floor)), ms(quantile(floor, 0.99))
	c.FloorPerSecond, c.FloorCPU = round(middle(rates), 1), ms(median(cpu))
	c.Ratio = ratio(median(ours), median(floor))
}

// countRequests notes what the node's agent asked the API server while ADDs were timed.
func (b *bench) countRequests(r *CNIReport, windows []Window) error {
	all, err := b.l.Requests()
	if err != nil {
		return err
	}
	for _, request := range all {
		if request.User != lab.AgentUser(podNode) {
			continue
		}
		for _, w := range windows {
			switch {
			case request.Received.Before(w.From) || !request.Received.Before(w.To):
			case request.Verb == "watch":
				r.APIWatches++
			default:
				r.APIRequests++
				r.APIRequestURIs = append(r.APIRequestURIs, request.Verb+" "+request.URI)
			}
		}
	}
	return nil
}
