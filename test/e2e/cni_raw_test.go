package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/hoplite-net/hoplite/test/lab"
)

// invocation is the plugin's program run by hand: environment and stdin.
type invocation struct {
	node *lab.Node
	env  map[string]string
	conf map[string]any
	// stdin takes the place of conf if it is not empty.
	stdin string
}

// raw is the invocation that a runtime would make for the container, before the test changes it.
func (c container) raw(command string) invocation {
	return invocation{
		node: c.node,
		env: map[string]string{
			"CNI_COMMAND": command, "CNI_CONTAINERID": c.id, "CNI_NETNS": c.netns, "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
			"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + c.id,
		},
		conf: map[string]any{"cniVersion": "1.1.0", "name": "hoplite", "type": "hoplite"},
	}
}

func (i invocation) with(key string, value any) invocation {
	i.conf = maps.Clone(i.conf)
	i.conf[key] = value
	return i
}

func (i invocation) without(key string) invocation {
	i.conf = maps.Clone(i.conf)
	delete(i.conf, key)
	return i
}

func (i invocation) setenv(key, value string) invocation {
	i.env = maps.Clone(i.env)
	i.env[key] = value
	return i
}

func (i invocation) saying(stdin string) invocation {
	i.stdin = stdin
	return i
}

// command is the plugin's process, still to be started.
func (i invocation) command(ctx context.Context) (*lab.Cmd, error) {
	stdin := []byte(i.stdin)
	if len(stdin) == 0 {
		var err error
		if stdin, err = json.Marshal(i.conf); err != nil {
			return nil, err
		}
	}
	cmd := i.node.Command(ctx, "/opt/cni/bin/hoplite")
	cmd.Env = []string{}
	for k, v := range i.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Stdin = bytes.NewReader(stdin)
	return cmd, nil
}

// run executes the plugin in the node. A failure must be told as the specification wants it.
func (i invocation) run(t *testing.T, ctx context.Context) (stdout []byte, failure *types.Error) {
	t.Helper()
	cmd, err := i.command(ctx)
	if err != nil {
		t.Error(err)
		return nil, &types.Error{}
	}
	stdout, err = cmd.Output()
	if err == nil {
		return stdout, nil
	}
	var told struct {
		CNIVersion string `json:"cniVersion"`
		types.Error
	}
	if e := json.Unmarshal(stdout, &told); e != nil || told.CNIVersion == "" || told.Code == 0 || told.Msg == "" {
		t.Errorf("%s: %v, and stdout is not an error result: %q", i.env["CNI_COMMAND"], err, stdout)
	}
	return stdout, &told.Error
}

// must runs an invocation that has to succeed.
func (i invocation) must(t *testing.T, ctx context.Context) []byte {
	t.Helper()
	out, failure := i.run(t, ctx)
	if failure != nil {
		t.Fatalf("%s of %s: error %d: %v", i.env["CNI_COMMAND"], i.env["CNI_CONTAINERID"], failure.Code, failure)
	}
	return out
}

// fails runs an invocation that has to fail with the code and say something.
func (i invocation) fails(t *testing.T, ctx context.Context, code uint, says string) {
	t.Helper()
	_, failure := i.run(t, ctx)
	var err error
	if failure != nil {
		err = failure
	}
	hasCode(t, i.env["CNI_COMMAND"], err, code, says)
}

// added is ADD's result, made by hand.
func (c container) added(t *testing.T, ctx context.Context) *current.Result {
	t.Helper()
	r := &current.Result{}
	if err := json.Unmarshal(c.raw("ADD").must(t, ctx), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// The CNI protocol, spoken to the program by environment and stdin: what
// libcni never says, and what happens around an agent that is not there.
func TestCNIByHand(t *testing.T) {
	ctx, l, node := startOneNode(t)
	for _, c := range []struct {
		what string
		test func(*testing.T, context.Context, *lab.Lab, *lab.Node)
	}{
		{"VERSION tells what is supported", testVersionCommand},
		{"bad input has the specification's codes", testBadInput},
		{"DEL needs nothing but the container", testDelTolerates},
		{"CHECK and GC need what they are given", testIncomplete},
		{"without an agent", testAgentDown},
		{"ADD waits for an agent that restarts", testAddWaits},
		{"names as long as they may be", testLongNames},
		{"ADDs at once for one interface", testAddsAtOnce},
		{"the runtime ends the plugin", testPluginKilled},
		{"no pool", testNoPool},
		{"addresses are used again first in, first out, when there are no others", testReuse},
	} {
		t.Run(c.what, func(t *testing.T) { c.test(t, ctx, l, node) })
	}
	noLeak(t, ctx, l)
}

func testVersionCommand(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	var got struct {
		CNIVersion        string
		SupportedVersions []string
	}
	out := invocation{node: node, env: map[string]string{"CNI_COMMAND": "VERSION"}, stdin: `{"cniVersion": "1.1.0"}`}.must(t, ctx)
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.CNIVersion != "1.1.0" || !slices.Equal(got.SupportedVersions, []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}) {
		t.Errorf("VERSION says %s", out)
	}
}

func testBadInput(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	before := nodeState(t, ctx, node)
	c := newContainer(t, ctx, node, "bad-input")
	add := c.raw("ADD")
	for _, bad := range []struct {
		what string
		invocation
		code uint
		says string
	}{
		{"no command", add.setenv("CNI_COMMAND", ""), 4, "CNI_COMMAND"},
		{"an unknown command", add.setenv("CNI_COMMAND", "FROB"), 4, "FROB"},
		{"no container", add.setenv("CNI_CONTAINERID", ""), 4, "CNI_CONTAINERID"},
		{"a container that is a path", add.setenv("CNI_CONTAINERID", "../../etc"), 4, "CNI_CONTAINERID"},
		{"no interface", add.setenv("CNI_IFNAME", ""), 4, "CNI_IFNAME"},
		{"an interface name too long", add.setenv("CNI_IFNAME", "sixteen-letters-"), 4, "CNI_IFNAME"},
		{"no namespace", add.setenv("CNI_NETNS", ""), 4, "CNI_NETNS"},
		{"a relative namespace", add.setenv("CNI_NETNS", "run/netns/x"), 4, "CNI_NETNS"},
		{"args that are none", add.setenv("CNI_ARGS", "nonsense"), 4, "CNI_ARGS"},
		{"unknown args", add.setenv("CNI_ARGS", "FOO=1"), 4, "FOO"},
		{"DEL without a container", c.raw("DEL").setenv("CNI_CONTAINERID", ""), 4, "CNI_CONTAINERID"},
		{"stdin that is no JSON", add.saying("{"), 6, "JSON"},
		{"stdin that is no object", add.saying("[]"), 6, "JSON"},
		{"DEL with stdin that is no JSON", c.raw("DEL").saying("nonsense"), 6, "JSON"},
		{"a version of another kind", add.with("cniVersion", 1), 6, "cniVersion"},
		{"a version too new", add.with("cniVersion", "9.0.0"), 1, "9.0.0"},
		{"a version too old", add.with("cniVersion", "0.2.0"), 1, "0.2.0"},
		{"no version", add.without("cniVersion"), 1, "0.1.0"},
		{"no name", add.without("name"), 7, "name"},
		{"a slip of the pen", add.with("mut", 1500), 7, "mut"},
		{"an MTU too small", add.with("mtu", 576), 7, "576"},
		{"a wait too long", add.with("waitForAgent", "1h"), 7, "1h"},
		{"a relative socket", add.with("socket", "agent.sock"), 7, "agent.sock"},
		{"another plugin's ipam", add.with("ipam", map[string]any{"type": "host-local"}), 7, "ipam"},
		{"another plugin's ipMasq", add.with("ipMasq", true), 7, "natOutgoing"},
		{"CHECK before it was invented", c.raw("CHECK").with("cniVersion", "0.3.1"), 1, "CHECK"},
		{"GC before it was invented", c.raw("GC").with("cniVersion", "1.0.0"), 1, "GC"},
		{"STATUS before it was invented", c.raw("STATUS").with("cniVersion", "1.0.0"), 1, "STATUS"},
	} {
		t.Run(bad.what, func(t *testing.T) { bad.fails(t, ctx, bad.code, bad.says) })
	}
	unchanged(t, ctx, node, before)
}

func testDelTolerates(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	for _, c := range []struct {
		what   string
		change func(invocation) invocation
	}{
		{"as it should be", func(i invocation) invocation { return i }},
		{"no namespace named", func(i invocation) invocation { return i.setenv("CNI_NETNS", "") }},
		{"a namespace that is not there", func(i invocation) invocation { return i.setenv("CNI_NETNS", "/run/netns/nowhere") }},
		{"no args", func(i invocation) invocation { return i.setenv("CNI_ARGS", "") }},
		{"bad args", func(i invocation) invocation { return i.setenv("CNI_ARGS", "nonsense") }},
		{"an empty prevResult", func(i invocation) invocation { return i.with("prevResult", map[string]any{}) }},
		{"a bad prevResult", func(i invocation) invocation { return i.with("prevResult", "nonsense") }},
		{"another container's prevResult", func(i invocation) invocation {
			return i.with("prevResult", map[string]any{"cniVersion": "1.1.0", "ips": []any{map[string]any{"address": "10.244.0.1/32"}}})
		}},
		{"another version", func(i invocation) invocation { return i.with("cniVersion", "0.3.1") }},
		{"a file that has been broken since", func(i invocation) invocation { return i.with("mtu", "nonsense").without("name") }},
	} {
		t.Run(c.what, func(t *testing.T) {
			before := nodeState(t, ctx, node)
			pod := newContainer(t, ctx, node, "del")
			pod.added(t, ctx)
			for range 2 {
				if out := c.change(pod.raw("DEL")).must(t, ctx); len(out) != 0 {
					t.Errorf("DEL printed %s", out)
				}
			}
			unchanged(t, ctx, node, before)
			checkResult(t, ctx, pod, pod.added(t, ctx)) // and all can begin again
		})
	}
	t.Run("a container nobody knows", func(t *testing.T) {
		before := nodeState(t, ctx, node)
		container{node, "never-was", "/run/netns/never-was"}.raw("DEL").must(t, ctx)
		unchanged(t, ctx, node, before)
	})
	t.Run("another interface of the container", func(t *testing.T) {
		pod := newContainer(t, ctx, node, "del-other")
		pod.added(t, ctx)
		before := nodeState(t, ctx, node)
		pod.raw("DEL").setenv("CNI_IFNAME", "net1").must(t, ctx)
		unchanged(t, ctx, node, before)
	})
}

func testIncomplete(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	c := newContainer(t, ctx, node, "incomplete")
	r := c.added(t, ctx)
	before := nodeState(t, ctx, node)
	result, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	check := c.raw("CHECK").with("prevResult", json.RawMessage(result))
	check.must(t, ctx)
	check.without("prevResult").fails(t, ctx, 7, "prevResult")
	check.with("prevResult", "nonsense").fails(t, ctx, 6, "prevResult")
	check.with("prevResult", map[string]any{"cniVersion": "1.1.0"}).fails(t, ctx, 101, "prevResult")
	check.setenv("CNI_NETNS", "/run/netns/nowhere").fails(t, ctx, 101, "/run/netns/nowhere")
	check.setenv("CNI_CONTAINERID", "never-was").fails(t, ctx, 101, "never-was")

	gc := invocation{node: node, env: map[string]string{"CNI_COMMAND": "GC", "CNI_PATH": "/opt/cni/bin"}, conf: check.without("prevResult").conf}
	gc.fails(t, ctx, 7, "valid-attachments")
	gc.with("cni.dev/valid-attachments", "none").fails(t, ctx, 6, "valid-attachments")
	gc.with("cni.dev/valid-attachments", []any{map[string]any{"containerID": c.id}}).fails(t, ctx, 7, "")
	unchanged(t, ctx, node, before)
	gc.with("cni.dev/valid-attachments", []any{map[string]any{"containerID": c.id, "ifname": "eth0"}}).must(t, ctx)
	unchanged(t, ctx, node, before)
	c.raw("DEL").must(t, ctx)
	check.fails(t, ctx, 101, "is missing")
}

// A veth's alias has room for 255 bytes; whose an address is has to be known after a restart all the same.
func testLongNames(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	before := nodeState(t, ctx, node)
	c := newContainer(t, ctx, node, strings.Repeat("0123456789abcdef", 4))
	long := func(i invocation) invocation {
		i = i.setenv("CNI_IFNAME", "fifteen-letters").with("mtu", 1400).with("dns", map[string]any{"nameservers": []string{"10.96.0.10"}})
		return i.setenv("CNI_ARGS", "K8S_POD_NAMESPACE="+strings.Repeat("n", 63)+";K8S_POD_NAME="+strings.Repeat("p", 253)+
			";K8S_POD_UID=01234567-89ab-cdef-0123-456789abcdef;K8S_POD_INFRA_CONTAINER_ID="+c.id)
	}
	r := &current.Result{}
	if err := json.Unmarshal(long(c.raw("ADD")).must(t, ctx), r); err != nil {
		t.Fatal(err)
	}
	if link := c.ip(t, ctx, "link", "show", "fifteen-letters"); !strings.Contains(link, "mtu 1400 ") || r.Interfaces[1].Mtu != 1400 || len(r.DNS.Nameservers) != 1 {
		t.Errorf("MTU 1400 and a name server were asked for; the interface is %s, the result %v", link, r)
	}
	if err := node.Agent.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if owner := used(t, ctx, node)[addrOf(r).String()]; owner != c.id {
		t.Errorf("after a restart %s is %q's", addrOf(r), owner)
	}
	long(c.raw("CHECK")).with("prevResult", r).must(t, ctx)
	long(c.raw("DEL")).must(t, ctx)
	unchanged(t, ctx, node, before)
}

func testAddsAtOnce(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	const calls = 8
	before := nodeState(t, ctx, node)
	c := newContainer(t, ctx, node, "at-once")
	codes := make(chan uint, calls)
	for range calls {
		go func() {
			_, failure := c.raw("ADD").run(t, ctx)
			if failure == nil {
				failure = &types.Error{}
			}
			codes <- failure.Code
		}()
	}
	got := map[uint]int{}
	for range calls {
		got[<-codes]++
	}
	if want := map[uint]int{0: 1, 100: calls - 1}; !maps.Equal(got, want) {
		t.Errorf("error codes of %d ADDs: %v, want %v", calls, got, want)
	}
	if owners := used(t, ctx, node); len(owners) != 1 {
		t.Errorf("in use: %v", owners)
	}
	c.raw("DEL").must(t, ctx)
	unchanged(t, ctx, node, before)
}
