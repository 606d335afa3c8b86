package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// repaired is the promise: what somebody deletes is back within this time. What
// the machine itself takes to notice, run and look is not the agent's.
const (
	repaired = time.Second
	leeway   = 2 * time.Second
)

// output runs a command on the node or fails the test.
func output(t *testing.T, ctx context.Context, node *lab.Node, command ...string) string {
	t.Helper()
	out, err := node.Command(ctx, command[0], command[1:]...).Output()
	if err != nil {
		t.Fatalf("%s: %s: %v", node.Name, strings.Join(command, " "), err)
	}
	return string(out)
}

// Somebody deletes or changes what is ours: it is back within a second, and the pod is reached as before.
func TestWhatIsDeletedComesBack(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	node, pod, far := l.Nodes()[0], pods[0], pods[1]
	veth := pod.Result.Interfaces[0].Name
	block := strings.Fields(output(t, ctx, node, "ip", "-4", "route", "show", "type", "blackhole"))[1]
	remote := strings.Fields(output(t, ctx, node, "ip", "-4", "route", "show", "via", l.Nodes()[1].IP().String()))[0]
	sysctl := func(name string) func() string {
		return func() string {
			value, err := os.ReadFile(node.Path("/proc/sys/" + name))
			if err != nil {
				return err.Error()
			}
			return name + " = " + strings.TrimSpace(string(value))
		}
	}
	show := func(command ...string) func() string {
		return func() string {
			out, err := node.Command(ctx, command[0], command[1:]...).Output()
			if err != nil {
				return err.Error()
			}
			return string(out)
		}
	}
	write := func(name, value string) []string {
		return []string{"sh", "-c", fmt.Sprintf("echo %s > /proc/sys/%s", value, name)}
	}
	iptables := func(table string) func() string {
		return show("sh", "-c", "iptables-save -t "+table+" | grep -v '^[#:]'")
	}
	cases := []struct {
		what     string
		breaking []string
		state    func() string
	}{
		{"the route to a pod", []string{"ip", "route", "del", pod.IP().String()}, show("ip", "route", "show", pod.IP().String())},
		{"the block's blackhole", []string{"ip", "route", "del", "blackhole", block}, show("ip", "route", "show", "type", "blackhole")},
		{"the route to another node's block", []string{"ip", "route", "del", remote}, show("ip", "route", "show", remote)},
		{"a learned route, replaced", []string{"ip", "route", "replace", "unreachable", remote, "proto", "104"}, show("ip", "route", "show", remote)},
		{"the next hop objects, and with them the routes by them", []string{"ip", "nexthop", "flush", "proto", "104"}, show("ip", "route", "show", "proto", "104")},
		// One by one: ip's flush asks for routes by next hop objects to be deleted by object and by gateway, which the kernel refuses.
		{"all our routes", []string{"sh", "-c", `ip route show proto 104 | while read -r kind prefix rest; do
			[ "$kind" = blackhole ] || prefix=$kind
			ip route del "$prefix" proto 104 || [ -n "$(ip route show "$prefix" proto 104)" ] || exit 1
		done`}, show("ip", "route", "show", "proto", "104")},
		{"a pod's veth", []string{"ip", "link", "del", veth}, show("sh", "-c", "ip -o link show "+veth+" | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/ link-netns.*//; s/ state [A-Z]*//'")},
		{"a pod's veth, set down", []string{"ip", "link", "set", veth, "down"}, show("sh", "-c", "ip -o link show "+veth+" up | wc -l; ip route show "+pod.IP().String())},
		{"proxy_arp", write("net/ipv4/conf/"+veth+"/proxy_arp", "0"), sysctl("net/ipv4/conf/" + veth + "/proxy_arp")},
		{"proxy_delay", write("net/ipv4/neigh/"+veth+"/proxy_delay", "80"), sysctl("net/ipv4/neigh/" + veth + "/proxy_delay")},
		{"ip_forward", write("net/ipv4/ip_forward", "0"), sysctl("net/ipv4/ip_forward")},
		{"the NAT rules", []string{"iptables", "-t", "nat", "-F", "HOPLITE-POSTROUTING"}, iptables("nat")},
		{"the jump to the NAT rules", []string{"iptables", "-t", "nat", "-F", "POSTROUTING"}, iptables("nat")},
		{"the FORWARD rules", []string{"iptables", "-F"}, iptables("filter")},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			before := c.state()
			output(t, ctx, node, c.breaking...)
			broken := time.Now()
			labtest.Eventually(t, repaired+leeway, c.what+" is back", func() error {
				if now := c.state(); now != before {
					return fmt.Errorf("it is\n%s\nand was\n%s", now, before)
				}
				return nil
			})
			t.Logf("seen again after %s", time.Since(broken).Round(time.Millisecond))
			sees(t, ctx, "the pod to another node's pod", pod, far.URL("/clientip"), pod.IP())
			sees(t, ctx, "another node's pod to the pod", far, pod.URL("/clientip"), far.IP())
		})
	}
}

// A route that is not ours is not touched, even where it is in the way.
func TestForeignRoutesStay(t *testing.T) {
	ctx, l := startLab(t)
	onePodEach(t, ctx, l)
	node, other := l.Nodes()[0], l.Nodes()[1]
	remote := strings.Fields(output(t, ctx, node, "ip", "-4", "route", "show", "via", other.IP().String()))[0]
	output(t, ctx, node, "ip", "route", "add", "192.0.2.0/24", "via", other.IP().String(), "proto", "static")
	output(t, ctx, node, "ip", "route", "add", "10.244.0.0/16", "via", other.IP().String(), "proto", "static", "metric", "7")
	output(t, ctx, node, "ip", "route", "add", remote, "via", l.Nodes()[2].IP().String(), "proto", "static", "metric", "9")
	foreign := output(t, ctx, node, "ip", "route", "show", "proto", "static")
	if err := node.Agent.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	output(t, ctx, node, "ip", "route", "del", remote, "proto", "104")
	if err := node.WaitRoute(ctx, l.Nodes()[1].Pods()[0].IP(), other.IP()); err != nil {
		t.Error(err)
	}
	if now := output(t, ctx, node, "ip", "route", "show", "proto", "static"); now != foreign {
		t.Errorf("foreign routes now:\n%s\nbefore:\n%s", now, foreign)
	}
}
