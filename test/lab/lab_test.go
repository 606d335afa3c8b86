package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/inside"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// TestCluster goes through what a lab with everything in it promises.
func TestCluster(t *testing.T) {
	ctx := labtest.Context(t, 5*time.Minute)
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), Objects: []client.Object{lab.DefaultPool()}})
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	// In this order: each leaves the lab as it was.
	t.Run("a pod lives by the CNI protocol", func(t *testing.T) { podLives(t, ctx, l) })
	t.Run("a refusal is a CNI error", func(t *testing.T) { refusal(t, ctx, l) })
	t.Run("requests are told apart by who made them", func(t *testing.T) { requests(t, ctx, l) })
	t.Run("the API server stops and comes back with its data", func(t *testing.T) { outage(t, ctx, l) })
	t.Run("a node is added on the second subnet and removed", func(t *testing.T) { nodeComesAndGoes(t, ctx, l) })
}

func podLives(t *testing.T, ctx context.Context, l *lab.Lab) {
	a := labtest.AddPod(t, l.Node("node1"), "a", lab.PodOptions{})
	b := labtest.AddPod(t, l.Node("node2"), "b", lab.PodOptions{})
	if err := errors.Join(l.WaitRoutes(ctx), a.Check(ctx)); err != nil {
		t.Fatal(err)
	}
	body, err := a.Get(ctx, b.URL("/clientip"))
	if client, _ := netip.ParseAddrPort(body); err != nil || client.Addr() != a.IP() {
		t.Errorf("b saw %q (%v), want %s", body, err, a.IP())
	}
	if out, err := a.Exec(ctx, "ip", "-o", "route").Output(); err != nil || !strings.Contains(string(out), "default via") {
		t.Errorf("routes in the pod: %q, %v", out, err)
	}
	if out, err := a.Exec(ctx, "hostname").Output(); err != nil || string(out) != "node1\n" {
		t.Errorf("hostname: %q, %v: the pod is not on its node", out, err)
	}
	for _, p := range []*lab.Pod{a, b} {
		if err := errors.Join(p.Del(ctx), p.Del(ctx)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(p.Netns()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("network namespace of %s after DEL: %v", p.Name, err)
		}
	}
}

func refusal(t *testing.T, ctx context.Context, l *lab.Lab) {
	n := l.Node("node1")
	list := strings.Replace(lab.Conflist, `"hoplite"}`, `"no-such-plugin"}`, 1)
	if err := n.WriteFile("/run/bad.conflist", []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := n.CNI(ctx, inside.Request{Command: "ADD", ContainerID: "x", Netns: "/run/netns/x", NewNetns: true, IfName: "eth0", Conf: "/run/bad.conflist"})
	if err == nil || !strings.Contains(err.Error(), "no-such-plugin") {
		t.Errorf("a plugin that is not there: %v", err)
	}
	_, err = n.CNI(ctx, inside.Request{Command: "ADD", ContainerID: "x", Netns: "/run/netns/nowhere", IfName: "eth0"})
	var refused *types.Error
	if !errors.As(err, &refused) {
		t.Errorf("a namespace that is not there: %v, want a *types.Error", err)
	}
	if left, err := os.ReadDir(n.Path("/run/netns")); err != nil || len(left) > 0 {
		t.Errorf("left after failed ADDs: %v, %v", left, err)
	}
}

func requests(t *testing.T, ctx context.Context, l *lab.Lab) {
	const user = "counted"
	config, err := l.RESTConfigFor(user, "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: lab.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	nodes := &corev1.NodeList{}
	if err := c.List(ctx, nodes); err != nil { // the first one also asks what kinds there are
		t.Fatal(err)
	}
	before, err := l.RequestsBy(user)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := c.List(ctx, nodes); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := l.RequestsBy(user); err != nil || after != before+5 {
		t.Errorf("%d requests counted, then 5 made, then %d counted (%v)", before, after, err)
	}
	if n, err := l.RequestsBy(lab.AgentUser("node1")); err != nil || n == 0 {
		t.Errorf("node1's agent has made %d requests (%v), want some", n, err)
	}
}

func outage(t *testing.T, ctx context.Context, l *lab.Lab) {
	l.StopAPIServer()
	if err := l.Client().List(ctx, &corev1.NodeList{}); err == nil {
		t.Error("the API server answers while it is stopped")
	}
	if err := l.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	nodes := &corev1.NodeList{}
	if err := l.Client().List(ctx, nodes); err != nil || len(nodes.Items) != 2 {
		t.Errorf("after it is back: %d nodes, %v", len(nodes.Items), err)
	}
}

func nodeComesAndGoes(t *testing.T, ctx context.Context, l *lab.Lab) {
	far, err := l.AddNode(ctx, lab.NodeConfig{Name: "far", Subnet: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
	address := far.IP()
	if err := far.SetOctet(ctx, 77); err != nil {
		t.Error(err)
	}
	object := &corev1.Node{}
	if err := l.Client().Get(ctx, client.ObjectKey{Name: "far"}, object); err != nil {
		t.Fatal(err)
	}
	if reported := object.Status.Addresses[1].Address; reported == address.String() || reported != far.IP().String() {
		t.Errorf("moved from %s to %s, the Node object says %s", address, far.IP(), reported)
	}
	if err := far.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.Client().Get(ctx, client.ObjectKey{Name: "far"}, object); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the Node object after Remove: %v", err)
	}
	if l.Node("far") != nil {
		t.Error("the lab still has the node")
	}
}

// TestMeter: what a meter reports is what was lost, in the direction where it was.
func TestMeter(t *testing.T) {
	ctx := labtest.Context(t, time.Minute)
	l := labtest.Start(t, lab.Config{NoControlPlane: true, Nodes: lab.Nodes(2)})
	a, b := l.Node("node1"), l.Node("node2")
	m, err := lab.StartMeter(ctx, a, b, 1000)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // time under measurement, not a wait
	there, back := m.Stop()
	for _, loss := range []lab.Loss{there, back} {
		if loss.Lost != 0 || loss.Sent < 200 || loss.Received != loss.Sent {
			t.Errorf("nothing in the way: %s", loss)
		}
	}
	if m, err = lab.StartMeter(ctx, a, b, 1000); err != nil {
		t.Fatal(err)
	}
	rule := []string{"INPUT", "-p", "udp", "-m", "statistic", "--mode", "nth", "--every", "10", "--packet", "0", "-j", "DROP"}
	if _, err := b.Command(ctx, "iptables", append([]string{"-A"}, rule...)...).CombinedOutput(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // time under measurement, not a wait
	there, back = m.Stop()
	if back.Lost != 0 || there.Lost == 0 || there.Lost > there.Sent/10+1 || there.LongestLoss != 1 {
		t.Errorf("one in ten lost at node2: %s; %s", there, back)
	}
}

// TestBIRD: two of them on machines of a lab find each other.
func TestBIRD(t *testing.T) {
	ctx := labtest.Context(t, time.Minute)
	l := labtest.Start(t, lab.Config{NoControlPlane: true, Nodes: []lab.NodeConfig{}})
	var birds []*lab.BIRD
	for i := range 2 {
		m, err := l.AddMachine(fmt.Sprintf("router%d", i), 200+i)
		if err != nil {
			t.Fatal(err)
		}
		bird, err := m.StartBIRD(ctx, fmt.Sprintf(`
router id 172.30.1.%d;
protocol device {}
protocol static { ipv4; route 198.51.100.%d/32 blackhole; }
protocol bgp neighbour {
  local 172.30.1.%[1]d as %[3]d; neighbor 172.30.1.%[4]d as %[5]d;
  connect delay time 1;
  ipv4 { import all; export all; };
}`, 200+i, i, 65000+i, 201-i, 65001-i))
		if err != nil {
			t.Fatal(err)
		}
		birds = append(birds, bird)
	}
	labtest.Eventually(t, 30*time.Second, "the first BIRD has the other's route", func() error {
		out, err := birds[0].Query(ctx, "show route 198.51.100.1/32")
		if err == nil && !strings.Contains(out, "AS65001") {
			err = errors.New(out)
		}
		return err
	})
}

// TestLeavesNothing: after Close, however much was running, nothing of a lab is left.
func TestLeavesNothing(t *testing.T) {
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(1), Objects: []client.Object{lab.DefaultPool()}})
	labtest.AddPod(t, l.Node("node1"), "a", lab.PodOptions{})
	namespaces := namespacesOf(t, l.Control(), l.Fabric(), l.Outside(), l.Node("node1").Machine)
	dir := filepath.Dir(l.Logs())
	if err := l.Close(); err != nil { // the helper will do so again, which must do no harm
		t.Fatal(err)
	}
	gone(t, l.Name(), dir, namespaces)
}

// TestDiesWithItsProcess: a lab whose process is killed is gone at once but for
// files, and those go when the next lab starts.
func TestDiesWithItsProcess(t *testing.T) {
	labtest.Require(t)
	ctx := labtest.Context(t, 2*time.Minute)
	name := fmt.Sprintf("killed%d", os.Getpid())
	self := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestHoldUntilKilled$", "-test.v")
	self.Env = append(os.Environ(), "HOPLITE_TEST_HOLD="+name)
	self.Stderr = os.Stderr
	stdout, err := self.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	var remote *lab.Remote
	labtest.Eventually(t, time.Minute, "the other process has a lab", func() error {
		if _, ready, err := lab.Owner(name); err != nil || !ready {
			return fmt.Errorf("ready %t, %w", ready, err)
		}
		remote, err = lab.Open(name)
		return err
	})
	if len(remote.Machines()) != 4 {
		t.Errorf("%d machines on record, want 4", len(remote.Machines()))
	}
	namespaces := namespacesOf(t, remote.Machines()...)
	remote.Close() // or the test itself would keep them
	_ = self.Process.Kill()
	_ = self.Wait()
	_ = stdout.Close()
	labtest.Eventually(t, 20*time.Second, "no process is left in its namespaces", func() error {
		if left := inhabitants(t, namespaces); len(left) > 0 {
			return fmt.Errorf("processes %v", left)
		}
		return nil
	})
	if err := lab.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	gone(t, name, filepath.Join("/run/hoplite-lab", name), namespaces)
}

// TestHoldUntilKilled is the other process of TestDiesWithItsProcess.
func TestHoldUntilKilled(t *testing.T) {
	name := os.Getenv("HOPLITE_TEST_HOLD")
	if name == "" {
		return // nothing by itself
	}
	if _, err := lab.Start(t.Context(), lab.Config{Name: name, NoControlPlane: true, Nodes: lab.Nodes(1)}); err != nil {
		t.Fatal(err)
	}
	select {}
}

// TestNames: what cannot be is refused before anything is made.
func TestNames(t *testing.T) {
	labtest.Require(t)
	for name, config := range map[string]lab.Config{
		"slash":           {Name: "a/b"},
		"long":            {Name: strings.Repeat("x", 21)},
		"same node twice": {Nodes: []lab.NodeConfig{{Name: "n"}, {Name: "n"}}},
		"no such subnet":  {Nodes: []lab.NodeConfig{{Name: "n", Subnet: 3}}},
	} {
		if l, err := lab.Start(t.Context(), config); err == nil {
			t.Errorf("%s: started", name)
			_ = l.Close()
		}
	}
}

// namespacesOf lists the machines' namespaces, as /proc shows them: "net:[4026532345]".
func namespacesOf(t *testing.T, machines ...*lab.Machine) []string {
	t.Helper()
	var all []string
	for _, m := range machines {
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			id, err := os.Readlink(filepath.Join(filepath.Dir(m.Netns()), kind))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, id)
		}
	}
	return all
}

// inhabitants lists the processes that are in any of the namespaces.
func inhabitants(t *testing.T, namespaces []string) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, link := range links {
		if id, err := os.Readlink(link); err == nil && slices.Contains(namespaces, id) {
			left = append(left, link)
		}
	}
	return left
}

// gone fails the test if anything of the lab is left.
func gone(t *testing.T, name, dir string, namespaces []string) {
	t.Helper()
	if left := inhabitants(t, namespaces); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, trace := range append(namespaces, name) {
		if strings.Contains(string(mounts), trace) {
			t.Errorf("%s is mounted:\n%s", trace, mounts)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v, want it gone", dir, err)
	}
	if links, _ := filepath.Glob("/run/netns/" + name + "-*"); len(links) > 0 {
		t.Errorf("links left: %v", links)
	}
}
