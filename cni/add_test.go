package cni

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/api/delqueue"
)

func TestAddTellsTheAgentEverything(t *testing.T) {
	n := newNode(t).with("mtu", 1400)
	a := (&agent{}).start(t, bind(t, n.socket))
	n.must("ADD")
	want := &agentv1.AddRequest{
		Attachment: &agentv1.Attachment{ContainerId: "c0ffee", Ifname: "eth0"}, Netns: n.env["CNI_NETNS"],
		PodNamespace: "default", PodName: "web-0", PodUid: "u-1", Mtu: 1400,
	}
	if len(a.seen()) != 1 || !proto.Equal(a.call(0), want) {
		t.Errorf("the agent saw %v\nwant %v", a.call(0), want)
	}
}

// The reference library is the judge: what it reads in each version's form, and
// converts to the newest, is what the agent made.
func TestAddsResultIsInTheFormOfEachVersion(t *testing.T) {
	for _, version := range supportedVersions {
		t.Run(version, func(t *testing.T) {
			n := newNode(t).with("cniVersion", version).with("dns", map[string]any{"nameservers": []string{"10.96.0.10"}})
			(&agent{}).start(t, bind(t, n.socket))
			out := n.must("ADD")
			parsed, err := create.Create(version, out)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			// Nothing may be in the output that the library's type for this version does not have.
			theirs, _ := json.Marshal(parsed)
			if !reflect.DeepEqual(anyJSON(t, out), anyJSON(t, theirs)) {
				t.Errorf("printed %s\nthe library would print %s", out, theirs)
			}
			checkResult(t, n, version, parsed)
		})
	}
}

func checkResult(t *testing.T, n *node, version string, parsed types.Result) {
	r, err := types100.NewResultFromResult(parsed)
	if err != nil {
		t.Fatal(err)
	}
	host, eth0 := r.Interfaces[0], r.Interfaces[1]
	if len(r.Interfaces) != 2 || host.Name != "hop0123456789a" || host.Sandbox != "" ||
		eth0.Name != "eth0" || eth0.Sandbox != n.env["CNI_NETNS"] || eth0.Mac != "02:00:00:00:00:01" {
		t.Errorf("interfaces %v", r.Interfaces)
	}
	if wantMTU := map[bool]int{true: 1480}[version == "1.1.0"]; eth0.Mtu != wantMTU {
		t.Errorf("mtu %d, want %d", eth0.Mtu, wantMTU)
	}
	for i, want := range []string{"10.244.0.5/32 169.254.1.1", "fd00::5/128 fe80::ecee:eeff:feee:eeee"} {
		ip := r.IPs[i]
		if got := ip.Address.String() + " " + ip.Gateway.String(); got != want || ip.Interface == nil || *ip.Interface != 1 {
			t.Errorf("ip %s, want %s on interface 1", ip, want)
		}
	}
	if len(r.Routes) != 3 || r.Routes[0].GW != nil || r.Routes[1].GW.String() != "169.254.1.1" {
		t.Errorf("routes %v", r.Routes)
	}
	if len(r.DNS.Nameservers) != 1 {
		t.Errorf("dns %v", r.DNS)
	}
}

func anyJSON(t *testing.T, b []byte) (v any) {
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAddInAChainComesAfterWhatIsThere(t *testing.T) {
	n := newNode(t).with("dns", map[string]any{"domain": "ours"}).with("prevResult", json.RawMessage(`{
		"cniVersion": "1.1.0",
		"interfaces": [{"name": "lo", "sandbox": "/x", "socketPath": "/s", "pciID": "p"}, {"name": "br0"}],
		"ips": [{"address": "192.0.2.1/24", "interface": 0}],
		"routes": [{"dst": "192.0.2.0/24", "mtu": 9, "advmss": 8, "priority": 7, "table": 6, "scope": 0}],
		"dns": {"domain": "theirs"}}`))
	(&agent{}).start(t, bind(t, n.socket))
	var r Result
	if err := json.Unmarshal(n.must("ADD"), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Interfaces) != 4 || r.Interfaces[0].PciID != "p" || r.Interfaces[2].Name != "hop0123456789a" || r.Interfaces[3].Name != "eth0" {
		t.Errorf("interfaces %+v", r.Interfaces)
	}
	if len(r.IPs) != 3 || *r.IPs[0].Interface != 0 || *r.IPs[1].Interface != 3 || *r.IPs[2].Interface != 3 {
		t.Errorf("ips %+v", r.IPs)
	}
	if len(r.Routes) != 4 || r.Routes[0].Table == nil || *r.Routes[0].Table != 6 || r.Routes[0].Scope == nil {
		t.Errorf("routes %+v", r.Routes)
	}
	if r.DNS == nil || r.DNS.Domain != "theirs" {
		t.Errorf("dns %+v", r.DNS)
	}
}

// onRead calls started when the plugin has read its configuration, which is the
// last it does before it asks the agent.
type onRead struct {
	io.Reader
	started func()
}

func (r onRead) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	if errors.Is(err, io.EOF) {
		r.started()
	}
	return n, err
}

func (n *node) whenReading(f func()) {
	conf, err := json.Marshal(n.conf)
	if err != nil {
		n.t.Fatal(err)
	}
	n.stdin = onRead{strings.NewReader(string(conf)), sync.OnceFunc(f)}
}

func TestAddWaitsForAnAgentThatIsRestarting(t *testing.T) {
	for name, leaveSocket := range map[string]bool{"no socket": false, "a dead agent's socket": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			if leaveSocket {
				_ = bind(t, n.socket).Close()
			}
			a := &agent{}
			started := make(chan struct{})
			n.whenReading(func() {
				go func() { defer close(started); a.start(t, bind(t, n.socket)) }()
			})
			n.must("ADD")
			<-started
		})
	}
}

func TestAddWaitsWhileTheAgentSaysUnavailable(t *testing.T) {
	n := newNode(t)
	a := &agent{}
	a.add = func(context.Context) (*agentv1.AddResponse, error) {
		if len(a.seen()) < 4 {
			return nil, status.Error(codes.Unavailable, "starting")
		}
		return made, nil
	}
	a.start(t, bind(t, n.socket))
	n.must("ADD")
	if got := a.seen(); !slices.Equal(got, []string{"Add", "Add", "Add", "Add"}) {
		t.Errorf("the agent saw %v", got)
	}
}

func TestAddStopsWaitingAfterItsTime(t *testing.T) {
	n := newNode(t).with("waitForAgent", "30ms")
	n.fails("ADD", 11)
	a := &agent{add: func(context.Context) (*agentv1.AddResponse, error) {
		return nil, status.Error(codes.Unavailable, "starting: no pools yet")
	}}
	a.start(t, bind(t, n.socket))
	if e := n.fails("ADD", 11); !strings.Contains(e.Msg, "no pools yet") {
		t.Errorf("message %q", e)
	}
	if len(n.queued()) != 0 {
		t.Errorf("queued %v: an agent that was not there, or refused, has nothing to undo", n.queued())
	}
}

func TestAddIsRepeatedSafelyWhenTheAgentDiesDuringIt(t *testing.T) {
	n := newNode(t)
	entered := make(chan struct{})
	first := &agent{add: func(ctx context.Context) (*agentv1.AddResponse, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	first.start(t, bind(t, n.socket))
	second := &agent{}
	restarted := make(chan struct{})
	go func() {
		defer close(restarted)
		<-entered
		// The next one listens before the first is gone: no attempt falls between.
		l := bind(t, n.socket)
		first.server.Stop()
		second.start(t, l)
	}()
	n.must("ADD")
	<-restarted
	if got := second.seen(); !slices.Equal(got, []string{"Del", "Add"}) {
		t.Errorf("the second agent saw %v: what the first may have made must go before", got)
	}
	if len(n.queued()) != 0 {
		t.Errorf("queued %v", n.queued())
	}
}

func TestWhatADeadAgentMayHaveMadeIsQueuedForDeletion(t *testing.T) {
	n := newNode(t).with("waitForAgent", "30ms")
	entered := make(chan struct{})
	a := &agent{add: func(ctx context.Context) (*agentv1.AddResponse, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	a.start(t, bind(t, n.socket))
	stopped := make(chan struct{})
	go func() { defer close(stopped); <-entered; a.server.Stop() }()
	n.fails("ADD", 11)
	<-stopped
	if got := n.queued(); !slices.Equal(got, []delqueue.Attachment{{ContainerID: "c0ffee", Ifname: "eth0"}}) {
		t.Errorf("queued %v", got)
	}
}

func TestAnAddThatTakesTooLongIsUndone(t *testing.T) {
	n := newNode(t)
	n.callTimeout = limit / 100
	a := &agent{add: func(ctx context.Context) (*agentv1.AddResponse, error) {
		<-ctx.Done()
		select {} // an agent that hangs and does not even notice
	}}
	l := bind(t, n.socket)
	// Not a.start: that server could not be waited for.
	server := newServer(a)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = l.Close() })
	n.fails("ADD", 11)
	if got := a.seen(); !slices.Contains(got, "Del") {
		t.Errorf("the agent saw %v", got)
	}
}

func TestAddCarriesOutAQueuedDelFirst(t *testing.T) {
	n := newNode(t)
	if err := delqueue.Put(n.queueDir(), delqueue.Attachment{ContainerID: "c0ffee", Ifname: "eth0"}); err != nil {
		t.Fatal(err)
	}
	a := (&agent{}).start(t, bind(t, n.socket))
	n.must("ADD")
	if got := a.seen(); !slices.Equal(got, []string{"Del", "Add"}) || len(n.queued()) != 0 {
		t.Errorf("the agent saw %v, queued are %v", got, n.queued())
	}
}

func TestAnAddNobodyHearsOfIsUndone(t *testing.T) {
	n := newNode(t)
	n.exec = plugin(t)
	a := (&agent{}).start(t, bind(t, n.socket))
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = full.Close() }()
	if got := n.runTo(full, "ADD"); got == 0 {
		t.Error("exit status 0")
	}
	if got := a.seen(); !slices.Equal(got, []string{"Add", "Del"}) {
		t.Errorf("the agent saw %v", got)
	}
}

func TestTheAgentsErrorsHaveTheirCodes(t *testing.T) {
	for c, want := range map[codes.Code]uint{
		codes.InvalidArgument: 4, codes.AlreadyExists: 100, codes.ResourceExhausted: 11, codes.Internal: 102,
		codes.Unimplemented: 102, codes.Aborted: 11, codes.PermissionDenied: 102, codes.Canceled: 11,
	} {
		t.Run(c.String(), func(t *testing.T) {
			n := newNode(t)
			a := &agent{add: func(context.Context) (*agentv1.AddResponse, error) { return nil, status.Error(c, "do this") }}
			a.start(t, bind(t, n.socket))
			if e := n.fails("ADD", want); e.Msg != "do this" {
				t.Errorf("message %q", e.Msg)
			}
			if got := a.seen(); !slices.Equal(got, []string{"Add"}) {
				t.Errorf("the agent saw %v", got)
			}
		})
	}
}

func TestAddRefusesNamespacesThatCannotBeAPods(t *testing.T) {
	n := newNode(t)
	a := (&agent{}).start(t, bind(t, n.socket))
	n.env["CNI_NETNS"] = "/proc/self/ns/net"
	n.fails("ADD", 8)
	n.env["CNI_NETNS"] = filepath.Join(n.dir, "gone")
	n.fails("ADD", 4)
	if len(a.seen()) != 0 {
		t.Errorf("the agent saw %v", a.seen())
	}
	n.env["CNI_NETNS"], n.env["CNI_NETNS_OVERRIDE"] = "/proc/self/ns/net", "TRUE"
	n.must("ADD")
}
