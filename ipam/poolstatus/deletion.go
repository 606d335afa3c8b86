package poolstatus

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// Grace is for how long after its deletion was seen a pool is kept at least. The API
// server refuses blocks of a pool that is being deleted, but what it knows of pools is a
// moment old: after Grace every such block is either there to be seen, or refused.
const Grace = 3 * time.Second

// going is a pool that is being deleted.
type going struct {
	uid   types.UID
	since time.Time // when that was first seen here
}

// hold puts the finalizer on a pool that is not being deleted.
func (r *Reconciler) hold(ctx context.Context, pool *v1alpha1.IPPool) error {
	before := pool.DeepCopy()
	if !pool.DeletionTimestamp.IsZero() || !controllerutil.AddFinalizer(pool, v1alpha1.BlocksFinalizer) {
		return nil
	}
	return r.patchFinalizers(ctx, pool, before)
}

// letGo takes the finalizer off a pool that is being deleted and of which no
// node has a block; again is when to look again, 0 for whenever something changes.
func (r *Reconciler) letGo(ctx context.Context, pool *v1alpha1.IPPool, blocks int) (again time.Duration, err error) {
	if pool.DeletionTimestamp.IsZero() || !controllerutil.ContainsFinalizer(pool, v1alpha1.BlocksFinalizer) {
		return 0, nil
	}
	if seen, ok := r.going[pool.Name]; !ok || seen.uid != pool.UID {
		r.going[pool.Name] = going{pool.UID, r.now()}
	}
	if blocks > 0 {
		return 0, nil
	}
	if wait := Grace - r.now().Sub(r.going[pool.Name].since); wait > 0 {
		return wait, nil
	}
	// The cache may be late: only the API itself knows that there is none.
	var left v1alpha1.IPAMBlockList
	if err := r.live.List(ctx, &left, client.MatchingFields{poolField: pool.Name}, client.Limit(1)); err != nil {
		return 0, fmt.Errorf("look for blocks of pool %s: %w", pool.Name, err)
	}
	if len(left.Items) > 0 {
		return Interval, nil
	}
	before := pool.DeepCopy()
	controllerutil.RemoveFinalizer(pool, v1alpha1.BlocksFinalizer)
	return 0, r.patchFinalizers(ctx, pool, before)
}

// patchFinalizers writes the list as long as nobody else has.
func (r *Reconciler) patchFinalizers(ctx context.Context, pool, before *v1alpha1.IPPool) error {
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := r.client.Patch(ctx, pool, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the finalizer of pool %s: %w", pool.Name, err)
	}
	return nil
}
