// Package lab is a cluster on one machine, made of namespaces: nodes, a fabric
// that joins and routes between them, a control plane with a real etcd and
// kube-apiserver, and a host outside that knows no pod routes.
//
//	l, err := lab.Start(ctx, lab.Config{Objects: []client.Object{lab.DefaultPool()}})
//	defer l.Close()
//	a, err := l.Node("node1").AddPod(ctx, "a", lab.PodOptions{})
//	b, err := l.Node("node2").AddPod(ctx, "b", lab.PodOptions{})
//	body, err := a.Get(ctx, "http://"+b.IP().String()+"/clientip")
//
// Tests use labtest.Start, which also cleans up and shows logs on failure.
//
// Everything is inside namespaces: the host's interfaces, routes, rules and
// mounts are not touched, any number of labs may be up at once, and each ends
// with the process that started it, however that ends.
//
//	                   outside 203.0.113.10
//	                        |
//	control 172.30.0.10 -- fabric -- 172.30.2.0/24 (a second subnet for nodes)
//	                        |
//	              172.30.1.0/24: node1 .11, node2 .12, ...
package lab

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Config says what lab to start. Its zero value is three nodes with agents.
type Config struct {
	// Name tells labs on one machine apart; by default it is random. At most
	// 20 letters, digits and hyphens.
	Name string
	// Root is the checkout, by default the one around the working directory.
	Root string
	// Nodes to start with; by default node1, node2 and node3 on the first subnet.
	Nodes []NodeConfig
	// Objects are applied before the first agent starts: pools, configuration.
	Objects []client.Object
	// NoAgents leaves agents and controller to the caller: Node.Agent.Start, Lab.Controller.Start.
	NoAgents bool
	// NoControlPlane leaves out etcd and the API server, and with them the agents.
	NoControlPlane bool
	// DualStack gives Node objects their IPv6 address too. The machines always have one.
	DualStack bool
	// Conflist is the nodes' CNI configuration, by default Conflist.
	Conflist []byte
	// AgentArgs are further arguments for every agent.
	AgentArgs []string
	// Progress receives a line for each step, if set.
	Progress io.Writer
}

// Lab is a running lab.
type Lab struct {
	cfg   Config
	name  string
	start time.Time

	// The machines' lifeline: this process holds lifelineW, and only this one.
	lifelineR, lifelineW *os.File

	fabric, control, outside *Machine

	etcd, apiserver *Process
	// Controller is the hoplite-controller, on the control machine.
	Controller *Process

	ca       *authority
	admin    keyPair
	adminTLS *tls.Config
	client   client.Client

	mu       sync.Mutex
	state    labRecord
	machines []*Machine // routers and others added by AddMachine
	nodes    []*Node
	closed   bool
}

// Start starts a lab and waits until all of it is ready. If that fails,
// nothing is left. The lab lives until Close or the end of this process.
func Start(ctx context.Context, cfg Config) (*Lab, error) {
	l, err := newLab(cfg)
	if err != nil {
		return nil, err
	}
	if err := l.claim(ctx); err != nil {
		l.lifelineR.Close()
		l.lifelineW.Close()
		return nil, err
	}
	if err := l.bringUp(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Ready = true
	return l, l.writeRecord()
}

func newLab(cfg Config) (*Lab, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, name: cfg.Name, start: time.Now()}
	var err error
	if l.ca, err = newAuthority(); err != nil {
		return nil, err
	}
	l.lifelineR, l.lifelineW, err = os.Pipe()
	return l, err
}

// Name is the lab's name; its network namespaces are called Name-machine.
func (l *Lab) Name() string { return l.name }

// Fabric is the machine that joins all others and routes between their subnets.
func (l *Lab) Fabric() *Machine { return l.fabric }

// Control is the machine of etcd, the API server and the controller.
func (l *Lab) Control() *Machine { return l.control }

// Outside is a host beyond the fabric, which knows no pod routes.
func (l *Lab) Outside() *Machine { return l.outside }

// Logs is the directory of the lab's logs, one file per process.
func (l *Lab) Logs() string { return filepath.Join(l.dir(), "logs") }

func (l *Lab) progress(format string, args ...any) {
	if l.cfg.Progress != nil {
		fmt.Fprintf(l.cfg.Progress, "%5.1fs  %s\n", time.Since(l.start).Seconds(), fmt.Sprintf(format, args...))
	}
}

// complete fills in defaults and checks what was given.
func (c *Config) complete() error {
	if c.Root == "" {
		root, err := FindRoot()
		if err != nil {
			return err
		}
		c.Root = root
	}
	if c.Name == "" {
		random := make([]byte, 4)
		_, _ = rand.Read(random)
		c.Name = "t" + hex.EncodeToString(random)
	}
	if err := checkName(c.Name); err != nil {
		return err
	}
	if c.Nodes == nil {
		c.Nodes = Nodes(3)
	}
	if c.Conflist == nil {
		c.Conflist = []byte(Conflist)
	}
	if c.NoControlPlane {
		c.NoAgents = true
	}
	return c.check()
}

func checkName(name string) error {
	if len(name) == 0 || len(name) > 20 || name[0] == '-' {
		return fmt.Errorf("lab name %q: want 1 to 20 letters, digits and hyphens", name)
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("lab name %q: want letters, digits and hyphens only", name)
		}
	}
	return nil
}
