package endpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

func mustSetMTU(t testing.TB, p *Plumber, mtu int) {
	t.Helper()
	if err := p.SetMTU(context.Background(), mtu); err != nil {
		t.Fatalf("SetMTU(%d): %v", mtu, err)
	}
}

// wantMTU reads both ends of a pod's veth from the kernel.
func wantMTU(t testing.TB, node, pod *nstest.NS, s Spec, host, inPod int) {
	t.Helper()
	if got := mtuOf(t, node, HostIf(s.Key)); got != host {
		t.Errorf("%v: the host's end has MTU %d, want %d", s.Addrs, got, host)
	}
	if got := mtuOf(t, pod, s.IfName); got != inPod {
		t.Errorf("%v: the pod's end has MTU %d, want %d", s.Addrs, got, inPod)
	}
}

func mtuOf(t testing.TB, ns *nstest.NS, name string) int {
	t.Helper()
	l, err := ns.Handle(t).LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().MTU
}

// record notes p's requests to the kernel, and refuses those that refuse names.
func record(p *Plumber, refuse func(what string) bool) (steps func() []string) {
	var mu sync.Mutex
	var seen []string
	p.sockets.close()
	p.fail = func(what string) error {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, what)
		if refuse != nil && refuse(what) {
			return errors.New("injected")
		}
		return nil
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { seen = nil }()
		return slices.Clone(seen)
	}
}

// restarted is an agent that knows the pods from the kernel only.
func restarted(t testing.TB, node *nstest.NS, pods ...*nstest.NS) *Plumber {
	t.Helper()
	p := newPlumber(t, node)
	for _, pod := range pods {
		p.dirs = append(p.dirs, dirOf(pod.Path))
	}
	if eps, err := p.List(context.Background()); err != nil || len(eps) != len(pods) {
		t.Fatalf("List: %v, %v", eps, err)
	}
	return p
}

func TestPodsFollowTheNodesMTU(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	p := newPlumber(t, node)
	dual, four := newSpec(nstest.New(t), "10.244.0.5", "fd00:10::5"), newSpec(nstest.New(t), "10.244.0.6")
	pods := map[string]*nstest.NS{dual.Netns: {Path: dual.Netns}, four.Netns: {Path: four.Netns}}
	for _, s := range []Spec{dual, four} {
		mustAdd(t, p, s)
	}
	steps := record(p, nil)
	for _, c := range []struct{ node, dual, four int }{
		{1400, 1400, 1400}, {1500, 1500, 1500}, {9000, 9000, 9000}, {1280, 1280, 1280},
		{1000, 1280, 1000}, // with less the kernel would take IPv6 away
		{1450, 1450, 1450},
	} {
		mustSetMTU(t, p, c.node)
		wantMTU(t, node, pods[dual.Netns], dual, c.dual, c.dual)
		wantMTU(t, node, pods[four.Netns], four, c.four, c.four)
		for _, e := range p.Known() {
			if want := map[Key]int{dual.Key: c.dual, four.Key: c.four}[e.Key]; e.MTU != want {
				t.Errorf("known MTU of %v is %d, want %d", e.Addrs, e.MTU, want)
			}
		}
		steps()
		mustSetMTU(t, p, c.node)
		if again := steps(); len(again) > 0 {
			t.Errorf("the same again took %d requests: %q", len(again), again)
		}
	}
	// A pod that comes has it, whatever its Spec says, and the result says so.
	for i, mtu := range []int{0, 9000, 1300} {
		s := newSpec(nstest.New(t), fmt.Sprintf("10.244.1.%d", i))
		s.MTU = mtu
		if r := mustAdd(t, p, s); r.MTU != 1450 {
			t.Errorf("Add with MTU %d gave %d, the node's is 1450", mtu, r.MTU)
		}
		wantMTU(t, node, &nstest.NS{Path: s.Netns}, s, 1450, 1450)
	}
	for _, mtu := range []int{-1, 0, 67, 65536} {
		if err := p.SetMTU(t.Context(), mtu); err == nil {
			t.Errorf("SetMTU(%d) succeeded", mtu)
		}
	}
}

// An agent may stop at any step, and SetMTU may fail at one: the next does the rest.
func TestAnInterruptedChangeOfMTUIsCompleted(t *testing.T) {
	nstest.Require(t)
	for _, to := range []int{1400, 1500} { // down and up
		node, pod, other := newNode(t), nstest.New(t), nstest.New(t)
		p := newPlumber(t, node)
		s, o := newSpec(pod, "10.244.0.5"), newSpec(other, "10.244.0.6")
		mustAdd(t, p, s)
		mustAdd(t, p, o)
		record(p, func(what string) bool { return strings.HasPrefix(what, "set MTU of "+HostIf(s.Key)) })
		err := p.SetMTU(t.Context(), to)
		if err == nil || !strings.Contains(err.Error(), s.Key.String()) || strings.Contains(err.Error(), o.Key.String()) {
			t.Errorf("to %d: %v, want an error of %s alone", to, err, s.Key)
		}
		wantMTU(t, node, other, o, to, to) // one pod's failure stops no other
		wantMTU(t, node, pod, s, 1450, to) // the host's end is last
		record(p, nil)
		next := restarted(t, node, pod, other)
		if to == 1400 {
			next = p // or by the same agent
		}
		mustSetMTU(t, next, to)
		wantMTU(t, node, pod, s, to, to)
	}
}

// When SetMTU has returned, not even a pod whose Add was under way has more.
func TestAddAndSetMTUAtOnce(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	p := newPlumber(t, node)
	h := node.Handle(t)
	safe := netlinksafe.Handle{Handle: h}
	specs := make([]Spec, 8)
	for i := range specs {
		specs[i] = newSpec(nstest.New(t), fmt.Sprintf("10.244.0.%d", i))
		specs[i].MTU = 0
	}
	for round := range 12 {
		mustSetMTU(t, p, 1500)
		var adds sync.WaitGroup
		for _, s := range specs {
			adds.Go(func() {
				if _, err := p.Add(t.Context(), s); err != nil {
					t.Error(err)
				}
			})
		}
		// In each round a little later: after so many veths are there.
		for n := 0; n < round%len(specs) && !t.Failed(); {
			links, err := safe.LinkList()
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				t.Fatal(err)
			}
			n = len(slices.DeleteFunc(links, func(l netlink.Link) bool { return l.Type() != "veth" }))
		}
		mustSetMTU(t, p, 1400)
		links, err := safe.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if l.Type() == "veth" && l.Attrs().MTU > 1400 {
				t.Errorf("round %d: %s has MTU %d after SetMTU(1400)", round, l.Attrs().Name, l.Attrs().MTU)
			}
		}
		adds.Wait()
		for _, s := range specs {
			wantMTU(t, node, &nstest.NS{Path: s.Netns}, s, 1400, 1400)
			mustDel(t, p, s.Key)
		}
		mustFlush(t, p)
		if t.Failed() {
			return
		}
	}
}

// A GC lists the kernel while the node's MTU changes: what it finds follows.
func TestWhatListFindsAfterSetMTUFollows(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	s := newSpec(pod, "10.244.0.5")
	mustAdd(t, newPlumber(t, node), s)
	p := newPlumber(t, node)
	p.dirs = []string{dirOf(pod.Path)}
	mustSetMTU(t, p, 1400) // of a pod that it does not know
	if _, err := p.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantMTU(t, node, pod, s, 1400, 1400)
}

func TestAPodThatIsGoneIsNoErrorOfSetMTU(t *testing.T) {
	x := newSite(t)
	// The path is gone, and nobody is in the namespace; the veth is still there.
	held, err := os.Open(x.pod.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	x.pod.Remove(t)
	mustSetMTU(t, x.p, 1400)
	// Half a change would be worse than none: the host would drop what the pod sends.
	if got := mtuOf(t, x.node, x.link.Attrs().Name); got != 1450 {
		t.Errorf("the host's end has MTU %d", got)
	}
	held.Close()
	if err := x.h.LinkDel(x.link); err != nil {
		t.Fatal(err)
	}
	mustSetMTU(t, x.p, 1300)
}

// List may have found a namespace by one of its processes, which is gone since.
func TestAPodWhosePathEndedIsFoundByItsProcesses(t *testing.T) {
	x := newSite(t)
	var sleeper *exec.Cmd
	var err error
	x.pod.Do(t, func() {
		sleeper = exec.Command("sleep", "600")
		err = sleeper.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleeper.Process.Kill(); _ = sleeper.Wait() }()
	x.pod.Remove(t)
	mustSetMTU(t, x.p, 1400)
	wantMTU(t, x.node, &nstest.NS{Path: fmt.Sprintf("/proc/%d/ns/net", sleeper.Process.Pid)}, x.s, 1400, 1400)
}

// The pod's end is known by an index, which another of the pod's devices may
// have once a pod with the right to do so has moved it away.
func TestSetMTUTouchesNoOtherDeviceOfThePod(t *testing.T) {
	x := newSite(t)
	h, eth0 := x.inPod(t)
	away, err := os.Open(nstest.New(t).Path)
	if err != nil {
		t.Fatal(err)
	}
	defer away.Close()
	if err := h.LinkSetNsFd(eth0, int(away.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other", Index: eth0.Attrs().Index, MTU: 9000}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	if err := x.p.SetMTU(t.Context(), 1400); err == nil || !strings.Contains(err.Error(), "is not the other end") {
		t.Errorf("SetMTU: %v", err)
	}
	if got := mtuOf(t, x.pod, "other"); got != 9000 {
		t.Errorf("another device of the pod got MTU %d", got)
	}
}

func TestHundredPodsMTU(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	p := newPlumber(t, node)
	for i := range 100 {
		mustAdd(t, p, newSpec(nstest.New(t), fmt.Sprintf("10.244.0.%d", i), fmt.Sprintf("fd00:10::%x", i+1)))
	}
	for _, mtu := range []int{1400, 1500, 1500} {
		start := time.Now()
		mustSetMTU(t, p, mtu)
		t.Logf("100 pods to %d: %v", mtu, time.Since(start))
	}
	start := time.Now()
	if resized, err := p.Resized(); err != nil || len(resized) > 0 {
		t.Errorf("Resized: %v, %v", resized, err)
	}
	t.Logf("100 pods looked at: %v", time.Since(start))
}
