// Package labtest gives tests a lab.
//
//	ctx := labtest.Context(t, time.Minute)
//	l := labtest.Start(t, lab.Config{Objects: []client.Object{lab.DefaultPool()}})
//	a := labtest.AddPod(t, l.Node("node1"), "a", lab.PodOptions{})
//
// A lab ends with its test. If the test has failed, the ends of all logs are shown.
package labtest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/hoplite-net/hoplite/test/lab"
)

// noSkip, when set to 1, turns a skip into a failure.
const noSkip = "HOPLITE_NO_SKIP"

// startTime is how long a lab may take to come up, on a very busy machine.
const startTime = 3 * time.Minute

// Require skips the test where there can be no lab, with the reason. With
// HOPLITE_NO_SKIP=1 it fails the test instead.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	const reason = "needs root to make namespaces: run with sudo"
	if os.Getenv(noSkip) == "1" {
		t.Fatalf("%s (and %s=1 forbids skipping)", reason, noSkip)
	}
	t.Skip(reason)
}

// Context ends with the test, or after the time if that is sooner.
func Context(t testing.TB, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// Start starts a lab that ends with the test. Several may be up at once.
func Start(t testing.TB, config lab.Config) *lab.Lab {
	t.Helper()
	Require(t)
	quiet()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	if config.Root == "" {
		root, err := lab.FindRoot()
		if err != nil {
			t.Fatal(err)
		}
		config.Root = root
	}
	if err := lab.BuildPlugins(ctx, config.Root, func(line string) { t.Log(line) }); err != nil {
		t.Fatal(err)
	}
	l, err := lab.Start(ctx, config)
	if err != nil {
		t.Fatalf("start a lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			showLogs(t, l)
		}
		if err := l.Close(); err != nil {
			t.Errorf("end the lab: %v", err)
		}
	})
	return l
}

// quiet gives controller-runtime, which the lab's API client comes from, the
// logger it would otherwise ask for on standard error.
var quiet = sync.OnceFunc(func() { log.SetLogger(logr.Discard()) })

// AddPod adds a pod or fails the test. The pod ends with the lab.
func AddPod(t testing.TB, node *lab.Node, name string, options lab.PodOptions) *lab.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pod, err := node.AddPod(ctx, name, options)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// Eventually fails the test if ready does not return nil in time.
func Eventually(t testing.TB, within time.Duration, what string, ready func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if err := lab.Until(ctx, what, ready); err != nil {
		t.Fatal(err)
	}
}

// showLogs shows the end of every log. HOPLITE_LAB_LOGS names a directory to keep them whole in.
func showLogs(t testing.TB, l *lab.Lab) {
	files, _ := filepath.Glob(filepath.Join(l.Logs(), "*.log"))
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil || len(content) == 0 {
			continue
		}
		if keep := os.Getenv("HOPLITE_LAB_LOGS"); keep != "" {
			dir := filepath.Join(keep, l.Name())
			if err := os.MkdirAll(dir, 0o755); err == nil {
				err = os.WriteFile(filepath.Join(dir, filepath.Base(file)), content, 0o644)
				t.Logf("log kept in %s (%v)", dir, err)
			}
		}
		lines := bytes.Split(bytes.TrimRight(content, "\n"), []byte("\n"))
		if len(lines) > 40 {
			lines = lines[len(lines)-40:]
		}
		t.Logf("end of %s:\n%s", filepath.Base(file), bytes.Join(lines, []byte("\n")))
	}
}
