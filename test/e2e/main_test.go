// Package e2e tests Hoplite as a whole: real agents on nodes made of
// namespaces, against a real API server, driven through the CNI protocol.
package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/go-logr/logr"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
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

func serverURL(a netip.Addr) string {
	return "http://" + netip.AddrPortFrom(a, 80).String() + "/clientip"
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// noLeak fails the test unless every agent has just the addresses of its pods,
// each once, and the kernel has just their interfaces and routes.
func noLeak(t *testing.T, ctx context.Context, l *lab.Lab) {
	t.Helper()
	owners := map[string]string{}
	for _, node := range l.Nodes() {
		want := map[string]bool{}
		for _, pod := range node.Pods() {
			for _, a := range pod.IPs() {
				want[a.String()] = true
				if other, taken := owners[a.String()]; taken {
					t.Errorf("pods %s and %s both have %s", pod.Name, other, a)
				}
				owners[a.String()] = pod.Name
			}
		}
		labtest.Eventually(t, 30*time.Second, node.Name+" has its pods' addresses, routes and interfaces, and no others", func() error {
			return exactly(ctx, node, want)
		})
	}
}

// exactly is nil when the node's agent and kernel know just these addresses.
func exactly(ctx context.Context, node *lab.Node, want map[string]bool) error {
	view, err := node.Agent.IPAM(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, block := range view.GetBlocks() {
		for _, a := range block.GetAddresses() {
			known[a.GetAddress()] = true
		}
	}
	if !maps.Equal(known, want) {
		return fmt.Errorf("the agent knows %v, the pods have %v", slices.Sorted(maps.Keys(known)), slices.Sorted(maps.Keys(want)))
	}
	routed, veths := map[string]bool{}, 0
	err = node.Do(func() error {
		routes, err := netlinksafe.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: 104, Type: unix.RTN_UNICAST}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if ones, bits := r.Dst.Mask.Size(); ones == bits && r.Gw == nil {
				routed[r.Dst.IP.String()] = true
			}
		}
		links, err := netlinksafe.LinkList()
		for _, link := range links {
			if strings.HasPrefix(link.Attrs().Name, "hop") {
				veths++
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if !maps.Equal(routed, want) {
		return fmt.Errorf("the kernel routes %v, the pods have %v", slices.Sorted(maps.Keys(routed)), slices.Sorted(maps.Keys(want)))
	}
	if veths != len(want) {
		return fmt.Errorf("%d host veths for %d pods", veths, len(want))
	}
	return nil
}

func TestMain(m *testing.M) {
	// The lab's API client is controller-runtime's, which complains where it has no logger.
	ctrllog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}
