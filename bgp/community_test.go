package bgp

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// overTheWire is what a reader makes of extended communities after GoBGP has packed and unpacked them.
func overTheWire(t testing.TB, all []gobgp.ExtendedCommunityInterface) (Encapsulations, Statement) {
	t.Helper()
	if len(all) == 0 {
		return readCommunities(nil)
	}
	octets, err := gobgp.NewPathAttributeExtendedCommunities(all).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	var attr gobgp.PathAttributeExtendedCommunities
	if err := attr.DecodeFromBytes(octets); err != nil {
		t.Fatal(err)
	}
	return readCommunities(attr.Value)
}

// octets parses extended communities given in hexadecimal.
func octets(t testing.TB, text string) (all []gobgp.ExtendedCommunityInterface) {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	for ; len(b) >= 8; b = b[8:] {
		c, err := gobgp.ParseExtended(b)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func statements() []Statement {
	all := []Statement{{}}
	for _, mode := range modes {
		for sends := range 4 {
			for _, settled := range []bool{false, true} {
				all = append(all, Statement{Said: true, Mode: mode, Settled: settled, Sends: receives(sends)})
			}
		}
	}
	return all
}

// receives are the four sets of tunnels.
func receives(n int) (set Encapsulations) {
	if n&1 != 0 {
		set |= EncapsulationsOf(IPIP)
	}
	if n&2 != 0 {
		set |= EncapsulationsOf(VXLAN)
	}
	return set
}

func TestWhatIsToldIsRead(t *testing.T) {
	if len(modes) != 6 {
		t.Fatalf("%d modes", len(modes))
	}
	for n := range 4 {
		for _, says := range statements() {
			gotR, gotS := overTheWire(t, communities(receives(n), says))
			if gotR != receives(n) || gotS != says {
				t.Errorf("told %s and %+v, read %s and %+v", receives(n), says, gotR, gotS)
			}
		}
	}
}

// TestTheOctets: other versions' agents read them.
func TestTheOctets(t *testing.T) {
	tunnels := EncapsulationsOf(Native, IPIP, VXLAN) // native needs no telling
	for want, all := range map[string][]gobgp.ExtendedCommunityInterface{
		"030c000000000007 030c000000000008": communities(tunnels, Statement{}),
		"030c000000000008 c0686f7004010100": communities(EncapsulationsOf(VXLAN),
			Statement{Said: true, Mode: v1alpha1.ModeVXLAN, Settled: true, Sends: EncapsulationsOf(IPIP)}),
		"c0686f7001000200": communities(0, Statement{Said: true, Mode: v1alpha1.ModeNative, Sends: EncapsulationsOf(VXLAN, Native)}),
		"c0686f7000000000": communities(0, Statement{Said: true, Mode: "Carrier pigeon"}),
		"":                 communities(0, Statement{Mode: v1alpha1.ModeVXLAN, Settled: true}),
	} {
		var got []string
		for _, c := range all {
			b, err := c.Serialize()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, hex.EncodeToString(b))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

func TestPathsThatTellTheSameShareTheAttribute(t *testing.T) {
	m := pathMaker{}
	told := func(p string, hop string, says Statement) any {
		attrs := m.path(netip.MustParsePrefix(p), ownPath{netip.MustParseAddr(hop), Tunnels, says}).Attrs
		return attrs[len(attrs)-1]
	}
	says := Statement{Said: true, Sends: EncapsulationsOf(IPIP)}
	one := told("10.1.0.0/26", "192.0.2.1", says)
	if told("10.1.0.64/26", "192.0.2.1", says) != one || told("fd00::/122", "2001:db8::1", says) != one {
		t.Error("each has its own")
	}
	if told("10.1.0.0/26", "192.0.2.1", Statement{}) == one {
		t.Error("one that tells something else has the same")
	}
}

func TestReadersTakeWhatTheyKnow(t *testing.T) {
	vxlan := Statement{Said: true, Mode: v1alpha1.ModeVXLAN, Settled: true, Sends: EncapsulationsOf(VXLAN)}
	for name, c := range map[string]struct {
		octets   string
		receives Encapsulations
		says     Statement
	}{
		"nothing":                    {"", 0, Statement{}},
		"other tunnel types":         {"030c000000000002 030c000000000000 030c000000000107 030c00000000ffff", 0, Statement{}},
		"a tunnel among others":      {"030c00000000000b 030c000000000008", EncapsulationsOf(VXLAN), Statement{}},
		"not transitive":             {"430c000000000008", 0, Statement{}},
		"a tunnel with other octets": {"030cffffffff0007", EncapsulationsOf(IPIP), Statement{}},
		"other magic":                {"c0686f7104010200 c0706f6804010200 c000000000000000", 0, Statement{}},
		"other types":                {"80686f7004010200 c1686f7004010200 00686f7004010200 40686f7004010200", 0, Statement{}},
		"route targets and colours":  {"0002fde800000064 0102c00002010064 030b000000000064", 0, Statement{}},
		"between others":             {"0002fde800000064 c0686f7004010200 c0000000000000ff", 0, vxlan},
		"a later version's octet":    {"c0686f70040102ff", 0, vxlan},
		"a later version's tunnels":  {"c0686f700401fe00", 0, vxlan},
		"a later version's mode": {"c0686f7006010200", 0,
			Statement{Said: true, Settled: true, Sends: EncapsulationsOf(VXLAN)}},
		"a settled that is neither": {"c0686f7004020200", 0,
			Statement{Said: true, Mode: v1alpha1.ModeVXLAN, Sends: EncapsulationsOf(VXLAN)}},
		"two that differ": {"c0686f7004010200 c0686f7002000100", 0, Statement{Said: true, Sends: Tunnels}},
		"two, one broken": {"c0686f7104000100 c0686f7004010200", 0, vxlan},
	} {
		if gotR, gotS := readCommunities(octets(t, c.octets)); gotR != c.receives || gotS != c.says {
			t.Errorf("%s: read %s and %+v, want %s and %+v", name, gotR, gotS, c.receives, c.says)
		}
	}
	for n := range statementLen {
		short := &gobgp.UnknownExtended{Type: statementType, Value: []byte(statementMagic + "\x04\x01\x02\x00")[:n]}
		if got := readStatement(short); got != (Statement{}) {
			t.Errorf("a statement of %d octets is read as %+v", n, got)
		}
	}
}

// FuzzCommunities: whatever a peer puts there is read without harm, as something that could have been told.
func FuzzCommunities(f *testing.F) {
	for _, seed := range []string{
		"030c000000000007030c000000000008c0686f7004010200", "c0686f7006ffffff", "c0686f71040102000002fde800000064",
		"0602000000000000800600000000000043000000000000020c00000000000000",
	} {
		b, _ := hex.DecodeString(seed)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var attr gobgp.PathAttributeExtendedCommunities
		header := []byte{0xd0, byte(gobgp.BGP_ATTR_TYPE_EXTENDED_COMMUNITIES), byte(len(b) >> 8), byte(len(b))}
		if len(b) > 0xffff || attr.DecodeFromBytes(append(header, b...)) != nil {
			return
		}
		receives, says := readCommunities(attr.Value)
		if receives&^Tunnels != 0 || says != says.normal() {
			t.Fatalf("read %s and %+v", receives, says)
		}
		if r, s := overTheWire(t, communities(receives, says)); r != receives || s != says {
			t.Fatalf("read %s and %+v, told again they become %s and %+v", receives, says, r, s)
		}
		if says.Said && !bytes.Contains(b, []byte("\xc0hop")) {
			t.Fatalf("a statement was made up: %+v", says)
		}
	})
}

// TestPathsByWayOfOneHopAreBelievedTogether checks what many paths with few next hops come to against the plain words
// of it, and that their order does not matter.
func TestPathsByWayOfOneHopAreBelievedTogether(t *testing.T) {
	all := statements()
	for range 5000 {
		told := make([]Hop, 1+rand.N(6))
		for i := range told {
			told[i] = Hop{
				Addr:     netip.AddrFrom4([4]byte{192, 0, 2, byte(rand.N(3))}),
				Receives: receives(rand.N(4)), Says: all[rand.N(len(all))],
			}
		}
		want := map[netip.Addr]Hop{}
		for _, h := range told {
			want[h.Addr] = believed(told, h.Addr)
		}
		for range 3 {
			rand.Shuffle(len(told), func(i, j int) { told[i], told[j] = told[j], told[i] })
			var got []Hop
			for _, h := range told {
				got = withHop(got, h)
			}
			if len(got) != len(want) {
				t.Fatalf("%+v: %d hops, want %d", told, len(got), len(want))
			}
			for _, h := range got {
				if h != want[h.Addr] {
					t.Fatalf("%+v\ncome to %+v\nwant    %+v", told, h, want[h.Addr])
				}
			}
		}
	}
}

// believed is the hop that all of told with that address come to.
func believed(told []Hop, addr netip.Addr) Hop {
	h := Hop{Addr: addr, Receives: Tunnels}
	agreed := map[v1alpha1.PoolMode]bool{}
	unsettled := false
	for _, o := range told {
		if o.Addr != addr {
			continue
		}
		h.Receives &= o.Receives
		if o.Says.Said {
			h.Says.Said = true
			h.Says.Sends |= o.Says.Sends
			h.Says.Mode = o.Says.Mode
			agreed[o.Says.Mode] = true
			unsettled = unsettled || !o.Says.Settled
		}
	}
	if len(agreed) > 1 {
		h.Says.Mode = ""
	}
	h.Says.Settled = h.Says.Said && !unsettled
	return h
}
