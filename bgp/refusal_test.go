package bgp

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// refuses waits until node n refuses exactly the given prefixes of node j, each for its reason, in that order.
func (n *node) refuses(j int, want ...string) {
	n.l.t.Helper()
	eventually(n.l.t, fmt.Sprintf("node %d refuses %q", n.i, want), func() string {
		refused := ask[Refused](n, "Refused", none{})
		var got []string
		for _, r := range refused.First {
			if r.Peer != n.l.addr(j) || r.Name != fmt.Sprintf("node%d", j) {
				return fmt.Sprintf("%s comes from %s (%s)", r.Prefix, r.Peer, r.Name)
			}
			got = append(got, r.Prefix.String()+" "+r.Why)
		}
		if !slices.Equal(got, want) || refused.More != 0 {
			return fmt.Sprintf("%q and %d more", got, refused.More)
		}
		return ""
	})
}

// warned waits until node n has logged, once each, that these prefixes are inside a block of its own.
func (n *node) warned(want ...string) {
	n.l.t.Helper()
	eventually(n.l.t, fmt.Sprintf("node %d warns of %v", n.i, want), func() string {
		var got []string
		for line := range strings.Lines(n.logs.String()) {
			if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "two nodes think") {
				continue
			}
			_, rest, _ := strings.Cut(line, "prefix=")
			p, _, _ := strings.Cut(rest, " ")
			got = append(got, p)
		}
		slices.Sort(got)
		return map[bool]string{false: fmt.Sprintf("of %v", got)}[slices.Equal(got, want)]
	})
}

func TestWhatTheMeshMayNotGiveIsRefusedAloud(t *testing.T) {
	l := newLab(t)
	l.start(1, []string{
		"10.1.0.0/26", "10.1.4.0/22", "10.0.0.0/8", // a block, several in one, all
		"10.1.9.7/32", "10.1.9.64/27", "10.2.0.5/32", "10.2.0.0/26", "172.16.0.0/24", "0.0.0.0/0",
		"fd00:1::/122", "fd00:1::77/128", "2001:db8::/64",
	}, l.mesh(1, 2))
	router := l.mesh(3, 2)
	router.Type = Global
	l.start(3, []string{"10.1.9.9/32", "192.0.2.0/24", "10.2.0.6/32"}, router)
	fromRouter := l.mesh(2, 3)
	fromRouter.Type = Global
	b := l.create(2, NodeConfig{})
	within := []Pool{
		{Prefix: netip.MustParsePrefix("10.0.0.0/8"), BlockBits: 26},
		{Prefix: netip.MustParsePrefix("fd00::/16"), BlockBits: 122},
	}
	b.must("SetImport", Import{Within: within, Except: pfx("10.2.0.0/26")})
	b.must("Start", none{})
	b.must("SetPeers", []Peer{l.mesh(2, 1), fromRouter})

	b.refuses(1,
		"10.2.0.0/26 inside our own block 10.2.0.0/26",
		"10.2.0.5/32 inside our own block 10.2.0.0/26",
		"0.0.0.0/0 outside all pools",
		"10.1.9.7/32 longer than a block: those of pool 10.0.0.0/8 are /26",
		"10.1.9.64/27 longer than a block: those of pool 10.0.0.0/8 are /26",
		"172.16.0.0/24 outside all pools",
		"2001:db8::/64 outside all pools",
		"fd00:1::77/128 longer than a block: those of pool fd00::/16 are /122",
	)
	for prefix, via := range map[string]int{
		"10.1.0.0/26": 1, "10.1.4.0/22": 1, "10.0.0.0/8": 1, "fd00:1::/122": 1,
		"10.1.9.9/32": 3, "192.0.2.0/24": 3, "10.2.0.6/32": 3, // an operator's peer may
	} {
		b.reaches(prefix, via)
	}
	for _, prefix := range []string{"10.1.9.7/32", "10.1.9.64/27", "fd00:1::77/128", "10.2.0.5/32", "0.0.0.0/0"} {
		if got := b.hopsTo(prefix); got != nil {
			t.Errorf("%s was imported from the mesh, via %v", prefix, got)
		}
	}
	b.warned("10.2.0.0/26", "10.2.0.5/32")

	// Blocks and pools change: what is refused does at once, and only what is new is warned of.
	within[0].BlockBits = 27
	b.must("SetImport", Import{Within: within[:1], Except: pfx("10.2.0.0/26", "10.1.9.64/26")})
	b.refuses(1,
		"10.1.9.64/27 inside our own block 10.1.9.64/26",
		"10.2.0.0/26 inside our own block 10.2.0.0/26",
		"10.2.0.5/32 inside our own block 10.2.0.0/26",
		"0.0.0.0/0 outside all pools",
		"10.1.9.7/32 longer than a block: those of pool 10.0.0.0/8 are /27",
		"172.16.0.0/24 outside all pools",
		"2001:db8::/64 outside all pools",
		"fd00:1::/122 outside all pools",
		"fd00:1::77/128 outside all pools",
	)
	b.reaches("fd00:1::/122")
	b.warned("10.1.9.64/27", "10.2.0.0/26", "10.2.0.5/32")
	b.must("SetImport", Import{Within: []Pool{{Prefix: netip.MustParsePrefix("::/0")}, {Prefix: netip.MustParsePrefix("0.0.0.0/0")}}})
	b.refuses(1)
	b.reaches("10.1.9.7/32", 1)
}

// withPeers is a speaker that is not running, with mesh peers that announce the given prefixes.
func withPeers(log *bytes.Buffer, im Import, announced ...[]netip.Prefix) *Speaker {
	s := New(Config{Log: slog.New(slog.NewTextHandler(log, nil))})
	for i, prefixes := range announced {
		addr := netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)})
		sess := newSession(Peer{Name: fmt.Sprintf("node%d", 1+i), Address: addr, Type: NodeMesh}, time.Now())
		for _, p := range prefixes {
			sess.adjIn[p] = false
		}
		s.peers[addr] = sess
	}
	s.SetImport(im)
	return s
}

func manyPrefixes(second byte, n int) (all []netip.Prefix) {
	for i := range n {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, byte(i >> 8), byte(i)}), 32))
	}
	return all
}

func TestRefusalsAndWarningsAreBounded(t *testing.T) {
	var log bytes.Buffer
	im := Import{Within: pools("10.0.0.0/12"), Except: pfx("10.2.0.0/16")}
	s := withPeers(&log, im,
		append(manyPrefixes(99, 5000), pfx("10.1.0.0/26")...),
		append(manyPrefixes(98, 1000), manyPrefixes(2, 150)...),
		append(manyPrefixes(99, 1000), manyPrefixes(2, 3)...))
	first, more := s.Refused()
	if len(first) != 100 || more != 5000+1000+150+1000+3-100 {
		t.Fatalf("%d refusals and %d more", len(first), more)
	}
	// Those inside our block come first, by prefix and then by peer.
	want := []string{
		"10.2.0.0/32 node2", "10.2.0.0/32 node3", "10.2.0.1/32 node2", "10.2.0.1/32 node3", "10.2.0.2/32 node2",
		"10.2.0.2/32 node3", "10.2.0.3/32 node2",
	}
	for i, r := range first {
		got := r.Prefix.String() + " " + r.Name
		if i < len(want) && got != want[i] || !r.Ours || r.Why != "inside our own block 10.2.0.0/16" {
			t.Errorf("refusal %d is %+v", i, r)
		}
	}
	count := func(text string) int { return strings.Count(log.String(), text) }
	if n, last := count("two nodes think"), count("no more of this peer's"); n != maxWarned+3 || last != 1 {
		t.Errorf("%d warnings and %d that there will be no more, want %d and 1", n, last, maxWarned+3)
	}
	im.Except = append(im.Except, pfx("10.3.0.0/26")...) // a new policy looks at everything again
	s.SetImport(im)
	if n := count("two nodes think"); n != maxWarned+3 {
		t.Errorf("%d warnings after another look, want no more of the same", n)
	}
}

// TestAStalePrefixIsNoClaim: a node that lost its block while it was away does not say any more that it has it.
func TestAStalePrefixIsNoClaim(t *testing.T) {
	var log bytes.Buffer
	s := withPeers(&log, Import{Within: pools("10.0.0.0/8")}, pfx("10.2.0.0/26"))
	s.peers[netip.MustParseAddr("192.0.2.1")].adjIn[pfx("10.2.0.0/26")[0]] = true
	s.SetImport(Import{Within: pools("10.0.0.0/8"), Except: pfx("10.2.0.0/26")})
	if strings.Contains(log.String(), "WARN") {
		t.Errorf("warned: %s", log.String())
	}
	if first, _ := s.Refused(); len(first) != 1 || !first[0].Ours {
		t.Errorf("refused are %v, want it, for it is held and not used", first)
	}
}

func TestOverlappingPoolsTakeWhatOneOfThemDoes(t *testing.T) {
	for _, im := range []Import{
		{Within: []Pool{{pfx("10.0.0.0/8")[0], 26}, {pfx("10.1.0.0/16")[0], 28}}},
		{Within: []Pool{{pfx("10.1.0.0/16")[0], 28}, {pfx("10.0.0.0/8")[0], 26}}},
		{Within: []Pool{{pfx("10.1.0.0/16")[0], 28}, {pfx("10.1.0.0/16")[0], 26}, {pfx("10.0.0.0/8")[0], 26}}},
	} {
		ip := newImportPolicy(im)
		for p, want := range map[string]bool{
			"10.1.0.0/28": true, "10.1.0.0/29": false, "10.2.0.0/26": true, "10.2.0.0/28": false, "10.0.0.0/8": true,
		} {
			p := netip.MustParsePrefix(p)
			if ip.allows(p) != want || (ip.refuses(p) == "") != want {
				t.Errorf("%+v: %s is allowed: %t, refused because %q", im, p, ip.allows(p), ip.refuses(p))
			}
		}
	}
}
