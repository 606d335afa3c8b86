package endpoint

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// site is a node with one pod, and a second agent that knows it from List only.
type site struct {
	node, pod *nstest.NS
	p         *Plumber
	s         Spec
	h         *netlink.Handle
	link      netlink.Link
}

func newSite(t *testing.T) *site {
	t.Helper()
	nstest.Require(t)
	x := &site{node: newNode(t), pod: nstest.New(t)}
	x.s = newSpec(x.pod, "10.244.0.5", "fd00:10::5")
	mustAdd(t, newPlumber(t, x.node), x.s)
	x.p = newPlumber(t, x.node)
	x.p.dirs = []string{dirOf(x.pod.Path)}
	if eps, err := x.p.List(t.Context()); err != nil || len(eps) != 1 || eps[0].Netns != x.pod.Path {
		t.Fatalf("List: %+v, %v; want one in %s", eps, err, x.pod.Path)
	}
	x.h = x.node.Handle(t)
	var err error
	if x.link, err = x.h.LinkByName(HostIf(x.s.Key)); err != nil {
		t.Fatal(err)
	}
	return x
}

func dirOf(path string) string { return path[:strings.LastIndexByte(path, '/')] }

func (x *site) check(t *testing.T) error {
	return x.p.Check(t.Context(), Expected{Key: x.s.Key, Netns: x.s.Netns, Addrs: x.s.Addrs,
		HostName: x.link.Attrs().Name, HostMAC: HostMAC, ContainerMAC: podMAC(x.s.Key).String()})
}

func (x *site) repair(t *testing.T) error {
	return x.p.Repair(t.Context(), Endpoint{Key: x.s.Key})
}

// damages are what somebody may do to the node's side, and what Check says of it.
var damages = map[string]struct {
	do   func(*testing.T, *site) error
	says string
}{
	"route deleted":      {func(t *testing.T, x *site) error { return x.h.RouteDel(x.route(0)) }, "route to 10.244.0.5/32 is missing"},
	"IPv6 route deleted": {func(t *testing.T, x *site) error { return x.h.RouteDel(x.route(1)) }, "route to fd00:10::5/128 is missing"},
	"link down":          {func(t *testing.T, x *site) error { return x.h.LinkSetDown(x.link) }, "is down"},
	"link deleted":       {func(t *testing.T, x *site) error { return x.h.LinkDel(x.link) }, "is missing"},
	"MAC changed": {func(t *testing.T, x *site) error {
		return x.h.LinkSetHardwareAddr(x.link, net.HardwareAddr{2, 0, 0, 0, 0, 1})
	}, "has MAC 02:00:00:00:00:01"},
	"alias changed":       {func(t *testing.T, x *site) error { return x.h.LinkSetAlias(x.link, "mine") }, `has alias "mine"`},
	"proxy_arp cleared":   {clear("ipv4/conf/%s/proxy_arp", "0"), "proxy_arp is 0"},
	"forwarding cleared":  {clear("ipv4/conf/%s/forwarding", "0"), "forwarding is 0"},
	"proxy_delay changed": {clear("ipv4/neigh/%s/proxy_delay", "80"), "proxy_delay is 80"},
	"accept_ra changed":   {clear("ipv6/conf/%s/accept_ra", "1"), "accept_ra is 1"},
}

func (x *site) route(i int) *netlink.Route {
	a := x.s.Addrs[i]
	return &netlink.Route{LinkIndex: x.link.Attrs().Index, Protocol: protocol, Scope: unix.RT_SCOPE_LINK * netlink.Scope(1-i),
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
}

func clear(name, value string) func(*testing.T, *site) error {
	return func(t *testing.T, x *site) error {
		x.node.SetSysctl(t, "net/"+fmt.Sprintf(name, x.link.Attrs().Name), value)
		return nil
	}
}

func TestWhatSomebodyDamagesCheckSeesAndRepairRestores(t *testing.T) {
	for name, d := range damages {
		t.Run(name, func(t *testing.T) {
			x := newSite(t)
			if err := x.check(t); err != nil {
				t.Fatalf("Check of an undamaged endpoint: %v", err)
			}
			before := withoutIndex(snapshot(t, x.node))
			if err := d.do(t, x); err != nil {
				t.Fatal(err)
			}
			if err := x.check(t); !errors.Is(err, ErrDiffers) || !strings.Contains(err.Error(), d.says) {
				t.Errorf("Check: %v, want %q", err, d.says)
			}
			if err := x.repair(t); err != nil {
				t.Fatalf("Repair: %v", err)
			}
			if err := x.check(t); err != nil {
				t.Errorf("Check after Repair: %v", err)
			}
			if after := withoutIndex(snapshot(t, x.node)); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
			if seen, _ := seenAs(t, x.node, listen(t, x.pod, "10.244.0.5")); seen != "192.0.2.1" {
				t.Errorf("the pod saw the node as %q", seen)
			}
		})
	}
}

// withoutIndex is a snapshot in which a veth made anew looks like the old one.
func withoutIndex(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if at := strings.Index(l, "Ifindex: "); at >= 0 && !strings.HasPrefix(l[at:], "Ifindex: 1 ") {
			lines[i] = l[:at] + l[at+strings.IndexByte(l[at:], 'D'):]
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestRepairOfWhatIsWellChangesNothing(t *testing.T) {
	x := newSite(t)
	done := make(chan struct{})
	defer close(done)
	links, routes := make(chan netlink.LinkUpdate, 100), make(chan netlink.RouteUpdate, 100)
	x.node.Do(t, func() {
		if err := errors.Join(netlink.LinkSubscribe(links, done), netlink.RouteSubscribe(routes, done)); err != nil {
			t.Fatal(err)
		}
	})
	for range 2 {
		if err := x.repair(t); err != nil {
			t.Fatal(err)
		}
	}
	// A change of our own marks the end of what Repair could have told.
	if err := x.h.LinkSetAlias(x.link, "end"); err != nil {
		t.Fatal(err)
	}
	for u := range links {
		if u.Attrs().Alias == "end" {
			break
		}
		t.Errorf("Repair changed a link: %v", u)
	}
	if err := x.h.RouteDel(x.route(0)); err != nil {
		t.Fatal(err)
	}
	if u := <-routes; u.Type != unix.RTM_DELROUTE {
		t.Errorf("Repair changed a route: %v", u)
	}
}

func TestRepairAfterDelRevivesNothing(t *testing.T) {
	x := newSite(t)
	mustDel(t, x.p, x.s.Key)
	before := snapshot(t, x.node)
	if err := x.repair(t); err != nil {
		t.Error(err)
	}
	if after := snapshot(t, x.node); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestRepairWithoutANamespaceSaysSo(t *testing.T) {
	x := newSite(t)
	if err := x.h.LinkDel(x.link); err != nil {
		t.Fatal(err)
	}
	x.pod.Remove(t)
	if err := x.repair(t); !errors.Is(err, ErrNetnsGone) {
		t.Errorf("Repair: %v, want ErrNetnsGone", err)
	}
}

func TestRepairNeverTouchesAnothersNamespaceAtTheSamePath(t *testing.T) {
	x := newSite(t)
	if err := x.h.LinkDel(x.link); err != nil {
		t.Fatal(err)
	}
	other := nstest.New(t)
	if err := unix.Mount(other.Path, x.pod.Path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(x.pod.Path, unix.MNT_DETACH)
	if err := x.repair(t); !errors.Is(err, ErrNetnsGone) {
		t.Errorf("Repair: %v, want ErrNetnsGone", err)
	}
}

func TestRepairLeavesAForeignRouteAndNamesIt(t *testing.T) {
	x := newSite(t)
	r := x.route(0)
	if err := x.h.RouteDel(r); err != nil {
		t.Fatal(err)
	}
	lo, err := x.h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	r.LinkIndex, r.Protocol = lo.Attrs().Index, unix.RTPROT_STATIC
	if err := x.h.RouteAdd(r); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, x.node)
	if err := x.repair(t); err == nil || !strings.Contains(err.Error(), "10.244.0.5/32") || !strings.Contains(err.Error(), "delete it") {
		t.Errorf("Repair: %v", err)
	}
	if after := snapshot(t, x.node); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestListRebuildsWhatAddMade(t *testing.T) {
	nstest.Require(t)
	node := newNode(t)
	first := newPlumber(t, node)
	want := map[Key]Endpoint{}
	for i := range 20 {
		s := newSpec(nstest.New(t), fmt.Sprintf("10.244.1.%d", i), fmt.Sprintf("fd00:10::%x", i+1))
		mustAdd(t, first, s)
	}
	for _, e := range first.Known() {
		e.Netns = ""
		want[e.Key] = e
	}
	before := snapshot(t, node)
	p := newPlumber(t, node)
	eps, err := p.List(t.Context())
	if err != nil || len(eps) != len(want) {
		t.Fatalf("List: %d endpoints, %v", len(eps), err)
	}
	for _, e := range eps {
		if fmt.Sprintf("%#v", clean(e)) != fmt.Sprintf("%#v", clean(want[e.Key])) {
			t.Errorf("List says\n%#v, Add had made\n%#v", e, want[e.Key])
		}
		if found, ok := p.Find(e.HostIndex); !ok || found.Key != e.Key {
			t.Errorf("Find(%d): %v, %t", e.HostIndex, found, ok)
		}
	}
	if after := snapshot(t, node); after != before {
		t.Errorf("restart changed\n%s\nto\n%s", before, after)
	}
}

func clean(e Endpoint) Endpoint {
	e.ns = nsID{}
	return e
}
