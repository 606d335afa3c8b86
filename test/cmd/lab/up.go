package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
)

// defaultName is the lab that commands mean when none is named.
const defaultName = "lab"

type upOptions struct {
	name        string
	nodes, pods int
}

func (o *upOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.name, "name", defaultName, "name of the lab; its network namespaces are called NAME-node1, ...")
	cmd.Flags().IntVar(&o.nodes, "nodes", 3, "number of nodes")
	cmd.Flags().IntVar(&o.pods, "pods", 1, "number of pods on every node")
}

func upCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster and keep it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return up(cmd.Context(), o) },
	}
	o.flags(cmd)
	return cmd
}

// up starts a process that holds the lab, shows its progress, and leaves it behind.
func up(ctx context.Context, o upOptions) error {
	if o.nodes < 1 || o.nodes > 200 {
		return fmt.Errorf("--nodes %d: want 1 to 200", o.nodes)
	}
	if _, ready, err := lab.Owner(o.name); err == nil && ready {
		fmt.Printf("The lab %q is up already: `build/bin/lab list --name %[1]s` shows it, `build/bin/lab down --name %[1]s` ends it.\n", o.name)
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	holder := exec.Command(self, "hold", "--name", o.name, fmt.Sprintf("--nodes=%d", o.nodes), fmt.Sprintf("--pods=%d", o.pods))
	holder.ExtraFiles = []*os.File{w} // holdProgress
	holder.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = holder.Start()
	w.Close()
	if err != nil {
		return err
	}
	// Cut off while it starts, it takes down what it has.
	stop := context.AfterFunc(ctx, func() { _ = holder.Process.Signal(unix.SIGTERM) })
	defer stop()
	if _, err := io.Copy(os.Stdout, r); err != nil {
		return err
	}
	// The holder has closed its end: the lab is ready, or the holder is about to end.
	if owner, ready, err := lab.Owner(o.name); err != nil || !ready || owner != holder.Process.Pid {
		_ = holder.Wait()
		return errors.New("the lab is not up")
	}
	return nil
}

func howToPlay(out io.Writer, l *lab.Lab) {
	option := ""
	if l.Name() != defaultName {
		option = "--name " + l.Name() + " "
	}
	lines := [][2]string{
		{"netctl %snode1 node status", "BGP sessions, as node1's agent sees them"},
		{"netctl %snode1 ipam show", "its blocks and addresses"},
		{"exec %snode1 -- ip route", "its routes"},
	}
	var pods []*lab.Pod
	for _, n := range l.Nodes() {
		pods = append(pods, n.Pods()...)
	}
	if len(pods) > 0 {
		first, last := pods[0], pods[len(pods)-1]
		lines = append(lines,
			[2]string{"exec %s" + first.Name + " -- ip route", "routes in a pod"},
			[2]string{"exec %s" + first.Name + " -- curl -s " + last.IP().String(), "from pod to pod"})
	}
	lines = append(lines,
		[2]string{"exec %soutside -- bash", "a shell on a host outside the cluster"},
		[2]string{"kubectl %sget ippools,ipamblocks", "what the API server knows"},
		[2]string{"list %s", "machines, pods, addresses"},
		[2]string{"down %s", "the end"})
	fmt.Fprint(out, "\nThe lab is up. Things to try:\n\n")
	for _, line := range lines {
		fmt.Fprintf(out, "  %-50s  %s\n", "build/bin/lab "+fmt.Sprintf(line[0], option), line[1])
	}
}

// podName is the name of the n-th pod of a node in `lab up` and `lab demo`.
func podName(node, n int) string { return fmt.Sprintf("web%d%c", node, 'a'+n-1) }

// holdProgress is the descriptor that the holder writes its progress to.
const holdProgress = 3

func holdCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:    "hold",
		Short:  "Hold a lab until SIGTERM; lab up runs it",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			unix.CloseOnExec(holdProgress) // or lab up would wait for the servers too
			progress := os.NewFile(holdProgress, "progress")
			err := hold(cmd.Context(), o, progress)
			if err != nil {
				fmt.Fprintln(progress, "lab:", err)
			}
			return err
		},
	}
	o.flags(cmd)
	return cmd
}

// hold starts a lab and ends it when ctx ends.
func hold(ctx context.Context, o upOptions, progress io.WriteCloser) error {
	l, err := start(ctx, lab.Config{Name: o.name, Nodes: lab.Nodes(o.nodes), Progress: progress})
	if err != nil {
		return err
	}
	for i, n := range l.Nodes() {
		for k := range o.pods {
			if _, err := n.AddPod(ctx, podName(i+1, k+1), lab.PodOptions{}); err != nil {
				return errors.Join(err, l.Close())
			}
		}
	}
	if err := errors.Join(l.WaitMesh(ctx), l.WaitRoutes(ctx)); err != nil {
		return errors.Join(err, l.Close())
	}
	howToPlay(progress, l)
	progress.Close()
	<-ctx.Done()
	return l.Close()
}

// start builds what may be missing and starts a lab with the default pool.
func start(ctx context.Context, config lab.Config) (*lab.Lab, error) {
	root, err := lab.FindRoot()
	if err != nil {
		return nil, err
	}
	config.Root = root
	if err := lab.BuildPlugins(ctx, root, func(line string) { fmt.Fprintln(config.Progress, line) }); err != nil {
		return nil, err
	}
	config.Objects = append(config.Objects, client.Object(lab.DefaultPool()))
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	return lab.Start(ctx, config)
}

func downCommand() *cobra.Command {
	var name string
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Remove what lab up started, and what labs that died have left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := []string{name}
			if all {
				var err error
				if names, err = lab.Names(); err != nil {
					return err
				}
			}
			for _, n := range names {
				was, err := lab.Down(cmd.Context(), n)
				if err != nil {
					return err
				}
				if was {
					fmt.Printf("lab %s: removed\n", n)
				} else {
					fmt.Printf("lab %s: there is none\n", n)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", defaultName, "name of the lab")
	cmd.Flags().BoolVar(&all, "all", false, "every lab on this machine, those of running tests too")
	return cmd
}
