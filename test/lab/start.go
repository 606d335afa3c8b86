package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// bringUp does everything between the claim of the name and a lab that is ready.
func (l *Lab) bringUp(ctx context.Context) error {
	if err := l.bringUpMachines(); err != nil {
		return err
	}
	l.progress("machines: fabric, control, outside, %s", strings.Join(names(l.cfg.Nodes), ", "))
	if l.cfg.NoControlPlane {
		return nil
	}
	if err := l.prepareClients(); err != nil {
		return err
	}
	if err := l.controlPlane(ctx); err != nil {
		return err
	}
	c, err := client.New(l.RESTConfig(), client.Options{Scheme: Scheme()})
	if err != nil {
		return err
	}
	l.client = c
	if err := l.Kubeconfig(filepath.Join(l.dir(), adminKubeconfig)); err != nil {
		return err
	}
	l.progress("kube-apiserver and etcd: ready")
	if err := l.resources(ctx); err != nil {
		return err
	}
	if err := l.permissions(ctx); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.register(ctx); err != nil {
			return err
		}
	}
	if err := l.Apply(ctx, l.cfg.Objects...); err != nil {
		return err
	}
	l.progress("API: Hoplite's resources, %d nodes, %d objects", len(l.nodes), len(l.cfg.Objects))
	return l.bringUpAgents(ctx)
}

// bringUpMachines makes all machines at once, then connects them.
func (l *Lab) bringUpMachines() error {
	var group errgroup.Group
	for name, slot := range map[string]**Machine{"fabric": &l.fabric, "control": &l.control, "outside": &l.outside} {
		group.Go(func() (err error) {
			*slot, err = l.startMachine(name)
			return err
		})
	}
	nodes := make([]*Node, len(l.cfg.Nodes))
	for i, cfg := range l.cfg.Nodes {
		group.Go(func() (err error) {
			nodes[i], err = l.newNode(cfg)
			return err
		})
	}
	err := group.Wait()
	l.nodes = slices.DeleteFunc(nodes, func(n *Node) bool { return n == nil })
	if err != nil {
		return err
	}
	if err := l.buildFabric(); err != nil {
		return err
	}
	if err := l.attach(l.control, controlNet, controlNet.host(controlHost)); err != nil {
		return err
	}
	if err := l.attach(l.outside, outsideNet, outsideNet.host(outsideHost)); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.furnish(); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	return nil
}

// bringUpAgents starts the controller and an agent on every node and waits until they are ready.
func (l *Lab) bringUpAgents(ctx context.Context) error {
	if err := l.prepareController(); err != nil {
		return err
	}
	for _, n := range l.nodes {
		if err := n.prepareAgent(); err != nil {
			return err
		}
	}
	if l.cfg.NoAgents {
		return nil
	}
	if err := l.Controller.Start(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range l.nodes {
		group.Go(func() error {
			if err := n.Agent.Start(); err != nil {
				return err
			}
			return n.Agent.WaitReady(ctx)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	l.progress("agents: ready on %s", strings.Join(names(l.cfg.Nodes), ", "))
	return nil
}

// Close ends the lab and everything in it and waits until it is gone.
// Repeating it is fine.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	machines := append([]*Machine{}, l.machines...)
	for _, n := range l.nodes {
		machines = append(machines, n.Machine)
	}
	l.mu.Unlock()
	for _, m := range []*Machine{l.outside, l.control, l.fabric} {
		if m != nil {
			machines = append(machines, m)
		}
	}
	var wait sync.WaitGroup
	for _, m := range machines {
		wait.Go(m.kill)
	}
	wait.Wait()
	l.lifelineW.Close()
	l.lifelineR.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return locked(ctx, func() error { return l.state.remove(ctx, l.name) })
}

// AddMachine starts a host on the first node subnet, with the last octet
// given: a router, a route reflector. It knows nothing of Kubernetes.
func (l *Lab) AddMachine(name string, octet int) (*Machine, error) {
	if err := l.checkMachine(name); err != nil {
		return nil, err
	}
	m, err := l.startMachine(name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.machines = append(l.machines, m)
	l.mu.Unlock()
	return m, l.attach(m, nodeNets[0], nodeNets[0].host(octet))
}

// Machine finds a machine by its name: a node, fabric, control, outside, or one of AddMachine.
func (l *Lab) Machine(name string) (*Machine, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := append([]*Machine{l.fabric, l.control, l.outside}, l.machines...)
	for _, n := range l.nodes {
		all = append(all, n.Machine)
	}
	var known []string
	for _, m := range all {
		if m == nil {
			continue
		}
		if m.Name == name {
			return m, nil
		}
		known = append(known, m.Name)
	}
	return nil, fmt.Errorf("lab %s has no machine %q: it has %s", l.name, name, strings.Join(known, ", "))
}

// checkMachine says whether a machine could have the name.
func (l *Lab) checkMachine(name string) error {
	if name == "" || len(name) > 15 { // an interface of the fabric has its name
		return fmt.Errorf("machine name %q: want 1 to 15 characters", name)
	}
	if _, err := l.Machine(name); err == nil {
		return fmt.Errorf("lab %s has a machine %s already", l.name, name)
	}
	return nil
}

// DefaultPool is the pool most tests want: 10.244.0.0/16, native, with natOutgoing.
func DefaultPool() *v1alpha1.IPPool {
	return &v1alpha1.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec:       v1alpha1.IPPoolSpec{CIDR: "10.244.0.0/16", Mode: v1alpha1.ModeNative, NATOutgoing: true},
	}
}

func names(nodes []NodeConfig) []string {
	var all []string
	for _, n := range nodes {
		all = append(all, n.Name)
	}
	return all
}

// nodeObject is the Node the kubelet would have registered.
func nodeObject(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
	}
}
