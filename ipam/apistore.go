package ipam

import (
	"context"
	"fmt"
	"net/netip"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

const (
	pageSize     = 500
	apiConflicts = 5 // races with others on one object before giving up
)

// releasing is the annotation of a block whose deletion may be on its way.
const releasing = "hoplite.io/releasing"

// apiStore keeps blocks as IPAMBlock objects, named after their range.
type apiStore struct {
	client client.Client
	node   string
}

// NewAPIStore is the Store over the Kubernetes API, for the node of that name.
// The client must read from the API server and not from a cache, and know v1alpha1's types.
func NewAPIStore(c client.Client, node string) Store {
	return &apiStore{client: c, node: node}
}

func (s *apiStore) Claim(ctx context.Context, pool Pool, block netip.Prefix) error {
	name := v1alpha1.BlockName(block)
	for range apiConflicts {
		err := s.client.Create(ctx, &v1alpha1.IPAMBlock{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       v1alpha1.IPAMBlockSpec{CIDR: block.String(), Node: s.node, Pool: pool.Name},
		})
		if err == nil {
			return nil
		}
		if apierrors.IsInvalid(err) {
			return fmt.Errorf("claim block %s of pool %s: %w: %w", block, pool.Name, ErrDenied, err)
		}
		if !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("claim block %s of pool %s: %w", block, pool.Name, err)
		}
		var existing v1alpha1.IPAMBlock
		err = s.client.Get(ctx, client.ObjectKey{Name: name}, &existing)
		switch {
		case apierrors.IsNotFound(err): // released this moment
			continue
		case err != nil:
			return fmt.Errorf("claim block %s of pool %s: see who has it: %w", block, pool.Name, err)
		case existing.Spec.Node != s.node:
			return fmt.Errorf("claim block %s of pool %s: %w: %s", block, pool.Name, ErrClaimed, existing.Spec.Node)
		case !existing.DeletionTimestamp.IsZero():
			return fmt.Errorf("claim block %s of pool %s: %w: it is being deleted", block, pool.Name, ErrClaimed)
		case existing.Annotations[releasing] == "":
			return nil
		}
		// Taking the mark off changes the resourceVersion, which voids a deletion still on its way.
		delete(existing.Annotations, releasing)
		if err = s.client.Update(ctx, &existing); err == nil {
			return nil
		}
		if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("claim block %s of pool %s: keep it: %w", block, pool.Name, err)
		}
	}
	return fmt.Errorf("claim block %s of pool %s: it comes and goes too fast", block, pool.Name)
}

func (s *apiStore) Release(ctx context.Context, block netip.Prefix) error {
	for range apiConflicts {
		var existing v1alpha1.IPAMBlock
		err := s.client.Get(ctx, client.ObjectKey{Name: v1alpha1.BlockName(block)}, &existing)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("release block %s: %w", block, err)
		}
		if existing.Spec.Node != s.node {
			return nil
		}
		// The mark comes first: an agent that dies while the deletion is on its way
		// must not give out addresses of the block when it is back.
		if existing.Annotations[releasing] == "" {
			metav1.SetMetaDataAnnotation(&existing.ObjectMeta, releasing, "true")
			err = s.client.Update(ctx, &existing)
		}
		if err == nil {
			err = s.client.Delete(ctx, &existing, client.Preconditions{UID: &existing.UID, ResourceVersion: &existing.ResourceVersion})
		}
		if err == nil || apierrors.IsNotFound(err) {
			return nil
		}
		if !apierrors.IsConflict(err) {
			return fmt.Errorf("release block %s: %w", block, err)
		}
	}
	return fmt.Errorf("release block %s: someone keeps changing it", block)
}

func (s *apiStore) Claimed(ctx context.Context, pool Pool) ([]netip.Prefix, error) {
	var claimed []netip.Prefix
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("IPAMBlockList"))
	err := s.pages(ctx, list, func() { claimed = claimed[:0] }, func() {
		for i := range list.Items {
			block, ok := v1alpha1.ParseBlockName(list.Items[i].Name)
			if ok && block.Overlaps(pool.Prefix) {
				claimed = append(claimed, block)
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the claimed blocks of pool %s: %w", pool.Name, err)
	}
	return claimed, nil
}

func (s *apiStore) Owned(ctx context.Context) ([]OwnedBlock, error) {
	var owned []OwnedBlock
	list := &v1alpha1.IPAMBlockList{}
	err := s.pages(ctx, list, func() { owned = owned[:0] }, func() {
		owned = append(owned, OwnedBlocks(list.Items)...)
	}, client.MatchingFields{"spec.node": s.node})
	if err != nil {
		return nil, fmt.Errorf("list the blocks of node %s: %w", s.node, err)
	}
	return owned, nil
}

// pages lists page by page. When the listing takes so long that the API server
// has forgotten its version, it starts over, once.
func (s *apiStore) pages(ctx context.Context, list client.ObjectList, reset, page func(), options ...client.ListOption) error {
	options = append(options, client.Limit(pageSize))
	restarts := 0
	for token := ""; ; {
		err := s.client.List(ctx, list, append(options, client.Continue(token))...)
		if token != "" && apierrors.IsResourceExpired(err) && restarts == 0 {
			restarts++
			token = ""
			reset()
			continue
		}
		if err != nil {
			return err
		}
		page()
		if token = list.GetContinue(); token == "" {
			return nil
		}
	}
}

// OwnedBlocks is what a listing or watch of a node's own blocks says, as Restore and Reconcile want it.
// Blocks that are being deleted are left out.
func OwnedBlocks(blocks []v1alpha1.IPAMBlock) []OwnedBlock {
	owned := make([]OwnedBlock, 0, len(blocks))
	for i := range blocks {
		prefix, ok := v1alpha1.ParseBlockName(blocks[i].Name)
		if ok && blocks[i].DeletionTimestamp.IsZero() {
			owned = append(owned, OwnedBlock{
				Prefix: prefix, Pool: blocks[i].Spec.Pool, Releasing: blocks[i].Annotations[releasing] != "",
			})
		}
	}
	return owned
}
