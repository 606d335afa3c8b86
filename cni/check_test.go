package cni

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// after is prevResult as later plugins of a chain may leave it.
const after = `{"cniVersion": "1.1.0", "interfaces": [
	{"name": "eth0", "mac": "aa:aa:aa:aa:aa:aa"},
	{"name": "ifb1"},
	{"name": "hop0123456789a", "mac": "ee:ee:ee:ee:ee:ee"},
	{"name": "eth0", "mac": "02:00:00:00:00:99", "mtu": 1300, "sandbox": "/run/netns/other-path-of-the-same"},
	{"name": "net1", "sandbox": "/run/netns/x"}],
	"ips": [{"address": "10.244.0.5/32", "interface": 3}, {"address": "192.0.2.9/24", "interface": 4},
		{"address": "198.51.100.1/24"}, {"address": "fd00::5/128", "interface": 3}]}`

func TestCheckAsksAboutOurInterfacesOnly(t *testing.T) {
	n := newNode(t).with("prevResult", json.RawMessage(after))
	a := (&agent{}).start(t, bind(t, n.socket))
	if out := n.must("CHECK"); len(out) != 0 {
		t.Errorf("CHECK printed %s", out)
	}
	want := &agentv1.CheckRequest{
		Attachment: &agentv1.Attachment{ContainerId: "c0ffee", Ifname: "eth0"}, Netns: n.env["CNI_NETNS"],
		Host:      &agentv1.Interface{Name: "hop0123456789a", Mac: "ee:ee:ee:ee:ee:ee"},
		Container: &agentv1.Interface{Name: "eth0", Mac: "02:00:00:00:00:99", Mtu: 1300, Sandbox: "/run/netns/other-path-of-the-same"},
		Addresses: []string{"10.244.0.5/32", "fd00::5/128"},
	}
	if !proto.Equal(a.call(0), want) {
		t.Errorf("the agent saw %v\nwant %v", a.call(0), want)
	}
}

func TestCheckFailsWhereTheAgentFindsADifference(t *testing.T) {
	n := newNode(t).with("prevResult", json.RawMessage(after))
	a := &agent{check: status.Error(codes.FailedPrecondition, "eth0 lacks 10.244.0.5")}
	a.start(t, bind(t, n.socket))
	if e := n.fails("CHECK", 101); e.Msg != "eth0 lacks 10.244.0.5" {
		t.Errorf("message %q", e.Msg)
	}
}

func TestCheckNeedsThePreviousResultAndItsOwnInterface(t *testing.T) {
	n := newNode(t)
	(&agent{}).start(t, bind(t, n.socket))
	n.fails("CHECK", 7)
	n.with("prevResult", nil).fails("CHECK", 7)
	n.with("prevResult", map[string]any{"cniVersion": "1.1.0"}).fails("CHECK", 101)
	n.with("prevResult", json.RawMessage(`{"interfaces": [{"name": "eth0", "sandbox": "/x"}], "ips": [{"address": "10.0.0.1/32"}]}`)).fails("CHECK", 101)
	n.with("prevResult", json.RawMessage(`{"interfaces": 3}`)).fails("CHECK", 6)
}

func TestCheckGCAndStatusSayThatTheyNeedAnAgent(t *testing.T) {
	n := newNode(t).with("waitForAgent", "0s").with("prevResult", json.RawMessage(after))
	n.fails("CHECK", 11)
	n.with("cni.dev/valid-attachments", []any{}).fails("GC", 11)
	if e := n.fails("STATUS", 50); !strings.Contains(e.Msg, "hoplite-agent pod") {
		t.Errorf("message %q", e.Msg)
	}
}

func TestGCTellsTheAgentWhatIsValid(t *testing.T) {
	n := newNode(t).with("cni.dev/valid-attachments", json.RawMessage(`[
		{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth1"}]`))
	n.env = map[string]string{"CNI_PATH": "/opt/cni/bin"}
	a := (&agent{}).start(t, bind(t, n.socket))
	n.must("GC")
	n.with("cni.dev/valid-attachments", []any{}).must("GC")
	want := &agentv1.GCRequest{Valid: []*agentv1.Attachment{{ContainerId: "a", Ifname: "eth0"}, {ContainerId: "b", Ifname: "eth1"}}}
	if !proto.Equal(a.call(0), want) || !proto.Equal(a.call(1), &agentv1.GCRequest{}) {
		t.Errorf("the agent saw %v", a.seen())
	}
}

// A list that is missing or unreadable must never count as an empty one.
func TestGCRemovesNothingWithoutAListItCanRead(t *testing.T) {
	n := newNode(t)
	a := (&agent{}).start(t, bind(t, n.socket))
	n.fails("GC", 7)
	n.with("cni.dev/valid-attachments", json.RawMessage(`[{"containerID": "../x", "ifname": "eth0"}]`)).fails("GC", 7)
	n.with("cni.dev/valid-attachments", json.RawMessage(`[{"containerId_": "a"}]`)).fails("GC", 7)
	n.with("cni.dev/valid-attachments", "none").fails("GC", 6)
	if len(a.seen()) != 0 {
		t.Errorf("the agent saw %v", a.seen())
	}
}

func TestGCReportsEveryError(t *testing.T) {
	n := newNode(t).with("cni.dev/valid-attachments", []any{})
	a := &agent{gc: &agentv1.GCResponse{Removed: []*agentv1.Attachment{{ContainerId: "a"}}, Errors: []string{"one", "two"}}}
	a.start(t, bind(t, n.socket))
	if e := n.fails("GC", 104); e.Details != "one; two" {
		t.Errorf("details %q", e.Details)
	}
}

func TestStatusIsWhetherAnAddCouldSucceed(t *testing.T) {
	n := newNode(t)
	n.env = map[string]string{}
	a := (&agent{}).start(t, bind(t, n.socket))
	if out := n.must("STATUS"); len(out) != 0 {
		t.Errorf("STATUS printed %s", out)
	}
	a.says(func() (*agentv1.StatusResponse, error) {
		return &agentv1.StatusResponse{Problems: []string{"no pool selects this node", "no address left"}}, nil
	})
	if e := n.fails("STATUS", 50); e.Details != "no pool selects this node; no address left" {
		t.Errorf("details %q", e.Details)
	}
	a.says(func() (*agentv1.StatusResponse, error) { return nil, status.Error(codes.Internal, "broken") })
	n.fails("STATUS", 50)
	if got := a.seen(); !slices.Equal(got, []string{"Status", "Status", "Status"}) {
		t.Errorf("the agent saw %v", got)
	}
}
