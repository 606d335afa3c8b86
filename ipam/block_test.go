package ipam_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/hoplite-net/hoplite/ipam"
)

// blockModel says in the plainest way which address comes next.
type blockModel struct {
	fresh, line []netip.Addr
	used        map[netip.Addr]bool
}

func newBlockModel(prefix netip.Prefix) *blockModel {
	m := &blockModel{used: make(map[netip.Addr]bool)}
	for addr := prefix.Addr(); prefix.Contains(addr); addr = addr.Next() {
		m.fresh = append(m.fresh, addr)
	}
	return m
}

func (m *blockModel) next() (netip.Addr, bool) {
	if all := slices.Concat(m.fresh, m.line); len(all) > 0 {
		return all[0], true
	}
	return netip.Addr{}, false
}

func (m *blockModel) use(addr netip.Addr) {
	same := func(x netip.Addr) bool { return x == addr }
	m.fresh, m.line = slices.DeleteFunc(m.fresh, same), slices.DeleteFunc(m.line, same)
	m.used[addr] = true
}

var blockPrefix = rapid.SampledFrom([]netip.Prefix{
	netip.MustParsePrefix("10.244.3.192/26"), netip.MustParsePrefix("10.244.3.7/32"), netip.MustParsePrefix("10.244.3.6/31"),
	netip.MustParsePrefix("10.244.16.0/23"), netip.MustParsePrefix("fd00:1::40/122"), netip.MustParsePrefix("fd00:1::ffff/128"),
	netip.MustParsePrefix("fd00:1::f000/116"),
})

func TestBlockGivesEachAddressOnceAndTheLastFreedLast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := blockPrefix.Draw(t, "prefix")
		block, err := ipam.NewBlock(prefix)
		if err != nil {
			t.Fatal(err)
		}
		model := newBlockModel(prefix)
		size := len(model.fresh)
		now := time.Unix(1_000_000, 0)
		anyAddr := func(t *rapid.T) netip.Addr {
			addr := prefix.Addr()
			for range rapid.IntRange(0, min(size, 40)).Draw(t, "offset") { // one beyond the end, at times
				addr = addr.Next()
			}
			return addr
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				want, ok := model.next()
				if next, _, nextOK := block.Next(); next != want || nextOK != ok {
					t.Fatalf("Next is %s, %t; want %s, %t", next, nextOK, want, ok)
				}
				if got, gotOK := block.Take(); got != want || gotOK != ok {
					t.Fatalf("Take gave %s, %t; want %s, %t", got, gotOK, want, ok)
				}
				if ok {
					model.use(want)
				}
			},
			"use": func(t *rapid.T) {
				addr := anyAddr(t)
				want := prefix.Contains(addr) && !model.used[addr]
				if got := block.Use(addr); got != want {
					t.Fatalf("Use(%s) is %t", addr, got)
				}
				if want {
					model.use(addr)
				}
			},
			"free": func(t *rapid.T) {
				addr := anyAddr(t)
				now = now.Add(time.Duration(rapid.IntRange(-5, 60).Draw(t, "seconds")) * time.Second)
				if got := block.Free(addr, now); got != model.used[addr] {
					t.Fatalf("Free(%s) is %t", addr, got)
				}
				if model.used[addr] {
					delete(model.used, addr)
					model.line = append(model.line, addr)
				}
			},
			"wait": func(t *rapid.T) {
				addr := anyAddr(t)
				want := slices.Contains(model.fresh, addr)
				if got := block.Wait(addr, now); got != want {
					t.Fatalf("Wait(%s) is %t", addr, got)
				}
				if want {
					model.fresh = slices.DeleteFunc(model.fresh, func(x netip.Addr) bool { return x == addr })
					model.line = append(model.line, addr)
				}
			},
			"": func(t *rapid.T) { checkBlock(t, block, model, size) },
		})
	})
}

func checkBlock(t *rapid.T, block *ipam.Block, model *blockModel, size int) {
	used := slices.Collect(block.UsedAddrs())
	if block.Size() != size || block.Used() != len(model.used) || len(used) != len(model.used) || !slices.IsSortedFunc(used, netip.Addr.Compare) {
		t.Fatalf("block has %d of %d in use, listed %v; want %v of %d", block.Used(), block.Size(), used, model.used, size)
	}
	var line []netip.Addr
	var last time.Time
	for addr, freed := range block.Waiting() {
		if freed.Before(last) {
			t.Fatalf("%s was freed %s, before the one ahead of it in line", addr, freed)
		}
		line, last = append(line, addr), freed
	}
	if !slices.Equal(line, model.line) || !block.LastFreed().Equal(last) {
		t.Fatalf("line is %v, last freed %s; want %v, %s", line, block.LastFreed(), model.line, last)
	}
}

func TestBlockRefusesRangesThatAreNone(t *testing.T) {
	for _, prefix := range []netip.Prefix{
		{}, netip.PrefixFrom(netip.MustParseAddr("10.0.0.1"), 26), netip.MustParsePrefix("10.0.0.0/19"),
		netip.MustParsePrefix("fd00::/115"), netip.MustParsePrefix("::ffff:10.0.0.0/122"),
	} {
		if _, err := ipam.NewBlock(prefix); err == nil {
			t.Errorf("%s was taken for a block", prefix)
		}
	}
}

func FuzzBlock(f *testing.F) {
	f.Add("10.0.0.0/30", []byte{0, 0, 1, 0, 0, 0})
	f.Add("fd00::/126", []byte{0, 9, 1, 5})
	f.Fuzz(func(t *testing.T, text string, operations []byte) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return
		}
		block, err := ipam.NewBlock(prefix)
		if err != nil {
			return
		}
		used := make(map[netip.Addr]bool)
		now := time.Unix(0, 0)
		for _, op := range operations {
			now = now.Add(time.Second)
			if op%2 == 0 {
				addr, ok := block.Take()
				if ok == (len(used) == block.Size()) || ok && (used[addr] || !prefix.Contains(addr)) {
					t.Fatalf("took %s (%t) from %s with %d used", addr, ok, prefix, len(used))
				}
				if ok {
					used[addr] = true
				}
				continue
			}
			addr := prefix.Addr()
			for range op / 2 {
				addr = addr.Next()
			}
			if block.Free(addr, now) != used[addr] {
				t.Fatalf("Free(%s) is wrong, used: %t", addr, used[addr])
			}
			delete(used, addr)
		}
	})
}
