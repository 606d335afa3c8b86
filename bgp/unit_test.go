package bgp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

func TestConnectErrorsInWords(t *testing.T) {
	p := Peer{Address: netip.MustParseAddr("192.0.2.7"), LocalAddress: netip.MustParseAddr("192.0.2.8")}
	for err, want := range map[string]string{
		syscall.ECONNREFUSED.Error():  "connection refused: nothing listens at 192.0.2.7:179",
		syscall.EHOSTUNREACH.Error():  "no route to 192.0.2.7",
		syscall.ENETUNREACH.Error():   "no route to 192.0.2.7",
		"dial tcp: i/o timeout":       "no answer from 192.0.2.7:179: the host is down or a firewall drops packets",
		syscall.ETIMEDOUT.Error():     "no answer from 192.0.2.7:179: the host is down or a firewall drops packets",
		syscall.EADDRNOTAVAIL.Error(): "can't connect from 192.0.2.8: this node does not have the address",
		syscall.EPERM.Error():         "can't connect: operation not permitted",
	} {
		ss := newSession(p, time.Now())
		ss.noteConnectError(err)
		if ss.info() != want {
			t.Errorf("%q is told as %q, want %q", err, ss.info(), want)
		}
	}
}

func TestPrefixSetFind(t *testing.T) {
	set := newPrefixSet(0)
	for _, p := range pfx("10.0.0.0/8", "192.168.4.0/22", "fd00::/16") {
		set.add(p, 0)
	}
	for p, want := range map[string]bool{
		"10.0.0.0/8": true, "10.255.0.0/16": true, "10.1.2.3/32": true, "0.0.0.0/0": false, "10.0.0.0/7": false,
		"192.168.7.0/24": true, "192.168.8.0/24": false, "fd00:1::/64": true, "fd01::/64": false, "a00::/8": false,
	} {
		if got := set.find(netip.MustParsePrefix(p)); got.found != want {
			t.Errorf("find(%s) = %v", p, got)
		}
	}
	empty := newPrefixSet(0)
	if empty.find(netip.MustParsePrefix("10.0.0.0/8")).found {
		t.Error("the empty set covers something")
	}
}

// TestChoose checks which of GoBGP's paths, best first, make the route.
func TestChoose(t *testing.T) {
	mesh, mesh2, router := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	path := func(peer netip.Addr, hop string, pref uint32) *apiutil.Path {
		nh, _ := gobgp.NewPathAttributeNextHop(netip.MustParseAddr(hop))
		return &apiutil.Path{PeerAddress: peer, PeerASN: testASN, Attrs: []gobgp.PathAttributeInterface{
			gobgp.NewPathAttributeOrigin(0), nh, gobgp.NewPathAttributeLocalPref(pref),
		}}
	}
	s := New(Config{ASN: testASN})
	v := &view{
		mesh:  newImportPolicy(Import{Within: pools("10.0.0.0/8")}),
		types: map[netip.Addr]PeerType{mesh: NodeMesh, mesh2: NodeMesh, router: Global},
		hops:  NextHops{IPv4: netip.MustParseAddr("192.0.2.9")},
	}
	for _, c := range []struct {
		name, prefix string
		paths        []*apiutil.Path
		want         string
	}{
		{"equal", "10.1.0.0/26", []*apiutil.Path{path(mesh2, "192.0.2.2", 100), path(mesh, "192.0.2.1", 100)}, "[192.0.2.1 192.0.2.2]"},
		{"same next hop twice", "10.1.0.0/26", []*apiutil.Path{path(mesh, "192.0.2.1", 100), path(mesh2, "192.0.2.1", 100)}, "[192.0.2.1]"},
		{"one better", "10.1.0.0/26", []*apiutil.Path{path(mesh2, "192.0.2.2", 200), path(mesh, "192.0.2.1", 100)}, "[192.0.2.2]"},
		{"the better not allowed", "11.0.0.0/8", []*apiutil.Path{path(mesh, "192.0.2.1", 200), path(router, "192.0.2.3", 100)}, "[192.0.2.3]"},
		{"none allowed", "11.0.0.0/8", []*apiutil.Path{path(mesh, "192.0.2.1", 100)}, "[]"},
		{"own first", "10.1.0.0/26", []*apiutil.Path{{}, path(mesh, "192.0.2.1", 100)}, "[]"},
		{"next hop is the node itself", "10.1.0.0/26", []*apiutil.Path{path(mesh, "192.0.2.9", 100)}, "[]"},
		{"peer removed", "10.1.0.0/26", []*apiutil.Path{path(netip.MustParseAddr("192.0.2.77"), "192.0.2.1", 100)}, "[]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := []string{}
			for _, h := range s.choose(v, netip.MustParsePrefix(c.prefix), c.paths).Hops {
				got = append(got, h.Addr.String())
			}
			if fmt.Sprint(got) != c.want {
				t.Errorf("next hops %s, want %s", got, c.want)
			}
		})
	}
}

// TestEndOfRIBMarksWhatIsStillStale: GoBGP withdraws stale routes at the last family's End-of-RIB, or at the last of
// those with graceful restart, and does not say so. Each must therefore have the stale ones looked at.
func TestEndOfRIBMarksWhatIsStillStale(t *testing.T) {
	both := []gobgp.Family{gobgp.RF_IPv4_UC, gobgp.RF_IPv6_UC}
	again, gone, other := pfx("10.0.0.0/26")[0], pfx("10.0.0.64/26")[0], pfx("fd00::/122")[0]
	ss := newSession(Peer{}, time.Now())
	ss.established(both, both[:1])
	ss.adjIn[again], ss.adjIn[gone], ss.adjIn[other] = false, false, false
	if got := ss.lost(true); fmt.Sprint(got) != fmt.Sprint([]netip.Prefix{other}) {
		t.Errorf("lost gracefully: %v are to be looked at, want %s, whose family is not kept", got, other)
	}
	ss.established(both, both)
	ss.adjIn[again] = false
	for i, f := range []gobgp.Family{gobgp.RF_IPv6_UC, gobgp.RF_IPv4_UC} {
		if got := ss.endOfRIB(f); fmt.Sprint(got) != fmt.Sprint([]netip.Prefix{gone}) {
			t.Errorf("End-of-RIB %d: %v are to be looked at, want %s", i+1, got, gone)
		}
	}
	if !ss.eorSeen || len(ss.adjIn) != 1 {
		t.Errorf("after both: synchronised %t, held %v, want true and %s", ss.eorSeen, ss.adjIn, again)
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	p := Peer{Name: "router", Password: "hunter2"}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("a peer", "peer", p, "password", p.Password)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("a peer", "peer", p, "password", p.Password)
	js, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	shown := log.String() + string(js) + fmt.Sprintf("%v %+v %#v %s %q", p, p, p, p.Password, p.Password)
	if strings.Contains(shown, "hunter2") {
		t.Errorf("the password is in %s", shown)
	}
}

func TestPasswordedSession(t *testing.T) {
	l := newLab(t)
	withPassword := func(p Peer, s Secret) Peer {
		p.Password = s
		return p
	}
	a := l.start(1, []string{"10.1.0.0/26"}, l.mesh(1, 2))
	b := l.start(2, nil)
	// Secrets do not travel as text, so the password is set where the speaker runs.
	a.must("SetPassword", PasswordArgs{withPassword(l.mesh(1, 2), ""), "hunter2"})
	b.must("SetPassword", PasswordArgs{withPassword(l.mesh(2, 1), ""), "hunter2"})
	b.reaches("10.1.0.0/26", 1)
	// Without it on one side there is no session; without it on both there is again.
	a.must("SetPeers", []Peer{l.mesh(1, 2)})
	eventually(t, "the session without the password ends", func() string { return map[bool]string{true: "up"}[b.peer(1).Established()] })
	b.must("SetPeers", []Peer{l.mesh(2, 1)})
	b.up(1)
	for _, n := range []*node{a, b} {
		if strings.Contains(n.logs.String(), "hunter2") {
			t.Errorf("node %d logs the password", n.i)
		}
	}
}

func TestBadConfigurationIsRefusedInWords(t *testing.T) {
	good := Peer{Address: netip.MustParseAddr("192.0.2.1"), ASN: 1, Type: Global}
	for want, change := range map[string]func(*Peer){
		"is not an address a peer can have": func(p *Peer) { p.Address = netip.Addr{} },
		"the AS number is 0":                func(p *Peer) { p.ASN = 0 },
		"port 70000":                        func(p *Peer) { p.Port = 70000 },
		"another family":                    func(p *Peer) { p.LocalAddress = netip.IPv6Loopback() },
		"hold time 1s is below 3s":          func(p *Peer) { p.HoldTime = time.Second },
	} {
		bad := good
		change(&bad)
		if err := New(Config{}).SetPeers(t.Context(), []Peer{bad}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if err := New(Config{}).SetPeers(t.Context(), []Peer{good, good}); err == nil {
		t.Error("one address twice is accepted")
	}
	err := New(Config{}).SetPaths(t.Context(), paths("10.0.0.1/8", "fd00::/122"), NextHops{IPv4: good.Address})
	for _, want := range []string{"10.0.0.1/8: not a network address", "fd00::/122: the node has no next hop"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	twice := []Path{{Prefix: pfx("10.0.0.0/26")[0]}, {Prefix: pfx("10.0.0.0/26")[0], Says: Statement{Said: true}}}
	hops := NextHops{IPv4: good.Address}
	if err := New(Config{}).SetPaths(t.Context(), twice, hops); err == nil || !strings.Contains(err.Error(), "asked for twice") {
		t.Errorf("one prefix that says two things: %v", err)
	}
	if err := New(Config{}).SetPaths(t.Context(), append(twice[:1], twice[0]), hops); err != nil {
		t.Errorf("one prefix twice, the same: %v", err)
	}
	if err := New(Config{}).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "AS number is 0") {
		t.Errorf("start without an AS: %v", err)
	}
	if _, _, err := New(Config{}).Lookup(pfx("10.0.0.0/8")[0]); err != ErrNotRunning {
		t.Errorf("a lookup before Start: %v", err)
	}
}
