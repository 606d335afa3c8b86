package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab/inside"
)

// NodeConfig says what node to make.
type NodeConfig struct {
	Name string
	// Subnet is 1 (the default) or 2: which of the fabric's node subnets it is on.
	Subnet int
	// Octet is the last byte of its addresses, by default 11 for the first node of a lab, 12 for the next.
	Octet int
	// Labels are added to the Node object.
	Labels map[string]string
}

// Nodes is n nodes on the first subnet: node1 at 172.30.1.11, node2, ...
func Nodes(n int) []NodeConfig {
	all := []NodeConfig{}
	for i := range n {
		all = append(all, NodeConfig{Name: fmt.Sprintf("node%d", i+1), Subnet: 1, Octet: 11 + i})
	}
	return all
}

// Conflist is the CNI configuration of a node.
const Conflist = `{
  "cniVersion": "1.1.0",
  "name": "hoplite",
  "plugins": [
    {"type": "hoplite"},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}
`

// Node is a machine with a container runtime's part of networking, an agent,
// and a Node object.
type Node struct {
	*Machine
	// Agent is its hoplite-agent.
	Agent *Agent

	cfg NodeConfig

	podsMu sync.Mutex
	pods   []*Pod
}

// Node returns the node of that name, nil if there is none.
func (l *Lab) Node(name string) *Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Nodes returns all nodes, in the order of their making.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node{}, l.nodes...)
}

func (l *Lab) newNode(cfg NodeConfig) (*Node, error) {
	m, err := l.startMachine(cfg.Name)
	if err != nil {
		return nil, err
	}
	return &Node{Machine: m, cfg: cfg}, nil
}

// furnish connects the node and gives it what an installation would.
func (n *Node) furnish() error {
	subnet := nodeNets[n.cfg.Subnet-1]
	if err := n.lab.attach(n.Machine, subnet, subnet.host(n.cfg.Octet)); err != nil {
		return err
	}
	for name, file := range n.lab.cfg.plugins() {
		// Links, so that a rebuilt plugin is the one that runs.
		if err := os.Symlink(file, n.Path(filepath.Join(inside.PluginDir, name))); err != nil {
			return err
		}
	}
	if err := n.WriteFile(inside.ConfDir+"/10-hoplite.conflist", n.lab.cfg.Conflist, 0o644); err != nil {
		return err
	}
	if err := n.WriteFile("/etc/hosts", n.lab.hosts(), 0o644); err != nil {
		return err
	}
	// So that `ip route` says "proto hoplite".
	return n.WriteFile("/etc/iproute2/rt_protos.d/hoplite.conf", []byte("104 hoplite\n"), 0o644)
}

// hosts is /etc/hosts with the lab's machines as configured.
func (l *Lab) hosts() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1 localhost\n::1 localhost\n")
	fmt.Fprintf(&b, "%s control\n%s outside\n", controlNet.host(controlHost)[0], outsideNet.host(outsideHost)[0])
	for _, n := range l.cfg.Nodes {
		fmt.Fprintf(&b, "%s %s\n", nodeNets[n.Subnet-1].host(n.Octet)[0], n.Name)
	}
	return []byte(b.String())
}

// IP is the node's first address, the IPv4 one.
func (n *Node) IP() netip.Addr { return n.Addresses[0] }

// register creates the Node object and writes its status, as the kubelet does.
func (n *Node) register(ctx context.Context) error {
	node := nodeObject(n.Name)
	for k, v := range n.cfg.Labels {
		node.Labels[k] = v
	}
	if err := n.lab.client.Create(ctx, node); client.IgnoreAlreadyExists(err) != nil {
		return fmt.Errorf("create Node %s: %w", n.Name, err)
	}
	return n.reportStatus(ctx)
}

func (n *Node) reportStatus(ctx context.Context) error {
	node := &corev1.Node{}
	if err := n.lab.client.Get(ctx, client.ObjectKey{Name: n.Name}, node); err != nil {
		return err
	}
	before := client.MergeFrom(node.DeepCopy())
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: n.Name}}
	for _, a := range n.Addresses {
		if a.Is4() || n.lab.cfg.DualStack {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Lab"}}
	if err := n.lab.client.Status().Patch(ctx, node, before); err != nil {
		return fmt.Errorf("write the status of Node %s: %w", n.Name, err)
	}
	return nil
}

// SetOctet moves the node to other addresses of its subnet and says so in the
// Node object, as when a machine gets a new lease. Routes of others stay as they are.
func (n *Node) SetOctet(ctx context.Context, octet int) error {
	subnet := nodeNets[n.cfg.Subnet-1]
	old, addresses := n.Addresses, subnet.host(octet)
	err := n.Netlink(func(h *netlink.Handle) error {
		eth0, err := h.LinkByName(uplink)
		if err != nil {
			return err
		}
		for _, a := range old {
			if err := h.AddrDel(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, subnet.bits(a)))}); err != nil {
				return fmt.Errorf("remove address %s: %w", a, err)
			}
		}
		if err := configure(h, eth0, subnet, addresses); err != nil {
			return err
		}
		// The kernel took them away with the last address.
		return defaultRoutes(h, eth0, subnet)
	})
	if err != nil {
		return err
	}
	n.cfg.Octet, n.Addresses = octet, addresses
	if err := n.lab.noteAddresses(n.Machine); err != nil {
		return err
	}
	return n.reportStatus(ctx)
}

// AddNode adds a node to a running lab. Its agent is started and ready unless NoAgents is set.
func (l *Lab) AddNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	l.mu.Lock()
	known := append([]NodeConfig{}, l.cfg.Nodes...)
	l.mu.Unlock()
	all, err := completeNodes(append(known, cfg))
	if err != nil {
		return nil, err
	}
	if err := l.checkMachine(cfg.Name); err != nil {
		return nil, err
	}
	n, err := l.newNode(all[len(all)-1])
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.cfg.Nodes, l.nodes = all, append(l.nodes, n)
	l.mu.Unlock()
	if err := n.furnish(); err != nil {
		return nil, err
	}
	if l.cfg.NoControlPlane {
		return n, nil
	}
	if err := n.register(ctx); err != nil {
		return nil, err
	}
	if err := n.prepareAgent(); err != nil || l.cfg.NoAgents {
		return n, err
	}
	if err := n.Agent.Start(); err != nil {
		return nil, err
	}
	return n, n.Agent.WaitReady(ctx)
}

// Remove takes the node out of the lab: the power is cut, then its Node object deleted.
func (n *Node) Remove(ctx context.Context) error {
	l := n.lab
	n.kill()
	l.mu.Lock()
	for i, other := range l.nodes {
		if other == n {
			l.nodes = append(l.nodes[:i:i], l.nodes[i+1:]...)
			break
		}
	}
	for i, c := range l.cfg.Nodes {
		if c.Name == n.Name {
			l.cfg.Nodes = append(l.cfg.Nodes[:i:i], l.cfg.Nodes[i+1:]...)
			break
		}
	}
	l.mu.Unlock()
	var err error
	if l.client != nil {
		err = client.IgnoreNotFound(l.client.Delete(ctx, nodeObject(n.Name)))
	}
	return errors.Join(err, l.forget(n.Machine))
}

// completeNodes fills in subnets and octets and refuses what cannot be.
func completeNodes(nodes []NodeConfig) ([]NodeConfig, error) {
	seenName, seenAddress := map[string]bool{}, map[[2]int]bool{}
	for _, n := range nodes {
		if n.Octet != 0 {
			seenAddress[[2]int{max(n.Subnet, 1), n.Octet}] = true
		}
	}
	all := []NodeConfig{}
	for i, n := range nodes {
		n.Subnet = max(n.Subnet, 1)
		if n.Subnet > len(nodeNets) {
			return nil, fmt.Errorf("node %s: subnet %d: the fabric has %d", n.Name, n.Subnet, len(nodeNets))
		}
		if seenName[n.Name] {
			return nil, fmt.Errorf("two nodes named %s", n.Name)
		}
		seenName[n.Name] = true
		if n.Octet == 0 {
			n.Octet = 11 + i
			for seenAddress[[2]int{n.Subnet, n.Octet}] {
				n.Octet++
			}
			seenAddress[[2]int{n.Subnet, n.Octet}] = true
		}
		all = append(all, n)
	}
	return all, nil
}
