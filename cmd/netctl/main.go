// Command netctl shows people what Hoplite does on this node.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is set when linking.
var version = "dev"

const defaultSocket = "/run/hoplite/agent.sock"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run is main with its surroundings passed in; it returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		_, _ = fmt.Fprintln(stderr, "netctl:", err)
		return 1
	}
	return 0
}

// options are the flags every command has.
type options struct {
	socket string
	output string
	wait   time.Duration
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:           "netctl",
		Short:         "Show what Hoplite does on this node",
		Long:          "netctl asks the node's agent and shows the answer. It runs on the node, as root.",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return o.checkOutput()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	flags := root.PersistentFlags()
	flags.StringVar(&o.socket, "socket", defaultSocket, "the agent's socket")
	flags.StringVarP(&o.output, "output", "o", "table", "how to print: table, wide, json or yaml")
	flags.DurationVar(&o.wait, "timeout", 10*time.Second, "how long to wait for the agent's answer")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))

	root.AddCommand(
		group("node", "The node, its BGP sessions, tunnels and routes", newNodeStatus(o), newNodeRoutes(o)),
		group("pool", "Pools, and how far the cluster is with their modes", newPoolList(o), newPoolShow(o)),
		group("ipam", "Pools, blocks and addresses", newIPAMShow(o)),
		newVersion(o),
	)
	return root
}

func group(name, short string, commands ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: name, Short: short, RunE: needSubcommand, Args: cobra.ArbitraryArgs}
	g.AddCommand(commands...)
	return g
}

// needSubcommand makes "netctl node" and "netctl node foo" errors: cobra
// otherwise prints help and exits 0, which scripts take for an answer.
func needSubcommand(cmd *cobra.Command, args []string) error {
	var names string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names += fmt.Sprintf("\n  %s\t%s", c.CommandPath(), c.Short)
		}
	}
	if len(args) > 0 {
		return fmt.Errorf("%s has no command %q; there are:%s", cmd.CommandPath(), args[0], names)
	}
	return fmt.Errorf("%s needs a command:%s", cmd.CommandPath(), names)
}
