package ipam

import (
	"net/netip"
	"testing"
)

// FuzzOrder: whatever the pool, a node's order goes through blocks of it, each once, and skips what is claimed.
func FuzzOrder(f *testing.F) {
	f.Add("node-1", "10.244.0.0/16", 26, "10.244.64.0/18")
	f.Add("node-2", "fd00::/48", 122, "fd00::/120")
	f.Add("", "10.0.0.0/30", 32, "10.0.0.1/32")
	f.Add("x", "8000::/1", 128, "8000::/128")
	f.Fuzz(func(t *testing.T, node, cidr string, blockBits int, claimedCIDR string) {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil || prefix != prefix.Masked() || prefix.Addr().Is4In6() ||
			blockBits < prefix.Bits() || blockBits > prefix.Addr().BitLen() || blockBits < prefix.Addr().BitLen()-maxHostBits {
			return
		}
		claimed, _ := netip.ParsePrefix(claimedCIDR)
		o := newOrder(node, Pool{Name: "p", Prefix: prefix, BlockBits: blockBits})
		seen := make(map[netip.Prefix]bool)
		for block := range o.all() {
			if block != block.Masked() || block.Bits() != blockBits || !prefix.Contains(block.Addr()) || seen[block] {
				t.Fatalf("%s is no block of %s, or comes twice", block, prefix)
			}
			if seen[block] = true; len(seen) == 2000 {
				break
			}
		}
		if host := blockBits - prefix.Bits(); host < 11 && len(seen) != 1<<host {
			t.Fatalf("%d of %d blocks come up", len(seen), 1<<host)
		}
		if !claimed.IsValid() || o.count > 1<<16 {
			return
		}
		for block := range o.free([]netip.Prefix{claimed.Masked()}) {
			if block.Overlaps(claimed) {
				t.Fatalf("%s is taken for free, though %s is claimed", block, claimed)
			}
		}
	})
}

func TestNodesStartTheirSearchInDifferentPlaces(t *testing.T) {
	pool := Pool{Name: "p", Prefix: netip.MustParsePrefix("10.0.0.0/8"), BlockBits: 26}
	first := make(map[netip.Prefix]int)
	for i := range 1000 {
		for block := range newOrder("node-"+netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String(), pool).all() {
			first[block]++
			break
		}
	}
	if len(first) < 990 { // 262,144 blocks: two collisions are to be expected
		t.Errorf("1000 nodes begin at %d different blocks", len(first))
	}
}
