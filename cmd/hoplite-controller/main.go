// Command hoplite-controller does the work that one process in the cluster is
// to do: it keeps the status of the IPPools, and those being deleted until nobody
// uses them. Flags and wiring only.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam/poolstatus"
)

type options struct {
	kubeconfig      string
	leaderElect     bool
	leaderNamespace string
	metricsAddress  string
	healthAddress   string
	logLevel        string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "hoplite-controller:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "hoplite-controller",
		Short:         "Keeps the status of the cluster's IPPools, and each until nobody uses it",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return run(c.Context(), o) },
	}
	f := c.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig; empty: KUBECONFIG, else the pod's service account")
	f.BoolVar(&o.leaderElect, "leader-elect", true, "work only while holding the Lease hoplite-controller, so that several may run")
	f.StringVar(&o.leaderNamespace, "leader-elect-namespace", "hoplite-system", "namespace of the Lease")
	f.StringVar(&o.metricsAddress, "metrics-bind-address", ":9476", "address for /metrics; 0: none")
	f.StringVar(&o.healthAddress, "health-bind-address", ":9477", "address for /healthz and /readyz; 0: none")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	return c
}

func run(ctx context.Context, o options) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("--log-level %q: write debug, info, warn or error", o.logLevel)
	}
	log := slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})
	ctrl.SetLogger(logr.FromSlogHandler(log))
	klog.SetSlogLogger(slog.New(log))

	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return fmt.Errorf("find the Kubernetes API: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         map[client.Object]cache.ByObject{&corev1.Node{}: {Transform: poolstatus.SlimNode}},
		},
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              "hoplite-controller",
		LeaderElectionNamespace:       o.leaderNamespace,
		LeaderElectionReleaseOnCancel: true, // nothing here works on after run returns
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:        o.healthAddress,
	})
	if err != nil {
		return fmt.Errorf("prepare the controller: %w", err)
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	if err := mgr.AddReadyzCheck("watch", func(r *http.Request) error { return synced(r.Context(), mgr.GetCache()) }); err != nil {
		return err
	}
	if err := poolstatus.Setup(ctx, mgr); err != nil {
		return err
	}
	slog.New(log).Info("started", "leaderElect", o.leaderElect)
	return mgr.Start(ctx)
}

// synced is an error until the pools, blocks and nodes have been read once.
func synced(ctx context.Context, c cache.Cache) error {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if !c.WaitForCacheSync(ctx) {
		return errors.New("pools, blocks and nodes have not been read from the Kubernetes API yet")
	}
	return nil
}
