package poolstatus_test

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam/poolstatus"
)

// node says that of its tunnels, for a reason; nothing if there is none.
func node(name, reason string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if reason != "" {
		status := corev1.ConditionFalse
		if reason == v1alpha1.ReasonSupported {
			status = corev1.ConditionTrue
		}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: reason}, {Type: v1alpha1.NodeTunnels, Status: status, Reason: reason}}
	}
	return n
}

func nodes(reason string, count int) (all []corev1.Node) {
	for i := range count {
		all = append(all, node(fmt.Sprintf("node%d", i+1), reason))
	}
	return all
}

func TestAPoolNamesTheNodesThatLackWhatItsModeNeeds(t *testing.T) {
	mixed := []corev1.Node{
		node("node4", v1alpha1.ReasonTunnelsUnsupported), node("node1", v1alpha1.ReasonIPIPUnsupported),
		node("node2", v1alpha1.ReasonVXLANUnsupported), node("node3", v1alpha1.ReasonSupported), node("node5", ""),
	}
	const after = "; towards and from them packets go on travelling as before"
	for _, c := range []struct {
		mode  v1alpha1.PoolMode
		nodes []corev1.Node
		says  string // empty: nothing, there being nothing to say
	}{
		{v1alpha1.ModeIPIP, mixed, "node1, node4: the kernel has no ipip" + after},
		{v1alpha1.ModeIPIPCrossSubnet, mixed, "node1, node4: the kernel has no ipip" + after},
		{v1alpha1.ModeVXLAN, mixed, "node2, node4: the kernel has no vxlan" + after},
		{v1alpha1.ModeVXLANCrossSubnet, mixed, "node2, node4: the kernel has no vxlan" + after},
		{v1alpha1.ModeNative, mixed, ""},
		{"", mixed, ""},
		{v1alpha1.ModeVXLAN, nodes(v1alpha1.ReasonSupported, 3), ""},
		{v1alpha1.ModeVXLAN, nodes(v1alpha1.ReasonIPIPUnsupported, 3), ""},
		{v1alpha1.ModeVXLAN, nodes(v1alpha1.ReasonVXLANUnsupported, 1), "node1: the kernel has no vxlan; towards and from it packets go on travelling as before"},
		{v1alpha1.ModeIPIP, nodes(v1alpha1.ReasonTunnelsUnsupported, 5), "node1, node2, node3, node4, node5: the kernel has no ipip" + after},
		{v1alpha1.ModeIPIP, nodes(v1alpha1.ReasonTunnelsUnsupported, 7), "node1, node2, node3, node4, node5 and 2 more: the kernel has no ipip" + after},
	} {
		pool := aPool(c.mode)
		status := poolstatus.Of(pool, nil, c.nodes, time.Now())
		got := meta.FindStatusCondition(status.Conditions, v1alpha1.PoolModeSupported)
		switch {
		case c.says == "" && got != nil:
			t.Errorf("%s: %+v", c.mode, got)
		case c.says != "" && (got == nil || got.Status != metav1.ConditionFalse || got.Reason != v1alpha1.ReasonNodesWithoutSupport || got.Message != c.says):
			t.Errorf("%s: %+v, want %s", c.mode, got, c.says)
		}
	}
}

func TestThatAllNodesSupportTheModeIsSaidWhereItWasNotSo(t *testing.T) {
	bad := node("node1", v1alpha1.ReasonVXLANUnsupported)
	d := newDeletion(t, nil, interceptor.Funcs{}, aPool(v1alpha1.ModeVXLAN), &bad)
	supported := func(want metav1.ConditionStatus) {
		t.Helper()
		d.settle()
		if c := meta.FindStatusCondition(d.pool().Status.Conditions, v1alpha1.PoolModeSupported); c == nil || c.Status != want {
			t.Errorf("the pool says %+v, want %s", c, want)
		}
	}
	mode := func(mode v1alpha1.PoolMode) {
		t.Helper()
		pool := d.pool()
		pool.Spec.Mode = mode
		if err := d.Update(t.Context(), pool); err != nil {
			t.Fatal(err)
		}
	}
	supported(metav1.ConditionFalse)
	mode(v1alpha1.ModeNative)
	supported(metav1.ConditionTrue)
	mode(v1alpha1.ModeVXLANCrossSubnet)
	supported(metav1.ConditionFalse)
	d.delete(&bad)
	supported(metav1.ConditionTrue)
}

func TestAPoolHeldByNodesThatAreGoneSaysWhatToDo(t *testing.T) {
	pool := aPool(v1alpha1.ModeNative)
	now := metav1.Now()
	pool.DeletionTimestamp = &now
	var blocks []v1alpha1.IPAMBlock
	for i := range 8 {
		b := block(fmt.Sprintf("10.244.%d.0/26", i), "a")
		b.Spec.Node = fmt.Sprintf("node%d", i%7+1)
		blocks = append(blocks, *b)
	}
	status := poolstatus.Of(pool, blocks, nodes("", 6), time.Now())
	const want = "8 blocks still in use on node1, node2, node3, node4, node5 and 2 more; the pool goes when the last pod with an address of it has gone. " +
		"No Node of the cluster any more: node7; where one is gone for good, delete its blocks (kubectl delete ipamblocks --field-selector spec.pool=a,spec.node=node7)"
	if got := meta.FindStatusCondition(status.Conditions, v1alpha1.PoolInUse); got == nil || got.Message != want {
		t.Errorf("got  %+v\nwant %s", got, want)
	}
}

func TestTheCacheKeepsOfANodeWhatIsRead(t *testing.T) {
	full := node("node1", v1alpha1.ReasonIPIPUnsupported)
	full.Labels = map[string]string{"a": "b"}
	out, err := poolstatus.SlimNode(&full)
	slim, ok := out.(*corev1.Node)
	if err != nil || !ok || len(slim.Labels) != 0 || len(slim.Status.Conditions) != 1 {
		t.Fatalf("%+v, %v", out, err)
	}
	pool := aPool(v1alpha1.ModeIPIP)
	now := time.Now()
	whole, kept := poolstatus.Of(pool, nil, []corev1.Node{full}, now), poolstatus.Of(pool, nil, []corev1.Node{*slim}, now)
	if fmt.Sprint(whole) != fmt.Sprint(kept) {
		t.Errorf("with all of the node %v, with what is kept of it %v", whole, kept)
	}
}
