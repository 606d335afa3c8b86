package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// entries are what hop.vxlan knows of the other nodes.
type entries struct {
	index int // of the device
	// known: they are what the kernel has, as far as it has told. Not so while
	// they are being listed: a change told of then may be in the list or not.
	known   bool
	listing bool
	// fdb is where the packets for a MAC are sent. An invalid address: the kernel
	// has something else there than we write.
	fdb map[mac]netip.Addr
	// neighbours are the permanent ones.
	neighbours map[netip.Addr]mac
}

// entries are those that d asks for.
func (d Desired) entries(ipv6 bool) (entries, error) {
	want := entries{fdb: make(map[mac]netip.Addr, len(d.Peers)), neighbours: make(map[netip.Addr]mac, len(d.Peers))}
	var failures []error
	for _, p := range d.Peers {
		if p.Underlay.BitLen() == d.Local.BitLen() { // else invalid, or of the other family
			failures = append(failures, want.add(p, ipv6))
		}
	}
	return want, errors.Join(failures...)
}

// add adds those of a peer, unless another has its MAC.
func (e entries) add(p Peer, ipv6 bool) error {
	m := macOf(p.Underlay)
	if other, taken := e.fdb[m]; taken && other != p.Underlay {
		return fmt.Errorf("nodes %s and %s have by chance the same MAC %s: give one another address", other, p.Underlay, m)
	}
	e.fdb[m] = p.Underlay
	for _, hop := range p.NextHops {
		if hop.Is4() || ipv6 {
			e.neighbours[hop] = m
		}
	}
	return nil
}

// adopt has the device with this index be the one that has entries.
func (d *Devices) adopt(index int) error {
	d.mu.Lock()
	same := d.entries.index == index
	d.mu.Unlock()
	if same {
		return nil
	}
	// From here on changes are heard, so that a list made after it stays true.
	if err := d.listener.follow(index); err != nil {
		return err
	}
	d.mu.Lock()
	d.entries = entries{index: index}
	d.mu.Unlock()
	return nil
}

// forgetEntries has them listed again.
func (d *Devices) forgetEntries() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries.known = false
}

// ensureEntries gives hop.vxlan an entry for each peer, and no others.
func (d *Devices) ensureEntries(ctx context.Context, l link, desired Desired) error {
	want, collision := desired.entries(l.hasIPv6() && l.setting6(conf6Disable) == 0)
	if err := d.adopt(l.index); err != nil {
		return errors.Join(err, collision)
	}
	d.mu.Lock()
	known := d.entries.known
	d.mu.Unlock()
	if !known {
		if err := d.listEntries(ctx, l.index); err != nil {
			return errors.Join(err, collision)
		}
	}
	d.mu.Lock()
	requests := want.changes(d.entries, l.index)
	// Before they are written: the kernel tells of FDB entries that we wrote, too.
	d.entries.fdb, d.entries.neighbours = want.fdb, want.neighbours
	d.mu.Unlock()
	if !known && len(requests) > 0 {
		d.log.Info("hop.vxlan's neighbours and FDB entries brought in line", "changes", len(requests))
	}
	err := d.exchange(requests...)
	if err != nil {
		d.forgetEntries()
	}
	return errors.Join(err, collision)
}

// changes are the messages that lead from have to e. First comes where a MAC is,
// then who has it; the other way round for what goes.
func (e entries) changes(have entries, index int) []*request {
	var requests []*request
	for m, to := range e.fdb {
		old, there := have.fdb[m]
		if there && !old.IsValid() {
			requests = append(requests, deleteFDB(m, index))
		}
		if old != to {
			requests = append(requests, setFDB(m, to, index))
		}
	}
	for hop, m := range e.neighbours {
		if old, there := have.neighbours[hop]; !there || old != m {
			requests = append(requests, setNeighbour(hop, m, index))
		}
	}
	for hop := range have.neighbours {
		if _, wanted := e.neighbours[hop]; !wanted {
			requests = append(requests, deleteNeighbour(hop, index))
		}
	}
	for m := range have.fdb {
		if _, wanted := e.fdb[m]; !wanted {
			requests = append(requests, deleteFDB(m, index))
		}
	}
	return requests
}

// listEntries reads what the device has.
func (d *Devices) listEntries(ctx context.Context, index int) error {
	d.mu.Lock()
	d.entries.known, d.entries.listing = true, true
	d.mu.Unlock()
	found := entries{}
	take := func(body []byte) {
		if n, ok := parseNeighbour(body); ok && n.index == index {
			found.take(n)
		}
	}
	reset := func() { found = entries{fdb: make(map[mac]netip.Addr), neighbours: make(map[netip.Addr]mac)} }
	err := d.dump(ctx, "list FDB entries of hop.vxlan", unix.RTM_GETNEIGH, onDevice(unix.AF_BRIDGE, index), reset, take)
	if err == nil {
		fdb := found.fdb
		err = d.dump(ctx, "list neighbours of hop.vxlan", unix.RTM_GETNEIGH, onDevice(unix.AF_UNSPEC, index), reset, take)
		found.fdb = fdb
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries.listing = false
	if err != nil {
		d.entries.known = false
		return err
	}
	d.entries.fdb, d.entries.neighbours = found.fdb, found.neighbours
	return nil
}

// take adds one that was listed.
func (e entries) take(n neighbour) {
	switch {
	case n.fdb:
		to := n.to
		if _, second := e.fdb[n.mac]; second || !n.plain || !n.permanent {
			to = netip.Addr{}
		}
		e.fdb[n.mac] = to
	case n.permanent:
		e.neighbours[n.to] = n.mac
	}
}

// expects says whether a change that the kernel tells of leaves things as they
// are in e.
func (e entries) expects(n neighbour, deleted bool) bool {
	if n.fdb {
		to, have := e.fdb[n.mac]
		// Linux 6.12 still sends a second message after each, without an address.
		same := !n.to.IsValid() || to == n.to && n.plain && n.permanent
		return have != deleted && (!have || same)
	}
	m, have := e.neighbours[n.to]
	if deleted || !n.permanent {
		return !have
	}
	return have && m == n.mac
}

// neighbour is an RTM_NEWNEIGH or RTM_DELNEIGH: to is reached by mac, or, in the
// FDB, what is for mac is sent to the node with the address to.
type neighbour struct {
	index     int
	fdb       bool
	to        netip.Addr
	mac       mac
	permanent bool
	plain     bool // there is nothing else to the FDB entry, such as another VNI
}

func parseNeighbour(body []byte) (neighbour, bool) {
	if len(body) < unix.SizeofNdMsg {
		return neighbour{}, false
	}
	n := neighbour{
		index:     int(int32(order.Uint32(body[4:]))),
		fdb:       body[0] == unix.AF_BRIDGE,
		permanent: order.Uint16(body[8:])&unix.NUD_PERMANENT != 0,
		plain:     true,
	}
	for kind, value := range rtnl.Attributes(body[unix.SizeofNdMsg:]) {
		switch kind {
		case unix.NDA_DST:
			n.to, _ = netip.AddrFromSlice(value)
		case unix.NDA_LLADDR:
			copy(n.mac[:], value)
		case unix.NDA_CACHEINFO, unix.NDA_PROBES:
		case unix.NDA_LINK_NETNSID: // which the kernel only says
		default:
			n.plain = false
		}
	}
	return n, n.fdb || n.to.IsValid()
}

// onDevice asks for those of one device; kernels before 4.20 list all.
func onDevice(family byte, index int) []byte {
	return ask("", 0, 0, ndmsg(family, 0, 0, 0)).u32(unix.NDA_IFINDEX, uint32(index)).msg[unix.SizeofNlMsghdr:]
}

// ndmsg is struct ndmsg.
func ndmsg(family byte, index int, state uint16, flags byte) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	order.PutUint32(b[4:], uint32(index))
	order.PutUint16(b[8:], state)
	b[10] = flags
	return b
}

func setFDB(m mac, to netip.Addr, index int) *request {
	return ask(fmt.Sprintf("add FDB entry %s dst %s to hop.vxlan", m, to), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		ndmsg(unix.AF_BRIDGE, index, unix.NUD_PERMANENT|unix.NUD_NOARP, unix.NTF_SELF)).
		attr(unix.NDA_LLADDR, m[:]).
		attr(unix.NDA_DST, to.AsSlice())
}

// deleteFDB deletes a MAC's entry, wherever it leads.
func deleteFDB(m mac, index int) *request {
	return ask(fmt.Sprintf("delete FDB entry %s of hop.vxlan", m), unix.RTM_DELNEIGH, 0, ndmsg(unix.AF_BRIDGE, index, 0, unix.NTF_SELF)).
		attr(unix.NDA_LLADDR, m[:]).
		allow(unix.ENOENT)
}

func setNeighbour(hop netip.Addr, m mac, index int) *request {
	return ask(fmt.Sprintf("add neighbour %s lladdr %s to hop.vxlan", hop, m), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		ndmsg(family(hop), index, unix.NUD_PERMANENT, 0)).
		attr(unix.NDA_DST, hop.AsSlice()).
		attr(unix.NDA_LLADDR, m[:])
}

func deleteNeighbour(hop netip.Addr, index int) *request {
	return ask(fmt.Sprintf("delete neighbour %s of hop.vxlan", hop), unix.RTM_DELNEIGH, 0, ndmsg(family(hop), index, 0, 0)).
		attr(unix.NDA_DST, hop.AsSlice()).
		allow(unix.ENOENT)
}
