package ipam

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"time"
)

// maxHostBits bounds a block to 4096 addresses, as the API does (/20, /116).
const maxHostBits = 12

// Block is the bookkeeping of one block. An address is fresh (not given out as
// far as anyone knows), used, or waiting in line since it was freed. Fresh ones
// are given out first, in ascending order, then those in line, the one freed
// first before the others. Every operation takes constant time (Take: on
// average). It is not safe for concurrent use.
type Block struct {
	prefix netip.Prefix
	cells  []cell // by offset; the last one is the head of the line, a ring
	fresh  int    // no offset below is fresh
	used   int
}

type cell struct {
	state      cellState
	prev, next int32     // neighbours in line
	freed      time.Time // when waiting
}

type cellState uint8

const (
	cellFresh cellState = iota
	cellUsed
	cellWaiting
)

// NewBlock is a block nobody has used yet.
func NewBlock(prefix netip.Prefix) (*Block, error) {
	if !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6() {
		return nil, fmt.Errorf("block %s is not a network address", prefix)
	}
	bits := prefix.Addr().BitLen() - prefix.Bits()
	if bits > maxHostBits {
		return nil, fmt.Errorf("block %s has more than %d addresses", prefix, 1<<maxHostBits)
	}
	size := 1 << bits
	b := &Block{prefix: prefix, cells: make([]cell, size+1)}
	b.cells[size].prev, b.cells[size].next = int32(size), int32(size)
	return b, nil
}

// Prefix is the block's range.
func (b *Block) Prefix() netip.Prefix { return b.prefix }

// Size is the number of addresses in the block, all of which can be used.
func (b *Block) Size() int { return len(b.cells) - 1 }

// Used is the number of addresses in use.
func (b *Block) Used() int { return b.used }

// Next is the address Take would give; ok is false when all are in use. freed is
// when it was freed, the zero time for an address that is fresh.
func (b *Block) Next() (addr netip.Addr, freed time.Time, ok bool) {
	i, ok := b.first()
	if !ok {
		return netip.Addr{}, time.Time{}, false
	}
	return b.at(i), b.cells[i].freed, true
}

// Take gives out the next address; ok is false when all are in use.
func (b *Block) Take() (addr netip.Addr, ok bool) {
	i, ok := b.first()
	if !ok {
		return netip.Addr{}, false
	}
	b.use(i)
	return b.at(i), true
}

// Use marks one address as used, whatever its turn; false when it is not of
// this block or used already.
func (b *Block) Use(addr netip.Addr) bool {
	i, ok := b.offset(addr)
	if !ok || b.cells[i].state == cellUsed {
		return false
	}
	b.use(i)
	return true
}

// Free puts a used address at the end of the line; false when it was not in use.
func (b *Block) Free(addr netip.Addr, now time.Time) bool {
	i, ok := b.offset(addr)
	if !ok || b.cells[i].state != cellUsed {
		return false
	}
	b.used--
	b.wait(i, now)
	return true
}

// Wait puts a fresh address at the end of the line, as one freed at that time
// before a restart; false when it is not fresh. Oldest first, please.
func (b *Block) Wait(addr netip.Addr, freed time.Time) bool {
	i, ok := b.offset(addr)
	if !ok || b.cells[i].state != cellFresh {
		return false
	}
	b.wait(i, freed)
	return true
}

// LastFreed is when the address at the end of the line was freed; zero when none waits.
func (b *Block) LastFreed() time.Time {
	return b.cells[b.cells[b.Size()].prev].freed
}

// UsedAddrs are the addresses in use, ascending.
func (b *Block) UsedAddrs() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for i := range b.Size() {
			if b.cells[i].state == cellUsed && !yield(b.at(i)) {
				return
			}
		}
	}
}

// Waiting are the addresses in line, in its order, and when each was freed.
func (b *Block) Waiting() iter.Seq2[netip.Addr, time.Time] {
	return func(yield func(netip.Addr, time.Time) bool) {
		for i := b.cells[b.Size()].next; int(i) != b.Size(); i = b.cells[i].next {
			if !yield(b.at(int(i)), b.cells[i].freed) {
				return
			}
		}
	}
}

// first is the offset whose turn it is.
func (b *Block) first() (int, bool) {
	for ; b.fresh < b.Size(); b.fresh++ {
		if b.cells[b.fresh].state == cellFresh {
			return b.fresh, true
		}
	}
	i := int(b.cells[b.Size()].next)
	return i, i != b.Size()
}

func (b *Block) use(i int) {
	c := &b.cells[i]
	if c.state == cellWaiting {
		b.cells[c.prev].next, b.cells[c.next].prev = c.next, c.prev
	}
	*c = cell{state: cellUsed}
	b.used++
}

// wait appends to the line. The line is kept in order of time even when the
// clock was set back meanwhile.
func (b *Block) wait(i int, freed time.Time) {
	head := int32(b.Size())
	last := b.cells[head].prev
	if last != head && freed.Before(b.cells[last].freed) {
		freed = b.cells[last].freed
	}
	b.cells[i] = cell{state: cellWaiting, prev: last, next: head, freed: freed}
	b.cells[last].next, b.cells[head].prev = int32(i), int32(i)
}

// at and offset rely on a block's host bits lying within the last two bytes.
func (b *Block) at(i int) netip.Addr {
	if b.prefix.Addr().Is4() {
		raw := b.prefix.Addr().As4()
		binary.BigEndian.PutUint16(raw[2:], binary.BigEndian.Uint16(raw[2:])|uint16(i))
		return netip.AddrFrom4(raw)
	}
	raw := b.prefix.Addr().As16()
	binary.BigEndian.PutUint16(raw[14:], binary.BigEndian.Uint16(raw[14:])|uint16(i))
	return netip.AddrFrom16(raw)
}

func (b *Block) offset(addr netip.Addr) (int, bool) {
	if !b.prefix.Contains(addr) { // false for an address with a zone
		return 0, false
	}
	raw := addr.AsSlice()
	return int(binary.BigEndian.Uint16(raw[len(raw)-2:])) & (b.Size() - 1), true
}
