package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// disable says whether the default pool is to give addresses, and waits until the agent knows.
func disable(t *testing.T, ctx context.Context, l *lab.Lab, node *lab.Node, disabled bool) {
	t.Helper()
	pool := &v1alpha1.IPPool{}
	if err := l.Client().Get(ctx, client.ObjectKey{Name: "default"}, pool); err != nil {
		t.Fatal(err)
	}
	pool.Spec.Disabled = disabled
	if err := l.Client().Update(ctx, pool); err != nil {
		t.Fatal(err)
	}
	waitPools(t, ctx, node, "the default pool", func(name string, usable bool) bool { return name != "default" || usable != disabled })
}

// waitPools waits until each pool the agent knows is as right says.
func waitPools(t *testing.T, ctx context.Context, node *lab.Node, what string, right func(name string, usable bool) bool) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, "the agent knows of "+what, func() error {
		view, err := node.Agent.IPAM(ctx)
		if err != nil {
			return err
		}
		for _, p := range view.GetPools() {
			if !right(p.GetName(), !p.GetDisabled() && p.GetUnusable() == "") {
				return fmt.Errorf("%v", view.GetPools())
			}
		}
		return nil
	})
}

// With no pool to take an address from, pods that are there stay, new ones are
// refused at once, and the node says that it isn't ready.
func testNoPool(t *testing.T, ctx context.Context, l *lab.Lab, node *lab.Node) {
	stays := newContainer(t, ctx, node, "nopool-stays")
	stays.add(t, ctx)
	stays.raw("STATUS").must(t, ctx)
	before := nodeState(t, ctx, node)
	disable(t, ctx, l, node, true)
	inTime(t, 0, func() { stays.raw("STATUS").fails(t, ctx, 50, "no usable IPPool") })
	inTime(t, 0, func() { newContainer(t, ctx, node, "nopool-comes").raw("ADD").fails(t, ctx, 11, "no usable IPPool") })
	unchanged(t, ctx, node, before)
	if _, err := stays.cni(ctx, "CHECK", ""); err != nil {
		t.Error(err)
	}
	disable(t, ctx, l, node, false)
	stays.raw("STATUS").must(t, ctx)
	newContainer(t, ctx, node, "nopool-comes-again").add(t, ctx)
}

// A pool of one block of eight: an address that was freed is not given while
// another is free; then the one freed first comes first. Agents die in between.
func testReuse(t *testing.T, ctx context.Context, l *lab.Lab, node *lab.Node) {
	pool := lab.DefaultPool()
	pool.Name, pool.Spec.CIDR, pool.Spec.BlockSize = "small", "10.99.0.0/29", new(int32(29))
	if err := l.Apply(ctx, pool); err != nil {
		t.Fatal(err)
	}
	disable(t, ctx, l, node, true)
	t.Cleanup(func() {
		if err := l.Client().Delete(ctx, pool); err != nil {
			t.Error(err)
		}
		disable(t, ctx, l, node, false)
	})
	restart := func() {
		t.Helper()
		node.Agent.Kill()
		if err := node.Agent.Start(); err != nil {
			t.Fatal(err)
		}
	}
	c := newContainer(t, ctx, node, "reuse-first")
	first := addrOf(c.added(t, ctx))
	c.raw("DEL").must(t, ctx)
	var pods []container
	var addrs []netip.Addr
	for i := range 8 {
		if i == 3 {
			restart()
		}
		c := newContainer(t, ctx, node, fmt.Sprintf("reuse-%d", i))
		pods, addrs = append(pods, c), append(addrs, addrOf(c.added(t, ctx)))
	}
	if i := slices.Index(addrs, first); i != 7 {
		t.Errorf("%s, freed at the start, was given again as number %d of %v: want the last", first, i+1, addrs)
	}
	if all := slices.Compact(slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)); len(all) != 8 {
		t.Errorf("%v: not eight different addresses", addrs)
	}

	full := newContainer(t, ctx, node, "reuse-full")
	before := nodeState(t, ctx, node)
	full.raw("ADD").fails(t, ctx, 11, "small (10.99.0.0/29)")
	full.raw("STATUS").fails(t, ctx, 50, "small (10.99.0.0/29)")
	unchanged(t, ctx, node, before)

	freed := []int{5, 2, 7}
	for _, i := range freed {
		pods[i].raw("DEL").must(t, ctx)
	}
	restart()
	full.raw("STATUS").must(t, ctx)
	for n, i := range freed {
		c := newContainer(t, ctx, node, fmt.Sprintf("reuse-again-%d", n))
		if got := addrOf(c.added(t, ctx)); got != addrs[i] {
			t.Errorf("address %d given again is %s, want %s: it was freed %d.", n+1, got, addrs[i], n+1)
		}
	}
	full.raw("ADD").fails(t, ctx, 11, "small (10.99.0.0/29)")
}
