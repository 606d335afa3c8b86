package poolstatus

import (
	"context"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]

// poolChanged is true for what an operator or the API server does to a pool, not for its
// status, which the agents and this package itself write.
func poolChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, after := e.ObjectOld, e.ObjectNew
		return before.GetGeneration() != after.GetGeneration() ||
			!before.GetDeletionTimestamp().Equal(after.GetDeletionTimestamp()) ||
			!reflect.DeepEqual(before.GetFinalizers(), after.GetFinalizers())
	}}
}

// blockHandler queues a block's pool. The queue keeps a pool once, so the delay
// turns a burst of claims into one write. A block's spec never changes.
func blockHandler() handler.EventHandler {
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

// nodeHandler queues all pools: a node's tunnels matter to each whose mode wants
// them, and a node that has gone to each it has blocks of.
func nodeHandler(c client.Reader) handler.EventHandler {
	enqueue := func(ctx context.Context, q queue) {
		var pools v1alpha1.IPPoolList
		// The cache answers: this fails only while the controller is stopping.
		_ = c.List(ctx, &pools, client.UnsafeDisableDeepCopy)
		for i := range pools.Items {
			q.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Name: pools.Items[i].Name}}, Interval)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, _ event.CreateEvent, q queue) { enqueue(ctx, q) },
		UpdateFunc: func(ctx context.Context, _ event.UpdateEvent, q queue) { enqueue(ctx, q) },
		DeleteFunc: func(ctx context.Context, _ event.DeleteEvent, q queue) { enqueue(ctx, q) },
	}
}

// nodeChanged is true for a node that comes, goes or says something else of its tunnels.
func nodeChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*corev1.Node)
		after, ok2 := e.ObjectNew.(*corev1.Node)
		return ok && ok2 && !reflect.DeepEqual(tunnelCondition(before), tunnelCondition(after))
	}}
}

// SlimNode is what the manager's cache is to keep of a Node: its name and what it
// says of its tunnels. It is a cache transform.
func SlimNode(object any) (any, error) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return object, nil
	}
	slim := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion}}
	if c := tunnelCondition(node); c != nil {
		slim.Status.Conditions = []corev1.NodeCondition{*c}
	}
	return slim, nil
}
