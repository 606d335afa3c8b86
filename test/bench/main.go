// Command bench measures Hoplite on this machine, in a lab of its own, each
// figure beside its floor or beside a program that does the same, all in one
// run:
//
//	cni      ADD and DEL by raw exec of the plugin, next to a program that does
//	         nothing plus the bare netlink work, and next to ptp + host-local
//	routes   from a peer's first UPDATE to the last route in the kernel, next to BIRD
//	restart  packets lost while an agent restarts, route events at its neighbours
//	memory   of an agent: idle, with 100 peers, with 100,000 routes
//	modes    throughput and round trip of each mode, next to tunnels made by hand
//	mode_change  packets lost while a pool's mode is changed, from each to each other
//
// Where the kernel has no IP-in-IP tunnels, what needs them is measured on the
// second kernel, a user-mode Linux.
//
// It writes report.json, for programs, and report.md, for people. A figure that
// misses its aim is reported and is no error.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/uml"
)

func main() {
	log.SetLogger(logr.Discard()) // controller-runtime's, which the API client comes from
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	only   []string
	out    string
	adds   int
	repeat int
}

// parts are what can be measured, in the order of measuring: what fills an
// agent's memory comes after what must find it fresh.
var parts = []struct {
	name    string
	lab     labKind
	measure func(*bench, context.Context) error
}{
	{"cni", clusterLab, (*bench).measureCNI},
	{"routes", clusterLab, (*bench).measureRoutes},
	{"restart", clusterLab, (*bench).measureRestart},
	{"memory", clusterLab, (*bench).measureMemory},
	{"modes", modesLab, (*bench).measureModes},
	{"mode_change", modesLab, (*bench).measureModeChange},
}

// labKind is one of the labs that parts need. Only one is up at a time.
type labKind int

const (
	noLab      labKind = iota
	clusterLab         // what startLab starts
	modesLab           // what startModesLab starts
)

func command() *cobra.Command {
	var o options
	var all []string
	for _, p := range parts {
		all = append(all, p.name)
	}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure Hoplite on this machine; writes report.json and report.md",
		Long: "bench starts labs of three nodes and measures in them; see report.md for what and how.\n" +
			"Whatever happens, Ctrl-C included, it leaves nothing behind but the reports.",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o) },
	}
	cmd.Flags().StringSliceVar(&o.only, "only", all, "parts to measure")
	cmd.Flags().StringVar(&o.out, "out", "build/bench", "directory of the reports, from the checkout's root")
	cmd.Flags().IntVar(&o.adds, "adds", 200, "sequential ADDs and DELs of each kind")
	cmd.Flags().IntVar(&o.repeat, "repeat", 3, "repetitions of what is measured several times")
	cmd.AddCommand(runnerCommand())
	return cmd
}

// bench is one run.
type bench struct {
	options
	root   string
	start  time.Time
	l      *lab.Lab
	kind   labKind // of l
	ipip   bool    // this kernel has it
	report Report

	sender *lab.Machine // made by whichever part needs it first
	pods   []*lab.Pod   // of the lab for modes, one on each node
}

func run(ctx context.Context, o options) (err error) {
	b := &bench{options: o, start: time.Now()}
	if err := b.check(); err != nil {
		return err
	}
	if b.root, err = lab.FindRoot(); err != nil {
		return err
	}
	if !filepath.IsAbs(b.out) {
		b.out = filepath.Join(b.root, b.out)
	}
	if b.report.Machine, err = machineFacts(ctx, b.root); err != nil {
		return err
	}
	if b.ipip, err = uml.HasIPIP(); err != nil {
		return err
	}
	err = b.measure(ctx)
	if ctx.Err() != nil {
		err = errors.New("interrupted: nothing is left of the lab, and no report is written")
	}
	if closing := b.useLab(ctx, noLab); err == nil {
		err = closing
	}
	if err != nil {
		return err
	}
	b.report.Seconds = seconds(time.Since(b.start))
	return b.report.write(b.out)
}

func (b *bench) check() error {
	if b.adds < 1 || b.repeat < 1 {
		return fmt.Errorf("--adds %d --repeat %d: both are at least 1", b.adds, b.repeat)
	}
	for _, name := range b.only {
		known := make([]string, len(parts))
		for i, p := range parts {
			known[i] = p.name
		}
		if !slices.Contains(known, name) {
			return fmt.Errorf("--only %s: there are %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}

func (b *bench) measure(ctx context.Context) error {
	var elsewhere []string
	for _, p := range parts {
		if !slices.Contains(b.only, p.name) {
			continue
		}
		if err := b.useLab(ctx, p.lab); err != nil {
			return err
		}
		b.say("%s", p.name)
		if err := p.measure(b, ctx); err != nil {
			return fmt.Errorf("measure %s: %w", p.name, err)
		}
		if p.lab == modesLab && !b.ipip {
			elsewhere = append(elsewhere, p.name)
		}
	}
	if len(elsewhere) == 0 {
		return nil
	}
	if err := b.useLab(ctx, noLab); err != nil {
		return err
	}
	return b.measureSecondKernel(ctx, elsewhere)
}

// useLab has a lab of the kind up, and no other.
func (b *bench) useLab(ctx context.Context, kind labKind) error {
	if b.kind == kind {
		return nil
	}
	if b.l != nil {
		if err := b.l.Close(); err != nil {
			return err
		}
		b.l = nil
	}
	b.kind = kind
	switch kind {
	case clusterLab:
		return b.startLab(ctx)
	case modesLab:
		return b.startModesLab(ctx)
	}
	return nil
}

// say tells the user what goes on.
func (b *bench) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(b.start).Seconds(), fmt.Sprintf(format, args...))
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
