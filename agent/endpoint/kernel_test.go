package endpoint

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sort"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// A node of these tests is a namespace with what the sysctl package of a real
// node sets; protocol is Hoplite's.
const protocol = 104

func newNode(t testing.TB) *nstest.NS {
	t.Helper()
	node := nstest.New(t)
	addLoAddr(t, node, "192.0.2.1/32", "2001:db8::1/128")
	node.SetSysctl(t, "net/ipv4/ip_forward", "1")
	node.SetSysctl(t, "net/ipv6/conf/all/forwarding", "1")
	return node
}

func newPlumber(t testing.TB, node *nstest.NS) *Plumber {
	t.Helper()
	var p *Plumber
	var err error
	node.Do(t, func() {
		p, err = New(Config{Protocol: protocol, NetnsDirs: []string{}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

type testLog struct{ testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

var lastContainer atomic.Int64

// newSpec is a pod in ns with the addresses, its container ID as long as a
// runtime's.
func newSpec(ns *nstest.NS, addrs ...string) Spec {
	s := Spec{Netns: ns.Path, MTU: 1450, Pod: Pod{"default", "web-0"},
		Key: Key{fmt.Sprintf("%064x", lastContainer.Add(1)), "eth0"}}
	for _, a := range addrs {
		s.Addrs = append(s.Addrs, netip.MustParseAddr(a))
	}
	return s
}

func mustAdd(t testing.TB, p *Plumber, s Spec) Result {
	t.Helper()
	r, err := p.Add(context.Background(), s)
	if err != nil {
		t.Fatalf("Add: %v", err)
	}
	return r
}

func mustDel(t testing.TB, p *Plumber, k Key) []netip.Addr {
	t.Helper()
	freed, err := p.Del(context.Background(), k)
	if err != nil {
		t.Fatalf("Del: %v", err)
	}
	return freed
}

func mustFlush(t testing.TB, p *Plumber) {
	t.Helper()
	if err := p.Flush(context.Background()); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

// snapshot is everything of a namespace that an Add could leave behind.
func snapshot(t testing.TB, ns *nstest.NS) string {
	t.Helper()
	h := netlinksafe.Handle{Handle: ns.Handle(t)}
	var lines []string
	note := func(what string, err error) {
		if err != nil {
			t.Fatalf("list %s: %v", what, err)
		}
	}
	links, err := h.LinkList()
	note("links", err)
	for _, l := range links {
		a := l.Attrs()
		lines = append(lines, fmt.Sprintf("link %s up=%t alias=%q group=%d", a.Name, a.Flags&unix.IFF_UP != 0, a.Alias, a.Group))
	}
	var addrs []netlink.Addr
	ns.Do(t, func() { addrs, err = netlinksafe.AddrList(nil, netlink.FAMILY_ALL) })
	note("addresses", err)
	for _, a := range addrs {
		lines = append(lines, "addr "+a.String())
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	note("routes", err)
	for _, r := range routes {
		if r.Table == unix.RT_TABLE_LOCAL {
			continue // the kernel makes them of the addresses, for IPv6 a moment later
		}
		lines = append(lines, "route "+r.String())
	}
	neighs, err := h.NeighList(0, netlink.FAMILY_ALL)
	note("neighbours", err)
	for _, n := range neighs {
		if n.State&unix.NUD_PERMANENT != 0 {
			lines = append(lines, "neigh "+n.String())
		}
	}
	ns.Do(t, func() {
		for _, dir := range []string{"ipv4/conf", "ipv6/conf", "ipv4/neigh"} {
			es, err := os.ReadDir("/proc/sys/net/" + dir)
			note("settings", err)
			for _, e := range es {
				lines = append(lines, "settings "+dir+"/"+e.Name())
			}
		}
	})
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func writeFile(path string) error { return os.WriteFile(path, nil, 0o600) }
