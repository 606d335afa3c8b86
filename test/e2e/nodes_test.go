package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// gone is how soon a deleted node's routes and peers are gone from all others.
const gone = 10 * time.Second

// A node that is deleted goes from all others; one that is added is reached.
func TestNodeRemovedAndAdded(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	meters := startMeters(t, ctx, pods[0], pods[1])
	lost := l.Nodes()[2]
	if err := lost.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.Nodes() {
		labtest.Eventually(t, gone, node.Name+" has no route and no peer of the deleted node", func() error {
			if routes := output(t, ctx, node, "ip", "route"); strings.Contains(routes, lost.IP().String()) {
				return fmt.Errorf("routes:\n%s", routes)
			}
			status, err := node.Agent.Status(ctx)
			if err == nil && len(status.GetPeers()) != 1 {
				err = fmt.Errorf("peers: %v", status.GetPeers())
			}
			return err
		})
	}
	fresh, err := l.AddNode(ctx, lab.NodeConfig{Name: "node4"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	pod := labtest.AddPod(t, fresh, "on-node4", lab.PodOptions{})
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	sees(t, ctx, "an old node's pod to the new node's", pods[0], pod.URL("/clientip"), pods[0].IP())
	sees(t, ctx, "the new node's pod to an old node's", pod, pods[1].URL("/clientip"), pod.IP())
	noneLost(t, meters)
}

// A node's address changes: its peers follow, and its pods are reached by the new one.
func TestNodeAddressChanges(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	meters := startMeters(t, ctx, pods[0], pods[1])
	node := l.Nodes()[2]
	before := node.IP()
	if err := node.SetOctet(ctx, 99); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	for _, other := range l.Nodes()[:2] {
		if routes := output(t, ctx, other, "ip", "route"); strings.Contains(routes, before.String()+" ") {
			t.Errorf("%s still has routes by the old address:\n%s", other.Name, routes)
		}
	}
	sees(t, ctx, "the moved node's pod to another", pods[2], pods[0].URL("/clientip"), pods[2].IP())
	sees(t, ctx, "another to the moved node's pod", pods[0], pods[2].URL("/clientip"), pods[0].IP())
	if err := node.Agent.WaitReady(ctx); err != nil {
		t.Error(err)
	}
	noneLost(t, meters)
}
