// Package poolstatus keeps IPPool.status up to date: how many addresses the
// pool has and how many blocks nodes have claimed.
//
// It is the only writer of those two fields and writes no other; the Ready condition is
// the agents'. Nothing is written when nothing changed, and however many blocks come and
// go, a pool's status is written at most once every Interval.
package poolstatus

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// Interval is the time between two writes of one pool's status.
const Interval = time.Second

// poolField indexes blocks by the pool they were claimed from.
const poolField = "spec.pool"

// Capacity is the number of addresses in a range, capped at the largest int64.
func Capacity(prefix netip.Prefix) int64 {
	bits := prefix.Addr().BitLen() - prefix.Bits()
	if bits >= 63 {
		return math.MaxInt64
	}
	return 1 << bits
}

// Of is the status a pool ought to have, given the blocks there are (those of
// other pools do not matter). Its conditions are the pool's own, untouched. A pool whose range
// makes no sense has no capacity.
func Of(pool *v1alpha1.IPPool, blocks []v1alpha1.IPAMBlock) v1alpha1.IPPoolStatus {
	status := v1alpha1.IPPoolStatus{Conditions: pool.Status.Conditions}
	prefix, err := pool.Prefix()
	if err != nil {
		return status
	}
	status.Capacity = Capacity(prefix)
	for i := range blocks {
		block, ok := v1alpha1.ParseBlockName(blocks[i].Name)
		// A pool of that name may have had another range once.
		if ok && blocks[i].Spec.Pool == pool.Name && prefix.Overlaps(block) {
			status.Blocks++
		}
	}
	return status
}

// Reconciler writes what Of says.
type Reconciler struct {
	client client.Client
}

// Setup adds the reconciler to a manager, whose cache holds all pools and blocks from then on.
func Setup(ctx context.Context, mgr ctrl.Manager) error {
	err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.IPAMBlock{}, poolField, func(o client.Object) []string {
		return []string{o.(*v1alpha1.IPAMBlock).Spec.Pool}
	})
	if err != nil {
		return fmt.Errorf("index blocks by pool: %w", err)
	}
	err = ctrl.NewControllerManagedBy(mgr).
		Named("poolstatus").
		For(&v1alpha1.IPPool{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.IPAMBlock{}, blockHandler()).
		Complete(New(mgr.GetClient()))
	if err != nil {
		return fmt.Errorf("watch pools and blocks: %w", err)
	}
	return nil
}

// New is a reconciler over a client that can list blocks by spec.pool.
func New(c client.Client) *Reconciler { return &Reconciler{client: c} }

// blockHandler queues a block's pool. The queue keeps a pool once, so the delay
// turns a burst of claims into one write. A block's spec never changes.
func blockHandler() handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	enqueue := func(o client.Object, q queue) {
		if block, ok := o.(*v1alpha1.IPAMBlock); ok {
			q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: block.Spec.Pool}}, Interval)
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { enqueue(e.Object, q) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { enqueue(e.Object, q) },
	}
}

// Reconcile brings one pool's status up to date.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pool v1alpha1.IPPool
	if err := r.client.Get(ctx, req.NamespacedName, &pool); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	var blocks v1alpha1.IPAMBlockList
	// Read only: the objects are the cache's own.
	if err := r.client.List(ctx, &blocks, client.MatchingFields{poolField: pool.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("list the blocks of pool %s: %w", pool.Name, err)
	}
	want := Of(&pool, blocks.Items)
	if want.Capacity == pool.Status.Capacity && want.Blocks == pool.Status.Blocks {
		return reconcile.Result{}, nil
	}
	// A merge patch of the two fields alone, so as never to undo an agent's condition.
	before := pool.DeepCopy()
	pool.Status.Capacity, pool.Status.Blocks = want.Capacity, want.Blocks
	if err := r.client.Status().Patch(ctx, &pool, client.MergeFrom(before)); err != nil {
		return reconcile.Result{}, fmt.Errorf("write the status of pool %s: %w", pool.Name, client.IgnoreNotFound(err))
	}
	return reconcile.Result{}, nil
}
