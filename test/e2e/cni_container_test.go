package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/inside"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// alone is a CNI configuration without other plugins, of a version.
func alone(version string) []byte {
	return fmt.Appendf(nil, `{"cniVersion": %q, "name": "hoplite", "plugins": [{"type": "hoplite"}]}`, version)
}

// startOneNode is a lab of one node on which hoplite is the only plugin.
func startOneNode(t *testing.T) (context.Context, *lab.Lab, *lab.Node) {
	t.Helper()
	ctx := labtest.Context(t, long)
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(1), Objects: []client.Object{lab.DefaultPool()}, Conflist: alone("1.1.0")})
	node := l.Node("node1")
	labtest.Eventually(t, 30*time.Second, "the node has its first block", func() error {
		view, err := node.Agent.IPAM(ctx)
		if err == nil && (len(view.GetBlocks()) == 0 || output(t, ctx, node, "ip", "route", "show", "type", "blackhole") == "") {
			err = errors.New("it has none")
		}
		return err
	})
	return ctx, l, node
}

// container is what a runtime has made when it calls CNI: an ID and a network
// namespace, in which nothing is configured, not even lo.
type container struct {
	node      *lab.Node
	id, netns string
}

// newContainer makes one; it and its attachment, if any, end with the test.
func newContainer(t *testing.T, ctx context.Context, node *lab.Node, id string) container {
	t.Helper()
	c := container{node, id, filepath.Join("/run/netns", id)}
	output(t, ctx, node, "sh", "-c", "touch "+c.netns+" && unshare --net="+c.netns+" true")
	t.Cleanup(func() {
		if _, e := c.raw("DEL").run(t, ctx); e != nil {
			t.Errorf("DEL of %s at the end: %v", id, e)
		}
		c.removeNetns(t, ctx)
	})
	return c
}

// removeNetns takes the namespace away. Repeating it is fine.
func (c container) removeNetns(t *testing.T, ctx context.Context) {
	t.Helper()
	output(t, ctx, c.node, "sh", "-c", "umount -l "+c.netns+" 2>/dev/null; rm -f "+c.netns)
}

// ip runs ip(8) in the container's namespace.
func (c container) ip(t *testing.T, ctx context.Context, args ...string) string {
	t.Helper()
	return output(t, ctx, c.node, append([]string{"ip", "-n", c.id}, args...)...)
}

// cni makes a call by libcni, with the configuration of the node or the file named.
func (c container) cni(ctx context.Context, command, conf string) (json.RawMessage, error) {
	return c.node.CNI(ctx, inside.Request{
		Command: command, ContainerID: c.id, Netns: c.netns, IfName: "eth0", Conf: conf,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", c.id}},
	})
}

// add makes an ADD that must succeed.
func (c container) add(t *testing.T, ctx context.Context) *current.Result {
	t.Helper()
	raw, err := c.cni(ctx, "ADD", "")
	if err != nil {
		t.Fatalf("ADD of %s: %v", c.id, err)
	}
	r, err := create.Create("1.1.0", raw)
	if err != nil {
		t.Fatal(err)
	}
	full, err := current.NewResultFromResult(r)
	if err != nil {
		t.Fatal(err)
	}
	return full
}

func addrOf(r *current.Result) netip.Addr {
	a, _ := netip.AddrFromSlice(r.IPs[0].Address.IP)
	return a.Unmap()
}

// hasCode fails the test unless err is the CNI error with the code, and says something.
func hasCode(t *testing.T, what string, err error, code uint, says string) {
	t.Helper()
	var e *types.Error
	switch {
	case err == nil:
		t.Errorf("%s succeeded; want error %d", what, code)
	case !errors.As(err, &e):
		t.Errorf("%s: not a CNI error: %v", what, err)
	case e.Code != code || !strings.Contains(e.Error(), says):
		t.Errorf("%s: error %d, %v; want error %d with %q", what, e.Code, e, code, says)
	}
}

// used is the node's addresses in use, with their containers, as the agent has them.
func used(t *testing.T, ctx context.Context, node *lab.Node) map[string]string {
	t.Helper()
	view, err := node.Agent.IPAM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	owners := map[string]string{}
	for _, block := range view.GetBlocks() {
		for _, a := range block.GetAddresses() {
			owners[a.GetAddress()] = a.GetAttachment().GetContainerId()
		}
	}
	return owners
}

// nodeState is all that a pod leaves on a node. (Veths of pods that were deleted
// live a moment longer, in a group of their own; noLeak sees to it that they go.)
func nodeState(t *testing.T, ctx context.Context, node *lab.Node) string {
	t.Helper()
	return fmt.Sprintln(used(t, ctx, node)) + output(t, ctx, node, "ip", "-br", "link", "show", "group", "default") +
		output(t, ctx, node, "ip", "route")
}

// unchanged fails the test unless the node is, or soon will be, as it was.
func unchanged(t *testing.T, ctx context.Context, node *lab.Node, before string) {
	t.Helper()
	labtest.Eventually(t, 10*time.Second, node.Name+" is as before", func() error {
		if now := nodeState(t, ctx, node); now != before {
			return fmt.Errorf("now:\n%s\nbefore:\n%s", now, before)
		}
		return nil
	})
}
