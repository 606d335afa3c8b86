package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

var (
	ipip, vxlan = EncapsulationsOf(IPIP), EncapsulationsOf(VXLAN)
	// moving is what a node says that has not yet left an old mode.
	moving  = Statement{Said: true, Mode: v1alpha1.ModeVXLANCrossSubnet, Sends: ipip}
	settled = Statement{Said: true, Mode: v1alpha1.ModeVXLANCrossSubnet, Settled: true, Sends: vxlan}
)

// tells waits until the prefix's only next hop tells what is given.
func (n *node) tells(prefix string, receives Encapsulations, says Statement) {
	n.l.t.Helper()
	eventually(n.l.t, fmt.Sprintf("node %d: the hop to %s receives %s and says %+v", n.i, prefix, receives, says), func() string {
		r := n.lookup(prefix)
		if len(r.Hops) != 1 || r.Hops[0].Receives != receives || r.Hops[0].Says != says {
			return fmt.Sprintf("%+v", r.Hops)
		}
		return ""
	})
}

func TestNodesTellWhatTheyReceiveAndHowTheySend(t *testing.T) {
	l := newLab(t)
	a := l.start(1, nil, l.mesh(1, 2))
	b := l.start(2, nil, l.mesh(2, 1))
	set := func(v4, v6, plain Path) {
		v4.Prefix, v6.Prefix, plain.Prefix = pfx("10.1.0.0/26")[0], pfx("fd00:1::/122")[0], pfx("10.1.0.64/26")[0]
		a.must("SetPaths", PathsArgs{[]Path{v4, v6, plain}, l.hops(1)})
	}
	set(Path{Receives: ipip | vxlan, Says: moving}, Path{Receives: vxlan, Says: settled}, Path{})
	b.tells("10.1.0.0/26", ipip|vxlan, moving)
	b.tells("fd00:1::/122", vxlan, settled)
	b.tells("10.1.0.64/26", 0, Statement{})

	// Whoever follows the dirty prefixes hears of a change, and of nothing else.
	b.follows("10.1.0.64/26", 1)
	set(Path{Receives: vxlan, Says: settled}, Path{Receives: vxlan, Says: settled}, Path{})
	var dirty []netip.Prefix
	eventually(t, "the change is told of", func() string {
		dirty = append(dirty, ask[[]netip.Prefix](b, "TakeDirty", none{})...)
		return map[bool]string{true: "no"}[len(dirty) == 0]
	})
	if want := pfx("10.1.0.0/26"); !slices.Equal(dirty, want) {
		t.Errorf("dirty after a change: %v, want %v", dirty, want)
	}
	b.tells("10.1.0.0/26", vxlan, settled)
	set(Path{}, Path{}, Path{Says: moving})
	b.tells("10.1.0.0/26", 0, Statement{})
	b.tells("fd00:1::/122", 0, Statement{})
	b.tells("10.1.0.64/26", 0, moving)
}

func TestARestartingPeerStaysAsItSaid(t *testing.T) {
	l := newLab(t)
	conf := NodeConfig{EORDeadline: patience}
	own := PathsArgs{[]Path{{Prefix: pfx("10.1.0.0/26")[0], Receives: ipip, Says: moving}}, l.hops(1)}
	a := l.startWith(1, conf, nil, l.mesh(1, 2))
	a.must("SetPaths", own)
	b := l.start(2, nil, l.mesh(2, 1))
	b.tells("10.1.0.0/26", ipip, moving)
	a.kill()
	b.says(1, "its routes are kept")
	b.tells("10.1.0.0/26", ipip, moving)
	if r := b.lookup("10.1.0.0/26"); !r.Stale {
		t.Errorf("not stale: %+v", r)
	}
	// It comes back, and has meanwhile become able to receive more.
	a = l.create(1, conf)
	own.Paths[0].Receives, own.Paths[0].Says = ipip|vxlan, settled
	a.must("SetPaths", own)
	a.must("Start", none{})
	a.must("SetPeers", []Peer{l.mesh(1, 2)})
	b.tells("10.1.0.0/26", ipip|vxlan, settled)
}

// announced are the prefixes that one UPDATE announces, and whether it withdraws any.
func announced(m message) (prefixes []netip.Prefix, withdraws bool) {
	u, ok := m.Body.(*gobgp.BGPUpdate)
	if !ok {
		return nil, false
	}
	all := u.NLRI
	for _, a := range u.PathAttributes {
		switch a := a.(type) {
		case *gobgp.PathAttributeMpReachNLRI:
			all = append(all, a.Value...)
		case *gobgp.PathAttributeMpUnreachNLRI:
			withdraws = withdraws || len(a.Value) > 0
		}
	}
	for _, n := range all {
		prefixes = append(prefixes, n.NLRI.(*gobgp.IPAddrPrefix).Prefix)
	}
	return prefixes, withdraws || len(u.WithdrawnRoutes) > 0
}

// updates reads until all of the prefixes have been announced, and returns each UPDATE's prefixes.
func (p *rawPeer) updates(t *testing.T, want int) (updates [][]netip.Prefix) {
	t.Helper()
	seen := map[netip.Prefix]bool{}
	for len(seen) < want {
		m, _, err := p.until(gobgp.BGP_MSG_UPDATE)
		if err != nil {
			t.Fatalf("%d of %d prefixes were announced, then: %v", len(seen), want, err)
		}
		prefixes, withdraws := announced(m)
		if withdraws {
			t.Errorf("something was withdrawn: %v", m.Body)
		}
		if len(prefixes) > 0 {
			updates = append(updates, prefixes)
		}
		for _, q := range prefixes {
			seen[q] = true
		}
	}
	return updates
}

func TestAChangeIsAnnouncedAloneAndWithdrawsNothing(t *testing.T) {
	l := newLab(t)
	own := paths("10.2.0.0/26", "10.2.0.64/26", "fd00:2::/122", "fd00:2::40/122")
	for i := range own {
		own[i].Receives, own[i].Says = vxlan, settled
	}
	b := l.start(2, nil, l.mesh(2, 3))
	b.must("SetPaths", PathsArgs{own, l.hops(2)})
	p := openRaw(t, l.addr(3), l.at(2), 90)
	p.updates(t, len(own))

	// The same again, in other words, is no change: the next UPDATE is that of the prefix that is new.
	same := slices.Clone(own)
	slices.Reverse(same)
	for i := range same {
		same[i].Receives |= EncapsulationsOf(Native)
		same[i].Says.Sends |= EncapsulationsOf(Native)
	}
	last := paths("10.2.9.0/26")[0]
	ask[[]netip.Prefix](b, "TakeDirty", none{})
	b.must("SetPaths", PathsArgs{append(same, last), l.hops(2)})
	if got := p.updates(t, 1); !slices.Equal(got[0], pfx("10.2.9.0/26")) {
		t.Errorf("nothing changed but a prefix came, and %v was announced", got)
	}
	if got := ask[[]netip.Prefix](b, "TakeDirty", none{}); !slices.Equal(got, pfx("10.2.9.0/26")) {
		t.Errorf("nothing changed but a prefix came, and %v are dirty", got)
	}
	for i, change := range []func(*Path){
		func(p *Path) { p.Receives = ipip },
		func(p *Path) { p.Says.Settled = false },
		func(p *Path) { p.Says = Statement{} },
		func(p *Path) { p.Says.Sends = Tunnels },
		func(p *Path) { p.Receives = 0 },
		func(p *Path) { p.Says.Mode = v1alpha1.ModeNative },
	} {
		changed := &own[i%len(own)]
		change(changed)
		b.must("SetPaths", PathsArgs{append(slices.Clone(own), last), l.hops(2)})
		if got := p.updates(t, 1); len(got) != 1 || !slices.Equal(got[0], []netip.Prefix{changed.Prefix}) {
			t.Errorf("change %d of %s: %v was announced", i, changed.Prefix, got)
		}
	}
}

func TestPathsThatTellTheSameShareAnUpdate(t *testing.T) {
	const count = 150
	l := newLab(t)
	var own []Path
	for i := range count {
		v4 := netip.AddrFrom4([4]byte{10, 2, byte(i / 4), byte(i % 4 * 64)})
		v6 := netip.MustParseAddr(fmt.Sprintf("fd00:2::%x:0", i+1))
		own = append(own, Path{netip.PrefixFrom(v4, 26), vxlan, settled}, Path{netip.PrefixFrom(v6, 122), vxlan, settled})
	}
	b := l.create(2, NodeConfig{})
	b.must("SetPaths", PathsArgs{own, l.hops(2)})
	b.must("Start", none{})
	b.must("SetPeers", []Peer{l.mesh(2, 3)})
	p := openRaw(t, l.addr(3), l.at(2), 90)
	if n := len(p.updates(t, len(own))); n != 2 {
		t.Errorf("%d UPDATEs for %d prefixes of each family that tell the same, want one a family", n, count)
	}
	for i := range own {
		own[i].Says = moving
	}
	b.must("SetPaths", PathsArgs{own, l.hops(2)})
	p.updates(t, len(own)) // how many depends on how fast they are sent, but none withdraws
}

// foreign is an UPDATE of one IPv4 prefix with attributes of one's choice.
func foreign(t *testing.T, hop netip.Addr, prefix string, attrs ...gobgp.PathAttributeInterface) *gobgp.BGPMessage {
	t.Helper()
	nh, err := gobgp.NewPathAttributeNextHop(hop)
	if err != nil {
		t.Fatal(err)
	}
	all := append([]gobgp.PathAttributeInterface{
		gobgp.NewPathAttributeOrigin(0), gobgp.NewPathAttributeAsPath(nil), nh, gobgp.NewPathAttributeLocalPref(100),
	}, attrs...)
	n, err := gobgp.NewIPAddrPrefix(netip.MustParsePrefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	return gobgp.NewBGPUpdateMessage(nil, all, []gobgp.PathNLRI{{NLRI: n}})
}

func TestWhatOthersSayBesidesIsIgnored(t *testing.T) {
	l := newLab(t)
	b := l.start(2, nil, l.mesh(2, 3))
	p := openRaw(t, l.addr(3), l.at(2), 90)
	p.keepAlive()
	ext := func(text string) gobgp.PathAttributeInterface {
		return gobgp.NewPathAttributeExtendedCommunities(octets(t, text))
	}
	large := gobgp.NewPathAttributeLargeCommunities([]*gobgp.LargeCommunity{{ASN: 64512, LocalData1: 7, LocalData2: 8}})
	for prefix, c := range map[string]struct {
		attrs    []gobgp.PathAttributeInterface
		receives Encapsulations
		says     Statement
	}{
		"10.3.0.0/26":   {nil, 0, Statement{}},
		"10.3.0.64/26":  {[]gobgp.PathAttributeInterface{gobgp.NewPathAttributeCommunities([]uint32{0x686f7004}), large}, 0, Statement{}},
		"10.3.0.128/26": {[]gobgp.PathAttributeInterface{ext("0002fde800000064 0102c00002010064 c0ffffff04010200 ff686f7004010200")}, 0, Statement{}},
		"10.3.0.192/26": {[]gobgp.PathAttributeInterface{ext("0002fde800000064 030c000000000008 c0686f7005000100"), large}, vxlan, moving},
		"10.3.1.0/26":   {[]gobgp.PathAttributeInterface{gobgp.NewPathAttributeUnknown(0xc0, 200, []byte("\xc0hop\x04\x01\x02\x00"))}, 0, Statement{}},
	} {
		if err := p.send(foreign(t, l.addr(3), prefix, c.attrs...)); err != nil {
			t.Fatal(err)
		}
		b.tells(prefix, c.receives, c.says)
	}

	// One octet too few for its community: the path counts as withdrawn, the session goes on (RFC 7606 section 7.14).
	cut := gobgp.NewPathAttributeUnknown(0xc0, gobgp.BGP_ATTR_TYPE_EXTENDED_COMMUNITIES, []byte("\xc0hop\x04\x01\x02"))
	if err := p.send(foreign(t, l.addr(3), "10.3.0.192/26", cut)); err != nil {
		t.Fatal(err)
	}
	b.reaches("10.3.0.192/26")
	b.tells("10.3.0.0/26", 0, Statement{})
	b.up(3)
}

func TestOneHopToldOfTwice(t *testing.T) {
	l := newLab(t)
	b := l.start(2, nil, l.mesh(2, 3), l.mesh(2, 4))
	hop := netip.MustParseAddr("192.0.2.7")
	for i, all := range map[int][]gobgp.ExtendedCommunityInterface{
		3: communities(ipip|vxlan, settled), 4: communities(vxlan, moving),
	} {
		p := openRaw(t, l.addr(i), l.at(2), 90)
		p.keepAlive()
		if err := p.send(foreign(t, hop, "10.3.0.0/26", gobgp.NewPathAttributeExtendedCommunities(all))); err != nil {
			t.Fatal(err)
		}
	}
	b.tells("10.3.0.0/26", vxlan, Statement{Said: true, Mode: moving.Mode, Sends: ipip | vxlan})
}
