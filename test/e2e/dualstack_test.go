package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// With a pool of each family, a pod has an address of each, and pods and nodes reach each other by both.
func TestDualStack(t *testing.T) {
	ctx := labtest.Context(t, long)
	six := lab.DefaultPool()
	six.Name, six.Spec.CIDR = "six", "fd00:10:244::/64"
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), DualStack: true, Objects: []client.Object{lab.DefaultPool(), six}})
	if err := l.Outside().Serve(ctx); err != nil {
		t.Fatal(err)
	}
	var pods []*lab.Pod
	for _, node := range l.Nodes() {
		if err := node.Serve(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			pod := labtest.AddPod(t, node, fmt.Sprintf("dual-%d-%s", i, node.Name), lab.PodOptions{})
			if ips := pod.IPs(); len(ips) != 2 || !ips[0].Is4() || !ips[1].Is6() ||
				!netip.MustParsePrefix(six.Spec.CIDR).Contains(ips[1]) {
				t.Fatalf("pod %s has %v, want an IPv4 address and one of %s", pod.Name, pod.IPs(), six.Spec.CIDR)
			}
			pods = append(pods, pod)
		}
	}
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.Nodes() {
		for _, pod := range pods {
			if pod.Node != node {
				if err := node.WaitRoute(ctx, pod.IPs()[1], pod.Node.Addresses[1]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, from := range pods {
			for _, to := range pods {
				sees(t, ctx, fmt.Sprintf("%s: pod %s to pod %s", name, from.Name, to.Name), from, serverURL(to.IPs()[family]), from.IPs()[family])
			}
			for _, node := range l.Nodes() {
				sees(t, ctx, fmt.Sprintf("%s: pod %s to %s", name, from.Name, node.Name), from, serverURL(node.Addresses[family]), from.IPs()[family])
				sees(t, ctx, fmt.Sprintf("%s: %s to pod %s", name, node.Name, from.Name), node, serverURL(from.IPs()[family]), node.Addresses[family])
			}
			sees(t, ctx, fmt.Sprintf("%s: pod %s to the outside", name, from.Name), from, serverURL(l.Outside().Addresses[family]), from.Node.Addresses[family])
		}
	}
	restarted := l.Nodes()[0]
	if err := restarted.Agent.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	all, err := restarted.Agent.IPAM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, b := range all.GetBlocks() {
		for _, a := range b.GetAddresses() {
			known = append(known, a.GetAddress())
		}
	}
	for _, pod := range restarted.Pods() {
		for _, a := range pod.IPs() {
			if !slices.Contains(known, a.String()) {
				t.Errorf("the restarted agent does not know %s of pod %s: %v", a, pod.Name, known)
			}
		}
		if err := pod.Check(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, pod := range pods {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, node := range l.Nodes() {
		labtest.Eventually(t, 30*time.Second, node.Name+" has no address in use", func() error {
			if used := view(t, ctx, node); len(used) > 0 {
				return fmt.Errorf("%v", used)
			}
			return nil
		})
	}
}
