package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"
	"math/bits"
	"net/netip"
)

// order is the sequence in which a node tries the blocks of a pool. Each node
// has its own start and stride, so that nodes that start together do not
// all try the same block; each sequence goes through every block once.
type order struct {
	pool          Pool
	start, stride uint64
	count         uint64 // a power of two, hence coprime to the odd stride
}

// maxBlockBits bounds the search in pools of astronomic size (IPv6).
const maxBlockBits = 62

func newOrder(node string, pool Pool) order {
	sum := sha256.Sum256([]byte(node + " " + pool.Prefix.String()))
	o := order{
		pool:   pool,
		start:  binary.BigEndian.Uint64(sum[0:]),
		stride: binary.BigEndian.Uint64(sum[8:]) | 1,
		count:  1 << min(pool.BlockBits-pool.Prefix.Bits(), maxBlockBits),
	}
	return o
}

// all is every block of the pool, in this node's order.
func (o order) all() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for i := range o.count {
			if !yield(o.block((o.start + i*o.stride) & (o.count - 1))) {
				return
			}
		}
	}
}

// free is every block that overlaps none of those claimed, in this node's order.
func (o order) free(claimed []netip.Prefix) iter.Seq[netip.Prefix] {
	taken := make(map[netip.Prefix]struct{}, len(claimed))
	var larger []netip.Prefix
	for _, c := range claimed {
		if c.Bits() < o.pool.BlockBits {
			larger = append(larger, c)
		} else if block, err := c.Addr().Prefix(o.pool.BlockBits); err == nil {
			taken[block] = struct{}{}
		}
	}
	return func(yield func(netip.Prefix) bool) {
		for block := range o.all() {
			if _, ok := taken[block]; ok || overlapsAny(larger, block) {
				continue
			}
			if !yield(block) {
				return
			}
		}
	}
}

func overlapsAny(prefixes []netip.Prefix, p netip.Prefix) bool {
	for _, q := range prefixes {
		if q.Overlaps(p) {
			return true
		}
	}
	return false
}

// block is the pool's block of that index.
func (o order) block(index uint64) netip.Prefix {
	base := o.pool.Prefix.Addr()
	shift := base.BitLen() - o.pool.BlockBits // at most maxHostBits
	if base.Is4() {
		raw := base.As4()
		binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(raw[:])|uint32(index<<shift))
		return netip.PrefixFrom(netip.AddrFrom4(raw), o.pool.BlockBits)
	}
	raw := base.As16()
	low, carry := bits.Add64(binary.BigEndian.Uint64(raw[8:]), index<<shift, 0)
	high := binary.BigEndian.Uint64(raw[:8]) + carry + index>>(64-shift)
	binary.BigEndian.PutUint64(raw[:8], high)
	binary.BigEndian.PutUint64(raw[8:], low)
	return netip.PrefixFrom(netip.AddrFrom16(raw), o.pool.BlockBits)
}
