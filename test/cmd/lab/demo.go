package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hoplite-net/hoplite/test/lab"
)

func demoCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show three nodes, their pods and BGP from start to end; leaves nothing behind",
		Long: "demo starts a cluster of three nodes, shows what a newcomer would want to see, and verifies all that it shows.\n" +
			"It exits with 1 if anything was wrong. Whatever happens, Ctrl-C included, it leaves nothing behind.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return demonstrate(cmd.Context(), name, os.Stdout) },
	}
	cmd.Flags().StringVar(&name, "name", "demo", "name of the lab")
	return cmd
}

const (
	demoNodes      = 3
	demoPodsOnNode = 2
	demoHostPort   = 8080
)

// demo is a run of the demonstration.
type demo struct {
	screen
	l    *lab.Lab
	pods []*lab.Pod
	// exposed is the pod with a host port.
	exposed *lab.Pod
}

// section is one part of the demonstration. Its error ends the demonstration;
// what is wrong without being an error is noted by check.
type section struct {
	title string
	show  func(*demo, context.Context) error
}

var sections = []section{
	{"Pods, started through the CNI protocol", (*demo).showPods},
	{"BGP: every agent has a session with every other node", (*demo).showSessions},
	{"Addresses: each node has claimed a block of 64", (*demo).showAddresses},
	{"Routes on a node, and in a pod", (*demo).showRoutes},
	{"Everybody reaches everybody, by their own addresses", (*demo).showMatrix},
	{"natOutgoing: to the world outside, a pod has its node's address", (*demo).showOutgoing},
	{"A host port: the world outside reaches a pod", (*demo).showHostPort},
	{"An agent is killed and started again: packets do not notice", (*demo).showRestart},
	{"The pool's mode is changed: packets and connections do not notice", (*demo).showModes},
}

var errInterrupted = errors.New("interrupted; nothing is left")

func demonstrate(ctx context.Context, name string, out io.Writer) (err error) {
	d := &demo{screen: screen{out: out, bold: isTerminal(out)}}
	d.heading("A cluster of three nodes on this machine")
	begin := time.Now()
	if d.l, err = start(ctx, lab.Config{Name: name, Nodes: lab.Nodes(demoNodes), Progress: indent(out)}); err != nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	defer func() { err = errors.Join(err, d.end(begin)) }()
	d.showMachines()
	for _, s := range sections {
		d.heading(s.title)
		if err := s.show(d, ctx); err != nil {
			if ctx.Err() != nil {
				return errInterrupted
			}
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return nil
}

// end takes the lab down and sums up.
func (d *demo) end(begin time.Time) error {
	d.heading("The end")
	if err := d.l.Close(); err != nil {
		return err
	}
	d.say("The lab is gone: no process, namespace, mount or file of it is left. It took %.0f s in all.", time.Since(begin).Seconds())
	if len(d.wrong) > 0 {
		return fmt.Errorf("not all was as it should be:\n  - %s", strings.Join(d.wrong, "\n  - "))
	}
	return nil
}

func (d *demo) showMachines() {
	d.say("\nEach machine is a set of namespaces; the host's own network is not touched.\n")
	rows := [][]string{{"MACHINE", "ADDRESS", "WHAT IT IS"}}
	for _, n := range d.l.Nodes() {
		rows = append(rows, []string{n.Name, n.IP().String(), "a node: hoplite-agent, CNI plugins, pods"})
	}
	for _, m := range []struct {
		*lab.Machine
		what string
	}{
		{d.l.Control(), "etcd, kube-apiserver, hoplite-controller"},
		{d.l.Outside(), "a host in the world outside, which knows no pod routes"},
	} {
		rows = append(rows, []string{m.Name, m.Addresses[0].String(), m.what})
	}
	rows = append(rows, []string{"fabric", "172.30.1.1", "switch and router between them; it knows no pod routes either"})
	d.table(rows)
}

func (d *demo) showPods(ctx context.Context) error {
	d.say("The nodes' CNI configuration, carried out by libcni:\n")
	d.block(lab.Conflist)
	rows := [][]string{{"POD", "NODE", "ADDRESS", "INTERFACE ON THE NODE", "ADD TOOK"}}
	for i, n := range d.l.Nodes() {
		for k := range demoPodsOnNode {
			options := lab.PodOptions{}
			expose := i == 1 && k == 0
			if expose {
				options.PortMappings = []lab.PortMapping{{HostPort: demoHostPort, ContainerPort: 80, Protocol: "tcp"}}
			}
			begin := time.Now()
			p, err := n.AddPod(ctx, podName(i+1, k+1), options)
			if err != nil {
				return err
			}
			took := time.Since(begin)
			d.pods = append(d.pods, p)
			if expose {
				d.exposed = p
			}
			if err := p.Check(ctx); err != nil {
				d.check(false, "CNI CHECK of pod %s: %v", p.Name, err)
			}
			rows = append(rows, []string{p.Name, n.Name, p.IP().String(), p.Result.Interfaces[0].Name, fmt.Sprintf("%d ms", took.Milliseconds())})
		}
	}
	d.table(rows)
	d.say("\nThe time is that of libcni, all three plugins and the start of the pod's server; the first on each node also claimed the block.")
	return nil
}

func (d *demo) showSessions(ctx context.Context) error {
	if err := d.l.WaitMesh(ctx); err != nil {
		return err
	}
	for _, n := range d.l.Nodes() {
		out, err := d.run(n.Command(ctx, d.l.Binary("netctl"), "node", "status"), n.Name, "netctl node status")
		if err != nil {
			return err
		}
		established := strings.Count(out, "Established")
		d.check(established == demoNodes-1, "%s has %d established sessions, not %d", n.Name, established, demoNodes-1)
	}
	return nil
}

func (d *demo) showAddresses(ctx context.Context) error {
	for _, n := range d.l.Nodes() {
		out, err := d.run(n.Command(ctx, d.l.Binary("netctl"), "ipam", "show"), n.Name, "netctl ipam show")
		if err != nil {
			return err
		}
		d.check(strings.Contains(out, "/26"), "netctl ipam show on %s shows no /26 block", n.Name)
	}
	out, err := d.run(d.l.Kubectl(ctx, "get", "ippools,ipamblocks"), "anywhere", "kubectl get ippools,ipamblocks")
	if err != nil {
		return err
	}
	for _, n := range d.l.Nodes() {
		d.check(strings.Contains(out, n.Name), "kubectl shows no block of %s", n.Name)
	}
	return nil
}
