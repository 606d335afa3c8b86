package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/test/lab/inside"
)

// PodOptions are what a pod may have besides a name.
type PodOptions struct {
	// Namespace is its Kubernetes namespace, "default" if empty.
	Namespace string
	// PortMappings and Bandwidth go to the plugins that can.
	PortMappings []PortMapping
	Bandwidth    *Bandwidth
	// ContainerID and UID are random if empty.
	ContainerID, UID string
	// IfName is eth0 if empty.
	IfName string
	// NoServer leaves the pod without a process: a network namespace only.
	NoServer bool
}

// PortMapping is the runtime argument of the portmap plugin.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp or udp
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth is the runtime argument of the bandwidth plugin: bits per second, and bits.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// Pod is a network namespace on a node, connected through the CNI protocol, with
// a small server in it: HTTP on port 80 (/ /clientip /hostname), UDP echo on port 7.
type Pod struct {
	Name string
	Node *Node
	// ContainerID and IfName are CNI's key of the attachment.
	ContainerID, IfName string
	// Result is what ADD gave.
	Result *current.Result

	options PodOptions
	server  *server
}

// AddPod makes a pod's namespace, connects it by a CNI ADD with the node's
// configuration, and starts its server. On an error nothing of it remains. A
// refusal by a plugin is an error that holds a *types.Error of the CNI library.
func (n *Node) AddPod(ctx context.Context, name string, options PodOptions) (*Pod, error) {
	p := &Pod{Name: name, Node: n, ContainerID: options.ContainerID, IfName: options.IfName, options: options}
	if p.ContainerID == "" {
		p.ContainerID = randomID()
	}
	if p.IfName == "" {
		p.IfName = "eth0"
	}
	if p.options.UID == "" {
		p.options.UID = uid(p.ContainerID)
	}
	result, err := n.CNI(ctx, p.request("ADD"))
	if err != nil {
		return nil, fmt.Errorf("add pod %s on %s: %w", name, n.Name, err)
	}
	if p.Result, err = parseResult(result); err == nil {
		err = n.linkPod(p)
	}
	if err == nil && !options.NoServer {
		p.server, err = serve(ctx, n.lab, p.Exec, p.Name, n.Name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("add pod %s on %s: %w", name, n.Name, err), p.Del(context.WithoutCancel(ctx)))
	}
	n.podsMu.Lock()
	defer n.podsMu.Unlock()
	n.pods = append(n.pods, p)
	return p, nil
}

// podLink is a link in the node to the network namespace of the pod of that
// name, by which Remote finds it.
func podLink(name string) string { return filepath.Join("/run/lab-pods", name) }

func (n *Node) linkPod(p *Pod) error {
	link := n.Path(podLink(p.Name))
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	_ = os.Remove(link) // of another Kubernetes namespace: the later one wins
	return os.Symlink(p.netns(), link)
}

// request is the CNI request for the pod.
func (p *Pod) request(command string) inside.Request {
	r := inside.Request{
		Command: command, ContainerID: p.ContainerID, Netns: p.netns(), NewNetns: true, IfName: p.IfName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace()},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID},
			{"K8S_POD_UID", p.options.UID},
		},
		Capabilities: map[string]any{},
	}
	if len(p.options.PortMappings) > 0 {
		r.Capabilities["portMappings"] = p.options.PortMappings
	}
	if p.options.Bandwidth != nil {
		r.Capabilities["bandwidth"] = p.options.Bandwidth
	}
	return r
}

// CNI carries out a request on the node by libcni, and returns ADD's result in
// JSON. AddPod and Pod's methods are this with less to fill in.
func (n *Node) CNI(ctx context.Context, request inside.Request) (json.RawMessage, error) {
	input, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	cmd := n.Command(ctx, n.lab.inside(), "cni")
	cmd.Stdin = bytes.NewReader(input)
	output, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	var reply inside.Reply
	if err := json.Unmarshal(output, &reply); err != nil {
		return nil, fmt.Errorf("reply of lab-inside cni: %w: %s", err, output)
	}
	switch {
	case reply.Error != nil:
		return nil, &CNIError{reply.Message, reply.Error}
	case reply.Message != "":
		return nil, errors.New(reply.Message)
	}
	return reply.Result, nil
}

// CNIError is a CNI error, with what was being done. errors.As finds the *types.Error in it.
type CNIError struct {
	message string
	err     error
}

func (e *CNIError) Error() string { return e.message }

// Unwrap returns the *types.Error.
func (e *CNIError) Unwrap() error { return e.err }

// Check makes a CNI CHECK of the pod.
func (p *Pod) Check(ctx context.Context) error {
	_, err := p.Node.CNI(ctx, p.request("CHECK"))
	return err
}

// Del stops the pod's server, makes a CNI DEL and removes the namespace. It may be repeated.
func (p *Pod) Del(ctx context.Context) error {
	p.server.stop()
	if _, err := p.Node.CNI(ctx, p.request("DEL")); err != nil {
		return fmt.Errorf("delete pod %s on %s: %w", p.Name, p.Node.Name, err)
	}
	_ = os.Remove(p.Node.Path(podLink(p.Name)))
	p.Node.podsMu.Lock()
	defer p.Node.podsMu.Unlock()
	p.Node.pods = slices.DeleteFunc(p.Node.pods, func(other *Pod) bool { return other == p })
	return nil
}

// Pods returns the node's pods in the order of their making.
func (n *Node) Pods() []*Pod {
	n.podsMu.Lock()
	defer n.podsMu.Unlock()
	return slices.Clone(n.pods)
}

// Namespace is the pod's Kubernetes namespace.
func (p *Pod) Namespace() string {
	if p.options.Namespace == "" {
		return "default"
	}
	return p.options.Namespace
}

// IP is the pod's first address.
func (p *Pod) IP() netip.Addr { return p.IPs()[0] }

// IPs are the pod's addresses, in the order of the result.
func (p *Pod) IPs() []netip.Addr {
	var all []netip.Addr
	for _, ip := range p.Result.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		all = append(all, a.Unmap())
	}
	return all
}

// URL is the pod's HTTP server at its first address, with the path.
func (p *Pod) URL(path string) string {
	if p.IP().Is6() {
		return "http://[" + p.IP().String() + "]" + path
	}
	return "http://" + p.IP().String() + path
}

// netns is the path of the namespace as the node sees it.
func (p *Pod) netns() string { return filepath.Join("/run/netns", p.ContainerID) }

// Netns is the path of the pod's network namespace on the host.
func (p *Pod) Netns() string { return p.Node.Path(p.netns()) }

// namespaces are the node's, with the pod's network namespace in place of the node's.
func (p *Pod) namespaces() (namespaces, func(), error) {
	file, err := os.Open(p.Netns())
	if err != nil {
		return nil, nil, err
	}
	ns := append(namespaces{{unix.CLONE_NEWNET, file}}, p.Node.ns[1:]...)
	return ns, func() { file.Close() }, nil
}

// Exec prepares a command in the pod's network namespace, with its node's files.
func (p *Pod) Exec(ctx context.Context, name string, args ...string) *Cmd {
	return newCmd(ctx, p.namespaces, name, args)
}

// Do runs f on a thread in the pod's network namespace; see Machine.Do.
func (p *Pod) Do(f func() error) error {
	ns, release, err := p.namespaces()
	if err != nil {
		return err
	}
	defer release()
	return ns[:1].enter(f)
}

// Dial connects from the pod to a numeric address.
func (p *Pod) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	ns, release, err := p.namespaces()
	if err != nil {
		return nil, err
	}
	defer release()
	return dial(ctx, ns[:1], network, address)
}

// Get makes an HTTP request from the pod; see Machine.Get.
func (p *Pod) Get(ctx context.Context, url string) (string, error) { return get(ctx, p.Dial, url) }

func parseResult(raw json.RawMessage) (*current.Result, error) {
	result, err := current.NewResult(raw)
	if err != nil {
		return nil, fmt.Errorf("result of ADD: %w", err)
	}
	full, err := current.GetResult(result)
	if err != nil {
		return nil, fmt.Errorf("result of ADD: %w", err)
	}
	if len(full.IPs) == 0 {
		return nil, errors.New("result of ADD: no address")
	}
	return full, nil
}

// randomID is like a container ID: 64 hex digits.
func randomID() string {
	id := make([]byte, 32)
	_, _ = rand.Read(id)
	return hex.EncodeToString(id)
}

// uid is like a pod's UID, and the same for the same container.
func uid(containerID string) string {
	h := sha256.Sum256([]byte(containerID))
	return fmt.Sprintf("%x-%x-%x-%x-%x", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
