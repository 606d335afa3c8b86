package poolstatus

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// Capacity is the number of addresses in a range, capped at the largest int64.
func Capacity(prefix netip.Prefix) int64 {
	bits := prefix.Addr().BitLen() - prefix.Bits()
	if bits >= 63 {
		return math.MaxInt64
	}
	return 1 << bits
}

// Of is the status a pool ought to have, given its blocks and the nodes there
// are. Conditions that are not the controller's are the pool's own, untouched. A
// pool whose range makes no sense has no capacity.
func Of(pool *v1alpha1.IPPool, blocks []v1alpha1.IPAMBlock, nodes []corev1.Node, now time.Time) v1alpha1.IPPoolStatus {
	status := v1alpha1.IPPoolStatus{Conditions: slices.Clone(pool.Status.Conditions)}
	prefix, err := pool.Prefix()
	if err == nil {
		status.Capacity = Capacity(prefix)
	}
	var own []v1alpha1.IPAMBlock
	for i := range blocks {
		if blocks[i].Spec.Pool != pool.Name {
			continue
		}
		own = append(own, blocks[i])
		// A pool of that name may have had another range once.
		if block, ok := v1alpha1.ParseBlockName(blocks[i].Name); ok && err == nil && prefix.Overlaps(block) {
			status.Blocks++
		}
	}
	for _, c := range []*metav1.Condition{inUse(pool, own, nodes), modeSupported(pool, nodes)} {
		if c != nil {
			c.ObservedGeneration = pool.Generation
			c.LastTransitionTime = metav1.NewTime(now)
			meta.SetStatusCondition(&status.Conditions, *c)
		}
	}
	return status
}

// inUse says who keeps a pool that is being deleted; nil where nobody does.
func inUse(pool *v1alpha1.IPPool, blocks []v1alpha1.IPAMBlock, nodes []corev1.Node) *metav1.Condition {
	if pool.DeletionTimestamp.IsZero() || len(blocks) == 0 {
		return nil
	}
	holders, gone := map[string]bool{}, map[string]bool{}
	for i := range blocks {
		name := blocks[i].Spec.Node
		holders[name] = true
		if !slices.ContainsFunc(nodes, func(n corev1.Node) bool { return n.Name == name }) {
			gone[name] = true
		}
	}
	message := fmt.Sprintf("1 block still in use on %s", few(holders))
	if len(blocks) != 1 {
		message = fmt.Sprintf("%d blocks still in use on %s", len(blocks), few(holders))
	}
	message += "; the pool goes when the last pod with an address of it has gone"
	if len(gone) > 0 {
		message += fmt.Sprintf(". No Node of the cluster any more: %s; where one is gone for good, delete its blocks (kubectl delete ipamblocks --field-selector spec.pool=%s,spec.node=%s)",
			few(gone), pool.Name, slices.Min(slices.Collect(maps.Keys(gone))))
	}
	return &metav1.Condition{
		Type: v1alpha1.PoolInUse, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonBlocksClaimed, Message: message,
	}
}

// modeSupported says which nodes lack what the pool's mode needs; nil where none does, nor ever did.
func modeSupported(pool *v1alpha1.IPPool, nodes []corev1.Node) *metav1.Condition {
	kind, reason := tunnel(pool.Spec.Mode)
	without := map[string]bool{}
	if kind != "" {
		for i := range nodes {
			c := tunnelCondition(&nodes[i])
			if c != nil && (c.Reason == reason || c.Reason == v1alpha1.ReasonTunnelsUnsupported) {
				without[nodes[i].Name] = true
			}
		}
	}
	them := "them"
	if len(without) == 1 {
		them = "it"
	}
	switch {
	case len(without) > 0:
		return &metav1.Condition{
			Type: v1alpha1.PoolModeSupported, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonNodesWithoutSupport,
			Message: fmt.Sprintf("%s: the kernel has no %s; towards and from %s packets go on travelling as before", few(without), kind, them),
		}
	case meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolModeSupported) != nil:
		return &metav1.Condition{
			Type: v1alpha1.PoolModeSupported, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonSupported,
			Message: "every node has what the mode needs",
		}
	}
	return nil
}

// tunnel is the kind that the mode may ask for, and a node's reason for not having it; empty for none.
func tunnel(mode v1alpha1.PoolMode) (kind, reason string) {
	switch mode {
	case v1alpha1.ModeIPIP, v1alpha1.ModeIPIPCrossSubnet:
		return "ipip", v1alpha1.ReasonIPIPUnsupported
	case v1alpha1.ModeVXLAN, v1alpha1.ModeVXLANCrossSubnet:
		return "vxlan", v1alpha1.ReasonVXLANUnsupported
	}
	return "", ""
}

func tunnelCondition(node *corev1.Node) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == v1alpha1.NodeTunnels {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

// few are the names in order, the first of them if there are many.
func few(set map[string]bool) string {
	const most = 5
	names := slices.Sorted(maps.Keys(set))
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
