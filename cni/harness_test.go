package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/api/delqueue"
)

// limit bounds every wait for something that must happen.
const limit = 20 * time.Second

// agent is a real gRPC server of the contract. It notes every request; what it
// answers is the test's to say.
type agent struct {
	agentv1.UnimplementedCNIServer
	add    func(context.Context) (*agentv1.AddResponse, error)
	del    func(*agentv1.DelRequest) error
	check  error
	gc     *agentv1.GCResponse
	status func() (*agentv1.StatusResponse, error)

	mu     sync.Mutex
	calls  []proto.Message
	server *grpc.Server
}

func (a *agent) note(m proto.Message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, m)
}

// says sets what STATUS is answered from now on. (That the plugin's answer came
// before is nothing the race detector can see: the plugin makes bare system calls.)
func (a *agent) says(status func() (*agentv1.StatusResponse, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = status
}

// call is the i-th request.
func (a *agent) call(i int) proto.Message {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i >= len(a.calls) {
		return nil
	}
	return a.calls[i]
}

// seen is what was asked so far, as "Add" and "Del".
func (a *agent) seen() (names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.calls {
		name := string(m.ProtoReflect().Descriptor().Name())
		names = append(names, name[:len(name)-len("Request")])
	}
	return names
}

func (a *agent) Add(ctx context.Context, r *agentv1.AddRequest) (*agentv1.AddResponse, error) {
	a.note(r)
	if a.add != nil {
		return a.add(ctx)
	}
	return made, nil
}

func (a *agent) Del(_ context.Context, r *agentv1.DelRequest) (*agentv1.DelResponse, error) {
	a.note(r)
	if a.del != nil {
		return &agentv1.DelResponse{}, a.del(r)
	}
	return &agentv1.DelResponse{}, nil
}

func (a *agent) Check(_ context.Context, r *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	a.note(r)
	return &agentv1.CheckResponse{}, a.check
}

func (a *agent) GC(_ context.Context, r *agentv1.GCRequest) (*agentv1.GCResponse, error) {
	a.note(r)
	if a.gc != nil {
		return a.gc, nil
	}
	return &agentv1.GCResponse{}, nil
}

func (a *agent) Status(_ context.Context, r *agentv1.StatusRequest) (*agentv1.StatusResponse, error) {
	a.note(r)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status != nil {
		return a.status()
	}
	return &agentv1.StatusResponse{}, nil
}

// made is what the agent answers to an ADD unless told otherwise.
var made = &agentv1.AddResponse{
	Host:      &agentv1.Interface{Name: "hop0123456789a", Mac: "ee:ee:ee:ee:ee:ee", Mtu: 1480},
	Container: &agentv1.Interface{Name: "eth0", Mac: "02:00:00:00:00:01", Mtu: 1480},
	Addresses: []string{"10.244.0.5/32", "fd00::5/128"},
	Gateways:  []string{"169.254.1.1", "fe80::ecee:eeff:feee:eeee"},
	Routes: []*agentv1.Route{
		{Destination: "169.254.1.1/32"},
		{Destination: "0.0.0.0/0", Gateway: "169.254.1.1"},
		{Destination: "::/0", Gateway: "fe80::ecee:eeff:feee:eeee"},
	},
}

// bind listens on the socket, as an agent does before anything else.
func bind(t testing.TB, socket string) net.Listener {
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	return l
}

// start serves until the test ends.
func (a *agent) start(t testing.TB, l net.Listener) *agent {
	a.server = newServer(a)
	done := make(chan struct{})
	go func() { defer close(done); _ = a.server.Serve(l) }()
	t.Cleanup(func() { a.server.Stop(); <-done })
	return a
}

// node is a place with a socket, a queue and a container's namespace.
type node struct {
	t      testing.TB
	dir    string
	socket string
	env    map[string]string
	conf   map[string]any
	// exec is the plugin's binary; empty: the plugin runs as a function here.
	exec        string
	stdin       io.Reader // instead of conf
	callTimeout time.Duration
}

func newNode(t testing.TB) *node {
	dir, err := os.MkdirTemp("", "cni") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// The plugin only looks at which file this is, and that it is not its own namespace.
	netns := filepath.Join(dir, "netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent.sock")
	return &node{t: t, dir: dir, socket: socket,
		env: map[string]string{
			"CNI_CONTAINERID": "c0ffee", "CNI_IFNAME": "eth0", "CNI_NETNS": netns, "CNI_PATH": "/opt/cni/bin",
			"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1;FOO=bar",
		},
		conf: map[string]any{"cniVersion": "1.1.0", "name": "hoplite", "type": "hoplite", "socket": socket, "waitForAgent": "20s"},
	}
}

func (n *node) with(key string, value any) *node {
	n.conf = maps.Clone(n.conf)
	n.conf[key] = value
	return n
}

// run runs the plugin and returns what it wrote to stdout and its exit status.
func (n *node) run(command string) (stdout []byte, status int) {
	n.t.Helper()
	conf, err := json.Marshal(n.conf)
	if err != nil {
		n.t.Fatal(err)
	}
	var stdin io.Reader = bytes.NewReader(conf)
	if n.stdin != nil {
		stdin = n.stdin
	}
	env := maps.Clone(n.env)
	if command != "" {
		env["CNI_COMMAND"] = command
	}
	if n.exec != "" {
		return n.runExec(env, stdin)
	}
	var out bytes.Buffer
	status = Plugin{
		Version: "v0", Getenv: func(k string) string { return env[k] },
		Stdin: stdin, Stdout: &out, Stderr: io.Discard, callTimeout: n.callTimeout,
	}.Run()
	return out.Bytes(), status
}

func (n *node) runExec(env map[string]string, stdin io.Reader) ([]byte, int) {
	cmd := exec.Command(n.exec)
	cmd.Env = []string{}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stdin = stdin
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		n.t.Fatal(err)
	}
	return out, cmd.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (n *node) must(command string) []byte {
	n.t.Helper()
	out, status := n.run(command)
	if status != 0 {
		n.t.Fatalf("%s: exit status %d: %s", command, status, out)
	}
	return out
}

// fails runs a command that has to fail with the code.
func (n *node) fails(command string, code uint) *Error {
	n.t.Helper()
	out, status := n.run(command)
	e := &Error{}
	if err := json.Unmarshal(out, e); err != nil || status == 0 {
		n.t.Fatalf("%s: exit status %d, output %q: not an error", command, status, out)
	}
	if e.Code != code {
		n.t.Errorf("%s: code %d (%s), want %d", command, e.Code, e, code)
	}
	if e.CNIVersion == "" || e.Msg == "" {
		n.t.Errorf("%s: the error has no cniVersion or no msg: %s", command, out)
	}
	return e
}

func (n *node) queued() []delqueue.Attachment {
	n.t.Helper()
	list, err := delqueue.List(n.queueDir())
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func (n *node) queueDir() string { return filepath.Join(n.dir, "del") }

// binary is the plugin, built once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cnibin")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "hoplite")
	out, err := exec.Command("go", "build", "-o", path, "github.com/hoplite-net/hoplite/cmd/hoplite-cni").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the plugin: %w: %s", err, out)
	}
	return path, nil
})

var built bool

func plugin(t testing.TB) string {
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	built = true
	return path
}

func TestMain(m *testing.M) {
	status := m.Run()
	if built {
		path, _ := binary()
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(status)
}

func newServer(a *agent) *grpc.Server {
	s := grpc.NewServer()
	agentv1.RegisterCNIServer(s, a)
	return s
}

// runTo runs the plugin's binary with its output going to a file.
func (n *node) runTo(stdout *os.File, command string) int {
	conf, err := json.Marshal(n.conf)
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(n.exec)
	cmd.Env = []string{"CNI_COMMAND=" + command}
	for k, v := range n.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stdin, cmd.Stdout = bytes.NewReader(conf), stdout
	if err := cmd.Run(); cmd.ProcessState == nil {
		n.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}
