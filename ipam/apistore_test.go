package ipam_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
)

// These tests are about what apiStore makes of the API server's answers; that
// the API server gives them is for the tests against a real one.

func fakeAPI(t *testing.T, hooks interceptor.Funcs) client.WithWatch {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(hooks).
		WithIndex(&v1alpha1.IPAMBlock{}, "spec.node", func(o client.Object) []string {
			return []string{o.(*v1alpha1.IPAMBlock).Spec.Node}
		}).Build()
}

var aBlock = netip.MustParsePrefix("10.244.1.64/26")

func TestAPIStoreKeepsThePromisesOfAStore(t *testing.T) {
	api := fakeAPI(t, interceptor.Funcs{})
	ipamtest.Claimants{
		NewStore: func(node string) ipam.Store { return ipam.NewAPIStore(api, node) },
		Pool:     smallPool("10.9.0.0/25", 29), Nodes: 4, Steps: 150, Seed: 1,
	}.Run(t)
}

func TestClaimSaysWhoHasTheBlock(t *testing.T) {
	api := fakeAPI(t, interceptor.Funcs{})
	one, two := ipam.NewAPIStore(api, "n1"), ipam.NewAPIStore(api, "n2")
	for range 2 {
		if err := one.Claim(t.Context(), p26, aBlock); err != nil {
			t.Fatal(err)
		}
	}
	if err := two.Claim(t.Context(), p26, aBlock); !errors.Is(err, ipam.ErrClaimed) {
		t.Errorf("error: %v", err)
	}
	if err := two.Release(t.Context(), aBlock); err != nil {
		t.Errorf("release of another's block: %v", err)
	}
	if err := two.Release(t.Context(), netip.MustParsePrefix("10.244.9.0/26")); err != nil {
		t.Errorf("release of nobody's block: %v", err)
	}
	if owned, err := one.Owned(t.Context()); err != nil || !slices.Equal(owned, []ipam.OwnedBlock{{Prefix: aBlock, Pool: "small"}}) {
		t.Errorf("owned: %v, %v", owned, err)
	}
	if claimed, err := two.Claimed(t.Context(), p26); err != nil || !slices.Equal(claimed, []netip.Prefix{aBlock}) {
		t.Errorf("claimed: %v, %v", claimed, err)
	}
	if claimed, err := two.Claimed(t.Context(), smallPool("10.245.0.0/16", 26)); err != nil || len(claimed) != 0 {
		t.Errorf("claimed of another pool: %v, %v", claimed, err)
	}
}

func TestAnObjectTheAPIServerWillNotHaveIsDeniedAndAFailureIsNot(t *testing.T) {
	kind := v1alpha1.GroupVersion.WithKind("IPAMBlock").GroupKind()
	for want, answer := range map[bool]error{
		true:  apierrors.NewInvalid(kind, "10-244-1-64-26", nil),
		false: apierrors.NewForbidden(v1alpha1.GroupVersion.WithResource("ipamblocks").GroupResource(), "10-244-1-64-26", errors.New("no role")),
	} {
		api := fakeAPI(t, interceptor.Funcs{
			Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return answer },
		})
		err := ipam.NewAPIStore(api, "n1").Claim(t.Context(), p26, aBlock)
		if errors.Is(err, ipam.ErrDenied) != want || !errors.Is(err, answer) {
			t.Errorf("%v is denied: %t, want %t", err, !want, want)
		}
	}
}

func TestADeletionOnItsWayIsVoidOnceTheBlockIsClaimedAgain(t *testing.T) {
	var late []client.DeleteOption
	api := fakeAPI(t, interceptor.Funcs{
		Delete: func(_ context.Context, _ client.WithWatch, _ client.Object, options ...client.DeleteOption) error {
			late = options
			return context.DeadlineExceeded
		},
	})
	store := ipam.NewAPIStore(api, "n1")
	if err := store.Claim(t.Context(), p26, aBlock); err != nil {
		t.Fatal(err)
	}
	if err := store.Release(t.Context(), aBlock); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error: %v", err)
	}
	if owned, err := store.Owned(t.Context()); err != nil || len(owned) != 1 || !owned[0].Releasing {
		t.Fatalf("a block whose deletion is on its way is shown as %v, %v", owned, err)
	}
	if err := store.Claim(t.Context(), p26, aBlock); err != nil {
		t.Fatal(err)
	}
	if owned, err := store.Owned(t.Context()); err != nil || len(owned) != 1 || owned[0].Releasing {
		t.Fatalf("a block claimed again is shown as %v, %v", owned, err)
	}
	var block v1alpha1.IPAMBlock
	if err := api.Get(t.Context(), client.ObjectKey{Name: v1alpha1.BlockName(aBlock)}, &block); err != nil {
		t.Fatal(err)
	}
	// The fake knows no preconditions; the real API server compares these two.
	p := (&client.DeleteOptions{}).ApplyOptions(late).Preconditions
	if p == nil || p.UID == nil || *p.ResourceVersion == block.ResourceVersion {
		t.Errorf("the deletion asks for %v of %s", p, block.ResourceVersion)
	}
}

func TestAListingThatExpiresStartsOver(t *testing.T) {
	lists := 0
	api := fakeAPI(t, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			lists++
			token := (&client.ListOptions{}).ApplyOptions(options).Continue
			if lists == 2 {
				return apierrors.NewResourceExpired("too old")
			}
			err := c.List(ctx, list)
			if lists == 1 || lists == 3 {
				list.SetContinue("more")
			} else if token != "more" {
				t.Errorf("page %d was asked for with token %q", lists, token)
			}
			return err
		},
	})
	store := ipam.NewAPIStore(api, "n1")
	if err := store.Claim(t.Context(), p26, aBlock); err != nil {
		t.Fatal(err)
	}
	claimed, err := store.Claimed(t.Context(), p26)
	if err != nil || len(claimed) != 2 || lists != 4 { // pages 1, 2 (expired), 1, 2
		t.Errorf("%d pages, %v, %v", lists, claimed, err)
	}
}
