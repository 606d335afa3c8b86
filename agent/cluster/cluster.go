// Package cluster watches the Kubernetes API and says, as plain data, what this
// node is to do: its addresses and labels, the other nodes, the pools, the BGP
// set-up and the blocks it owns.
//
// It watches its own blocks only, never all of them, and keeps of each Node no
// more than its name, labels, addresses and the condition that agents write.
package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// Node is what the agent needs to know of a node. An address that the Node does
// not have is the zero Addr.
type Node struct {
	Name string
	IPv4 netip.Addr
	IPv6 netip.Addr
}

// State is the cluster as this node sees it. Its slices are sorted by name.
type State struct {
	// Self is this node; SelfKnown is false while there is no Node object of its name.
	Self      Node
	SelfKnown bool
	Labels    map[string]string
	// Peers are all other nodes.
	Peers []Node
	Pools []v1alpha1.IPPool
	BGP   v1alpha1.BGPConfigurationSpec
	// Blocks are those that this node owns.
	Blocks []v1alpha1.IPAMBlock
}

// Cluster is the watch.
type Cluster struct {
	cache   cache.Cache
	node    string
	changed chan struct{}
}

// Scheme knows Kubernetes' own types and Hoplite's.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	// Neither can fail: both only add types to an empty scheme.
	_ = clientgoscheme.AddToScheme(s)
	_ = v1alpha1.AddToScheme(s)
	return s
}

// Mapper knows which path of the API serves each type that the agent uses.
// Asking the API server, as clients do by default, would need it to be there
// when the agent starts, and cost every agent a dozen requests.
func Mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper(nil)
	m.Add(corev1.SchemeGroupVersion.WithKind("Node"), meta.RESTScopeRoot)
	for _, kind := range []string{"IPPool", "IPAMBlock", "BGPConfiguration"} {
		m.Add(v1alpha1.GroupVersion.WithKind(kind), meta.RESTScopeRoot)
	}
	return m
}

// New prepares the watch for the node of that name; Run carries it out.
func New(config *rest.Config, node string) (*Cluster, error) {
	c, err := cache.New(config, cache.Options{
		Scheme:           Scheme(),
		Mapper:           Mapper(),
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Node{}:        {Transform: slimNode(node)},
			&v1alpha1.IPAMBlock{}: {Field: fields.OneTermEqualSelector("spec.node", node)},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("prepare the watch on the Kubernetes API: %w", err)
	}
	return &Cluster{cache: c, node: node, changed: make(chan struct{}, 1)}, nil
}

// Run watches until ctx ends.
func (c *Cluster) Run(ctx context.Context) error {
	handler := toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.signal() },
		UpdateFunc: func(before, after any) {
			if differs(before, after) {
				c.signal()
			}
		},
		DeleteFunc: func(any) { c.signal() },
	}
	for _, object := range []client.Object{&corev1.Node{}, &v1alpha1.IPPool{}, &v1alpha1.BGPConfiguration{}, &v1alpha1.IPAMBlock{}} {
		informer, err := c.cache.GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %T: %w", object, err)
		}
		if _, err := informer.AddEventHandler(handler); err != nil {
			return fmt.Errorf("watch %T: %w", object, err)
		}
	}
	return c.cache.Start(ctx)
}

// WaitForSync waits until the watch has seen the whole cluster once; false when ctx ends before.
func (c *Cluster) WaitForSync(ctx context.Context) bool {
	if !c.cache.WaitForCacheSync(ctx) {
		return false
	}
	c.signal()
	return true
}

// Changed receives whenever State may have changed since the last receive.
func (c *Cluster) Changed() <-chan struct{} { return c.changed }

func (c *Cluster) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// State reads the cluster from the watch's memory.
func (c *Cluster) State(ctx context.Context) (State, error) {
	var (
		nodes  corev1.NodeList
		pools  v1alpha1.IPPoolList
		bgps   v1alpha1.BGPConfigurationList
		blocks v1alpha1.IPAMBlockList
	)
	for _, list := range []client.ObjectList{&nodes, &pools, &bgps, &blocks} {
		if err := c.cache.List(ctx, list); err != nil {
			return State{}, fmt.Errorf("read %T: %w", list, err)
		}
	}
	var state State
	for i := range nodes.Items {
		node := FromNode(&nodes.Items[i])
		if node.Name == c.node {
			state.Self, state.SelfKnown, state.Labels = node, true, nodes.Items[i].Labels
		} else {
			state.Peers = append(state.Peers, node)
		}
	}
	var configuration *v1alpha1.BGPConfiguration
	for i := range bgps.Items {
		if bgps.Items[i].Name == v1alpha1.DefaultBGPConfiguration {
			configuration = &bgps.Items[i]
		}
	}
	state.BGP = configuration.Resolved()
	state.Pools, state.Blocks = pools.Items, blocks.Items
	slices.SortFunc(state.Peers, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(state.Pools, func(a, b v1alpha1.IPPool) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(state.Blocks, func(a, b v1alpha1.IPAMBlock) int { return strings.Compare(a.Name, b.Name) })
	return state, nil
}

// TunnelsCondition is what this node's Node object says of tunnels; nil when it says nothing, or is not there.
// It is no part of State: nothing follows from it but whether it is to be written anew.
func (c *Cluster) TunnelsCondition(ctx context.Context) (*corev1.NodeCondition, error) {
	var self corev1.Node
	if err := c.cache.Get(ctx, client.ObjectKey{Name: c.node}, &self); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	for i := range self.Status.Conditions {
		if self.Status.Conditions[i].Type == v1alpha1.NodeTunnels {
			return &self.Status.Conditions[i], nil
		}
	}
	return nil, nil
}

// FromNode takes a Node's first InternalIP of each family.
func FromNode(n *corev1.Node) Node {
	node := Node{Name: n.Name}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		switch {
		case err != nil:
		case addr.Is4() && !node.IPv4.IsValid():
			node.IPv4 = addr
		case addr.Is6() && !addr.Is4In6() && !node.IPv6.IsValid():
			node.IPv6 = addr
		}
	}
	return node
}

// slimNode keeps of a Node what State needs; a thousand whole Nodes would be
// most of the agent's memory. Only our own node's labels are ever read.
func slimNode(self string) toolscache.TransformFunc {
	return func(object any) (any, error) {
		node, ok := object.(*corev1.Node)
		if !ok {
			return object, nil
		}
		slim := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion,
		}}
		if node.Name == self {
			slim.Labels = node.Labels
			for _, c := range node.Status.Conditions {
				if c.Type == v1alpha1.NodeTunnels {
					slim.Status.Conditions = []corev1.NodeCondition{c}
				}
			}
		}
		slim.Status.Addresses = node.Status.Addresses
		return slim, nil
	}
}

// differs tells a real change from a heartbeat or a change of status that
// nothing here reads.
func differs(before, after any) bool {
	switch b := before.(type) {
	case *corev1.Node:
		a, ok := after.(*corev1.Node)
		return !ok || b.UID != a.UID || !reflect.DeepEqual(b.Labels, a.Labels) || !reflect.DeepEqual(b.Status.Addresses, a.Status.Addresses)
	case *v1alpha1.IPPool:
		a, ok := after.(*v1alpha1.IPPool)
		return !ok || b.UID != a.UID || !reflect.DeepEqual(b.Spec, a.Spec) || !reflect.DeepEqual(b.Status.Conditions, a.Status.Conditions) ||
			!b.DeletionTimestamp.Equal(a.DeletionTimestamp)
	case *v1alpha1.BGPConfiguration:
		a, ok := after.(*v1alpha1.BGPConfiguration)
		return !ok || !reflect.DeepEqual(b.Spec, a.Spec)
	case *v1alpha1.IPAMBlock:
		a, ok := after.(*v1alpha1.IPAMBlock)
		return !ok || b.UID != a.UID || b.Spec != a.Spec
	}
	return true
}
