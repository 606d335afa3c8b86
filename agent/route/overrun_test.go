package route

import (
	"log/slog"
	"net/netip"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
	"github.com/hoplite-net/hoplite/agent/nstest"
)

// TestLostAnswersAreMadeUpFor has far more messages fail than answers fit into
// the socket's buffer, among them some that succeed.
func TestLostAnswersAreMadeUpFor(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	var s *Syncer
	var err error
	ns.Do(t, func() {
		if s, err = New(Config{Log: slog.New(slog.DiscardHandler), Inline: true}); err == nil {
			err = s.conn.SetReceiveBuffer(1)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const n = 2000
	hop := Hop{Addr: netip.MustParseAddr("192.0.2.1")}
	blocks := make([]netip.Prefix, 0, n)
	learned := make([]Learned, 0, n)
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)})
		if i%2 == 0 {
			blocks = append(blocks, netip.PrefixFrom(a, 26))
		} else {
			learned = append(learned, Learned{netip.PrefixFrom(a, 26), []Hop{hop}})
		}
	}
	s.SetBlocks(blocks)
	s.SetTargets(map[Hop]Target{hop: {Device: 1, Gateway: hop.Addr}})
	s.Update(learned)
	lost := false
	for i := 0; len(s.Problems()) < n/2; i++ {
		if i == 20 {
			t.Fatalf("after %d calls of Sync, %d problems, want %d", i, len(s.Problems()), n/2)
		}
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		lost = lost || s.batch < batchBytes
	}
	if !lost {
		t.Error("no answer was lost: the test tests nothing")
	}
	routes, err := (netlinksafe.Handle{Handle: ns.Handle(t)}).RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) != n/2 {
		t.Errorf("%d routes in the kernel (%v), want %d", len(routes), err, n/2)
	}
}

// TestNotificationDuringAWriteIsNotLost: someone deletes a route between its
// writing and the taking note of that.
func TestNotificationDuringAWriteIsNotLost(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	var s *Syncer
	var err error
	ns.Do(t, func() { s, err = New(Config{Log: slog.New(slog.DiscardHandler)}) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := netip.MustParsePrefix("10.0.0.0/26")
	s.SetBlocks([]netip.Prefix{p})

	s.buildBatch(s.takeDirty())
	if err := s.exchange(); err != nil {
		t.Fatal(err)
	}
	h := ns.Handle(t)
	dst := netlink.NewIPNet([]byte{10, 0, 0, 0})
	dst.Mask = []byte{255, 255, 255, 192}
	if err := h.RouteDel(&netlink.Route{Dst: dst, Type: unix.RTN_BLACKHOLE, Protocol: Protocol}); err != nil {
		t.Fatal(err)
	}
	s.RouteEvent(rtnl.RouteEvent{Deleted: true, Route: &rtnl.Route{
		Prefix: p, Table: unix.RT_TABLE_MAIN, Protocol: Protocol, Type: unix.RTN_BLACKHOLE,
	}})
	s.finishBatch()

	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	routes, err := (netlinksafe.Handle{Handle: h}).RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil || len(routes) != 1 {
		t.Errorf("%d routes in the kernel (%v), want the one deleted back", len(routes), err)
	}
}

// TestNotificationAboutAnObjectDuringAWriteIsNotLost: someone deletes or changes
// an object between its writing, or that of a route by it, and the taking note.
func TestNotificationAboutAnObjectDuringAWriteIsNotLost(t *testing.T) {
	for _, c := range []struct {
		name    string
		written bool // the object is, and the route is under way
		deleted bool
	}{
		{"object deleted", false, true}, {"object changed", false, false}, {"object deleted below a route", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			nstest.Require(t)
			ns := nstest.New(t)
			var s *Syncer
			var err error
			ns.Do(t, func() { s, err = New(Config{Log: slog.New(slog.DiscardHandler)}) })
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			hop := Hop{Addr: netip.MustParseAddr("192.0.2.1")}
			s.SetTargets(map[Hop]Target{hop: {Device: 1, Gateway: hop.Addr, Onlink: true}})
			s.Update([]Learned{{netip.MustParsePrefix("10.0.0.0/26"), []Hop{hop}}})
			if err := s.read(t.Context()); err != nil {
				t.Fatal(err)
			}
			work := s.dirtyHops
			s.dirtyHops = nil
			s.buildObjects(work)
			if c.written {
				if err := s.sendBatch(); err != nil {
					t.Fatal(err)
				}
				s.buildBatch(s.takeDirty())
			}
			if err := s.exchange(); err != nil {
				t.Fatal(err)
			}
			n := rtnl.NextHop{ID: firstObject, Protocol: Protocol, Hop: rtnl.Hop{Device: 1, Gateway: netip.MustParseAddr("192.0.2.9"), Onlink: true}}
			another, err := dialIn(t, ns)
			if err != nil {
				t.Fatal(err)
			}
			defer another.Close()
			kind, flags := uint16(unix.RTM_NEWNEXTHOP), uint16(unix.NLM_F_REPLACE)
			if c.deleted {
				kind, flags = unix.RTM_DELNEXTHOP, 0
			}
			if err := another.Send(n.Append(nil, kind, flags|unix.NLM_F_ACK, 1)); err != nil {
				t.Fatal(err)
			}
			s.NexthopEvent(rtnl.NextHopEvent{NextHop: n, Deleted: c.deleted})
			s.finishBatch()

			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			routes, err := (netlinksafe.Handle{Handle: ns.Handle(t)}).RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
			if err != nil || len(routes) != 1 || !routes[0].Gw.Equal(hop.Addr.AsSlice()) {
				t.Errorf("routes %v in the kernel (%v), want one via %s", routes, err, hop.Addr)
			}
		})
	}
}

func dialIn(t *testing.T, ns *nstest.NS) (conn *rtnl.Conn, err error) {
	ns.Do(t, func() { conn, err = rtnl.Dial() })
	return conn, err
}

// TestKernelWithoutObjects: what was asked for before it was known that the
// kernel has none is done without.
func TestKernelWithoutObjects(t *testing.T) {
	nstest.Require(t)
	ns := nstest.New(t)
	var s *Syncer
	var err error
	ns.Do(t, func() { s, err = New(Config{Log: slog.New(slog.DiscardHandler)}) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	hop := Hop{Addr: netip.MustParseAddr("192.0.2.1")}
	s.SetTargets(map[Hop]Target{hop: {Device: 1, Gateway: hop.Addr, Onlink: true}})
	s.Update([]Learned{{netip.MustParsePrefix("10.0.0.0/26"), []Hop{hop}}})
	s.withoutObjects(rtnl.ErrNoNextHops)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Stats(); st.Installed != 1 || st.NextHops != 0 || st.Messages != 1 {
		t.Errorf("%+v: want one route by one message, no object", st)
	}
}
