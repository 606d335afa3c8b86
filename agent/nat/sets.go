package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/bgp"
)

// sets are the ipsets of one family, all of type hash:net: looking an address
// up costs the same with 10 entries as with 10,000.
type sets struct {
	s                           *Syncer
	family                      uint8
	masq, pools, cluster, nodes string
}

const (
	setType = "hash:net"
	// maxEntries bounds a set; the kernel's own default.
	maxEntries = 65536
)

func newSets(s *Syncer, v6 bool) sets {
	if v6 {
		return sets{s, unix.AF_INET6, "hoplite-masq-v6", "hoplite-pools-v6", "hoplite-cluster-v6", "hoplite-nodes-v6"}
	}
	return sets{s, unix.AF_INET, "hoplite-masq-v4", "hoplite-pools-v4", "hoplite-cluster-v4", "hoplite-nodes-v4"}
}

type entrySet map[netip.Prefix]struct{}

// entries are what the sets of one family should hold, and the tunnels that its
// rules are to be about. Without tunnels there is no set of nodes.
type entries struct {
	masq, pools, cluster, nodes entrySet
	tunnels                     bgp.Encapsulations
}

// wantedEntries are those of IPv4 and IPv6. Entries that overlap are fine.
func wantedEntries(d Desired) ([2]entries, error) {
	var all [2]entries
	for i := range all {
		all[i] = entries{entrySet{}, entrySet{}, entrySet{}, entrySet{}, d.Tunnels & [2]bgp.Encapsulations{tunnels4, tunnels6}[i]}
	}
	for _, p := range d.Pools {
		if !p.Prefix.IsValid() || p.Prefix.Bits() == 0 || p.Prefix.Addr().Is4In6() {
			return all, fmt.Errorf("pool %s: want an IPv4 or IPv6 prefix of length 1 or more", p.Prefix)
		}
		e := all[index(p.Prefix.Addr())]
		prefix := p.Prefix.Masked()
		e.pools[prefix], e.cluster[prefix] = struct{}{}, struct{}{}
		if p.NATOutgoing {
			e.masq[prefix] = struct{}{}
		}
	}
	for _, a := range d.Nodes {
		if a = a.Unmap().WithZone(""); a.IsValid() {
			e, entry := all[index(a)], netip.PrefixFrom(a, a.BitLen())
			e.cluster[entry], e.nodes[entry] = struct{}{}, struct{}{}
		}
	}
	return all, nil
}

func index(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// sync writes the difference between the sets and want. Additions come first
// and go from what spares packets masquerading to what makes it happen;
// deletions go the other way.
func (s sets) sync(want entries) error {
	type change struct {
		set      string
		add, del []netip.Prefix
	}
	changes := []change{{set: s.cluster}, {set: s.pools}, {set: s.masq}}
	wants := []entrySet{want.cluster, want.pools, want.masq}
	if want.tunnels != 0 {
		changes, wants = append(changes, change{set: s.nodes}), append(wants, want.nodes)
	}
	for i, w := range wants {
		c := &changes[i]
		have, exists, err := s.read(c.set)
		if err != nil {
			return err
		}
		if !exists {
			if err := s.create(c.set); err != nil {
				return err
			}
		}
		c.add, c.del = missing(w, have), missing(have, w)
	}
	for _, c := range changes {
		for _, p := range c.add {
			if err := s.s.nl.IpsetAdd(c.set, entry(p)); err != nil && !isErr(err, nl.IPSET_ERR_EXIST) {
				return fmt.Errorf("add %s to ipset %s: %w", p, c.set, err)
			}
			s.s.wrote("ipset entry added", "set", c.set, "entry", p)
		}
	}
	for i := len(changes) - 1; i >= 0; i-- {
		c := changes[i]
		for _, p := range c.del {
			if err := s.s.nl.IpsetDel(c.set, entry(p)); err != nil && !isErr(err, nl.IPSET_ERR_EXIST) {
				return fmt.Errorf("delete %s from ipset %s: %w", p, c.set, err)
			}
			s.s.wrote("ipset entry deleted", "set", c.set, "entry", p)
		}
	}
	return nil
}

// read returns a set's entries.
func (s sets) read(name string) (have entrySet, exists bool, err error) {
	typ, family, have, err := s.dump(name)
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read ipset %s: %w", name, err)
	}
	if typ != setType || family != s.family {
		return nil, false, fmt.Errorf("ipset %s is of type %s, not ours (%s): remove it with ipset destroy %s", name, typ, setType, name)
	}
	return have, true, nil
}

func (s sets) create(name string) error {
	err := s.s.nl.IpsetCreate(name, setType, netlink.IpsetCreateOptions{Family: s.family, MaxElements: maxEntries})
	if err != nil {
		return fmt.Errorf("create ipset %s: %w", name, err)
	}
	s.s.wrote("ipset created", "set", name)
	return nil
}

// destroy removes sets. The kernel gives up nft rules' references to them
// a moment after the rules are gone, and says nothing when it has.
func (s sets) destroy(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, name := range names {
		for {
			err := s.s.nl.IpsetDestroy(name)
			if err == nil {
				s.s.wrote("ipset destroyed", "set", name)
				break
			}
			if errors.Is(err, unix.ENOENT) {
				break
			}
			if !isErr(err, nl.IPSET_ERR_BUSY) {
				return fmt.Errorf("destroy ipset %s: %w", name, err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("destroy ipset %s: a rule still uses it: %w", name, ctx.Err())
			case <-tick.C:
			}
		}
	}
	return nil
}

func entry(p netip.Prefix) *netlink.IPSetEntry {
	return &netlink.IPSetEntry{IP: p.Addr().AsSlice(), CIDR: uint8(p.Bits())}
}

func missing(from, in entrySet) []netip.Prefix {
	var out []netip.Prefix
	for p := range from {
		if _, ok := in[p]; !ok {
			out = append(out, p)
		}
	}
	return out
}

func isErr(err error, code int) bool {
	var e nl.IPSetError
	return errors.As(err, &e) && int(e) == code
}
