package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/test/lab"
)

func listCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List a lab's machines and pods",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := lab.Open(name)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "MACHINE\tADDRESSES\tNETNS\tPODS")
			for _, m := range l.Machines() {
				var addresses []string
				for _, a := range m.Addresses {
					addresses = append(addresses, a.String())
				}
				fmt.Fprintf(w, "%s\t%s\t%s-%s\t%s\n", m.Name, strings.Join(addresses, " "), name, m.Name, strings.Join(l.Pods(m), " "))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&name, "name", defaultName, "name of the lab")
	return cmd
}

// inLab is a command that runs something in a lab. Flags end with the first argument, so that the rest is the other program's.
func inLab(use, short string, atLeast int, f func(ctx context.Context, l *lab.Remote, args []string) (*lab.Cmd, error)) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.MinimumNArgs(atLeast),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(name)
			if err != nil {
				return err
			}
			// Not this command's context: Ctrl-C at the terminal is for the program that runs.
			c, err := f(context.Background(), l, args)
			if err != nil {
				return err
			}
			signal.Ignore(unix.SIGINT)
			c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
			return c.Run()
		},
	}
	cmd.Flags().StringVar(&name, "name", defaultName, "name of the lab")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func execCommand() *cobra.Command {
	return inLab("exec MACHINE|POD [--] COMMAND [ARG...]", "Run a command inside a machine or a pod", 2,
		func(ctx context.Context, l *lab.Remote, args []string) (*lab.Cmd, error) {
			where, argv := args[0], args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return nil, fmt.Errorf("no command to run in %s", where)
			}
			return l.Command(ctx, where, argv[0], argv[1:]...)
		})
}

func netctlCommand() *cobra.Command {
	return inLab("netctl NODE [ARG...]", "Run netctl on a node", 1,
		func(ctx context.Context, l *lab.Remote, args []string) (*lab.Cmd, error) {
			return l.Command(ctx, args[0], l.Binary("netctl"), args[1:]...)
		})
}

func kubectlCommand() *cobra.Command {
	return inLab("kubectl [ARG...]", "Run kubectl as an administrator", 0,
		func(ctx context.Context, l *lab.Remote, args []string) (*lab.Cmd, error) {
			return l.Kubectl(ctx, args...), nil
		})
}
