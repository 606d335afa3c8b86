package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

// tunnelCondition is what the node has to say, given the tunnels that pools'
// modes want and those that its kernel has no devices for. Its times are not set.
func tunnelCondition(wanted, unsupported bgp.Encapsulations) corev1.NodeCondition {
	c := corev1.NodeCondition{Type: v1alpha1.NodeTunnels, Status: corev1.ConditionFalse}
	const consequence = ": packets to and from this node's pods go on travelling as before"
	missing := wanted & unsupported
	switch ipip, vxlan := missing.Has(bgp.IPIP), missing.Has(bgp.VXLAN); {
	case ipip && vxlan:
		c.Reason = v1alpha1.ReasonTunnelsUnsupported
		c.Message = "a pool's mode asks for IPIP and another's for VXLAN, and the kernel has neither (CONFIG_NET_IPIP, CONFIG_VXLAN)" + consequence
	case ipip:
		c.Reason = v1alpha1.ReasonIPIPUnsupported
		c.Message = "a pool's mode asks for IPIP, and the kernel has no such tunnels (CONFIG_NET_IPIP)" + consequence
	case vxlan:
		c.Reason = v1alpha1.ReasonVXLANUnsupported
		c.Message = "a pool's mode asks for VXLAN, and the kernel has no such tunnels (CONFIG_VXLAN)" + consequence
	default:
		c.Status = corev1.ConditionTrue
		c.Reason = v1alpha1.ReasonSupported
		c.Message = "the kernel has the tunnels that pools' modes ask for"
	}
	return c
}

// nextCondition is what is to be written where before is what the Node says
// now, nil for nothing; false when that is true enough. A node that was never
// without a tunnel that was wanted says nothing.
func nextCondition(before *corev1.NodeCondition, wanted, unsupported bgp.Encapsulations, now time.Time) (corev1.NodeCondition, bool) {
	c := tunnelCondition(wanted, unsupported)
	c.LastHeartbeatTime, c.LastTransitionTime = metav1.NewTime(now), metav1.NewTime(now)
	if before == nil {
		return c, c.Status == corev1.ConditionFalse
	}
	if before.Status == c.Status {
		c.LastTransitionTime = before.LastTransitionTime
	}
	return c, before.Status != c.Status || before.Reason != c.Reason || before.Message != c.Message
}

// publishTunnels keeps the Node's condition true. Only that is written: the
// API server merges conditions by their type, so nobody else's is touched.
func (n *node) publishTunnels(ctx context.Context, wanted, unsupported bgp.Encapsulations) error {
	before, err := n.cluster.TunnelsCondition(ctx)
	if err != nil {
		return fmt.Errorf("read the condition %s of this node: %w", v1alpha1.NodeTunnels, err)
	}
	c, changed := nextCondition(before, wanted, unsupported, time.Now())
	if !changed {
		return nil
	}
	return patchNodeCondition(ctx, n.api, n.config.NodeName, c)
}

func patchNodeCondition(ctx context.Context, api client.Client, name string, c corev1.NodeCondition) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{c}}})
	if err != nil {
		return err
	}
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	err = api.Status().Patch(ctx, self, client.RawPatch(types.StrategicMergePatchType, patch))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the condition %s of node %s: %w", c.Type, name, err)
	}
	return nil
}
