// Package e2e tests Hoplite as a whole: real agents on nodes made of
// namespaces, against a real API server, driven through the CNI protocol.
package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// long bounds a whole test on a busy machine; no test takes nearly as long.
const long = 5 * time.Minute

// startLab is a lab of three nodes with the default pool, its mesh up.
func startLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	ctx := labtest.Context(t, long)
	l := labtest.Start(t, lab.Config{Objects: []client.Object{lab.DefaultPool()}})
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx, l
}

// onePodEach starts a pod on every node and waits for the routes.
func onePodEach(t *testing.T, ctx context.Context, l *lab.Lab) []*lab.Pod {
	t.Helper()
	var pods []*lab.Pod
	for _, node := range l.Nodes() {
		pods = append(pods, labtest.AddPod(t, node, "on-"+node.Name, lab.PodOptions{}))
	}
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	return pods
}

type getter interface {
	Get(ctx context.Context, url string) (string, error)
}

// sees fails the test unless from reaches the URL and is seen there as want.
func sees(t *testing.T, ctx context.Context, what string, from getter, url string, want netip.Addr) {
	t.Helper()
	body, err := from.Get(ctx, url)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if got, err := netip.ParseAddrPort(body); err != nil || got.Addr() != want {
		t.Errorf("%s: the server saw %s, want %s", what, body, want)
	}
}

func serverURL(a netip.Addr) string { return "http://" + netip.AddrPortFrom(a, 80).String() + "/clientip" }

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
