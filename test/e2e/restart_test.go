package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// routeWatch notes every change of a route on a node.
type routeWatch struct {
	stop chan struct{}
	mu   sync.Mutex
	seen []string
}

func watchRoutes(t *testing.T, node *lab.Node) *routeWatch {
	t.Helper()
	w := &routeWatch{stop: make(chan struct{})}
	updates := make(chan netlink.RouteUpdate, 1024)
	if err := node.Do(func() error { return netlink.RouteSubscribe(updates, w.stop) }); err != nil {
		t.Fatal(err)
	}
	go func() {
		for u := range updates {
			// Every device that comes or goes brings link-local and multicast routes of the kernel's own.
			if u.Dst != nil && u.Dst.IP.To4() == nil && (u.Dst.IP.IsLinkLocalUnicast() || u.Dst.IP.IsMulticast()) {
				continue
			}
			w.mu.Lock()
			w.seen = append(w.seen, fmt.Sprintf("type %d %s", u.Type, u.Route))
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() { close(w.stop) })
	return w
}

func (w *routeWatch) events() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.seen...)
}

// startMeters sends 1,000 packets a second each way between the pods of each pair.
func startMeters(t *testing.T, ctx context.Context, pods ...*lab.Pod) []*lab.Meter {
	t.Helper()
	var meters []*lab.Meter
	for i := range pods {
		for _, other := range pods[i+1:] {
			m, err := lab.StartMeter(ctx, pods[i], other, 1000)
			if err != nil {
				t.Fatal(err)
			}
			meters = append(meters, m)
		}
	}
	return meters
}

func noneLost(t *testing.T, meters []*lab.Meter) {
	t.Helper()
	for _, m := range meters {
		for _, loss := range both(m.Stop()) {
			if loss.Lost > 0 || loss.Sent == 0 {
				t.Error(loss)
			} else {
				t.Log(loss)
			}
		}
	}
}

func both(a, b lab.Loss) []lab.Loss { return []lab.Loss{a, b} }

// An agent restart is no event: no packet is lost, no neighbour sees a route
// change, nor does the node itself. However the agent ended.
func TestRestartIsNoEvent(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	node := l.Nodes()[0]
	for name, end := range map[string]func(){
		"stopped": func() {
			if err := node.Agent.Stop(ctx); err != nil {
				t.Fatal(err)
			}
		},
		"killed": node.Agent.Kill,
	} {
		t.Run(name, func(t *testing.T) {
			var watches []*routeWatch
			for _, n := range l.Nodes() {
				watches = append(watches, watchRoutes(t, n))
			}
			meters := startMeters(t, ctx, pods...)
			end()
			if err := node.Agent.Start(); err != nil {
				t.Fatal(err)
			}
			if err := node.Agent.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			if err := l.WaitMesh(ctx); err != nil {
				t.Fatal(err)
			}
			// The agent prunes when its peers have said all; a pod made now shows that routes still flow.
			fresh := labtest.AddPod(t, l.Nodes()[1], "after-"+name, lab.PodOptions{})
			sees(t, ctx, "a pod of the restarted node to a new pod", pods[0], fresh.URL("/clientip"), pods[0].IP())
			noneLost(t, meters)
			for i, w := range watches {
				for _, event := range w.events() {
					// The new pod's own route on its own node is the only one there may be.
					if i == 1 && containsAddr(event, fresh.IP().String()) {
						continue
					}
					t.Errorf("%s saw a route change: %s", l.Nodes()[i].Name, event)
				}
			}
		})
	}
}

// An agent that starts while the API server is away serves its pods and keeps
// its peers, as one does that was there all the time.
func TestRestartWithoutTheAPI(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	meters := startMeters(t, ctx, pods...)
	l.StopAPIServer()
	node := l.Nodes()[0]
	if err := node.Agent.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if err := node.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	var added *lab.Pod
	labtest.Eventually(t, time.Minute, "a pod is added without the API", func() (err error) {
		added, err = node.AddPod(ctx, "without-api", lab.PodOptions{})
		return err
	})
	sees(t, ctx, "the new pod to another node's", added, pods[1].URL("/clientip"), added.IP())
	if err := added.Del(ctx); err != nil {
		t.Error(err)
	}
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
	if err := l.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	if err := node.Agent.WaitReady(ctx); err != nil {
		t.Error(err)
	}
	noneLost(t, meters)
}

func containsAddr(event, addr string) bool { return strings.Contains(event, addr+"/32") }
