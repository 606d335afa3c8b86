package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/inside"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// The CNI protocol, driven by the runtimes' own library.
func TestCNI(t *testing.T) {
	ctx, l, node := startOneNode(t)
	for _, c := range []struct {
		what string
		test func(*testing.T, context.Context, *lab.Lab, *lab.Node)
	}{
		{"ADD gives each version's form of the result", testVersions},
		{"ADD for an interface that is there fails and changes nothing", testExists},
		{"ADD that fails leaves nothing", testRollback},
		{"CHECK sees what differs and tolerates what is added", testCheck},
		{"GC removes what is not valid and keeps the rest", testGC},
		{"DEL with the namespace gone", testNetnsGone},
	} {
		t.Run(c.what, func(t *testing.T) { c.test(t, ctx, l, node) })
	}
	noLeak(t, ctx, l)
}

func testVersions(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			conf := "/etc/cni/versions/" + version + ".conflist"
			if err := node.WriteFile(conf, alone(version), 0o644); err != nil {
				t.Fatal(err)
			}
			before := nodeState(t, ctx, node)
			c := newContainer(t, ctx, node, "v"+version)
			raw, err := c.cni(ctx, "ADD", conf)
			if err != nil {
				t.Fatal(err)
			}
			result, err := create.Create(version, raw)
			if err != nil {
				t.Fatalf("%v: %s", err, raw)
			}
			full, err := current.NewResultFromResult(result)
			if err != nil {
				t.Fatal(err)
			}
			checkResult(t, ctx, c, full)
			if version != "0.3.1" {
				if _, err := c.cni(ctx, "CHECK", conf); err != nil {
					t.Error(err)
				}
			}
			for range 2 {
				if _, err := c.cni(ctx, "DEL", conf); err != nil {
					t.Error(err)
				}
			}
			unchanged(t, ctx, node, before)
			labtest.Eventually(t, 10*time.Second, "the container's interface is gone", func() error {
				if links := c.ip(t, ctx, "-br", "link", "show", "type", "veth"); links != "" {
					return errors.New(links)
				}
				return nil
			})
		})
	}
}

// checkResult compares a result with the specification and the kernel.
func checkResult(t *testing.T, ctx context.Context, c container, r *current.Result) {
	t.Helper()
	if len(r.Interfaces) != 2 || len(r.IPs) != 1 {
		t.Fatalf("result %v: want two interfaces and an address", r)
	}
	host, eth0, ip := r.Interfaces[0], r.Interfaces[1], r.IPs[0]
	if !strings.HasPrefix(host.Name, "hop") || host.Sandbox != "" || host.Mac != "ee:ee:ee:ee:ee:ee" {
		t.Errorf("first the host's veth, without a sandbox; got %+v", host)
	}
	if eth0.Name != "eth0" || eth0.Sandbox != c.netns {
		t.Errorf("then eth0 with the container's namespace; got %+v", eth0)
	}
	if ip.Interface == nil || *ip.Interface != 1 || ip.Gateway.String() != "169.254.1.1" {
		t.Errorf("the address must point at eth0, and have 169.254.1.1 for gateway; got %+v", ip)
	}
	if ones, bits := ip.Address.Mask.Size(); ones != 32 || bits != 32 {
		t.Errorf("address %s: want a /32", ip.Address.String())
	}
	if owner := used(t, ctx, c.node)[addrOf(r).String()]; owner != c.id {
		t.Errorf("the agent says %s is %q's", addrOf(r), owner)
	}
	if link := output(t, ctx, c.node, "ip", "-br", "link", "show", host.Name); !strings.Contains(link, "UP") {
		t.Errorf("the host's veth: %s", link)
	}
	if link := c.ip(t, ctx, "-br", "link", "show", "eth0"); !strings.Contains(link, eth0.Mac) || !strings.Contains(link, "UP") {
		t.Errorf("eth0 is %sthe result has %s", link, eth0.Mac)
	}
	if addr := c.ip(t, ctx, "-4", "-br", "addr", "show", "eth0"); !strings.Contains(addr, " "+ip.Address.String()) {
		t.Errorf("eth0 has %sthe result %s", addr, ip.Address.String())
	}
	if lo := c.ip(t, ctx, "-br", "addr", "show", "lo"); !strings.Contains(lo, "127.0.0.1") {
		t.Errorf("lo is not up: %s", lo)
	}
	want := "default via 169.254.1.1 dev eth0 \n169.254.1.1 dev eth0 scope link \n"
	if routes := c.ip(t, ctx, "route"); routes != want {
		t.Errorf("the container's routes:\n%swant\n%s", routes, want)
	}
	var routes []string
	for _, r := range r.Routes {
		routes = append(routes, r.Dst.String()+" "+r.GW.String())
	}
	if want := []string{"169.254.1.1/32 <nil>", "0.0.0.0/0 169.254.1.1"}; !slices.Equal(routes, want) {
		t.Errorf("the result's routes: %v, want %v", routes, want)
	}
}

func testExists(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	t.Run("ADD twice", func(t *testing.T) {
		c := newContainer(t, ctx, node, "twice")
		c.add(t, ctx)
		before, inside := nodeState(t, ctx, node), c.ip(t, ctx, "addr")+c.ip(t, ctx, "route")
		for range 2 {
			_, err := c.cni(ctx, "ADD", "")
			hasCode(t, "the second ADD", err, 100, "eth0")
		}
		unchanged(t, ctx, node, before)
		if now := c.ip(t, ctx, "addr") + c.ip(t, ctx, "route"); now != inside {
			t.Errorf("in the container now:\n%s\nbefore:\n%s", now, inside)
		}
		if _, err := c.cni(ctx, "CHECK", ""); err != nil {
			t.Error(err)
		}
	})
	t.Run("another container's", func(t *testing.T) {
		first := newContainer(t, ctx, node, "first-owner")
		first.add(t, ctx)
		before := nodeState(t, ctx, node)
		second := container{node, "second-owner", first.netns}
		_, err := second.cni(ctx, "ADD", "")
		hasCode(t, "ADD", err, 100, "eth0")
		if _, err := second.cni(ctx, "DEL", ""); err != nil {
			t.Error(err)
		}
		unchanged(t, ctx, node, before)
		if _, err := first.cni(ctx, "CHECK", ""); err != nil {
			t.Error(err)
		}
	})
	t.Run("somebody else's interface", func(t *testing.T) {
		c := newContainer(t, ctx, node, "taken")
		c.ip(t, ctx, "link", "add", "eth0", "type", "veth", "peer", "name", "far")
		before, inside := nodeState(t, ctx, node), c.ip(t, ctx, "-o", "link")
		_, err := c.cni(ctx, "ADD", "")
		hasCode(t, "ADD", err, 100, "eth0")
		unchanged(t, ctx, node, before)
		// Nor does the DEL that runtimes make after a failed ADD take it for ours.
		if _, err := c.cni(ctx, "DEL", ""); err != nil {
			t.Error(err)
		}
		if now := c.ip(t, ctx, "-o", "link"); now != inside {
			t.Errorf("in the container now:\n%s\nbefore:\n%s", now, inside)
		}
	})
}

func testRollback(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	t.Run("half way", func(t *testing.T) {
		// The default route is in the way of ours: the veth is there by then.
		c := newContainer(t, ctx, node, "halfway")
		c.ip(t, ctx, "link", "add", "other", "type", "veth", "peer", "name", "far")
		c.ip(t, ctx, "link", "set", "other", "up")
		c.ip(t, ctx, "route", "add", "default", "dev", "other")
		before, inside := nodeState(t, ctx, node), c.ip(t, ctx, "-o", "link")+c.ip(t, ctx, "route")
		for range 3 {
			_, err := c.cni(ctx, "ADD", "")
			hasCode(t, "ADD", err, 102, "")
		}
		unchanged(t, ctx, node, before)
		if now := c.ip(t, ctx, "-o", "link") + c.ip(t, ctx, "route"); now != inside {
			t.Errorf("in the container now:\n%s\nbefore:\n%s", now, inside)
		}
		c.ip(t, ctx, "link", "del", "other")
		checkResult(t, ctx, c, c.add(t, ctx))
	})
	t.Run("no namespace", func(t *testing.T) {
		before := nodeState(t, ctx, node)
		_, err := container{node, "nowhere", "/run/netns/nowhere"}.cni(ctx, "ADD", "")
		hasCode(t, "ADD", err, 4, "/run/netns/nowhere")
		unchanged(t, ctx, node, before)
	})
	t.Run("a file that is no namespace", func(t *testing.T) {
		before := nodeState(t, ctx, node)
		output(t, ctx, node, "touch", "/run/netns/plain")
		defer os.Remove(node.Path("/run/netns/plain"))
		_, err := container{node, "plain", "/run/netns/plain"}.cni(ctx, "ADD", "")
		hasCode(t, "ADD", err, 4, "/run/netns/plain")
		unchanged(t, ctx, node, before)
	})
	t.Run("the host's namespace", func(t *testing.T) {
		before := nodeState(t, ctx, node)
		_, err := container{node, "host", "/proc/self/ns/net"}.cni(ctx, "ADD", "")
		hasCode(t, "ADD", err, 8, "host")
		unchanged(t, ctx, node, before)
	})
}

func testCheck(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	for i, c := range []struct {
		what string
		// breaking is arguments of ip(8) in the container, several commands if there is a ';'.
		breaking, says string
	}{
		{"all well", "link show", ""},
		{"more addresses and routes than ours", "addr add 192.0.2.1/32 dev eth0; route add 198.51.100.0/24 dev eth0", ""},
		{"another MTU", "link set eth0 mtu 1400", ""},
		{"no address", "addr flush dev eth0", "is missing on eth0"},
		{"another address", "addr flush dev eth0; addr add 192.0.2.1/32 dev eth0", "is missing on eth0"},
		{"interface down", "link set eth0 down", "is down"},
		{"no default route", "route del default", "route 0.0.0.0/0 via 169.254.1.1"},
		{"default route by way of another interface", "link add other type veth peer name far; link set other up; route replace default dev other", "route 0.0.0.0/0 via 169.254.1.1"},
		{"another MAC address", "link set eth0 address 02:00:00:00:00:01", "has MAC 02:00:00:00:00:01"},
		{"interface renamed", "link set eth0 down; link set eth0 name eth1", "eth0 is missing"},
	} {
		t.Run(c.what, func(t *testing.T) {
			pod := newContainer(t, ctx, node, fmt.Sprintf("check-%d", i))
			pod.add(t, ctx)
			for command := range strings.SplitSeq(c.breaking, ";") {
				pod.ip(t, ctx, strings.Fields(command)...)
			}
			_, err := pod.cni(ctx, "CHECK", "")
			if c.says != "" {
				hasCode(t, "CHECK", err, 101, c.says)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func testGC(t *testing.T, ctx context.Context, l *lab.Lab, node *lab.Node) {
	before := nodeState(t, ctx, node)
	kept := newContainer(t, ctx, node, "gc-kept")
	keptAddr := addrOf(kept.add(t, ctx))
	withOne := nodeState(t, ctx, node)
	collect := func(valid ...types.GCAttachment) {
		t.Helper()
		// What the runtime itself forgot is what GC is for: libcni would make a DEL for the rest.
		output(t, ctx, node, "rm", "-rf", "/var/lib/cni/results")
		if _, err := node.CNI(ctx, inside.Request{Command: "GC", Valid: valid}); err != nil {
			t.Error(err)
		}
	}
	newContainer(t, ctx, node, "gc-lost").add(t, ctx)
	gone := newContainer(t, ctx, node, "gc-gone") // with its namespace, and the veth
	gone.add(t, ctx)
	gone.removeNetns(t, ctx)
	// The same container, another interface: another attachment.
	collect(types.GCAttachment{ContainerID: kept.id, IfName: "eth0"}, types.GCAttachment{ContainerID: "gc-lost", IfName: "net1"},
		types.GCAttachment{ContainerID: "never-was", IfName: "eth0"})
	unchanged(t, ctx, node, withOne)
	if owners := used(t, ctx, node); owners[keptAddr.String()] != kept.id || len(owners) != 1 {
		t.Errorf("in use: %v; want %s's %s alone", owners, kept.id, keptAddr)
	}
	collect()
	unchanged(t, ctx, node, before)
}

func testNetnsGone(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	before := nodeState(t, ctx, node)
	c := newContainer(t, ctx, node, "netns-gone")
	r := c.add(t, ctx)
	c.removeNetns(t, ctx)
	labtest.Eventually(t, 10*time.Second, "the veth goes with its namespace", func() error {
		if links := output(t, ctx, node, "ip", "-br", "link"); strings.Contains(links, r.Interfaces[0].Name) {
			return errors.New(links)
		}
		return nil
	})
	if owner := used(t, ctx, node)[addrOf(r).String()]; owner != c.id {
		t.Errorf("before the DEL %s is %q's: the runtime has not given it back yet", addrOf(r), owner)
	}
	if _, err := c.cni(ctx, "DEL", ""); err != nil {
		t.Error(err)
	}
	unchanged(t, ctx, node, before)
}
