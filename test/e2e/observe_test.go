package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// What a node tells of itself is true: to people with netctl, to probes, to Prometheus, and in what it listens on.
func TestWhatANodeTells(t *testing.T) {
	ctx := labtest.Context(t, long)
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), Objects: []client.Object{lab.DefaultPool()}})
	if err := l.WaitMesh(ctx); err != nil {
		t.Fatal(err)
	}
	onePodEach(t, ctx, l)
	for _, part := range []struct {
		name string
		test func(*testing.T, context.Context, *lab.Lab)
	}{
		{"netctl node status", testNodeStatus},
		{"netctl ipam show", testIPAMShow},
		{"netctl version", testVersion},
		{"netctl is for root", testNotRoot},
		{"sockets", testSockets},
		{"metrics", testMetrics},
		{"identity", func(t *testing.T, _ context.Context, l *lab.Lab) { ownIdentity(t, l) }},
		{"not ready for a foreign route", testForeignRoute},
		{"not ready for want of the BGP port", testPortTaken},
		{"not ready for want of the API", testNothingKnown},
		{"not ready for want of a Node", testNoNode},
		{"one agent a node", testSecondAgent},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, ctx, l) })
	}
}

// logLines are what the process has written so far.
func logLines(t *testing.T, p *lab.Process) []string {
	t.Helper()
	content, err := os.ReadFile(p.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(content), "\n")
}

// netctl is what it prints on the node.
func netctl(t *testing.T, ctx context.Context, l *lab.Lab, node *lab.Node, args ...string) string {
	t.Helper()
	return output(t, ctx, node, append([]string{l.Binary("netctl")}, args...)...)
}

// netctlData is its JSON; the YAML must say the same.
func netctlData(t *testing.T, ctx context.Context, l *lab.Lab, node *lab.Node, into any, args ...string) {
	t.Helper()
	asJSON := netctl(t, ctx, l, node, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(asJSON), into); err != nil {
		t.Fatalf("%v\n%s", err, asJSON)
	}
	fromYAML, err := yaml.ToJSON([]byte(netctl(t, ctx, l, node, append(args, "-o", "yaml")...)))
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := errors.Join(json.Unmarshal([]byte(asJSON), &a), json.Unmarshal(fromYAML, &b)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("netctl %s in JSON:\n%v\nand in YAML:\n%v", strings.Join(args, " "), a, b)
	}
}

// rows are a table's rows that begin with the word, blanks squeezed.
func rows(table, first string) (found []string) {
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == first {
			found = append(found, strings.Join(fields, " "))
		}
	}
	return found
}

// oneRow fails the test unless the table has one row that begins with the word, and it matches.
func oneRow(t *testing.T, table, first, pattern string) {
	t.Helper()
	if got := rows(table, first); len(got) != 1 || !regexp.MustCompile("^"+pattern+"$").MatchString(got[0]) {
		t.Errorf("rows of %s: %q, want one like %s; all:\n%s", first, got, pattern, table)
	}
}

const clock = `\d\d:\d\d:\d\d|\d{4}-\d\d-\d\d` // the lab may have started before midnight

func testNodeStatus(t *testing.T, ctx context.Context, l *lab.Lab) {
	for i, node := range l.Nodes() {
		peer := l.Nodes()[1-i]
		table := netctl(t, ctx, l, node, "node", "status")
		if want := fmt.Sprintf(" is running on node %s (AS 64512, router ID %s).\n", node.Name, node.IP()); !strings.Contains(table, want) {
			t.Errorf("no %q in:\n%s", want, table)
		}
		if strings.Contains(table, "Not ready") || !strings.Contains(table, "No IPv6 peers found.") {
			t.Errorf("netctl node status:\n%s", table)
		}
		oneRow(t, table, "PEER", "PEER ADDRESS PEER TYPE STATE SINCE INFO")
		oneRow(t, table, peer.IP().String(), peer.IP().String()+` node-to-node mesh up (`+clock+`) Established`)
		wide := netctl(t, ctx, l, node, "node", "status", "-o", "wide")
		oneRow(t, wide, "PEER", "PEER ADDRESS PEER TYPE STATE SINCE INFO NAME AS RECEIVED ADVERTISED")
		oneRow(t, wide, peer.IP().String(), peer.IP().String()+` node-to-node mesh up (`+clock+`) Established `+peer.Name+` 64512 1 1`)

		var data struct {
			Node, Version, RouterID string
			ASNumber                uint32
			NotReady                []any
			Peers                   []struct {
				Address, Type, Name, State, BGPState, Info string
				ASNumber                                   uint32
				Since                                      time.Time
				Received, Advertised                       uint64
			}
		}
		netctlData(t, ctx, l, node, &data, "node", "status")
		if data.Node != node.Name || data.ASNumber != 64512 || data.RouterID != node.IP().String() || data.Version == "" ||
			data.NotReady == nil || len(data.NotReady) != 0 || len(data.Peers) != 1 {
			t.Fatalf("netctl node status -o json: %+v", data)
		}
		p := data.Peers[0]
		if age := time.Since(p.Since); age < 0 || age > long {
			t.Errorf("the session is up since %s, it is %s", p.Since, time.Now())
		}
		p.Since = time.Time{}
		if got, want := fmt.Sprint(p), fmt.Sprintf("{%s node-to-node mesh %s up Established  64512 %s 1 1}", peer.IP(), peer.Name, time.Time{}); got != want {
			t.Errorf("netctl node status -o json: the peer is %s, want %s", got, want)
		}
	}
}

func testIPAMShow(t *testing.T, ctx context.Context, l *lab.Lab) {
	node := l.Nodes()[0]
	pod := node.Pods()[0]
	veth := pod.Result.Interfaces[0].Name
	prefix, err := pod.IP().Prefix(26)
	if err != nil {
		t.Fatal(err)
	}
	table := netctl(t, ctx, l, node, "ipam", "show")
	oneRow(t, table, "default", `default 10\.244\.0\.0/16 /26 Native true 1 1 -`)
	oneRow(t, table, prefix.String(), prefix.String()+` default 64 1 \(1%\) 63`)
	if len(rows(table, pod.IP().String())) != 0 {
		t.Errorf("addresses nobody asked for:\n%s", table)
	}
	oneRow(t, netctl(t, ctx, l, node, "ipam", "show", "--addresses"), pod.IP().String(), pod.IP().String()+" default/"+pod.Name+" "+veth)
	oneRow(t, netctl(t, ctx, l, node, "ipam", "show", "-o", "wide"), pod.IP().String(),
		strings.Join([]string{pod.IP().String(), "default/" + pod.Name, veth, prefix.String(), pod.ContainerID, "eth0"}, " "))

	var data struct {
		Node  string
		Pools []struct {
			Name, CIDR, Mode, Unusable      string
			BlockSize, NodeBlocks, NodeUsed uint64
			NATOutgoing, Disabled           bool
		}
		Blocks []struct {
			CIDR, Pool       string
			Size, Used, Free uint64
			Addresses        []map[string]string
		}
	}
	netctlData(t, ctx, l, node, &data, "ipam", "show")
	if got := fmt.Sprint(data.Node, data.Pools); got != node.Name+"[{default 10.244.0.0/16 Native  26 1 1 true false}]" {
		t.Errorf("netctl ipam show -o json: node and pools are %s", got)
	}
	address := map[string]string{
		"address": pod.IP().String(), "podNamespace": "default", "podName": pod.Name,
		"hostInterface": veth, "containerID": pod.ContainerID, "ifname": "eth0",
	}
	if len(data.Blocks) != 1 || data.Blocks[0].CIDR != prefix.String() || data.Blocks[0].Pool != "default" || data.Blocks[0].Size != 64 ||
		data.Blocks[0].Used != 1 || data.Blocks[0].Free != 63 || len(data.Blocks[0].Addresses) != 1 || !maps.Equal(data.Blocks[0].Addresses[0], address) {
		t.Errorf("netctl ipam show -o json: blocks are %+v, want %s with %v", data.Blocks, prefix, address)
	}
}

func testVersion(t *testing.T, ctx context.Context, l *lab.Lab) {
	node := l.Nodes()[0]
	status, err := node.Agent.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var data struct{ Netctl, Agent, AgentError string }
	netctlData(t, ctx, l, node, &data, "version")
	if data.Netctl == "" || data.Agent != status.GetVersion() || data.AgentError != "" {
		t.Errorf("netctl version -o json: %+v; the agent is %s", data, status.GetVersion())
	}
	for _, format := range []string{"table", "wide"} {
		table := netctl(t, ctx, l, node, "version", "-o", format)
		oneRow(t, table, "netctl", "netctl "+regexp.QuoteMeta(data.Netctl))
		oneRow(t, table, "agent", "agent "+regexp.QuoteMeta(data.Agent))
	}
}

// Whoever is not root is told to be, and gets nothing.
func testNotRoot(t *testing.T, ctx context.Context, l *lab.Lab) {
	node := l.Nodes()[0]
	program, err := os.ReadFile(l.Binary("netctl"))
	if err != nil {
		t.Fatal(err)
	}
	// The checkout may be where only root can go.
	if err := node.WriteFile("/opt/netctl", program, 0o755); err != nil {
		t.Fatal(err)
	}
	asNobody := func() (string, error) {
		cmd := node.Command(ctx, "/opt/netctl", "node", "status")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.Output()
		return string(out), err
	}
	const refusal = "exit status 1: netctl: not allowed to use /run/hoplite/agent.sock: run netctl as root"
	if out, err := asNobody(); err == nil || out != "" || !strings.HasSuffix(err.Error(), refusal) {
		t.Errorf("netctl as nobody prints %q and %v, want %s", out, err, refusal)
	}
	// Even one who gets at the socket is refused, by the agent.
	for file, mode := range map[string]os.FileMode{"/run/hoplite": 0o755, lab.AgentSocket: 0o666} {
		if err := os.Chmod(node.Path(file), mode); err != nil {
			t.Fatal(err)
		}
	}
	out, err := asNobody()
	if err == nil || out != "" || !strings.Contains(err.Error(), "exit status 1: netctl: ") {
		t.Errorf("netctl as nobody, with the socket open to all, prints %q and %v", out, err)
	}
	said := slices.ContainsFunc(logLines(t, node.Agent.Process), func(line string) bool {
		return strings.Contains(line, "only root may use it") && strings.Contains(line, "uid=65534")
	})
	if !said {
		t.Error("the agent's log does not tell of the refused caller")
	}
	for file, mode := range map[string]os.FileMode{lab.AgentSocket: 0o600, "/run/hoplite": 0o700} {
		if err := os.Chmod(node.Path(file), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// An agent listens on the BGP port of the node's address, on the metrics port and on its socket, and on nothing else.
func testSockets(t *testing.T, ctx context.Context, l *lab.Lab) {
	for _, node := range l.Nodes() {
		var listening []string
		for line := range strings.Lines(output(t, ctx, node, "ss", "-H", "-ltnup")) {
			fields := strings.Fields(line) // tcp LISTEN 0 4096 172.30.1.11:179 0.0.0.0:* users:(...)
			listening = append(listening, fields[0]+" "+fields[4])
		}
		slices.Sort(listening)
		if want := []string{"tcp *:9475", fmt.Sprintf("tcp %s:179", node.IP())}; !slices.Equal(listening, want) {
			t.Errorf("%s listens on %v, want %v", node.Name, listening, want)
		}
		var paths []string
		for line := range strings.Lines(output(t, ctx, node, "ss", "-H", "-lxp")) {
			if fields := strings.Fields(line); strings.Contains(line, `"hoplite-agent"`) {
				paths = append(paths, fields[4])
			}
		}
		// The kernel knows the socket by the name it was made with; it was then moved in place of the one before.
		if len(paths) != 1 || !strings.HasPrefix(paths[0], lab.AgentSocket) {
			t.Errorf("%s listens on the unix sockets %v", node.Name, paths)
		}
		info, err := os.Stat(node.Path(lab.AgentSocket))
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%s: %v, error %v", lab.AgentSocket, info.Mode(), err)
		}
	}
}

var metricName = regexp.MustCompile(`hoplite_[a-z_]+`)

// /metrics has what docs/agent.md says and nothing else of ours, and the numbers are true.
func testMetrics(t *testing.T, ctx context.Context, l *lab.Lab) {
	root, err := lab.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs/agent.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented, served := map[string]bool{}, map[string]bool{"hoplite_not_ready": true} // which is there only when something is not
	for _, name := range metricName.FindAllString(string(doc), -1) {
		documented[name] = true
	}
	node, peer := l.Nodes()[0], l.Nodes()[1]
	body, err := node.Get(ctx, agentURL(node, "/metrics"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok && strings.HasPrefix(rest, "hoplite_") {
			served[strings.Fields(rest)[0]] = true
		}
	}
	if !maps.Equal(documented, served) {
		t.Errorf("docs/agent.md has\n%v\n/metrics has\n%v", slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(served)))
	}
	for _, want := range []string{
		`hoplite_pods 1`,
		`hoplite_ipam_blocks{pool="default",state="Owned"} 1`,
		`hoplite_ipam_addresses{pool="default"} 64`,
		`hoplite_ipam_addresses_used{pool="default"} 1`,
		fmt.Sprintf(`hoplite_bgp_peer_up{peer="%s",type="node-to-node mesh"} 1`, peer.IP()),
		fmt.Sprintf(`hoplite_bgp_prefixes_received{peer="%s",type="node-to-node mesh"} 1`, peer.IP()),
		fmt.Sprintf(`hoplite_bgp_prefixes_advertised{peer="%s",type="node-to-node mesh"} 1`, peer.IP()),
		`hoplite_routes{state="installed"} 2`,
		`hoplite_routes{state="problem"} 0`,
		`hoplite_cni_duration_seconds_count{command="add"} 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("/metrics has no line %s; of that name it has %v", want, slices.DeleteFunc(strings.Split(body, "\n"), func(line string) bool {
				return !strings.HasPrefix(line, metricName.FindString(want))
			}))
		}
	}
}
