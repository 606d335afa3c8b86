// Command lab starts a Hoplite cluster on one machine, made of namespaces: for
// a demonstration (lab demo) or to play with (lab up, lab exec, lab down).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

func main() {
	log.SetLogger(logr.Discard()) // controller-runtime's, which the API client comes from
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	err := command().ExecuteContext(ctx)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit): // of a command that the user gave: it has said why
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "A Hoplite cluster on one machine, made of namespaces",
		Long: "lab starts a Hoplite cluster on one machine: every node is a set of namespaces with an agent in it, joined\n" +
			"by a fabric; the control plane is a real etcd and kube-apiserver. The host's own network is not touched.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(demoCommand(), upCommand(), holdCommand(), downCommand(), listCommand(),
		execCommand(), kubectlCommand(), netctlCommand())
	return root
}
