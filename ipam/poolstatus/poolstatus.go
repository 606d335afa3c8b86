// Package poolstatus is what the controller does for IPPools: it keeps their
// status, and keeps a pool that is being deleted until no block of it is left.
//
//	capacity, blocks         how many addresses the pool has, how many blocks nodes have claimed
//	condition InUse          who holds back a pool that is being deleted
//	condition ModeSupported  which nodes' kernels lack what the pool's mode needs
//
// It is the only writer of these and writes no others; the Ready condition is
// the agents'. Nothing is written when nothing changed, and however many blocks come and
// go, a pool's status is written at most once every Interval.
package poolstatus

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// Interval is the time between two writes of one pool's status.
const Interval = time.Second

// poolField finds blocks by the pool they were claimed from, in the cache and in the API.
const poolField = "spec.pool"

// Reconciler looks after one pool at a time.
type Reconciler struct {
	client client.Client
	live   client.Reader
	now    func() time.Time
	going  map[string]going // by pool
}

// Setup adds the reconciler to a manager, whose cache holds all pools, blocks and nodes from then on.
func Setup(ctx context.Context, mgr ctrl.Manager) error {
	err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.IPAMBlock{}, poolField, func(o client.Object) []string {
		return []string{o.(*v1alpha1.IPAMBlock).Spec.Pool}
	})
	if err != nil {
		return fmt.Errorf("index blocks by pool: %w", err)
	}
	err = ctrl.NewControllerManagedBy(mgr).
		Named("poolstatus").
		For(&v1alpha1.IPPool{}, builder.WithPredicates(poolChanged())).
		Watches(&v1alpha1.IPAMBlock{}, blockHandler()).
		Watches(&corev1.Node{}, nodeHandler(mgr.GetClient()), builder.WithPredicates(nodeChanged())).
		Complete(New(mgr.GetClient(), mgr.GetAPIReader(), time.Now))
	if err != nil {
		return fmt.Errorf("watch pools, blocks and nodes: %w", err)
	}
	return nil
}

// New is a reconciler over a client that can list blocks by spec.pool, which may
// read from a cache; live does not.
func New(c client.Client, live client.Reader, now func() time.Time) *Reconciler {
	return &Reconciler{client: c, live: live, now: now, going: make(map[string]going)}
}

// Reconcile brings one pool's status and finalizer up to date.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pool v1alpha1.IPPool
	if err := r.client.Get(ctx, req.NamespacedName, &pool); err != nil {
		if apierrors.IsNotFound(err) {
			delete(r.going, req.Name)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	var blocks v1alpha1.IPAMBlockList
	// Read only: the objects are the cache's own.
	if err := r.client.List(ctx, &blocks, client.MatchingFields{poolField: pool.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, fmt.Errorf("list the blocks of pool %s: %w", pool.Name, err)
	}
	holdErr := r.hold(ctx, &pool)
	statusErr := r.writeStatus(ctx, &pool, blocks.Items)
	again, goErr := r.letGo(ctx, &pool, len(blocks.Items))
	err := errors.Join(holdErr, statusErr, goErr)
	if apierrors.IsConflict(err) { // the agents write the status, too, and the cache is late
		return reconcile.Result{RequeueAfter: Interval}, nil
	}
	return reconcile.Result{RequeueAfter: again}, err
}

// writeStatus writes what Of says. Counts are patched alone, so as never to undo
// an agent's condition; conditions are one list, and go only as long as nobody
// else has written it.
func (r *Reconciler) writeStatus(ctx context.Context, pool *v1alpha1.IPPool, blocks []v1alpha1.IPAMBlock) error {
	nodes, err := r.nodes(ctx, pool)
	if err != nil {
		return err
	}
	want := Of(pool, blocks, nodes, r.now())
	if equality.Semantic.DeepEqual(want, pool.Status) {
		return nil
	}
	patch := client.MergeFrom(pool.DeepCopy())
	if !equality.Semantic.DeepEqual(want.Conditions, pool.Status.Conditions) {
		patch = client.MergeFromWithOptions(pool.DeepCopy(), client.MergeFromWithOptimisticLock{})
	}
	pool.Status = want
	if err := r.client.Status().Patch(ctx, pool, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of pool %s: %w", pool.Name, err)
	}
	return nil
}

// nodes are all nodes, none when nothing about the pool depends on them.
func (r *Reconciler) nodes(ctx context.Context, pool *v1alpha1.IPPool) ([]corev1.Node, error) {
	kind, _ := tunnel(pool.Spec.Mode)
	if kind == "" && pool.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	var nodes corev1.NodeList
	if err := r.client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	return nodes.Items, nil
}
