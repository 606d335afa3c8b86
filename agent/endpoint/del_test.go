package endpoint

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

func TestDelFreesOnceAndFlushLeavesNothing(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	p := newPlumber(t, node)
	cleanNode, cleanPod := snapshot(t, node), snapshot(t, pod)
	s := newSpec(pod, "10.244.0.5", "fd00:10::5")
	mustAdd(t, p, s)
	if freed := mustDel(t, p, s.Key); !slices.Equal(freed, s.Addrs) {
		t.Errorf("freed %v, want %v", freed, s.Addrs)
	}
	if freed := mustDel(t, p, s.Key); freed != nil {
		t.Errorf("freed %v a second time", freed)
	}
	if eps, err := p.List(t.Context()); err != nil || len(eps) != 0 {
		t.Errorf("List after Del: %v, %v", eps, err)
	}
	for _, a := range s.Addrs {
		if _, err := node.Handle(t).RouteGet(a.AsSlice()); err == nil {
			t.Errorf("%s is routed after Del", a)
		}
	}
	mustFlush(t, p)
	if got := snapshot(t, node); got != cleanNode {
		t.Errorf("node has\n%s\nhad\n%s", got, cleanNode)
	}
	if got := snapshot(t, pod); got != cleanPod {
		t.Errorf("pod has\n%s\nhad\n%s", got, cleanPod)
	}
	if freed := mustDel(t, p, s.Key); freed != nil {
		t.Errorf("freed %v a third time", freed)
	}
}

func TestDelOfTheUnknownIsNoError(t *testing.T) {
	nstest.Require(t)
	if freed := mustDel(t, newPlumber(t, newNode(t)), Key{"never-was", "eth0"}); freed != nil {
		t.Errorf("freed %v", freed)
	}
}

func TestDelAfterTheNamespaceFrees(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	p := newPlumber(t, node)
	s := newSpec(pod, "10.244.0.5")
	mustAdd(t, p, s)
	// What the end of the namespace does to the veth, without waiting for it.
	l, err := node.Handle(t).LinkByName(HostIf(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Handle(t).LinkDel(l); err != nil {
		t.Fatal(err)
	}
	pod.Remove(t)
	if freed := mustDel(t, p, s.Key); !slices.Equal(freed, s.Addrs) {
		t.Errorf("freed %v, want %v", freed, s.Addrs)
	}
}

func TestDelByAnotherAgentFreesFromTheKernel(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	s := newSpec(pod, "10.244.0.5")
	mustAdd(t, newPlumber(t, node), s)
	if freed := mustDel(t, newPlumber(t, node), s.Key); !slices.Equal(freed, s.Addrs) {
		t.Errorf("freed %v, want %v", freed, s.Addrs)
	}
}

func TestDelFreesALinkThatLostItsAlias(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	p := newPlumber(t, node)
	s := newSpec(pod, "10.244.0.5")
	mustAdd(t, p, s)
	h := node.Handle(t)
	l, err := h.LinkByName(HostIf(s.Key))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetAlias(l, "mine"); err != nil {
		t.Fatal(err)
	}
	if freed := mustDel(t, p, s.Key); !slices.Equal(freed, s.Addrs) {
		t.Errorf("freed %v, want %v", freed, s.Addrs)
	}
}

// Whatever could meet a veth that waits for its deletion waits for that, too.
func TestAddAfterDelMeetsNothing(t *testing.T) {
	nstest.Require(t)
	for name, again := range map[string]func(Spec, *nstest.NS) Spec{
		"the same": func(s Spec, _ *nstest.NS) Spec { return s },
		"the namespace": func(s Spec, _ *nstest.NS) Spec {
			s.Key = Key{"another", "eth0"}
			s.Addrs = []netip.Addr{netip.MustParseAddr("10.244.0.9")}
			return s
		},
		"the key": func(s Spec, other *nstest.NS) Spec {
			s.Netns, s.Addrs = other.Path, []netip.Addr{netip.MustParseAddr("10.244.0.9")}
			return s
		},
		"the address": func(s Spec, other *nstest.NS) Spec {
			s.Key, s.Netns = Key{"another", "eth0"}, other.Path
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			node, pod, other := newNode(t), nstest.New(t), nstest.New(t)
			p := newPlumber(t, node)
			s := newSpec(pod, "10.244.0.5")
			mustAdd(t, p, s)
			mustDel(t, p, s.Key)
			s = again(s, other)
			mustAdd(t, p, s)
			if err := p.Check(t.Context(), Expected{Key: s.Key, Netns: s.Netns, Addrs: s.Addrs}); err != nil {
				t.Error(err)
			}
			before := snapshot(t, node)
			mustFlush(t, p)
			if after := snapshot(t, node); after != before {
				t.Errorf("the old veth was still there when Add returned:\n%s\nthen\n%s", before, after)
			}
		})
	}
}

func TestRunDeletesWhatDelLeft(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	p := newPlumber(t, node)
	clean := snapshot(t, node)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ran := make(chan error, 1)
	links := make(chan netlink.LinkUpdate, 100)
	done := make(chan struct{})
	defer close(done)
	node.Do(t, func() {
		if err := netlink.LinkSubscribe(links, done); err != nil {
			t.Fatal(err)
		}
	})
	go func() { ran <- p.Run(ctx) }()
	const pods = 5
	for i := range byte(pods) {
		s := newSpec(nstest.New(t), netip.AddrFrom4([4]byte{10, 244, 0, i}).String())
		mustAdd(t, p, s)
		mustDel(t, p, s.Key)
	}
	for deleted := 0; deleted < pods; {
		if u := <-links; u.Header.Type == 17 { // RTM_DELLINK
			deleted++
		}
	}
	mustFlush(t, p)
	if got := snapshot(t, node); got != clean {
		t.Errorf("node has\n%s", got)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func TestRunDeletesBeforeItEnds(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	p := newPlumber(t, node)
	clean := snapshot(t, node)
	s := newSpec(nstest.New(t), "10.244.0.9")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	// Whether Run sees the end first or the work is a matter of luck.
	for range 8 {
		mustAdd(t, p, s)
		mustDel(t, p, s.Key)
		if err := p.Run(ended); err != nil {
			t.Error(err)
		}
		if got := snapshot(t, node); got != clean {
			t.Errorf("Run left at its end\n%s", got)
		}
	}
}

func TestNewDeletesWhatADeadAgentLeft(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	clean := snapshot(t, node)
	dead := newPlumber(t, node)
	a, b := newSpec(nstest.New(t), "10.244.0.5"), newSpec(nstest.New(t), "10.244.0.6")
	mustAdd(t, dead, a)
	mustAdd(t, dead, b)
	mustDel(t, dead, a.Key)
	p := newPlumber(t, node)
	eps, err := p.List(t.Context())
	if err != nil || len(eps) != 1 || eps[0].Key != b.Key {
		t.Errorf("List: %v, %v; want only %s", eps, err, b.Key)
	}
	mustAdd(t, p, a) // nothing of it is in the way
	mustDel(t, p, a.Key)
	mustDel(t, p, b.Key)
	mustFlush(t, p)
	if got := snapshot(t, node); got != clean {
		t.Errorf("node has\n%s", got)
	}
}

func TestForeignLinksAreLeftAlone(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	h := node.Handle(t)
	k := Key{"squatted", "eth0"}
	alias, err := owner{Key: Key{"other", "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.0.7")}}.alias()
	if err != nil {
		t.Fatal(err)
	}
	for name, alias := range map[string]string{HostIf(k): "mine", "hopscotch": "", "hop0123456789a": alias} {
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p" + name[3:]}
		if err := h.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
		if err := h.LinkSetAlias(l, alias); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, node)
	p := newPlumber(t, node)
	if eps, err := p.List(t.Context()); err != nil || len(eps) != 0 {
		t.Errorf("List: %v, %v", eps, err)
	}
	if freed := mustDel(t, p, k); freed != nil {
		t.Errorf("freed %v", freed)
	}
	mustFlush(t, p)
	s := newSpec(nstest.New(t), "10.244.0.5")
	s.Key = k
	if _, err := p.Add(t.Context(), s); !errors.Is(err, ErrExists) {
		t.Errorf("Add: %v, want ErrExists", err)
	}
	if after := snapshot(t, node); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	nstest.Require(t)
	p := newPlumber(t, newNode(t))
	k := Key{"busy", "eth0"}
	unlock, err := p.lock(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	go func() { _, err := p.Del(ctx, k); got <- err }()
	for waiting := false; !waiting; runtime.Gosched() {
		p.locks.mu.Lock()
		waiting = p.locks.m[k].wants == 2
		p.locks.mu.Unlock()
	}
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Del: %v, want context.Canceled", err)
	}
}

// An audit's List that began before a Del must not bring the endpoint back.
func TestListRemembersNothingThatDelTookMeanwhile(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	p := newPlumber(t, node)
	s := newSpec(nstest.New(t), "10.244.0.5")
	mustAdd(t, p, s)
	listed, _ := p.table.get(s.Key)
	mustDel(t, p, s.Key)
	for range 2 { // the veth dying, then gone
		if err := p.remember(t.Context(), listed); err != nil {
			t.Fatal(err)
		}
		if known := p.Known(); len(known) != 0 {
			t.Errorf("remembered %v", known)
		}
		mustFlush(t, p)
	}
}
