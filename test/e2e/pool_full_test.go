package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// Somebody deletes a block that pods have addresses of: the node claims it again, and nothing happens to the pods.
func testDeletedBlock(t *testing.T, ctx context.Context, l *lab.Lab) {
	near := labtest.AddPod(t, l.Nodes()[0], "near", lab.PodOptions{})
	far := labtest.AddPod(t, l.Nodes()[1], "far", lab.PodOptions{})
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	meters := startMeters(t, ctx, near, far)
	prefix, err := near.IP().Prefix(26)
	if err != nil {
		t.Fatal(err)
	}
	key := client.ObjectKey{Name: v1alpha1.BlockName(prefix)}
	var before v1alpha1.IPAMBlock
	if err := l.Client().Get(ctx, key, &before); err != nil {
		t.Fatal(err)
	}
	kubectl(t, ctx, l, "delete", "ipamblock", key.Name)
	labtest.Eventually(t, 30*time.Second, "the block is claimed again", func() error {
		var after v1alpha1.IPAMBlock
		if err := l.Client().Get(ctx, key, &after); err != nil {
			return err
		}
		if after.UID == before.UID || after.Spec != before.Spec {
			return fmt.Errorf("%s %+v", after.UID, after.Spec)
		}
		return nil
	})
	noneLost(t, meters)
	fresh := takesFrom(t, l.Nodes()[0], "fresh", "10.244.0.0/16")
	if fresh.IP() == near.IP() {
		t.Errorf("%s was given out twice", near.IP())
	}
}

// A node whose blocks are full claims the next; when there is none left, ADD
// and STATUS say what to do, and go on as soon as it is done.
func testFullPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	const cidr = "10.11.0.0/29" // two blocks of four addresses
	node, other := l.Nodes()[0], l.Nodes()[1]
	patch(t, ctx, l, "IPPool", "default", `{"spec":{"disabled":true}}`)
	createPool(t, ctx, l, "tiny", "cidr: "+cidr+", blockSize: 30, nodeSelector: {matchLabels: {kubernetes.io/hostname: "+node.Name+"}}")
	heard(t, ctx, node, "tiny", "")
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "default", "Disabled: ")
	}
	var pods []*lab.Pod
	given := map[netip.Addr]bool{}
	for i := range 8 {
		pod := takesFrom(t, node, fmt.Sprintf("tiny-%d", i), cidr)
		pods, given[pod.IP()] = append(pods, pod), true
	}
	if len(given) != 8 {
		t.Errorf("8 pods have the addresses %v", given)
	}
	if p, err := poolOn(ctx, node, "tiny"); err != nil || p.blocks != 2 || p.used != 8 {
		t.Errorf("%s has of the full pool: %+v (error: %v)", node.Name, p, err)
	}

	const exhausted = "no free address: node node1 has none left in its IPv4 blocks, and every block of pool tiny (10.11.0.0/29) is claimed: delete pods, or create another IPPool"
	refusedAdd(t, ctx, node, exhausted)
	// A node that no pool is for says that, instead.
	refusedAdd(t, ctx, other, "no usable IPPool on this node: create one, or look at the conditions of those there are (kubectl get ippools)")

	// A pod that goes makes room for the next, one at a time.
	gone := pods[0].IP()
	if err := pods[0].Del(ctx); err != nil {
		t.Fatal(err)
	}
	again := takesFrom(t, node, "tiny-again", cidr)
	if again.IP() != gone {
		t.Errorf("the only free address was %s, the pod got %s", gone, again.IP())
	}
	refusedAdd(t, ctx, node, exhausted)

	createPool(t, ctx, l, "relief", "cidr: 10.12.0.0/24")
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "relief", "")
		pods = append(pods, takesFrom(t, n, "relieved-"+n.Name, "10.12.0.0/24"))
	}
	for _, pod := range append(pods[1:], again) {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
	patch(t, ctx, l, "IPPool", "default", `{"spec":{"disabled":false}}`)
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "default", "")
	}
}

// refusedAdd fails the test unless an ADD on the node is refused, at once, with
// "try again later" and the sentence, and leaves nothing behind.
func refusedAdd(t *testing.T, ctx context.Context, node *lab.Node, sentence string) {
	t.Helper()
	started := time.Now()
	pod, err := node.AddPod(ctx, "refused", lab.PodOptions{NoServer: true})
	if err == nil {
		t.Errorf("%s: there is no address to be had, and a pod got %s", node.Name, pod.IP())
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
		return
	}
	var refusal *types.Error
	if !errors.As(err, &refusal) || refusal.Code != 11 || !strings.Contains(refusal.Msg, sentence) {
		t.Errorf("%s: ADD said\n  %v\nwant code 11 and\n  %s", node.Name, err, sentence)
	}
	if took := time.Since(started); took > 8*time.Second {
		t.Errorf("%s: ADD waited %s for an address that will not come", node.Name, took)
	}
	for _, p := range view(t, ctx, node) {
		if p == "default/refused" {
			t.Errorf("%s: the refused pod has an address", node.Name)
		}
	}
}

// view is the pods that the node's agent has addresses for.
func view(t *testing.T, ctx context.Context, node *lab.Node) (pods []string) {
	t.Helper()
	all, err := node.Agent.IPAM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all.GetBlocks() {
		for _, a := range b.GetAddresses() {
			pods = append(pods, a.GetPodNamespace()+"/"+a.GetPodName())
		}
	}
	return pods
}

// The controller keeps a pool's capacity and blocks, for pools of either family.
func testPoolStatus(t *testing.T, ctx context.Context, l *lab.Lab) {
	createPool(t, ctx, l, "single", "cidr: 10.13.0.7/32, blockSize: 32, disabled: true")
	createPool(t, ctx, l, "vast", "cidr: 'fd00:13::/32', disabled: true")
	for name, capacity := range map[string]int64{"default": 1 << 16, "single": 1, "vast": 1<<63 - 1} {
		labtest.Eventually(t, 30*time.Second, "the status of pool "+name+" is true", func() error {
			var pool v1alpha1.IPPool
			if err := l.Client().Get(ctx, client.ObjectKey{Name: name}, &pool); err != nil {
				return err
			}
			var count int64
			for _, b := range blocks(t, ctx, l) {
				if b.Spec.Pool == name {
					count++
				}
			}
			if pool.Status.Capacity != capacity || pool.Status.Blocks != count {
				return fmt.Errorf("capacity %d, want %d; blocks %d, want %d", pool.Status.Capacity, capacity, pool.Status.Blocks, count)
			}
			if name == "default" && count < 2 {
				return fmt.Errorf("two nodes have %d blocks", count)
			}
			return nil
		})
	}
}
