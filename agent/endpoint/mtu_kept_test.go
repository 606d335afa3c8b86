package endpoint

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// pinned is a pod whose CNI configuration asks for mtu.
func pinned(pod *nstest.NS, mtu int, addrs ...string) Spec {
	s := newSpec(pod, addrs...)
	s.MTU, s.Pinned = mtu, true
	return s
}

func TestAPinnedMTUIsOnlyLowered(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	p := newPlumber(t, node)
	s := pinned(pod, 1400, "10.244.0.5")
	if r := mustAdd(t, p, s); r.MTU != 1400 {
		t.Errorf("Add gave %d before the node's is known, want 1400", r.MTU)
	}
	for _, c := range []struct{ node, pod int }{{1500, 1400}, {1400, 1400}, {1380, 1380}, {1500, 1380}, {1350, 1350}} {
		// Each time by an agent that has it from the kernel: it survives restarts.
		p = restarted(t, node, pod)
		if e := p.Known()[0]; !e.Pinned {
			t.Fatalf("a restarted agent knows %+v, want it pinned", e)
		}
		mustSetMTU(t, p, c.node)
		wantMTU(t, node, pod, s, c.pod, c.pod)
	}
	for i, c := range []struct{ asked, got int }{{1300, 1300}, {1350, 1350}, {9000, 1350}} {
		another := nstest.New(t)
		x := pinned(another, c.asked, "10.244.0.1"+string(rune('0'+i)))
		if r := mustAdd(t, p, x); r.MTU != c.got {
			t.Errorf("Add with %d gave %d on a node with 1350, want %d", c.asked, r.MTU, c.got)
		}
		wantMTU(t, node, another, x, c.got, c.got)
	}
	for _, e := range p.Known() {
		if !e.Pinned {
			t.Errorf("%v is not pinned", e.Addrs)
		}
	}
}

// An agent that has never heard of it sees an alias like any other, in a link
// group that it has no use for.
func TestAPinnedMTUChangesNothingElseOnTheVeth(t *testing.T) {
	nstest.Require(t)
	node, a, b := newNode(t), nstest.New(t), nstest.New(t)
	p := newPlumber(t, node)
	one, two := newSpec(a, "10.244.0.5"), pinned(b, 1450, "10.244.0.5")
	two.Key = one.Key
	mustAdd(t, p, one)
	plain := snapshot(t, node)
	mustDel(t, p, one.Key)
	mustFlush(t, p)
	mustAdd(t, p, two)
	pinnedSnapshot := snapshot(t, node)
	if got := strings.Replace(withoutIndex(pinnedSnapshot), "group=6844273", "group=0", 1); got != withoutIndex(plain) {
		t.Errorf("not pinned\n%s\npinned\n%s", plain, pinnedSnapshot)
	}
	// The next agent deletes what waits for deletion, and nothing else.
	if eps := restarted(t, node, b).Known(); len(eps) != 1 {
		t.Fatalf("after a restart there are %v", eps)
	}
	mustDel(t, p, two.Key)
	if eps, err := p.List(t.Context()); err != nil || len(eps) != 0 {
		t.Errorf("List after Del: %v, %v", eps, err)
	}
	restarted(t, node)
	if _, err := node.Handle(t).LinkByName(HostIf(two.Key)); err == nil {
		t.Error("a pinned veth that waited for deletion survived a restart")
	}
}

// mtuDamages are what somebody may do to a veth's MTU and group; pinned says to
// which kinds of pod.
var mtuDamages = map[string]func(*testing.T, *site) error{
	"MTU raised":    func(t *testing.T, x *site) error { return x.h.LinkSetMTU(x.link, 9000) },
	"MTU lowered":   func(t *testing.T, x *site) error { return x.h.LinkSetMTU(x.link, 1300) },
	"group cleared": func(t *testing.T, x *site) error { return x.h.LinkSetGroup(x.link, 0) },
	"group set":     func(t *testing.T, x *site) error { return x.h.LinkSetGroup(x.link, Pinned) },
	"group dying":   func(t *testing.T, x *site) error { return x.h.LinkSetGroup(x.link, Group) },
	"link deleted":  func(t *testing.T, x *site) error { return x.h.LinkDel(x.link) },
}

func TestRepairRestoresMTUAndGroup(t *testing.T) {
	nstest.Require(t)
	for _, pin := range []bool{false, true} {
		x := &site{node: newNode(t), pod: nstest.New(t)}
		x.s = newSpec(x.pod, "10.244.0.5")
		x.s.Pinned = pin
		mustAdd(t, newPlumber(t, x.node), x.s)
		x.p, x.h = restarted(t, x.node, x.pod), x.node.Handle(t)
		mustSetMTU(t, x.p, 1400)
		for name, damage := range mtuDamages {
			var err error
			if x.link, err = x.h.LinkByName(HostIf(x.s.Key)); err != nil {
				t.Fatal(err)
			}
			before := withoutIndex(snapshot(t, x.node))
			if err := damage(t, x); err != nil {
				t.Fatal(err)
			}
			resized, err := x.p.Resized()
			if want := strings.HasPrefix(name, "MTU"); err != nil || (len(resized) == 1) != want {
				t.Errorf("%s, pinned %v: Resized: %v, %v", name, pin, resized, err)
			}
			if err := x.repair(t); err != nil {
				t.Fatalf("%s: Repair: %v", name, err)
			}
			wantMTU(t, x.node, x.pod, x.s, 1400, 1400)
			if after := withoutIndex(snapshot(t, x.node)); after != before {
				t.Errorf("%s, pinned %v: before\n%s\nafter\n%s", name, pin, before, after)
			}
			if e := x.p.Known()[0]; e.MTU != 1400 || e.Pinned != pin {
				t.Errorf("%s, pinned %v: known is %+v", name, pin, e)
			}
		}
	}
}

// Nobody could change the MTU of a veth that was not there.
func TestAVethMadeAgainHasTheNodesMTU(t *testing.T) {
	x := newSite(t)
	if err := x.h.LinkDel(x.link); err != nil {
		t.Fatal(err)
	}
	mustSetMTU(t, x.p, 1400)
	if err := x.repair(t); err != nil {
		t.Fatal(err)
	}
	wantMTU(t, x.node, x.pod, x.s, 1400, 1400)
}

// A group of the administrator's stays.
func TestRepairLeavesOthersGroupsAlone(t *testing.T) {
	x := newSite(t)
	if err := x.h.LinkSetGroup(x.link, 7); err != nil {
		t.Fatal(err)
	}
	if err := x.repair(t); err != nil {
		t.Fatal(err)
	}
	l, err := x.h.LinkByIndex(x.link.Attrs().Index)
	if err != nil || l.Attrs().Group != 7 {
		t.Errorf("group %d, %v", l.Attrs().Group, err)
	}
}

// What a pod has made of its own end is the pod's business while it is not too much.
func TestAPodsOwnMTUStaysUnlessItIsTooLarge(t *testing.T) {
	x := newSite(t)
	h, eth0 := x.inPod(t)
	for _, c := range []struct{ own, node, want int }{
		{1300, 1500, 1300}, {1300, 1400, 1300}, {1300, 1290, 1290}, {9000, 1500, 1500}, {9000, 1400, 1400},
	} {
		if err := h.LinkSetMTU(eth0, c.own); err != nil {
			t.Fatal(err)
		}
		mustSetMTU(t, x.p, c.node)
		wantMTU(t, x.node, x.pod, x.s, c.node, c.want)
		if err := x.repair(t); err != nil {
			t.Fatal(err)
		}
		wantMTU(t, x.node, x.pod, x.s, c.node, c.want)
	}
}

// The result of ADD is written once; the pool's mode changes later.
func TestCheckPassesAfterTheMTUChanged(t *testing.T) {
	x := newSite(t)
	for _, mtu := range []int{1400, 9000} {
		mustSetMTU(t, x.p, mtu)
		if err := x.check(t); err != nil {
			t.Errorf("Check after SetMTU(%d): %v", mtu, err)
		}
	}
}

// A connection through the node goes on while the MTU changes under it. What
// is lost in the moment in which the ends differ is sent again.
func TestATransferGoesOnWhileTheMTUChanges(t *testing.T) {
	nstest.Require(t)
	node, a, b := newNode(t), nstest.New(t), nstest.New(t)
	p := newPlumber(t, node)
	mustAdd(t, p, newSpec(a, "10.244.0.5"))
	mustAdd(t, p, newSpec(b, "10.244.0.6"))
	var l net.Listener
	var out net.Conn
	var err error
	b.Do(t, func() { l, err = net.Listen("tcp", "10.244.0.6:0") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a.Do(t, func() { out, err = net.Dial("tcp", l.Addr().String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	written := make(chan error, 1)
	go func() {
		for chunk := make([]byte, 1<<16); ; {
			if _, err := out.Write(chunk); err != nil {
				written <- err
				return
			}
		}
	}()
	const changes, between = 40, 4 << 20
	var longest time.Duration
	buf := make([]byte, 1<<18)
	for i := range changes {
		for got := 0; got < between; {
			start := time.Now()
			if err := in.SetReadDeadline(start.Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			n, err := in.Read(buf)
			if err != nil {
				t.Fatalf("change %d: %v", i, err)
			}
			got += n
			longest = max(longest, time.Since(start))
		}
		mustSetMTU(t, p, []int{1450, 1500, 1280, 9000}[i%4])
	}
	t.Logf("%d MB, %d changes, longest pause %v", changes*between>>20, changes, longest)
	// Far more than repeating what was lost takes (RTO: 200 ms), and far less than a connection that hangs.
	if longest > 3*time.Second {
		t.Errorf("the transfer stood still for %v", longest)
	}
	_ = in.Close()
	_ = out.Close()
	if err := <-written; err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the writer ended with %v", err)
	}
}
