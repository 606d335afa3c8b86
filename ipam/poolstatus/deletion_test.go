package poolstatus_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
	"github.com/hoplite-net/hoplite/ipam/poolstatus"
)

// deletion is pool a, and the controller that looks after it.
type deletion struct {
	client.WithWatch
	t     *testing.T
	clock *ipamtest.Clock
	r     *poolstatus.Reconciler
}

func newDeletion(t *testing.T, live client.Reader, hooks interceptor.Funcs, objects ...client.Object) *deletion {
	d := &deletion{WithWatch: fakeAPI(t, hooks, objects...), t: t, clock: ipamtest.NewClock()}
	if live == nil {
		live = d.WithWatch
	}
	d.r = poolstatus.New(d.WithWatch, live, d.clock.Now)
	return d
}

// pool is nil when it has gone.
func (d *deletion) pool() *v1alpha1.IPPool {
	d.t.Helper()
	var pool v1alpha1.IPPool
	err := d.Get(d.t.Context(), client.ObjectKey{Name: "a"}, &pool)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return &pool
}

func (d *deletion) delete(o client.Object) {
	d.t.Helper()
	if err := d.Delete(d.t.Context(), o); err != nil {
		d.t.Fatal(err)
	}
}

// settle reconciles as often as the controller asks to, until it has nothing to do.
func (d *deletion) settle() {
	d.t.Helper()
	for range 5 {
		again := reconcileA(d.t, d.r).RequeueAfter
		if again == 0 {
			return
		}
		d.clock.Advance(again)
	}
	d.t.Error("the controller does not come to rest")
}

func TestADeletedPoolGoesWithItsLastBlock(t *testing.T) {
	d := newDeletion(t, nil, interceptor.Funcs{}, aPool(v1alpha1.ModeNative), block("10.244.0.0/26", "a"), block("10.9.0.0/26", "a"), block("10.245.0.0/26", "b"))
	d.settle()
	if !slices.Equal(d.pool().Finalizers, []string{v1alpha1.BlocksFinalizer}) || meta.FindStatusCondition(d.pool().Status.Conditions, v1alpha1.PoolInUse) != nil {
		t.Fatalf("the pool is %+v", d.pool())
	}
	d.delete(d.pool())
	d.settle()
	// One of them is of a range the pool had once: it is the name that counts.
	says := func(want string) {
		t.Helper()
		c := meta.FindStatusCondition(d.pool().Status.Conditions, v1alpha1.PoolInUse)
		if c == nil || c.Status != metav1.ConditionTrue || c.Reason != v1alpha1.ReasonBlocksClaimed || !strings.HasPrefix(c.Message, want) {
			t.Errorf("the pool says %+v, want %s", c, want)
		}
	}
	says("2 blocks still in use on n1; the pool goes when the last pod with an address of it has gone")
	d.delete(block("10.244.0.0/26", "a"))
	d.settle()
	says("1 block still in use on n1; ")
	d.clock.Advance(time.Hour)
	d.settle()
	d.delete(block("10.9.0.0/26", "a"))
	if again := reconcileA(t, d.r).RequeueAfter; again != 0 || d.pool() != nil {
		t.Errorf("without blocks, long after its deletion, the pool is %+v, looked at again in %s", d.pool(), again)
	}
	reconcileA(t, d.r) // and is no error now
}

func TestAPoolOnlyJustDeletedIsKeptForAMoment(t *testing.T) {
	d := newDeletion(t, nil, interceptor.Funcs{}, aPool(v1alpha1.ModeNative))
	d.settle()
	d.delete(d.pool())
	d.clock.Advance(time.Hour) // unseen by the controller, which was away
	if again := reconcileA(t, d.r).RequeueAfter; again != poolstatus.Grace || d.pool() == nil {
		t.Fatalf("looked at again in %s", again)
	}
	d.clock.Advance(poolstatus.Grace - 1)
	if reconcileA(t, d.r); d.pool() == nil {
		t.Fatal("gone too early")
	}
	d.clock.Advance(1)
	if reconcileA(t, d.r); d.pool() != nil {
		t.Errorf("still there: %+v", d.pool())
	}
}

func TestTheCacheDoesNotDecideThatAPoolIsUnused(t *testing.T) {
	live := fakeAPI(t, interceptor.Funcs{}, block("10.244.0.0/26", "a"))
	d := newDeletion(t, live, interceptor.Funcs{}, aPool(v1alpha1.ModeNative))
	d.settle()
	d.delete(d.pool())
	for range 5 {
		d.clock.Advance(reconcileA(t, d.r).RequeueAfter)
	}
	if d.pool() == nil {
		t.Fatal("the pool went, though a block of it had just been claimed")
	}
	if err := live.Delete(t.Context(), block("10.244.0.0/26", "a")); err != nil {
		t.Fatal(err)
	}
	d.settle()
	if d.pool() != nil {
		t.Errorf("still there: %+v", d.pool())
	}
}

func TestAnothersFinalizerStays(t *testing.T) {
	pool := aPool(v1alpha1.ModeNative)
	pool.Finalizers = []string{"example.com/mine"}
	d := newDeletion(t, nil, interceptor.Funcs{}, pool)
	d.settle()
	if got := d.pool().Finalizers; !slices.Equal(got, []string{"example.com/mine", v1alpha1.BlocksFinalizer}) {
		t.Fatalf("finalizers: %v", got)
	}
	d.delete(d.pool())
	d.settle()
	if got := d.pool().Finalizers; !slices.Equal(got, []string{"example.com/mine"}) {
		t.Errorf("finalizers: %v", got)
	}
	d.settle() // and ours is not put back on a pool that is going
	if got := d.pool().Finalizers; len(got) != 1 {
		t.Errorf("finalizers: %v", got)
	}
}

func TestAConditionWrittenMeanwhileIsNotLost(t *testing.T) {
	meanwhile := true
	d := newDeletion(t, nil, interceptor.Funcs{SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
		var pool v1alpha1.IPPool
		if err := c.Get(ctx, client.ObjectKey{Name: "a"}, &pool); err == nil && meanwhile && !pool.DeletionTimestamp.IsZero() {
			meanwhile = false
			pool.Status.Conditions = []metav1.Condition{{Type: v1alpha1.PoolReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonDeleting, LastTransitionTime: metav1.Now()}}
			if err := c.Status().Update(ctx, &pool); err != nil {
				return err
			}
		}
		return c.SubResource(sub).Patch(ctx, o, p, opts...)
	}}, aPool(v1alpha1.ModeNative), block("10.244.0.0/26", "a"))
	d.settle()
	d.delete(d.pool())
	d.settle()
	var types []string
	for _, c := range d.pool().Status.Conditions {
		types = append(types, c.Type)
	}
	if meanwhile || !slices.Equal(types, []string{v1alpha1.PoolReady, v1alpha1.PoolInUse}) {
		t.Errorf("conditions: %v", types)
	}
}
