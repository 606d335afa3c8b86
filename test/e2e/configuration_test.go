package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// The cluster's BGP set-up changes while pods talk: each node's BGP starts anew,
// the mesh comes up as it was asked for, and not a packet is lost meanwhile.
func TestBGPConfigurationChanges(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	configure := func(spec string) {
		t.Helper()
		if err := l.Apply(ctx, object(t, "BGPConfiguration", "default", spec)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what   string
		change func()
		asn    uint32
		port   uint16
	}{
		{"the port", func() { configure("listenPort: 1790") }, 64512, 1790},
		{"the AS number", func() { configure("listenPort: 1790, asNumber: 4200000001") }, 4200000001, 1790},
		{"both, to their defaults", func() {
			if err := l.Client().Delete(ctx, object(t, "BGPConfiguration", "default", "")); err != nil {
				t.Fatal(err)
			}
		}, 64512, 179},
	} {
		t.Run(c.what, func(t *testing.T) {
			meters := startMeters(t, ctx, pods...)
			c.change()
			labtest.Eventually(t, time.Minute, "the mesh is up with the new "+c.what, func() error { return meshIs(ctx, l, c.asn, c.port) })
			// Routes still flow: those of a pool claimed from only now.
			reachNewPool(t, ctx, l, c.port, c.asn)
			noneLost(t, meters)
		})
	}
	t.Run("no mesh", func(t *testing.T) {
		configure("nodeMesh: false")
		for _, node := range l.Nodes() {
			labtest.Eventually(t, 30*time.Second, node.Name+" has no peers and no routes by way of others", func() error {
				status, err := node.Agent.Status(ctx)
				if err == nil && len(status.GetPeers()) > 0 {
					err = fmt.Errorf("peers: %v", status.GetPeers())
				}
				for _, other := range l.Nodes() {
					if other != node && err == nil {
						if routes := output(t, ctx, node, "ip", "route", "show", "via", other.IP().String()); routes != "" {
							err = errors.New(routes)
						}
					}
				}
				return err
			})
			if err := node.Agent.WaitReady(ctx); err != nil {
				t.Error(err)
			}
		}
		configure("nodeMesh: true")
		if err := l.WaitMesh(ctx); err != nil {
			t.Fatal(err)
		}
		if err := l.WaitRoutes(ctx); err != nil {
			t.Fatal(err)
		}
		sees(t, ctx, "with the mesh again", pods[0], pods[1].URL("/clientip"), pods[0].IP())
	})
}

// meshIs is nil when every node has an established session, in that AS, with every other, and takes
// connections on that port and no other.
func meshIs(ctx context.Context, l *lab.Lab, asn uint32, port uint16) error {
	for _, node := range l.Nodes() {
		status, err := node.Agent.Status(ctx)
		if err != nil {
			return err
		}
		if status.GetAsNumber() != asn || len(status.GetPeers()) != len(l.Nodes())-1 {
			return fmt.Errorf("%s: AS %d, peers %v", node.Name, status.GetAsNumber(), status.GetPeers())
		}
		for _, p := range status.GetPeers() {
			if p.GetState() != "Established" || p.GetAsNumber() != asn {
				return fmt.Errorf("%s: %v", node.Name, p)
			}
		}
		for _, other := range []uint16{179, 1790} {
			conn, err := node.Dial(ctx, "tcp", netip.AddrPortFrom(node.IP(), other).String())
			if err == nil {
				conn.Close()
			}
			if (err == nil) != (other == port) {
				return fmt.Errorf("%s: connecting to port %d: %v", node.Name, other, err)
			}
		}
	}
	return nil
}

// reachNewPool has pods of a new pool reach each other between two nodes.
func reachNewPool(t *testing.T, ctx context.Context, l *lab.Lab, port uint16, asn uint32) {
	t.Helper()
	name := fmt.Sprintf("new-%d-%d", port, asn)
	cidr := fmt.Sprintf("10.%d.0.0/24", 20+(uint32(port)+asn)%100)
	if err := l.Client().Create(ctx, object(t, "IPPool", name, "cidr: "+cidr)); err != nil {
		t.Fatal(err)
	}
	near, far := l.Nodes()[0], l.Nodes()[1]
	var pods []*lab.Pod
	for _, node := range []*lab.Node{near, far} {
		heard(t, ctx, node, name, "")
		pod := labtest.AddPod(t, node, name+"-"+node.Name, lab.PodOptions{})
		if !netip.MustParsePrefix(cidr).Contains(pod.IP()) {
			t.Errorf("%s: %s is not of the new pool %s", pod.Name, pod.IP(), cidr)
		}
		pods = append(pods, pod)
	}
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	sees(t, ctx, "pods of a pool made after the change", pods[0], pods[1].URL("/clientip"), pods[0].IP())
	for _, pod := range pods {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := l.Client().Delete(ctx, object(t, "IPPool", name, "")); client.IgnoreNotFound(err) != nil {
		t.Error(err)
	}
}
