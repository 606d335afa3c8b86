package v1alpha1

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

// The name is the lock: two ranges with one name, or one with two, would be two owners.
func FuzzBlockNamesStandForOneRange(f *testing.F) {
	for _, seed := range []string{"10.244.0.0/26", "255.255.255.255/32", "fd00:10:244::/122", "2001:db8:1:2:3:4:5:600/120", "fd00::a00:0/116"} {
		prefix := netip.MustParsePrefix(seed)
		f.Add(prefix.Addr().AsSlice(), prefix.Bits())
	}
	f.Fuzz(func(t *testing.T, bytes []byte, bits int) {
		addr, ok := netip.AddrFromSlice(bytes)
		if !ok || addr.Is4In6() {
			return
		}
		block, err := addr.Prefix(bits)
		// An IPv6 range that begins with zeros is reserved, and no pool may have it.
		if err != nil || strings.HasPrefix(block.String(), ":") {
			return
		}
		name := BlockName(block)
		if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
			t.Fatalf("%s is named %s, which the API refuses: %v", block, name, problems)
		}
		if got, ok := ParseBlockName(name); !ok || got != block {
			t.Fatalf("%s is named %s, which stands for %s (%t)", block, name, got, ok)
		}
	})
}

func FuzzParseBlockName(f *testing.F) {
	for _, seed := range []string{"10-244-0-0-26", "fd00---122", "10-244-0-1-26", "-26", "1-2-3-4-5-6-7-8-120", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if block, ok := ParseBlockName(name); ok && (BlockName(block) != name || block != block.Masked()) {
			t.Fatalf("%q is taken for %s, whose name is %s", name, block, BlockName(block))
		}
	})
}

func TestDefaultsHoldWhereNothingIsSaid(t *testing.T) {
	size := int32(28)
	for _, c := range []struct {
		pool IPPoolSpec
		want int
	}{
		{IPPoolSpec{CIDR: "10.0.0.0/8"}, 26},
		{IPPoolSpec{CIDR: "fd00::/48"}, 122},
		{IPPoolSpec{CIDR: "10.0.0.0/8", BlockSize: &size}, 28},
	} {
		if got := (&IPPool{Spec: c.pool}).BlockBits(); got != c.want {
			t.Errorf("%+v: blocks of /%d, want /%d", c.pool, got, c.want)
		}
	}
	none := (*BGPConfiguration)(nil).Resolved()
	if none.ASNumber != 64512 || none.ListenPort != 179 || !*none.NodeMesh {
		t.Errorf("without a BGPConfiguration: %+v", none)
	}
	off := false
	some := (&BGPConfiguration{Spec: BGPConfigurationSpec{ASNumber: 65001, ListenPort: 1179, NodeMesh: &off}}).Resolved()
	if some.ASNumber != 65001 || some.ListenPort != 1179 || *some.NodeMesh {
		t.Errorf("what is said does not hold: %+v", some)
	}
}
