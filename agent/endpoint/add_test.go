package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

func TestAddPlumbsBothEnds(t *testing.T) {
	nstest.Require(t)
	for name, addrs := range map[string][]string{
		"IPv4": {"10.244.0.5"}, "IPv6": {"fd00:10::5"}, "both": {"10.244.0.5", "fd00:10::5"},
	} {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), nstest.NewBare(t)
			p := newPlumber(t, node)
			s := newSpec(pod, addrs...)
			r := mustAdd(t, p, s)

			l, err := node.Handle(t).LinkByName(HostIf(s.Key))
			if err != nil {
				t.Fatal(err)
			}
			a := l.Attrs()
			if a.Flags&unix.IFF_UP == 0 || a.HardwareAddr.String() != HostMAC || a.MTU != 1450 || a.NumTxQueues != 1 {
				t.Errorf("host veth: %+v", a)
			}
			want := Result{HostName: a.Name, HostIndex: a.Index, HostMAC: HostMAC, ContainerMAC: podMAC(s.Key).String(), MTU: 1450}
			for _, x := range s.Addrs {
				want.Gateways = append(want.Gateways, gateway(x))
			}
			want.Routes = routes(s.Addrs)
			if got, want := fmt.Sprintf("%+v", r), fmt.Sprintf("%+v", want); got != want {
				t.Errorf("result\n got %s\nwant %s", got, want)
			}
			for k, v := range map[string]string{
				"net/ipv4/conf/" + a.Name + "/proxy_arp":    "1",
				"net/ipv4/conf/" + a.Name + "/forwarding":   "1",
				"net/ipv4/neigh/" + a.Name + "/proxy_delay": "0",
				"net/ipv6/conf/" + a.Name + "/accept_ra":    "0",
			} {
				if got := node.Sysctl(t, k); got != v {
					t.Errorf("%s = %s, want %s", k, got, v)
				}
			}
			wantLines(t, "pod", snapshot(t, pod), podLines(addrs))
			wantLines(t, "node", snapshot(t, node), nodeLines(addrs, a.Index))
			for _, x := range s.Addrs {
				rs, err := node.Handle(t).RouteGetWithOptions(x.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
				if err != nil || len(rs) != 1 || rs[0].Protocol != protocol {
					t.Errorf("route to %s: %v, %v; want protocol %d", x, rs, err, protocol)
				}
			}
		})
	}
}

func podLines(addrs []string) []string {
	lines := []string{"link lo up=true alias=\"\" group=0"}
	for _, a := range addrs {
		if netip.MustParseAddr(a).Is4() {
			lines = append(lines, "addr "+a+"/32 eth0", "neigh 169.254.1.1 "+HostMAC,
				"route {Ifindex: 2 Dst: 169.254.1.1/32 Src: <nil> Gw: <nil> Flags: [] Table: 254 Realm: 0}",
				"route {Ifindex: 2 Dst: 0.0.0.0/0 Src: <nil> Gw: 169.254.1.1 Flags: [] Table: 254 Realm: 0}")
		} else {
			lines = append(lines, "addr "+a+"/128", "neigh "+Gateway6.String()+" "+HostMAC,
				"route {Ifindex: 2 Dst: ::/0 Src: <nil> Gw: "+Gateway6.String()+" Flags: [] Table: 254 Realm: 0}")
		}
	}
	return lines
}

func nodeLines(addrs []string, index int) []string {
	var lines []string
	for _, a := range addrs {
		lines = append(lines, fmt.Sprintf("route {Ifindex: %d Dst: %s Src: <nil> Gw: <nil> Flags: [] Table: 254 Realm: 0}",
			index, host(netip.MustParseAddr(a))))
		if strings.Contains(a, ":") {
			lines = append(lines, "addr "+Gateway6.String()+"/64")
		}
	}
	return lines
}

func wantLines(t *testing.T, where, got string, want []string) {
	t.Helper()
	lines := strings.Split(got, "\n")
	for _, w := range want {
		if !slices.Contains(lines, w) {
			t.Errorf("%s lacks %q; it has\n%s", where, w, got)
		}
	}
}

func TestAddMTUZeroIsTheKernelsDefault(t *testing.T) {
	nstest.Require(t)
	p, pod := newPlumber(t, newNode(t)), nstest.New(t)
	s := newSpec(pod, "10.244.0.5")
	s.MTU = 0
	if r := mustAdd(t, p, s); r.MTU != 1500 {
		t.Errorf("MTU %d, want 1500", r.MTU)
	}
}

func TestAddWhereARuntimeDisabledIPv6(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	for _, ns := range []*nstest.NS{node, pod} {
		ns.SetSysctl(t, "net/ipv6/conf/default/disable_ipv6", "1")
	}
	mustAdd(t, newPlumber(t, node), newSpec(pod, "fd00:10::5"))
	wantLines(t, "pod", snapshot(t, pod), podLines([]string{"fd00:10::5"})[1:])
}

func TestAddOfWhatExistsIsRefusedAndTouchesNothing(t *testing.T) {
	nstest.Require(t)
	node, pod, elsewhere := newNode(t), nstest.New(t), nstest.New(t)
	p := newPlumber(t, node)
	s := newSpec(pod, "10.244.0.5")
	mustAdd(t, p, s)
	taken := nstest.New(t)
	h := taken.Handle(t)
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"}); err != nil {
		t.Fatal(err)
	}
	sameKey := s
	sameKey.Netns, sameKey.Addrs = elsewhere.Path, []netip.Addr{netip.MustParseAddr("10.244.0.6")}
	for name, again := range map[string]Spec{
		"the same":                 s,
		"key in another namespace": sameKey,
		"namespace, another key":   newSpec(pod, "10.244.0.6"),
		"another plugin's eth0":    newSpec(taken, "10.244.0.6"),
	} {
		t.Run(name, func(t *testing.T) {
			before := snapshot(t, node) + snapshot(t, pod) + snapshot(t, elsewhere) + snapshot(t, taken)
			if _, err := p.Add(t.Context(), again); !errors.Is(err, ErrExists) {
				t.Errorf("Add: %v, want ErrExists", err)
			}
			if after := snapshot(t, node) + snapshot(t, pod) + snapshot(t, elsewhere) + snapshot(t, taken); after != before {
				t.Errorf("Add changed\n%s\nto\n%s", before, after)
			}
		})
	}
}

func TestAddRefusesAnAddressThatIsRoutedElsewhere(t *testing.T) {
	nstest.Require(t)
	node, a, b := newNode(t), nstest.New(t), nstest.New(t)
	p := newPlumber(t, node)
	mustAdd(t, p, newSpec(a, "10.244.0.5"))
	before := snapshot(t, node) + snapshot(t, b)
	if _, err := p.Add(t.Context(), newSpec(b, "10.244.0.5")); !errors.Is(err, unix.EEXIST) || errors.Is(err, ErrExists) {
		t.Errorf("Add of a live pod's address: %v, want EEXIST of the route", err)
	}
	if after := snapshot(t, node) + snapshot(t, b); after != before {
		t.Errorf("left behind: before\n%s\nafter\n%s", before, after)
	}
}

func TestAddSaysWhatIsWrong(t *testing.T) {
	nstest.Require(t)
	p, pod := newPlumber(t, newNode(t)), nstest.New(t)
	gone := nstest.New(t)
	gone.Remove(t)
	file := t.TempDir() + "/plain"
	plain := &nstest.NS{Path: file}
	if err := writeFile(file); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"no address":       {func(s *Spec) { s.Addrs = nil }, "no address"},
		"loopback":         {func(s *Spec) { s.Addrs = []netip.Addr{netip.MustParseAddr("127.0.0.1")} }, "127.0.0.1"},
		"long ifname":      {func(s *Spec) { s.IfName = "sixteen-letters-" }, "sixteen-letters-"},
		"long ID":          {func(s *Spec) { s.ContainerID = strings.Repeat("x", 230) }, "have the runtime use IDs"},
		"odd ID":           {func(s *Spec) { s.ContainerID = "../etc" }, "container ID"},
		"netns gone":       {func(s *Spec) { s.Netns = gone.Path }, ErrNetnsGone.Error()},
		"netns not a file": {func(s *Spec) { s.Netns = plain.Path }, ErrNetnsGone.Error()},
		"no netns":         {func(s *Spec) { s.Netns = "" }, "no network namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSpec(pod, "10.244.0.5")
			c.change(&s)
			if _, err := p.Add(t.Context(), s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Add: %v, want one with %q", err, c.want)
			}
		})
	}
}

// Every request that Add makes is refused once; once ctx ends at it.
func TestAddLeavesNothingWhenAnyStepFails(t *testing.T) {
	nstest.Require(t)
	var steps []string
	node, pod := newNode(t), nstest.NewBare(t)
	s := newSpec(pod, "10.244.0.5", "fd00:10::5")
	recorder := newPlumber(t, node)
	recorder.fail = func(what string) error { steps = append(steps, what); return nil }
	recorder.sockets.close()
	mustAdd(t, recorder, s)
	mustDel(t, recorder, s.Key)
	mustFlush(t, recorder)
	steps = slices.DeleteFunc(steps, func(s string) bool {
		return strings.HasPrefix(s, "delete ") || strings.HasPrefix(s, "retire ")
	})
	if len(steps) < 16 {
		t.Fatalf("only %d steps: %q", len(steps), steps)
	}
	for _, step := range steps {
		t.Run(step, func(t *testing.T) { failAt(t, step, s.Addrs) })
	}
}

func failAt(t *testing.T, step string, addrs []netip.Addr) {
	injected := errors.New("injected")
	for _, how := range []string{"refused", "cancelled"} {
		node, pod := newNode(t), nstest.NewBare(t)
		p := newPlumber(t, node)
		s := newSpec(pod)
		s.Addrs = addrs
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p.sockets.close()
		// The container's ID, and so the host veth's name, differ from the recorder's.
		sameStep := func(what string) bool {
			return strings.Join(notHop(what), " ") == strings.Join(notHop(step), " ")
		}
		before := snapshot(t, node) + snapshot(t, pod)
		var hit bool
		p.fail = func(what string) error {
			if !sameStep(what) {
				return nil
			}
			hit = true
			if how == "refused" {
				return injected
			}
			cancel()
			return nil
		}
		_, err := p.Add(ctx, s)
		if !hit {
			t.Fatalf("%s: never reached", how)
		}
		if how == "refused" && !errors.Is(err, injected) || err != nil && how == "cancelled" && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Add: %v", how, err)
		}
		if err == nil {
			if step != "set lo up" { // the very last
				t.Errorf("%s: Add went on and succeeded", how)
			}
			mustDel(t, p, s.Key)
			continue
		}
		if after := snapshot(t, node) + snapshot(t, pod); after != before {
			t.Errorf("%s: before\n%s\nafter\n%s", how, before, after)
		}
		if _, known := p.table.get(s.Key); known {
			t.Errorf("%s: still known", how)
		}
		p.fail = nil
		p.sockets.close()
		mustAdd(t, p, s)
	}
}

func notHop(what string) []string {
	return slices.DeleteFunc(strings.Fields(what), func(w string) bool { return strings.HasPrefix(w, linkPrefix) })
}

func TestParallelAddsAndDels(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	p := newPlumber(t, node)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	clean := snapshot(t, node)
	var wg sync.WaitGroup
	for i := range 64 {
		pod := nstest.New(t)
		s := newSpec(pod, fmt.Sprintf("10.244.0.%d", i), fmt.Sprintf("fd00:10::%x", i+1))
		wg.Go(func() {
			for range 3 { // the same key, namespace and address at once again
				if _, err := p.Add(ctx, s); err != nil {
					t.Error(err)
				}
				if err := p.Check(ctx, Expected{Key: s.Key, Netns: s.Netns, Addrs: s.Addrs}); err != nil {
					t.Error(err)
				}
				freed, err := p.Del(ctx, s.Key)
				if err != nil || !slices.Equal(freed, s.Addrs) {
					t.Errorf("Del: %v, %v", freed, err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if after := snapshot(t, node); after != clean {
		t.Errorf("left behind:\n%s", after)
	}
	if len(p.locks.m) != 0 || len(p.Known()) != 0 {
		t.Errorf("%d locks and %d endpoints remain in memory", len(p.locks.m), len(p.Known()))
	}
}

func TestOneKeyOneWinner(t *testing.T) {
	nstest.Require(t)
	p, pod := newPlumber(t, newNode(t)), nstest.New(t)
	s := newSpec(pod, "10.244.0.5")
	var wg sync.WaitGroup
	results := make(chan error, 8)
	for range cap(results) {
		wg.Go(func() { _, err := p.Add(t.Context(), s); results <- err })
	}
	wg.Wait()
	close(results)
	won := 0
	for err := range results {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ErrExists):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d Adds of one key succeeded", won)
	}
}
