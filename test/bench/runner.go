package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

// The runner is this program inside a node: it starts plugins as a container
// runtime there would, so that no time is spent on entering the node.

// Plan is what the runner is to do.
type Plan struct {
	// Trivial is the program that does nothing.
	Trivial string
	// Adds are the sequential ADDs of each kind.
	Adds int
	// Rounds are those of the parallel measurement.
	Rounds int
}

// Outcome is what the runner has measured, by the kinds' names.
type Outcome struct {
	Kinds map[string]*Timings
	// Warm are the times between which Hoplite's ADDs were measured.
	Warm []Window
}

// Timings are one kind's.
type Timings struct {
	Add, Del                 []time.Duration // one after the other
	ParallelAdd, ParallelDel []time.Duration // 16 at a time
	AddRates, DelRates       []float64       // per second, one for each round
	AddCPU, DelCPU           []time.Duration // processor time of one command, one for each round
}

// Window is a span of time.
type Window struct{ From, To time.Time }

const (
	// parallel is how many commands run at a time in the parallel measurement.
	parallel = 16
	// seqPods is how many pods of each kind there are at most in the sequential one.
	seqPods = 50
	// warmUp is how many ADDs and DELs of each kind come before any is timed.
	warmUp = 8
)

func runnerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "runner",
		Short:  "Start CNI plugins and time them (bench runs it inside a node)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var plan Plan
			if err := json.NewDecoder(os.Stdin).Decode(&plan); err != nil {
				return fmt.Errorf("read the plan: %w", err)
			}
			outcome, err := plan.run(cmd.Context())
			if err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(outcome)
		},
	}
}

// kind is one way to connect a pod. Pods are numbered; calls for different pods may come at the same time.
type kind interface {
	name() string
	add(ctx context.Context, pod int) error
	del(ctx context.Context, pod int) error
}

// run has the pods' namespaces made before anything is timed.
func (p Plan) run(ctx context.Context) (*Outcome, error) {
	kinds := 3
	pods, err := makePods(ctx, kinds*seqPods)
	if err != nil {
		return nil, err
	}
	// The floor's and ptp's pods hang on a namespace without an agent, which would look at every interface that comes.
	host, err := makeSpace(ctx, "bench-host")
	if err != nil {
		return nil, err
	}
	r := &runner{pods: pods, outcome: &Outcome{Kinds: map[string]*Timings{}}}
	floor, err := newFloor(p.Trivial, pods, host)
	if err != nil {
		return nil, err
	}
	if r.agent, err = findProcess("hoplite-agent"); err != nil {
		return nil, err
	}
	r.kinds = []kind{floor, newHoplite(pods), newPTP(pods, host)}
	for _, k := range r.kinds {
		r.outcome.Kinds[k.name()] = &Timings{}
	}
	if err := r.sequential(ctx, warmUp); err != nil {
		return nil, fmt.Errorf("warm-up: %w", err)
	}
	for _, k := range r.kinds {
		*r.outcome.Kinds[k.name()] = Timings{}
	}
	r.outcome.Warm = nil
	for left := p.Adds; left > 0; left -= seqPods {
		if err := r.sequential(ctx, min(left, seqPods)); err != nil {
			return nil, err
		}
	}
	for range p.Rounds {
		if err := r.parallel(ctx); err != nil {
			return nil, err
		}
	}
	return r.outcome, nil
}

type runner struct {
	pods    []*pod
	kinds   []kind
	outcome *Outcome
	agent   int // its process
	turn    int // who begins
}

// order is the kinds, each time with another one first.
func (r *runner) order() []int {
	r.turn++
	order := make([]int, len(r.kinds))
	for i := range order {
		order[i] = (i + r.turn) % len(r.kinds)
	}
	return order
}

// sequential adds n pods of each kind, the kinds by turns so that what else the
// machine does hits all alike, then deletes them. Deletions go kind by kind:
// Hoplite's go on behind the caller's back and would disturb the others.
func (r *runner) sequential(ctx context.Context, n int) error {
	window := Window{From: time.Now()}
	for i := range n {
		for _, which := range r.order() {
			k := r.kinds[which]
			took, err := timed(func() error { return k.add(ctx, which*seqPods+i) })
			if err != nil {
				return err
			}
			t := r.outcome.Kinds[k.name()]
			t.Add = append(t.Add, took)
		}
	}
	window.To = time.Now()
	r.outcome.Warm = append(r.outcome.Warm, window)
	for _, which := range r.order() {
		k := r.kinds[which]
		t := r.outcome.Kinds[k.name()]
		for i := range n {
			took, err := timed(func() error { return k.del(ctx, which*seqPods+i) })
			if err != nil {
				return err
			}
			t.Del = append(t.Del, took)
		}
		if err := waitEmpty(ctx, r.pods[which*seqPods:][:n]); err != nil {
			return err
		}
	}
	return nil
}

// parallel adds all pods with each kind in turn, 16 at a time, and deletes them so.
func (r *runner) parallel(ctx context.Context) error {
	for _, which := range r.order() {
		k := r.kinds[which]
		t := r.outcome.Kinds[k.name()]
		window := Window{From: time.Now()}
		took, rate, cpu, err := r.atOnce(func(i int) error { return k.add(ctx, i) })
		if err != nil {
			return err
		}
		window.To = time.Now()
		if k.name() == hopliteName {
			r.outcome.Warm = append(r.outcome.Warm, window)
		}
		t.ParallelAdd, t.AddRates, t.AddCPU = append(t.ParallelAdd, took...), append(t.AddRates, rate), append(t.AddCPU, cpu)
		took, rate, cpu, err = r.atOnce(func(i int) error { return k.del(ctx, i) })
		if err != nil {
			return err
		}
		t.ParallelDel, t.DelRates, t.DelCPU = append(t.ParallelDel, took...), append(t.DelRates, rate), append(t.DelCPU, cpu)
		if err := waitEmpty(ctx, r.pods); err != nil {
			return err
		}
	}
	return nil
}

// atOnce calls f for every pod, 16 calls at a time. It returns what each took,
// how many came to an end per second, and the processor time of one: of this
// process, of what it started, and of the agent.
func (r *runner) atOnce(f func(pod int) error) (took []time.Duration, perSecond float64, cpu time.Duration, err error) {
	took = make([]time.Duration, len(r.pods))
	errs := make([]error, len(r.pods))
	var next atomic.Int64
	var workers sync.WaitGroup
	usedBefore, err := r.used()
	if err != nil {
		return nil, 0, 0, err
	}
	start := time.Now()
	for range parallel {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(r.pods); i = int(next.Add(1)) - 1 {
				took[i], errs[i] = timed(func() error { return f(i) })
			}
		})
	}
	workers.Wait()
	perSecond = float64(len(r.pods)) / time.Since(start).Seconds()
	used, err := r.used()
	return took, perSecond, (used - usedBefore) / time.Duration(len(r.pods)), errors.Join(append(errs, err)...)
}

// used is the processor time used so far.
func (r *runner) used() (time.Duration, error) {
	agent, err := processTime(r.agent)
	if err != nil {
		return 0, err
	}
	own, err := ownTime()
	return agent + own, err
}

func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// waitEmpty waits until none of the pods has an interface, so that the names are free again.
func waitEmpty(ctx context.Context, pods []*pod) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, p := range pods {
		for !p.empty() {
			if err := pause(ctx, 5*time.Millisecond); err != nil {
				return fmt.Errorf("wait for the end of %s's interface after its DEL: %w", p.name, err)
			}
		}
	}
	return nil
}
