// Command hoplite-agent is the daemon that runs on every node.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/go-logr/logr"

	"github.com/hoplite-net/hoplite/agent"
	"github.com/hoplite-net/hoplite/api"
)

// gcPercent lets the heap grow to three times what is live before it is
// collected: learning 100,000 routes then costs a quarter less CPU, and an idle
// agent's heap is small either way. The environment's GOGC goes before it.
const gcPercent = 200

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "hoplite-agent:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	config := agent.Config{}
	var kubeconfig, level string
	cmd := &cobra.Command{
		Use:   "hoplite-agent",
		Short: "Hoplite's node daemon: pods' interfaces, blocks, routes, BGP",
		Long: "hoplite-agent gives the pods of its node addresses and interfaces, advertises the node's blocks by BGP\n" +
			"and keeps the kernel's routes. Stopping it changes nothing in the kernel; pods go on.",
		Version:       api.Version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(level)
			if err != nil {
				return err
			}
			config.Log = log
			// client-go and controller-runtime log through logr; one format for all.
			ctrl.SetLogger(logr.FromSlogHandler(log.Handler()))
			if config.API, err = apiConfig(kubeconfig); err != nil {
				return err
			}
			return agent.Run(cmd.Context(), config)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&config.NodeName, "node-name", os.Getenv("NODE_NAME"), "name of this machine's Node object (default $NODE_NAME)")
	flags.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig file (default: the pod's service account)")
	flags.StringVar(&config.Dir, "dir", agent.DefaultDir, "directory for the socket and for what outlives a restart but not a reboot")
	flags.StringVar(&config.MetricsAddress, "metrics-address", ":9475", "address to serve /metrics, /healthz and /readyz on")
	flags.StringVar(&config.IPTablesMode, "iptables", "auto", "iptables back end: auto, nft or legacy")
	flags.BoolVar(&config.VXLANChecksumOffload, "vxlan-checksum-offload", true,
		"leave checksums of packets in VXLAN to the network card; false if they arrive wrong")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func logger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(level))); err != nil {
		return nil, fmt.Errorf("--log-level %q: write debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

func apiConfig(kubeconfig string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("find the Kubernetes API: %w (outside a pod, set --kubeconfig)", err)
	}
	// An agent asks little, but a node that starts with many pods claims several blocks at once.
	config.QPS, config.Burst = 20, 40
	config.UserAgent = "hoplite-agent/" + api.Version
	return config, nil
}
