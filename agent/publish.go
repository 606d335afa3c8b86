package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/ipam"
)

// publishSpread is over how long the nodes spread their look at whether a
// pool's condition needs writing. All come to the same condition; the first to
// write it spares the others.
const publishSpread = 2 * time.Second

// runPublish keeps the pools' Ready conditions true.
func (n *node) runPublish(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.publish:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rand.N(publishSpread)):
		}
		err := errors.Join(n.publishConditions(ctx), n.publishTunnels(ctx, n.planned().wanted, n.unsupported()))
		if err != nil && ctx.Err() == nil {
			n.log.Warn("a condition could not be written; trying again", "error", err)
			time.AfterFunc(lastRetry, func() { signal(n.publish) })
		}
	}
}

func (n *node) publishConditions(ctx context.Context) error {
	// Read anew: others write the pools' status too, which gives them new
	// versions and is no reason to apply them again.
	state, err := n.cluster.State(ctx)
	if err != nil {
		return err
	}
	pools := state.Pools
	_, verdicts := ipam.Usable(pools, state.Labels)
	var errs []error
	for i := range pools {
		conditions, changed := ipam.Conditions(&pools[i], verdicts[pools[i].Name], time.Now())
		if !changed {
			continue
		}
		after := pools[i].DeepCopy()
		after.Status.Conditions = conditions
		patch := client.MergeFromWithOptions(&pools[i], client.MergeFromWithOptimisticLock{})
		err := n.api.Status().Patch(ctx, after, patch)
		switch {
		case err == nil, apierrors.IsNotFound(err):
		case apierrors.IsConflict(err):
			signal(n.publish) // somebody else wrote it meanwhile, and perhaps not this
		default:
			errs = append(errs, fmt.Errorf("write the Ready condition of IPPool %s: %w", pools[i].Name, err))
		}
	}
	return errors.Join(errs...)
}
