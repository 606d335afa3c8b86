package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// ensureAddrs gives a device exactly the addresses wanted and returns those it
// has. What it lacks is added before anything is removed: with a device's last
// IPv4 address the kernel removes the routes through it.
func (d *Devices) ensureAddrs(ctx context.Context, l link, wanted []netip.Addr) (have []netip.Prefix, err error) {
	want := make([]netip.Prefix, 0, len(wanted))
	for _, a := range wanted {
		want = append(want, netip.PrefixFrom(a, a.BitLen()))
	}
	if have, err = d.listAddrs(ctx, l.index); err != nil {
		return nil, err
	}
	add, remove := without(want, have), without(have, want)
	if len(add)+len(remove) == 0 {
		return have, nil
	}
	if err = d.exchangeAddrs(addAddr, add, l); err == nil {
		err = d.exchangeAddrs(removeAddr, remove, l)
	}
	have, listErr := d.listAddrs(ctx, l.index)
	if err == nil && listErr == nil {
		d.log.Info("tunnel device's addresses changed", "device", l.name, "added", add, "removed", remove)
		// One with another prefix length was in the way, and has gone now.
		missing := without(want, have)
		return append(have, missing...), d.exchangeAddrs(addAddr, missing, l)
	}
	return have, errors.Join(err, listErr)
}

func (d *Devices) exchangeAddrs(message func(netip.Prefix, link) *request, all []netip.Prefix, l link) error {
	requests := make([]*request, 0, len(all))
	for _, p := range all {
		requests = append(requests, message(p, l))
	}
	return d.exchange(requests...)
}

// without is a without what b has.
func without(a, b []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(a), func(p netip.Prefix) bool { return slices.Contains(b, p) })
}

// listAddrs lists a device's addresses of both families. Kernels before 4.20
// list all devices'.
func (d *Devices) listAddrs(ctx context.Context, index int) (found []netip.Prefix, err error) {
	var malformed error
	err = d.dump(ctx, "list addresses", unix.RTM_GETADDR, ifaddr(netip.Prefix{}, 0, index),
		func() { found, malformed = nil, nil },
		func(body []byte) {
			a, err := rtnl.ParseAddr(body)
			switch {
			case err != nil:
				malformed = err
			case a.Index == index:
				found = append(found, a.Prefix)
			}
		})
	if err == nil {
		err = malformed
	}
	return found, err
}

// addAddr adds p with global scope: source address selection takes for a route
// with a gateway no address of a narrower one. In IPv6 there is no duplicate
// address detection, which would ask nobody, and no route to the prefix beside
// the one that makes the address local.
func addAddr(p netip.Prefix, l link) *request {
	flags := uint32(unix.IFA_F_PERMANENT)
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	}
	return ask(fmt.Sprintf("add address %s to %s", p, l.name), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifaddr(p, byte(flags), l.index)).
		attr(unix.IFA_LOCAL, p.Addr().AsSlice()).
		attr(unix.IFA_ADDRESS, p.Addr().AsSlice()).
		u32(unix.IFA_FLAGS, flags).
		allow(unix.EEXIST)
}

func removeAddr(p netip.Prefix, l link) *request {
	return ask(fmt.Sprintf("remove address %s from %s", p, l.name), unix.RTM_DELADDR, 0, ifaddr(p, 0, l.index)).
		attr(unix.IFA_LOCAL, p.Addr().AsSlice()).
		attr(unix.IFA_ADDRESS, p.Addr().AsSlice()).
		allow(unix.EADDRNOTAVAIL)
}

// ifaddr is struct ifaddrmsg; of no prefix, of no family.
func ifaddr(p netip.Prefix, flags byte, index int) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	if p.IsValid() {
		b[0], b[1], b[2] = family(p.Addr()), byte(p.Bits()), flags
	}
	order.PutUint32(b[4:], uint32(index))
	return b
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
