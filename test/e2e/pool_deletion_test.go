package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

const (
	goingPool = "10.9.0.0/24" // more specific than the default pool's range: preferred to it
	deleting  = "the pool is being deleted: addresses in use stay in use, no new ones are given out, " +
		"and the pool goes with the last of them (condition InUse says which nodes have blocks of it)"
)

// A pool deleted while pods have its addresses goes on as it was for these pods, gives no
// other its addresses, says who holds it back, and goes with the last of them.
// The same name can then mean something else.
func TestPoolDeletion(t *testing.T) {
	ctx, l, near, far := startGoing(t, v1alpha1.ModeNative)
	meters := startMeters(t, ctx, near, far)
	uid := deletePool(t, ctx, l)
	poolSays(t, ctx, l, "going", v1alpha1.ReasonDeleting, deleting)
	heldBack(t, ctx, l, "2 blocks still in use on node1, node2; the pool goes when the last pod with an address of it has gone")
	judged(t, "another of that name", l.Client().Create(ctx, object(t, "IPPool", "going", "cidr: 10.19.0.0/24")), "object is being deleted: ippools.hoplite.io \"going\" already exists")
	goesOn(t, ctx, l, near, far)

	// Nor does it matter who has seen the deletion and who has only read of it.
	for _, node := range l.Nodes() {
		if err := node.Agent.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		heard(t, ctx, node, "going", "Deleting: "+deleting)
	}
	goesOn(t, ctx, l, near, far)
	noneLost(t, meters)

	remove(t, ctx, far)
	heldBack(t, ctx, l, "1 block still in use on node1; the pool goes when the last pod with an address of it has gone")
	sees(t, ctx, "the last pod, on its way out", near, serverURL(l.Outside().Addresses[0]), near.Node.IP())
	// With nobody to let it go the pool stays, and is let go afterwards.
	if err := l.Controller.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	remove(t, ctx, near)
	labtest.Eventually(t, time.Minute, "no block of the pool is left", func() error {
		if held := blocksOf(t, ctx, l, "going"); len(held) > 0 {
			return fmt.Errorf("%v", held)
		}
		return nil
	})
	if pool, err := goingNow(ctx, l); err != nil || pool.UID != uid {
		t.Errorf("without a controller the pool is %v, %v", pool, err)
	}
	if err := l.Controller.Start(); err != nil {
		t.Fatal(err)
	}
	poolGone(t, ctx, l)
	namesake(t, ctx, l)
}

// With the controller there from start to end, the pool goes within a minute of its last pod.
func TestPoolDeletionIsSoonOver(t *testing.T) {
	ctx, l, near, far := startGoing(t, v1alpha1.ModeNative)
	// Before it is deleted, a pod leaves behind an address that is not to be reused for a while.
	remove(t, ctx, takesFrom(t, near.Node, "left", goingPool))
	deletePool(t, ctx, l)
	heldBack(t, ctx, l, "2 blocks")
	remove(t, ctx, near)
	remove(t, ctx, far)
	started := time.Now()
	poolGone(t, ctx, l)
	t.Logf("the pool went %s after its last pod", time.Since(started).Round(100*time.Millisecond))
	// One that nobody uses goes as well.
	createPool(t, ctx, l, "unused", "cidr: 10.20.0.0/24, disabled: true")
}

// With tunnels the nodes themselves have addresses of the pool. They take others,
// and do not keep the pool.
func TestPoolDeletionWithTunnels(t *testing.T) {
	ctx, l, near, far := startGoing(t, v1alpha1.ModeVXLAN)
	if err := l.WaitMode(ctx, "going", v1alpha1.ModeVXLAN); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.Nodes() {
		labtest.Eventually(t, 30*time.Second, node.Name+" has an address of the pool, beside its pod", func() error {
			if p, err := poolOn(ctx, node, "going"); err != nil || p.used != 2 {
				return fmt.Errorf("%+v, %v", p, err)
			}
			return nil
		})
	}
	meters := startMeters(t, ctx, near, far)
	deletePool(t, ctx, l)
	for _, node := range l.Nodes() {
		labtest.Eventually(t, 30*time.Second, node.Name+" has it no more", func() error {
			if p, err := poolOn(ctx, node, "going"); err != nil || p.used != 1 {
				return fmt.Errorf("%+v, %v", p, err)
			}
			return nil
		})
	}
	goesOn(t, ctx, l, near, far)
	if err := l.WaitMode(ctx, "going", v1alpha1.ModeVXLAN); err != nil {
		t.Errorf("the mode is in force until the pool has gone: %v", err)
	}
	noneLost(t, meters)
	remove(t, ctx, near)
	remove(t, ctx, far)
	poolGone(t, ctx, l)
}

// Nor do they keep it when there is no other pool to take addresses from.
func TestTheOnlyPoolIsDeletedWithTunnels(t *testing.T) {
	ctx := labtest.Context(t, long)
	only := object(t, "IPPool", "going", fmt.Sprintf("cidr: %s, mode: VXLAN", goingPool))
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), Objects: []client.Object{only}})
	near := labtest.AddPod(t, l.Nodes()[0], "near", lab.PodOptions{})
	far := labtest.AddPod(t, l.Nodes()[1], "far", lab.PodOptions{})
	if err := l.WaitMode(ctx, "going", v1alpha1.ModeVXLAN); err != nil {
		t.Fatal(err)
	}
	deletePool(t, ctx, l)
	heldBack(t, ctx, l, "2 blocks")
	meters := startMeters(t, ctx, near, far)
	for _, node := range l.Nodes() {
		labtest.Eventually(t, 30*time.Second, node.Name+" has no address of the pool but its pod's", func() error {
			if p, err := poolOn(ctx, node, "going"); err != nil || p.used != 1 {
				return fmt.Errorf("%+v, %v", p, err)
			}
			return nil
		})
	}
	sees(t, ctx, "pod to pod", near, far.URL("/clientip"), near.IP())
	noneLost(t, meters)
	remove(t, ctx, near)
	remove(t, ctx, far)
	poolGone(t, ctx, l)
}

// startGoing is a lab of two nodes with the pool beside the default one, a pod of it on
// each, and a server beyond.
func startGoing(t *testing.T, mode v1alpha1.PoolMode) (ctx context.Context, l *lab.Lab, near, far *lab.Pod) {
	t.Helper()
	ctx = labtest.Context(t, long)
	l = labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), Objects: []client.Object{lab.DefaultPool()}})
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Outside().Serve(ctx); err != nil {
		t.Fatal(err)
	}
	spec := fmt.Sprintf("natOutgoing: true, cidr: %s, mode: %s", goingPool, mode)
	if err := l.Client().Create(ctx, object(t, "IPPool", "going", spec)); err != nil {
		t.Fatal(err)
	}
	var pods []*lab.Pod
	for _, node := range l.Nodes() {
		heard(t, ctx, node, "going", "")
		pod := labtest.AddPod(t, node, "of-going-"+node.Name, lab.PodOptions{})
		if got := netipPrefix(pod); got != goingPool {
			t.Fatalf("%s has an address of %s", pod.Name, got)
		}
		pods = append(pods, pod)
	}
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 30*time.Second, "the controller holds the pool", func() error {
		pool, err := goingNow(ctx, l)
		if err == nil && !slices.Contains(pool.Finalizers, v1alpha1.BlocksFinalizer) {
			err = fmt.Errorf("finalizers: %v", pool.Finalizers)
		}
		return err
	})
	return ctx, l, pods[0], pods[1]
}

// netipPrefix is the /24 the pod's address is of.
func netipPrefix(pod *lab.Pod) string {
	p, _ := pod.IP().Prefix(24)
	return p.String()
}

// deletePool deletes the pool as people do, and waits until the nodes have heard.
func deletePool(t *testing.T, ctx context.Context, l *lab.Lab) types.UID {
	t.Helper()
	pool, err := goingNow(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, ctx, l, "delete", "ippool", "going", "--wait=false")
	for _, node := range l.Nodes() {
		heard(t, ctx, node, "going", "Deleting: "+deleting)
	}
	return pool.UID
}

func goingNow(ctx context.Context, l *lab.Lab) (*v1alpha1.IPPool, error) {
	pool := &v1alpha1.IPPool{}
	return pool, l.Client().Get(ctx, client.ObjectKey{Name: "going"}, pool)
}

// heldBack waits until the pool says who holds it back.
func heldBack(t *testing.T, ctx context.Context, l *lab.Lab, says string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, "pool going says: "+says, func() error {
		pool, err := goingNow(ctx, l)
		if err != nil {
			return err
		}
		c := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolInUse)
		if c == nil || c.Reason != v1alpha1.ReasonBlocksClaimed || !strings.HasPrefix(c.Message, says) {
			return fmt.Errorf("%+v", pool.Status.Conditions)
		}
		return nil
	})
}

// goesOn fails the test unless the pods are as they were, and new ones are of another pool.
func goesOn(t *testing.T, ctx context.Context, l *lab.Lab, near, far *lab.Pod) {
	t.Helper()
	sees(t, ctx, "from node to node", near, far.URL("/clientip"), near.IP())
	sees(t, ctx, "and back", far, near.URL("/clientip"), far.IP())
	for _, pod := range []*lab.Pod{near, far} {
		sees(t, ctx, pod.Name+" to the world, by NAT", pod, serverURL(l.Outside().Addresses[0]), pod.Node.IP())
		if err := pod.Check(ctx); err != nil {
			t.Errorf("%s: %v", pod.Name, err)
		}
		remove(t, ctx, takesFrom(t, pod.Node, "other-"+pod.Node.Name, "10.244.0.0/16"))
	}
}

func remove(t *testing.T, ctx context.Context, pod *lab.Pod) {
	t.Helper()
	if err := pod.Del(ctx); err != nil {
		t.Fatal(err)
	}
}

func blocksOf(t *testing.T, ctx context.Context, l *lab.Lab, pool string) (held []string) {
	t.Helper()
	for _, b := range blocks(t, ctx, l) {
		if b.Spec.Pool == pool {
			held = append(held, b.Spec.CIDR+" "+b.Spec.Node)
		}
	}
	return held
}

// poolGone waits until the pool is not there, and no node knows it.
func poolGone(t *testing.T, ctx context.Context, l *lab.Lab) {
	t.Helper()
	labtest.Eventually(t, time.Minute, "the pool is gone", func() error {
		if pool, err := goingNow(ctx, l); !apierrors.IsNotFound(err) {
			return fmt.Errorf("%+v, %w", pool.Status.Conditions, err)
		}
		return nil
	})
	if held := blocksOf(t, ctx, l, "going"); len(held) > 0 {
		t.Errorf("the pool went before its blocks %v", held)
	}
	for _, node := range l.Nodes() {
		labtest.Eventually(t, 30*time.Second, node.Name+" has heard that the pool is gone", func() error {
			if p, err := poolOn(ctx, node, "going"); err != nil || p.known {
				return fmt.Errorf("%+v, %v", p, err)
			}
			return nil
		})
	}
}

// namesake makes a pool of the same name and range with other blocks.
func namesake(t *testing.T, ctx context.Context, l *lab.Lab) {
	t.Helper()
	createPool(t, ctx, l, "going", "blockSize: 28, cidr: "+goingPool)
	for _, node := range l.Nodes() {
		heard(t, ctx, node, "going", "")
		defer remove(t, ctx, takesFrom(t, node, "of-the-namesake-"+node.Name, goingPool))
	}
	for _, held := range blocksOf(t, ctx, l, "going") {
		if !strings.Contains(held, "/28 ") {
			t.Errorf("block %s of a pool that has blocks of /28", held)
		}
	}
}
