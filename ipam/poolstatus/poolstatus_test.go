package poolstatus_test

import (
	"context"
	"math"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam/poolstatus"
)

func TestCapacityCountsAddressesAndSaturates(t *testing.T) {
	for cidr, want := range map[string]int64{
		"10.0.0.0/26": 64, "10.0.0.0/32": 1, "0.0.0.0/0": 1 << 32, "fd00::/112": 1 << 16,
		"fd00::/66": 1 << 62, "fd00::/65": math.MaxInt64, "fd00::/64": math.MaxInt64, "fd00::/8": math.MaxInt64,
	} {
		if got := poolstatus.Capacity(netip.MustParsePrefix(cidr)); got != want {
			t.Errorf("%s has %d addresses, want %d", cidr, got, want)
		}
	}
}

func block(cidr, pool string) *v1alpha1.IPAMBlock {
	prefix := netip.MustParsePrefix(cidr)
	return &v1alpha1.IPAMBlock{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.BlockName(prefix)},
		Spec:       v1alpha1.IPAMBlockSpec{CIDR: cidr, Node: "n1", Pool: pool},
	}
}

func aPool(mode v1alpha1.PoolMode) *v1alpha1.IPPool {
	return &v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec:       v1alpha1.IPPoolSpec{CIDR: "10.244.0.0/16", Mode: mode},
	}
}

// fakeAPI has the objects; hooks see what is asked of it.
func fakeAPI(t *testing.T, hooks interceptor.Funcs, objects ...client.Object) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithStatusSubresource(&v1alpha1.IPPool{}).
		WithIndex(&v1alpha1.IPAMBlock{}, "spec.pool", func(o client.Object) []string {
			return []string{o.(*v1alpha1.IPAMBlock).Spec.Pool}
		}).WithInterceptorFuncs(hooks).Build()
}

// reconcileA brings pool a up to date.
func reconcileA(t *testing.T, r *poolstatus.Reconciler) reconcile.Result {
	t.Helper()
	result, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "a"}})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestStatusIsWrittenWhenItChangedAndOnlyItsOwnFields(t *testing.T) {
	writes := 0
	var meanwhile func(client.Client) // what an agent does between read and write
	c := fakeAPI(t, interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
		writes++
		if meanwhile != nil {
			meanwhile(c)
		}
		return c.SubResource(sub).Patch(ctx, o, p, opts...)
	}}, aPool(v1alpha1.ModeNative))
	r := poolstatus.New(c, c, time.Now)
	check := func(wantBlocks int64, wantWrites int) {
		t.Helper()
		for range 2 {
			reconcileA(t, r)
		}
		var got v1alpha1.IPPool
		if err := c.Get(t.Context(), client.ObjectKey{Name: "a"}, &got); err != nil {
			t.Fatal(err)
		}
		if got.Status.Capacity != 65536 || got.Status.Blocks != wantBlocks || writes != wantWrites {
			t.Errorf("status %+v after %d writes, want %d blocks after %d", got.Status, writes, wantBlocks, wantWrites)
		}
		if wantWrites > 1 && len(got.Status.Conditions) != 1 {
			t.Errorf("the agent's condition is %v", got.Status.Conditions)
		}
	}
	check(0, 1)
	for _, b := range []*v1alpha1.IPAMBlock{
		block("10.244.0.0/26", "a"), block("10.244.0.64/26", "a"), block("10.245.0.0/26", "b"), block("10.9.0.0/26", "a"),
	} {
		if err := c.Create(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	meanwhile = func(c client.Client) {
		var p v1alpha1.IPPool
		if err := c.Get(t.Context(), client.ObjectKey{Name: "a"}, &p); err != nil {
			t.Fatal(err)
		}
		p.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue, Reason: "Usable", LastTransitionTime: metav1.Now()}}
		if err := c.Status().Update(t.Context(), &p); err != nil {
			t.Fatal(err)
		}
	}
	check(2, 2)
	if err := c.Delete(t.Context(), block("10.244.0.0/26", "a")); err != nil {
		t.Fatal(err)
	}
	check(1, 3)
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Name: "gone"}}); err != nil {
		t.Errorf("a pool that is gone: %v", err)
	}
}
