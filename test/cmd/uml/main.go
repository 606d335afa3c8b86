// Command uml runs a command on the lab's second kernel, a user-mode Linux.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/test/uml"
	"github.com/hoplite-net/hoplite/test/uml/inside"
)

// failed is the exit code when it is this program that failed and not the command, as env and timeout have it.
const failed = 125

func main() {
	if dir := os.Getenv(inside.JobEnv); dir != "" && os.Getpid() == 1 {
		inside.Init(dir)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	code := failed
	err := command(&code).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "uml:", err)
		code = failed
	}
	os.Exit(code)
}

func command(code *int) *cobra.Command {
	var o uml.Options
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "uml [flags] -- COMMAND [ARGUMENT]...",
		Short: "Run a command on the lab's second kernel, a user-mode Linux",
		Long: "uml boots a kernel of its own for the command, which sees this machine's files and runs its programs as root.\n" +
			"Changes to the file system are gone afterwards, except in directories given with --write. There is no network but lo.\n" +
			"It exits with the command's exit code, or 125 if the command could not be run.",
		Args:          cobra.MinimumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx := cmd.Context()
			if limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %s", limit))
				defer cancel()
			}
			*code, err = uml.Run(ctx, o, args...)
			return err
		},
	}
	self, err := os.Executable()
	if err != nil {
		self = "build/bin/uml"
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Build, "build", filepath.Dir(filepath.Dir(self)), "the build directory, with kernel/linux and bin/uml")
	flags.IntVar(&o.Memory, "memory", uml.DefaultMemory, "the kernel's memory, in MiB")
	flags.StringArrayVar(&o.Write, "write", nil, "a directory the command may write to; may be given several times")
	flags.DurationVar(&limit, "timeout", 0, "kill the kernel after this time")
	flags.SetInterspersed(false)
	o.Stdout, o.Stderr = os.Stdout, os.Stderr
	return cmd
}
