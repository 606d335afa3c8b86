package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// The outage begins with this call and lasts until so many have failed.
const (
	firstCall = 200
	failures  = 24
)

// Which pool a pod's address comes from, what pools say of themselves, and what
// becomes of blocks. Each part leaves the cluster as the next one wants it: the default pool alone.
func TestPools(t *testing.T) {
	ctx := labtest.Context(t, long)
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), Objects: []client.Object{lab.DefaultPool()}})
	for _, part := range []struct {
		name string
		test func(*testing.T, context.Context, *lab.Lab)
	}{
		{"one that overlaps is not used", testOverlappingPool},
		{"the more specific is used, unless disabled", testSpecificPool},
		{"one is for the nodes it selects", testSelectedPool},
		{"a deleted block is claimed again", testDeletedBlock},
		{"a full one says so", testFullPool},
		{"status counts blocks and addresses", testPoolStatus},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, ctx, l) })
	}
}

// createPool creates a pool that is deleted when the test ends.
func createPool(t *testing.T, ctx context.Context, l *lab.Lab, name, spec string) {
	t.Helper()
	pool := object(t, "IPPool", name, spec)
	if err := l.Client().Create(ctx, pool); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Client().Delete(ctx, pool); err != nil {
			t.Error(err)
		}
		for _, node := range l.Nodes() {
			labtest.Eventually(t, 30*time.Second, node.Name+" has heard that pool "+name+" is gone", func() error {
				if p, err := poolOn(ctx, node, name); err != nil || p.known {
					return fmt.Errorf("%v %v", p, err)
				}
				return nil
			})
		}
	})
}

// poolSays waits for the pool's Ready condition.
func poolSays(t *testing.T, ctx context.Context, l *lab.Lab, name, reason, message string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, "pool "+name+" says "+reason, func() error {
		var pool v1alpha1.IPPool
		if err := l.Client().Get(ctx, client.ObjectKey{Name: name}, &pool); err != nil {
			return err
		}
		ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolReady)
		want := metav1.ConditionFalse
		if reason == v1alpha1.ReasonUsable {
			want = metav1.ConditionTrue
		}
		if ready == nil || ready.Status != want || ready.Reason != reason || ready.Message != message || ready.ObservedGeneration != pool.Generation {
			return fmt.Errorf("generation %d, conditions %+v", pool.Generation, pool.Status.Conditions)
		}
		return nil
	})
}

// onNode is a pool as a node's agent sees it.
type onNode struct {
	known    bool
	unusable string
	blocks   uint64
	used     uint64
}

func poolOn(ctx context.Context, node *lab.Node, name string) (onNode, error) {
	view, err := node.Agent.IPAM(ctx)
	for _, p := range view.GetPools() {
		if p.GetName() == name {
			return onNode{true, p.GetUnusable(), p.GetNodeBlocks(), p.GetNodeUsed()}, err
		}
	}
	return onNode{}, err
}

// heard waits until the agent uses the pool, or has a reason not to that begins as said.
func heard(t *testing.T, ctx context.Context, node *lab.Node, name, unusable string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, fmt.Sprintf("%s has heard of pool %s (%s)", node.Name, name, unusable), func() error {
		p, err := poolOn(ctx, node, name)
		if err == nil && (!p.known || !strings.HasPrefix(p.unusable, unusable) || unusable == "" && p.unusable != "") {
			err = fmt.Errorf("%+v", p)
		}
		return err
	})
}

// takesFrom adds a pod and fails the test unless its address is of the range.
func takesFrom(t *testing.T, node *lab.Node, name, cidr string) *lab.Pod {
	t.Helper()
	pod := labtest.AddPod(t, node, name, lab.PodOptions{NoServer: true})
	if !netip.MustParsePrefix(cidr).Contains(pod.IP()) {
		t.Errorf("pod %s on %s has %s, which is not of %s", name, node.Name, pod.IP(), cidr)
	}
	return pod
}

func testOverlappingPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	poolSays(t, ctx, l, "default", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from 10.244.0.0/16")
	createPool(t, ctx, l, "later", "cidr: 10.244.128.0/17") // the more specific one: it would win
	const sentence = "spec.cidr 10.244.128.0/17 overlaps 10.244.0.0/16 of pool default, which came first: delete this pool and create one with a range of its own"
	poolSays(t, ctx, l, "later", v1alpha1.ReasonOverlapping, sentence)
	for _, node := range l.Nodes() {
		heard(t, ctx, node, "later", "Overlapping: "+sentence)
		takesFrom(t, node, "overlap-"+node.Name, "10.244.0.0/16")
		p, err := poolOn(ctx, node, "later")
		if err != nil || p.blocks != 0 || p.used != 0 {
			t.Errorf("%s has of the overlapping pool: %+v (error: %v)", node.Name, p, err)
		}
	}
	for _, b := range blocks(t, ctx, l) {
		if b.Spec.Pool != "default" {
			t.Errorf("%s took block %s from pool %s", b.Spec.Node, b.Spec.CIDR, b.Spec.Pool)
		}
	}
	poolSays(t, ctx, l, "default", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from 10.244.0.0/16")
}

func blocks(t *testing.T, ctx context.Context, l *lab.Lab) []v1alpha1.IPAMBlock {
	t.Helper()
	var all v1alpha1.IPAMBlockList
	if err := l.Client().List(ctx, &all); err != nil {
		t.Fatal(err)
	}
	return all.Items
}

func testSpecificPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	const cidr = "10.9.0.0/24"
	node, other := l.Nodes()[0], l.Nodes()[1]
	createPool(t, ctx, l, "specific", "cidr: "+cidr+", disabled: true")
	poolSays(t, ctx, l, "specific", v1alpha1.ReasonDisabled, "spec.disabled is true: addresses in use stay in use, and no new ones are given out")
	heard(t, ctx, node, "specific", "Disabled: ")
	takesFrom(t, node, "before", "10.244.0.0/16")

	disable := func(disabled bool) {
		patch(t, ctx, l, "IPPool", "specific", fmt.Sprintf(`{"spec":{"disabled":%t}}`, disabled))
	}
	disable(false)
	poolSays(t, ctx, l, "specific", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from "+cidr)
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "specific", "")
	}
	inside := takesFrom(t, node, "inside", cidr)
	far := labtest.AddPod(t, other, "inside-too", lab.PodOptions{})
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}

	disable(true)
	heard(t, ctx, node, "specific", "Disabled: ")
	takesFrom(t, node, "after", "10.244.0.0/16")
	sees(t, ctx, "a pod of a pool disabled since", inside, far.URL("/clientip"), inside.IP())
	if p, err := poolOn(ctx, node, "specific"); err != nil || p.used != 1 {
		t.Errorf("%s has of the disabled pool: %+v (error: %v), want the one address still in use", node.Name, p, err)
	}
	// The pool is about to be deleted, and would wait for them.
	for _, pod := range []*lab.Pod{inside, far} {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
}

// patch changes a cluster-scoped object by a merge patch.
func patch(t *testing.T, ctx context.Context, l *lab.Lab, kind, name, body string) {
	t.Helper()
	o := object(t, kind, name, "")
	if kind == "Node" {
		o.SetAPIVersion("v1")
	}
	if err := l.Client().Patch(ctx, o, client.RawPatch("application/merge-patch+json", []byte(body))); err != nil {
		t.Fatal(err)
	}
}

func testSelectedPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	const cidr = "10.10.0.0/24"
	node, other := l.Nodes()[0], l.Nodes()[1]
	createPool(t, ctx, l, "zone", "cidr: "+cidr+", nodeSelector: {matchLabels: {zone: a}}")
	// Which nodes it is for is not the pool's to say: it can be used.
	poolSays(t, ctx, l, "zone", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from "+cidr)
	notSelected := `NotSelected: spec.nodeSelector "zone=a" does not match this node's labels`
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "zone", notSelected)
	}
	takesFrom(t, node, "unlabelled", "10.244.0.0/16")

	patch(t, ctx, l, "Node", node.Name, `{"metadata":{"labels":{"zone":"a"}}}`)
	heard(t, ctx, node, "zone", "")
	pod := takesFrom(t, node, "labelled", cidr)
	takesFrom(t, other, "elsewhere", "10.244.0.0/16")

	patch(t, ctx, l, "Node", node.Name, `{"metadata":{"labels":{"zone":"b"}}}`)
	heard(t, ctx, node, "zone", notSelected)
	takesFrom(t, node, "relabelled", "10.244.0.0/16")
	if err := pod.Check(ctx); err != nil {
		t.Errorf("the pod from the time the node was selected: %v", err)
	}
	if err := pod.Del(ctx); err != nil {
		t.Error(err)
	}
}
