package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/api/delqueue"
)

var ours = delqueue.Attachment{ContainerID: "c0ffee", Ifname: "eth0"}

func TestDelSucceedsWithNothingButTheKey(t *testing.T) {
	n := newNode(t)
	n.env = map[string]string{"CNI_CONTAINERID": "c0ffee", "CNI_IFNAME": "eth0"}
	n.conf = map[string]any{"cniVersion": "0.3.1", "socket": n.socket,
		// Broken since the ADD: a pod must be removable all the same.
		"mtu": "much", "waitForAgent": 7, "ipam": 1, "mistake": true, "name": []int{}, "prevResult": "what?"}
	a := (&agent{}).start(t, bind(t, n.socket))
	if out := n.must("DEL"); len(out) != 0 {
		t.Errorf("DEL printed %s", out)
	}
	if r := a.call(0).(*agentv1.DelRequest); r.GetAttachment().GetContainerId() != "c0ffee" || r.GetAttachment().GetIfname() != "eth0" || r.GetNetns() != "" {
		t.Errorf("the agent saw %v", a.seen())
	}
}

func TestDelWithNoAgentIsQueuedAndSucceeds(t *testing.T) {
	n := newNode(t)
	n.must("DEL")
	n.must("DEL") // once more is no different
	if got := n.queued(); !slices.Equal(got, []delqueue.Attachment{ours}) {
		t.Fatalf("queued %v", got)
	}
	var content delqueue.Attachment
	file := filepath.Join(n.queueDir(), "c0ffee@eth0")
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &content) != nil || content != ours {
		t.Errorf("the file holds %q, %v", b, err)
	}
	for path, want := range map[string]os.FileMode{n.queueDir(): 0o700, file: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	a := (&agent{}).start(t, bind(t, n.socket))
	n.must("DEL")
	if len(a.seen()) != 1 || len(n.queued()) != 0 {
		t.Errorf("an agent that answered saw %v, and still queued are %v", a.seen(), n.queued())
	}
}

// The agent comes between the first attempt and the file: it has drained
// already, so the second attempt must do the work.
func TestDelAsksOnceMoreAfterQueueing(t *testing.T) {
	n := newNode(t)
	l := bind(t, n.socket)
	a := &agent{}
	a.del = func(*agentv1.DelRequest) error {
		if got := n.queued(); !slices.Equal(got, []delqueue.Attachment{ours}) {
			t.Errorf("at the second attempt queued are %v", got)
		}
		return nil
	}
	a.start(t, &firstConnectionLost{Listener: l})
	n.must("DEL")
	if len(a.seen()) != 1 || len(n.queued()) != 0 {
		t.Errorf("the agent saw %v, queued are %v", a.seen(), n.queued())
	}
}

// firstConnectionLost is the end of one agent and the start of the next.
type firstConnectionLost struct {
	net.Listener
	once sync.Once
}

func (l *firstConnectionLost) Accept() (net.Conn, error) {
	l.once.Do(func() {
		if c, err := l.Listener.Accept(); err == nil {
			_ = c.Close()
		}
	})
	return l.Listener.Accept()
}

// Agents come up while DELs arrive, in the order the contract demands of them:
// bind, drain, serve. Whatever the interleaving, every DEL is carried out and
// none is left behind.
func TestNoDelIsLostWhileAnAgentStarts(t *testing.T) {
	const rounds, pods = 60, 8
	for round := range rounds {
		n := newNode(t)
		var mu sync.Mutex
		deleted := map[string]bool{}
		var wg sync.WaitGroup
		start := make(chan struct{})
		for pod := range pods {
			wg.Go(func() {
				<-start
				one := *n
				one.env = map[string]string{"CNI_CONTAINERID": fmt.Sprintf("pod-%d", pod), "CNI_IFNAME": "eth0"}
				if out, status := one.run("DEL"); status != 0 {
					t.Errorf("DEL: %s", out)
				}
			})
		}
		a := &agent{del: func(r *agentv1.DelRequest) error {
			mu.Lock()
			defer mu.Unlock()
			deleted[r.GetAttachment().GetContainerId()] = true
			return nil
		}}
		close(start)
		for range round * 200 { // a little later every round
			_ = len(start)
		}
		l := bind(t, n.socket)
		for _, q := range n.queued() {
			mu.Lock()
			deleted[q.ContainerID] = true
			mu.Unlock()
			if err := delqueue.Remove(n.queueDir(), q); err != nil {
				t.Error(err)
			}
		}
		a.start(t, l)
		wg.Wait()
		mu.Lock()
		if len(deleted) != pods || len(n.queued()) != 0 {
			t.Fatalf("round %d: %d of %d deleted, queued still %v", round, len(deleted), pods, n.queued())
		}
		mu.Unlock()
		a.server.Stop()
	}
}

func TestDelReportsWhatTheAgentCannotDo(t *testing.T) {
	n := newNode(t)
	a := &agent{del: func(*agentv1.DelRequest) error { return status.Error(codes.Internal, "the kernel says no") }}
	a.start(t, bind(t, n.socket))
	if e := n.fails("DEL", 102); e.Msg != "the kernel says no" || len(n.queued()) != 0 {
		t.Errorf("message %q, queued %v", e.Msg, n.queued())
	}
}

// UNAVAILABLE means that the agent has yet to drain the queue before it serves.
func TestDelIsQueuedForAnAgentThatIsNotReady(t *testing.T) {
	n := newNode(t)
	a := &agent{del: func(*agentv1.DelRequest) error { return status.Error(codes.Unavailable, "starting") }}
	a.start(t, bind(t, n.socket))
	n.must("DEL")
	if got := n.queued(); !slices.Equal(got, []delqueue.Attachment{ours}) {
		t.Errorf("queued %v", got)
	}
}

func TestDelFailsWhenTheAgentHangsButIsNotForgotten(t *testing.T) {
	n := newNode(t)
	n.callTimeout = limit / 100
	bind(t, n.socket) // listens and never answers
	n.fails("DEL", 11)
	if got := n.queued(); !slices.Equal(got, []delqueue.Attachment{ours}) {
		t.Errorf("queued %v", got)
	}
}

func TestDelFailsWhenItCanNeitherBeDoneNorQueued(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(n.queueDir(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e := n.fails("DEL", 5); !strings.Contains(e.Msg, "remove it") {
		t.Errorf("message %q", e.Msg)
	}
}
