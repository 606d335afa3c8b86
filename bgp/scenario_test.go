package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMeshLearnsAndWithdraws(t *testing.T) {
	l := newLab(t)
	a := l.start(1, []string{"10.1.0.0/26", "10.1.0.64/26", "fd00:1::/122"}, l.mesh(1, 2), l.mesh(1, 3))
	b := l.start(2, []string{"10.2.0.0/26"}, l.mesh(2, 1), l.mesh(2, 3))
	c := l.start(3, nil, l.mesh(3, 1), l.mesh(3, 2))
	for _, n := range []*node{b, c} {
		n.reaches("10.1.0.0/26", 1)
		n.reaches("10.1.0.64/26", 1)
		n.reaches("fd00:1::/122", 1)
		if hop := n.lookup("fd00:1::/122").Hops[0].Addr; hop != l.hops(1).IPv6 {
			t.Errorf("node %d: IPv6 next hop %s, want %s", n.i, hop, l.hops(1).IPv6)
		}
		n.follows("fd00:1::/122", 1)
		n.follows("10.1.0.0/26", 1)
	}
	c.reaches("10.2.0.0/26", 2)
	if p := c.peer(1); p.Received != 3 || p.Advertised != 0 {
		t.Errorf("node 3 received %d prefixes from node 1 and advertised %d, want 3 and 0", p.Received, p.Advertised)
	}
	if p := a.peer(3); p.Advertised != 3 {
		t.Errorf("node 1 advertises %d prefixes, want 3", p.Advertised)
	}
	if got := a.hopsTo("10.1.0.0/26"); got != nil {
		t.Errorf("node 1 has a learned route for its own prefix: via %v", got)
	}

	a.must("SetPaths", PathsArgs{paths("10.1.0.64/26"), l.hops(1)})
	for _, n := range []*node{b, c} {
		n.follows("10.1.0.0/26")
		n.follows("fd00:1::/122")
		n.follows("10.1.0.64/26", 1)
	}
	if p := c.peer(1); p.Received != 1 {
		t.Errorf("node 3 counts %d prefixes from node 1 after the withdrawal of two out of three", p.Received)
	}
	moved := l.hops(1)
	moved.IPv4 = l.addr(9)
	a.must("SetPaths", PathsArgs{paths("10.1.0.64/26"), moved})
	b.follows("10.1.0.64/26", 9)
	if routes := ask[[]Route](c, "Routes", none{}); len(routes) != 2 {
		t.Errorf("node 3 has the routes %v, want those of 10.1.0.64/26 and 10.2.0.0/26", routes)
	}
}

func TestARemovedPeersRoutesGo(t *testing.T) {
	l := newLab(t)
	l.start(1, []string{"10.1.0.0/26"}, l.mesh(1, 3))
	l.start(2, []string{"10.2.0.0/26"}, l.mesh(2, 3))
	c := l.start(3, []string{"10.3.0.0/26"}, l.mesh(3, 1), l.mesh(3, 2))
	c.follows("10.1.0.0/26", 1)
	c.follows("10.2.0.0/26", 2)
	since := c.peer(2).Since

	renamed := l.mesh(3, 2)
	renamed.Name = "another name"
	c.must("SetPeers", []Peer{renamed})
	c.follows("10.1.0.0/26")
	if p := c.peer(2); !p.Established() || !p.Since.Equal(since) || p.Name != "another name" {
		t.Errorf("the session that stays is %s since %s as %q, want Established since %s under its new name", p.State,
			p.Since, p.Name, since)
	}
	c.reaches("10.2.0.0/26", 2)
	if p := c.peer(1); p.State != "not configured" {
		t.Errorf("the removed peer is %s", p.State)
	}
}

// watchRoute looks the prefix up without pause until the returned function is called, which fails the test if the
// route was ever missing.
func watchRoute(n *node, prefix string) (check func()) {
	stop, done := make(chan none), make(chan error)
	go func() {
		lookups := 0
		for {
			select {
			case <-stop:
				if lookups < 10 {
					done <- fmt.Errorf("only %d lookups", lookups)
				}
				close(done)
				return
			default:
			}
			var r Route
			if err := n.Call("Node.Lookup", netip.MustParsePrefix(prefix), &r); err != nil || !r.Exists() {
				done <- fmt.Errorf("lookup %d of %s: %+v, %v", lookups, prefix, r, err)
				return
			}
			lookups++
		}
	}()
	return func() {
		n.l.t.Helper()
		close(stop)
		if err := <-done; err != nil {
			n.l.t.Errorf("node %d: %v", n.i, err)
		}
	}
}

func TestRestartIsNoEvent(t *testing.T) {
	for _, c := range []struct {
		name    string
		restart int // the node that restarts: 1 waits for the connection, 3 makes it
		end     func(*node)
	}{
		{"stopped, connects", 3, (*node).stop},
		{"stopped, is connected to", 1, (*node).stop},
		{"killed, connects", 3, (*node).kill},
		{"killed, is connected to", 1, (*node).kill},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			conf := NodeConfig{EORDeadline: patience}
			a := l.startWith(c.restart, conf, []string{"10.1.0.0/26", "10.1.0.64/26"}, l.mesh(c.restart, 2))
			b := l.start(2, []string{"10.2.0.0/26"}, l.mesh(2, c.restart))
			b.reaches("10.1.0.0/26", c.restart)
			b.follows("10.1.0.64/26", c.restart)
			a.reaches("10.2.0.0/26", 2)
			check := watchRoute(b, "10.1.0.0/26")

			c.end(a)
			b.says(c.restart, "its routes are kept")
			if r := b.lookup("10.1.0.64/26"); !r.Stale {
				t.Errorf("the route is not stale while its peer is away: %+v", r)
			}
			// It comes back without one of its prefixes.
			a = l.startWith(c.restart, conf, []string{"10.1.0.0/26"}, l.mesh(c.restart, 2))
			eventually(t, "the restarted node is synchronised", func() string {
				if !ask[bool](a, "Synced", none{}) {
					return "not yet"
				}
				return ""
			})
			if got := a.hopsTo("10.2.0.0/26"); !slices.Equal(got, []int{2}) {
				t.Errorf("synchronised, but the peer's prefix goes via %v", got)
			}
			b.follows("10.1.0.64/26")
			b.up(c.restart)
			if r := b.lookup("10.1.0.0/26"); r.Stale {
				t.Errorf("still stale after the End-of-RIB: %+v", r)
			}
			check()
		})
	}
}

func TestADeadPeersRoutesGoAfterItsRestartTime(t *testing.T) {
	l := newLab(t)
	a := l.startWith(1, NodeConfig{RestartTime: 3 * time.Second}, []string{"10.1.0.0/26"}, l.mesh(1, 2))
	b := l.start(2, nil, l.mesh(2, 1))
	b.follows("10.1.0.0/26", 1)
	killed := time.Now()
	a.kill()
	b.follows("10.1.0.0/26")
	if d := time.Since(killed); d < 3*time.Second {
		t.Errorf("the routes went after %s, want 3s", d)
	}
	if p := b.peer(1); p.Received != 0 {
		t.Errorf("%d prefixes are counted as received from a dead peer", p.Received)
	}
}

func TestSyncedWaitsForEachPeerButNotForEver(t *testing.T) {
	l := newLab(t)
	synced := func(n *node) bool { return ask[bool](n, "Synced", none{}) }

	alone := l.create(1, NodeConfig{})
	alone.must("Start", none{})
	if synced(alone) {
		t.Error("synchronised before the peers were known")
	}
	alone.must("SetPeers", []Peer{})
	if !synced(alone) {
		t.Error("a node without peers is not synchronised")
	}

	deadline := 4 * time.Second
	began := time.Now()
	b := l.startWith(2, NodeConfig{EORDeadline: deadline}, nil, l.mesh(2, 3), l.mesh(2, 99))
	l.start(3, []string{"10.3.0.0/26"}, l.mesh(3, 2))
	b.reaches("10.3.0.0/26", 3)
	if time.Since(began) < deadline && synced(b) && time.Since(began) < deadline {
		t.Error("synchronised while a peer had time left to come")
	}
	eventually(t, "synchronised without the peer that never comes", func() string {
		if !synced(b) {
			return "not yet"
		}
		return ""
	})
	if d := time.Since(began); d < deadline {
		t.Errorf("synchronised after %s, before the deadline of %s", d, deadline)
	}
}

func TestImportPolicy(t *testing.T) {
	l := newLab(t)
	prefixes := []string{"10.1.0.0/26", "10.2.0.5/32", "172.16.0.0/24", "0.0.0.0/0", "fd00:1::/122", "2001:db8::/64"}
	l.start(1, prefixes, l.mesh(1, 2))
	router := l.mesh(3, 2)
	router.Type, router.LocalAddress = Global, l.addr(3)
	l.start(3, []string{"0.0.0.0/0", "10.2.0.6/32"}, router)
	fromRouter := l.mesh(2, 3)
	fromRouter.Type = Global
	b := l.create(2, NodeConfig{})
	b.must("SetImport", Import{Within: pools("10.0.0.0/8", "fd00::/16"), Except: pfx("10.2.0.0/26")})
	b.must("SetPaths", PathsArgs{paths("10.2.0.0/26"), l.hops(2)})
	b.must("Start", none{})
	b.must("SetPeers", []Peer{l.mesh(2, 1), fromRouter})

	b.reaches("10.1.0.0/26", 1)
	b.reaches("fd00:1::/122", 1)
	b.reaches("10.2.0.6/32", 3) // an operator's peer may
	b.reaches("0.0.0.0/0", 3)   // only the router's, though the mesh has one too
	eventually(t, "everything has been received", func() string {
		if n := b.peer(1).Received; n != 6 {
			return fmt.Sprint(n)
		}
		return ""
	})
	for _, p := range []string{"10.2.0.5/32", "172.16.0.0/24", "2001:db8::/64"} {
		if got := b.hopsTo(p); got != nil {
			t.Errorf("%s was imported from the mesh, via %v", p, got)
		}
	}

	ask[[]netip.Prefix](b, "TakeDirty", none{})
	b.must("SetImport", Import{Within: pools("172.16.0.0/12", "10.2.0.0/16", "fd00::/16")})
	got := ask[[]netip.Prefix](b, "TakeDirty", none{})
	slices.SortFunc(got, netip.Prefix.Compare)
	if want := pfx("10.1.0.0/26", "10.2.0.5/32", "172.16.0.0/24"); !slices.Equal(got, want) {
		t.Errorf("the new policy marked %v dirty, want %v", got, want)
	}
	b.reaches("10.1.0.0/26")
	b.reaches("172.16.0.0/24", 1)
	b.reaches("10.2.0.5/32", 1)
	b.reaches("fd00:1::/122", 1)
}

func TestEqualPathsGiveAllNextHops(t *testing.T) {
	l := newLab(t)
	a := l.start(1, []string{"10.9.0.0/26"}, l.mesh(1, 3))
	l.start(2, []string{"10.9.0.0/26"}, l.mesh(2, 3))
	c := l.start(3, nil, l.mesh(3, 1), l.mesh(3, 2))
	c.follows("10.9.0.0/26", 1, 2)
	a.must("SetPaths", PathsArgs{nil, l.hops(1)})
	c.follows("10.9.0.0/26", 2)
	// One's own prefix is never a learned route, whoever else announces it.
	c.must("SetPaths", PathsArgs{paths("10.9.0.0/26"), l.hops(3)})
	c.follows("10.9.0.0/26")
	c.must("SetPaths", PathsArgs{nil, l.hops(3)})
	c.follows("10.9.0.0/26", 2)
}

func TestStatusSaysWhyASessionIsDown(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		l := newLab(t)
		l.startWith(2, NodeConfig{Quiet: true}, nil, l.mesh(2, 1)).says(1, "connection refused: nothing listens at "+
			netip.AddrPortFrom(l.addr(1), uint16(l.port)).String())
	})
	t.Run("the other node must connect", func(t *testing.T) {
		l := newLab(t)
		router := l.mesh(1, 3)
		router.Type = Global
		a := l.start(1, nil, l.mesh(1, 2), router)
		eventually(t, "the router has been tried twice, so node 2 would have been too", func() string {
			n := 0
			for line := range strings.Lines(a.logs.String()) {
				if strings.Contains(line, "failed to connect") && strings.Contains(line, "Key="+l.addr(3).String()) {
					n++
				}
			}
			return map[bool]string{false: fmt.Sprint(n)}[n >= 2]
		})
		a.says(2, "waiting for the peer to connect")
	})
	t.Run("wrong AS", func(t *testing.T) {
		l := newLab(t)
		wrong := l.mesh(2, 1)
		wrong.ASN = 65000
		b := l.start(2, nil, wrong)
		a := l.start(1, nil, l.mesh(1, 2))
		b.says(1, "wrong AS: the peer says it is not in AS 65000")
		a.says(2, "refused")
	})
	t.Run("not configured there", func(t *testing.T) {
		l := newLab(t)
		b := l.start(2, nil, l.mesh(2, 1))
		l.start(1, nil)
		b.says(1, "the peer closed the connection at once; it may not have us as a peer")
	})
	t.Run("removed there", func(t *testing.T) {
		l := newLab(t)
		b := l.start(2, nil, l.mesh(2, 1))
		a := l.start(1, nil, l.mesh(1, 2))
		a.up(2)
		b.up(1)
		a.must("SetPeers", []Peer{})
		b.says(1, "the peer removed us from its configuration")
	})
	t.Run("frozen", func(t *testing.T) {
		l := newLab(t)
		a := l.start(1, []string{"10.1.0.0/26"}, l.mesh(1, 2))
		b := l.start(2, nil, l.mesh(2, 1))
		b.reaches("10.1.0.0/26", 1)
		if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		b.says(1, "hold timer expired: nothing heard for 3s")
		if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		b.up(1)
		if p := b.peer(1); p.Info != "" {
			t.Errorf("an established session has the reason %q", p.Info)
		}
	})
}
