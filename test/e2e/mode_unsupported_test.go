package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
	"github.com/hoplite-net/hoplite/test/uml/umltest"
)

// A mode that the nodes' kernels do not have changes nothing for the pods: nodes
// and the pool say what is missing, until a mode is asked for that there is.
func TestKernelWithoutIPIP(t *testing.T) {
	if umltest.HasIPIP(t) {
		t.Log("this kernel has it: nothing to see here")
		return
	}
	ctx, l, pods := startOn(t, []int{1, 1, 2}, lab.Pool(vxlanCross))
	underLoad(t, ctx, pods, func() {
		if err := l.SetMode(ctx, defaultPool, ipip); err != nil {
			t.Fatal(err)
		}
		for _, node := range l.Nodes() {
			nodeSays(t, ctx, l, node, corev1.ConditionFalse, v1alpha1.ReasonIPIPUnsupported)
			labtest.Eventually(t, settles, "netctl says so on "+node.Name, func() error {
				if said := netctl(t, ctx, l, node, "node", "status"); !strings.Contains(strings.ToLower(said), "ipip") {
					return fmt.Errorf("it says:\n%s", said)
				}
				return nil
			})
		}
		poolSaysMode(t, ctx, l, metav1.ConditionFalse, v1alpha1.ReasonNodesWithoutSupport)
		// On they go, by what there is.
		sendsBy(t, l.Nodes()[0], pods[1], lab.Uplink)
		sendsBy(t, l.Nodes()[0], pods[2], lab.VXLANDevice)
	})
	waitMTU(t, lab.PodMTU(vxlan), pods...)
	underLoad(t, ctx, pods, func() {
		setMode(t, ctx, l, defaultPool, vxlan)
		for _, node := range l.Nodes() {
			nodeSays(t, ctx, l, node, corev1.ConditionTrue, v1alpha1.ReasonSupported)
		}
		poolSaysMode(t, ctx, l, metav1.ConditionTrue, v1alpha1.ReasonSupported)
	})
}

// nodeSays waits until the Node's condition is so, with a message for people.
func nodeSays(t *testing.T, ctx context.Context, l *lab.Lab, n *lab.Node, status corev1.ConditionStatus, reason string) {
	t.Helper()
	labtest.Eventually(t, settles, fmt.Sprintf("Node %s says %s %s", n.Name, status, reason), func() error {
		node := &corev1.Node{}
		if err := l.Client().Get(ctx, client.ObjectKey{Name: n.Name}, node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == v1alpha1.NodeTunnels && c.Status == status && c.Reason == reason && c.Message != "" {
				return nil
			}
		}
		return fmt.Errorf("conditions: %v", node.Status.Conditions)
	})
}

// poolSaysMode waits until the pool's condition on its mode is so.
func poolSaysMode(t *testing.T, ctx context.Context, l *lab.Lab, status metav1.ConditionStatus, reason string) {
	t.Helper()
	labtest.Eventually(t, settles, fmt.Sprintf("the pool says %s %s", status, reason), func() error {
		pool := &v1alpha1.IPPool{}
		if err := l.Client().Get(ctx, client.ObjectKey{Name: defaultPool}, pool); err != nil {
			return err
		}
		c := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolModeSupported)
		if c == nil || c.Status != status || c.Reason != reason || c.Message == "" {
			return fmt.Errorf("conditions: %v", pool.Status.Conditions)
		}
		return nil
	})
}
