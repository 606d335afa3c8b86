package tunnel

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/hoplite-net/hoplite/bgp"
)

func TestNames(t *testing.T) {
	for kind, name := range map[bgp.Encapsulation]string{bgp.IPIP: "hop.ipip", bgp.VXLAN: "hop.vxlan", bgp.Native: ""} {
		if Name(kind) != name {
			t.Errorf("%v is named %q", kind, Name(kind))
		}
		if got, ok := KindOf(name); got != kind || ok != (name != "") {
			t.Errorf("%q is of kind %v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"hop0123456789a", "hop.", "hop.vxlan0", "tunl0", "eth0"} {
		if kind, ok := KindOf(name); ok {
			t.Errorf("%q is taken for %v", name, kind)
		}
	}
}

func TestOverheads(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		kind     bgp.Encapsulation
		underlay netip.Addr
		want     int
	}{
		{bgp.Native, v4, 0},
		{bgp.Native, v6, 0},
		{bgp.IPIP, v4, 20},
		{bgp.VXLAN, v4, 50},
		{bgp.VXLAN, netip.AddrFrom16(v4.As16()), 50},
		{bgp.VXLAN, v6, 70},
	} {
		if got := Overhead(c.kind, c.underlay); got != c.want {
			t.Errorf("%v over %v: %d bytes, want %d", c.kind, c.underlay, got, c.want)
		}
	}
}

// TestMACsAreWhatOtherVersionsThink: nodes work them out for each other.
func TestMACsAreWhatOtherVersionsThink(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":        "0a:68:c0:00:02:01",
		"::ffff:192.0.2.1": "0a:68:c0:00:02:01",
		"0.0.0.0":          "0a:68:00:00:00:00",
		"255.255.255.255":  "0a:68:ff:ff:ff:ff",
		"2001:db8::1":      "1e:03:d7:e1:ca:9d",
		"fd00::1":          "6a:46:5f:2b:de:cd",
	} {
		if got := MAC(netip.MustParseAddr(address)).String(); got != want {
			t.Errorf("%s has MAC %s, want %s", address, got, want)
		}
	}
}

func TestMACsOfIPv4NodesAreDistinct(t *testing.T) {
	address := rapid.Custom(func(t *rapid.T) netip.Addr {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "octets")))
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := address.Draw(t, "a"), address.Draw(t, "b")
		if equal := MAC(a).String() == MAC(b).String(); equal != (a == b) {
			t.Fatalf("%s has %s, %s has %s", a, MAC(a), b, MAC(b))
		}
	})
}

// TestMACsAreUnicastAndLocal, and of as many IPv6 nodes as anyone has, distinct.
func TestMACsAreUnicastAndLocal(t *testing.T) {
	seen := make(map[mac]netip.Addr)
	check := func(a netip.Addr) {
		m := macOf(a)
		if m[0]&3 != 2 {
			t.Fatalf("%s has MAC %s", a, m)
		}
		if other, taken := seen[m]; taken {
			t.Fatalf("%s and %s have the same MAC %s", a, other, m)
		}
		seen[m] = a
	}
	v4, v6 := netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("2001:db8::")
	for range 20_000 {
		v4, v6 = v4.Next(), v6.Next()
		check(v4)
		check(v6)
	}
}
