package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

func agentURL(node *lab.Node, path string) string {
	return "http://" + netip.AddrPortFrom(node.IP(), lab.AgentPort).String() + path
}

// unready waits until /readyz says no, with a line that begins so. The process itself is well all the while.
func unready(t *testing.T, ctx context.Context, node *lab.Node, begins string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, node.Name+" is not ready: "+begins, func() error {
		_, err := node.Get(ctx, agentURL(node, "/readyz"))
		switch {
		case err == nil:
			return errors.New("it is ready")
		case !strings.Contains(err.Error(), "503 Service Unavailable: "+begins) && !strings.Contains(err.Error(), "\n"+begins):
			return err
		}
		return nil
	})
	if body, err := node.Get(ctx, agentURL(node, "/healthz")); err != nil || body != "ok\n" {
		t.Errorf("%s: /healthz says %q, error %v", node.Name, body, err)
	}
}

func ready(t *testing.T, ctx context.Context, node *lab.Node) {
	t.Helper()
	if err := node.Agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

func testForeignRoute(t *testing.T, ctx context.Context, l *lab.Lab) {
	node, peer := l.Nodes()[0], l.Nodes()[1]
	prefix := strings.Fields(output(t, ctx, node, "ip", "route", "show", "via", peer.IP().String()))[0]
	output(t, ctx, node, "ip", "route", "replace", prefix, "via", peer.IP().String(), "proto", "static")
	begins := "routes: route to " + prefix + ": the prefix has a route of another protocol, which is left alone"
	unready(t, ctx, node, begins)
	if status := netctl(t, ctx, l, node, "node", "status"); !strings.Contains(status, "Not ready:\n  "+begins) {
		t.Errorf("netctl node status does not say why the node is not ready:\n%s", status)
	}
	if body, err := node.Get(ctx, agentURL(node, "/metrics")); err != nil || !strings.Contains(body, `hoplite_not_ready{component="routes"} 1`) {
		t.Errorf("/metrics does not say that routes are not ready (error: %v)", err)
	}
	output(t, ctx, node, "ip", "route", "del", prefix, "proto", "static")
	ready(t, ctx, node)
	if got := output(t, ctx, node, "ip", "route", "show", prefix); !strings.Contains(got, "proto 104") && !strings.Contains(got, "proto hoplite") {
		t.Errorf("the route is not ours again: %s", got)
	}
}

func testPortTaken(t *testing.T, ctx context.Context, l *lab.Lab) {
	node := l.Nodes()[0]
	if err := node.Agent.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	var squatter net.Listener
	err := node.Do(func() (err error) {
		squatter, err = net.Listen("tcp", netip.AddrPortFrom(node.IP(), 179).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	if err := node.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	unready(t, ctx, node, "bgp: ")
	_, err = node.Get(ctx, agentURL(node, "/readyz"))
	if want := netip.AddrPortFrom(node.IP(), 179).String(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("/readyz does not say that %s is taken: %v", want, err)
	}
	takesFrom(t, node, "without-bgp", "10.244.0.0/16") // pods go on
	squatter.Close()
	ready(t, ctx, node)
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
}

// forgetful stops the node's agent, and what it remembers of the cluster is lost.
func forgetful(t *testing.T, ctx context.Context, node *lab.Node) {
	t.Helper()
	if err := node.Agent.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(node.Path("/run/hoplite/cluster.json")); err != nil {
		t.Fatal(err)
	}
}

func testNothingKnown(t *testing.T, ctx context.Context, l *lab.Lab) {
	node := l.Nodes()[0]
	l.StopAPIServer()
	forgetful(t, ctx, node)
	if err := node.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	unready(t, ctx, node, "cluster: the agent is starting: it has not heard from the Kubernetes API yet")
	if err := l.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	ready(t, ctx, node)
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
	takesFrom(t, node, "known-again", "10.244.0.0/16")
}

// An agent may be there before its Node object, and the Node before its address.
func testNoNode(t *testing.T, ctx context.Context, l *lab.Lab) {
	node, peer := l.Nodes()[0], l.Nodes()[1]
	forgetful(t, ctx, node)
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
	if err := l.Client().Delete(ctx, object.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if err := node.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	unready(t, ctx, node, "node: there is no Node named node1: it was deleted, or --node-name is wrong")
	if err := l.Client().Create(ctx, object); err != nil {
		t.Fatal(err)
	}
	unready(t, ctx, node, "bgp: Node node1 has no InternalIP address: BGP waits for one")
	unready(t, ctx, node, "pods: this node's Node object has no InternalIP address: pods wait for one")
	object.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: node.IP().String()}}
	if err := l.Client().Status().Update(ctx, object); err != nil {
		t.Fatal(err)
	}
	ready(t, ctx, node)
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
	pod := labtest.AddPod(t, node, "registered", lab.PodOptions{})
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	sees(t, ctx, "a pod of the node that was registered late", pod, peer.Pods()[0].URL("/clientip"), pod.IP())
}

// A second agent on the node serves nothing until the first has stopped, and then all.
func testSecondAgent(t *testing.T, ctx context.Context, l *lab.Lab) {
	node := l.Nodes()[0]
	const address = ":9999" // it tells the two apart
	second := node.Command(ctx, l.Binary("hoplite-agent"),
		"--node-name", node.Name, "--kubeconfig", "/etc/hoplite/agent.kubeconfig", "--metrics-address", address)
	log, err := os.Create(filepath.Join(l.Logs(), "agent-second.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	second.Stdout, second.Stderr = log, log
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = second.Process.Kill()
		_ = second.Wait()
	}()
	labtest.Eventually(t, 30*time.Second, "the second agent waits", func() error {
		said, err := os.ReadFile(log.Name())
		if err == nil && !strings.Contains(string(said), "waiting for the other agent to stop") {
			err = fmt.Errorf("its log: %s", said)
		}
		return err
	})
	secondReady := func() error {
		_, err := node.Get(ctx, "http://"+netip.AddrPortFrom(node.IP(), 9999).String()+"/readyz")
		return err
	}
	takesFrom(t, node, "by-the-first", "10.244.0.0/16")
	ready(t, ctx, node)
	if err := secondReady(); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("the second agent serves beside the first: %v", err)
	}
	if err := node.Agent.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 30*time.Second, "the second agent takes over", secondReady)
	takesFrom(t, node, "by-the-second", "10.244.0.0/16")
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
	// And the other way round, when it dies without a word.
	if err := node.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	_ = second.Process.Kill()
	ready(t, ctx, node)
	noLeak(t, ctx, l)
}
