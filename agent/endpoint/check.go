package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Expected is what a CNI result said of an attachment. Empty fields are not
// compared; ours are.
type Expected struct {
	Key
	Netns        string
	HostName     string
	HostMAC      string
	ContainerMAC string
	Addrs        []netip.Addr
}

// Check compares an attachment with the kernel. What differs it returns all
// together, as ErrDiffers with a sentence each for people. Later plugins may
// add addresses, routes and queueing disciplines, and change the MTU and the
// pod's MAC: that is no difference. The MTU is not even expected to be what Add
// made it: see SetMTU.
func (p *Plumber) Check(ctx context.Context, x Expected) error {
	if err := x.Key.validate(); err != nil {
		return err
	}
	unlock, err := p.lock(ctx, x.Key)
	if err != nil {
		return err
	}
	defer unlock()
	var diffs differences
	if err := p.checkHost(x, &diffs); err != nil {
		return fmt.Errorf("check %s: %w", x.Key, err)
	}
	if err := p.checkPod(ctx, x, &diffs); err != nil {
		return fmt.Errorf("check %s: %w", x.Key, err)
	}
	if len(diffs) > 0 {
		return fmt.Errorf("%s: %w: %w (the agent repairs the node's side within a second; "+
			"if this stays, delete the pod so that it is made anew)", x.Key, ErrDiffers, errors.Join(diffs...))
	}
	return nil
}

// differences are found one by one.
type differences []error

func (d *differences) add(format string, args ...any) { *d = append(*d, fmt.Errorf(format, args...)) }

// checkHost compares the node's side.
func (p *Plumber) checkHost(x Expected, diffs *differences) error {
	name := HostIf(x.Key)
	if x.HostName != "" && x.HostName != name {
		diffs.add("the result names host interface %s, Hoplite's is %s", x.HostName, name)
	}
	l, err := p.link(name)
	if errors.Is(err, unix.ENODEV) {
		diffs.add("host interface %s is missing", name)
		return nil
	}
	if err != nil {
		return err
	}
	o, ok := parseAlias(l.alias)
	switch {
	case !ok || o.Key != x.Key:
		diffs.add("host interface %s has alias %q, which is not ours", name, l.alias)
	case o.Dying:
		diffs.add("host interface %s was deleted", name)
	}
	if !l.up {
		diffs.add("host interface %s is down", name)
	}
	if got := l.mac.String(); got != HostMAC {
		diffs.add("host interface %s has MAC %s, not %s", name, got, HostMAC)
	}
	if x.HostMAC != "" && !sameMAC(x.HostMAC, hostMAC) {
		diffs.add("the result has MAC %s for host interface %s, Hoplite's is %s", x.HostMAC, name, HostMAC)
	}
	for _, a := range x.Addrs {
		if ok && !containsAddr(o.Addrs, a) {
			diffs.add("address %s is not among those of host interface %s (%v)", a, name, o.Addrs)
		}
		if err := p.routeDiffers(a, l); err != nil {
			*diffs = append(*diffs, err)
		}
	}
	return p.checkSettings(l, x.Addrs, diffs)
}

// checkSettings compares the host veth's settings.
func (p *Plumber) checkSettings(l link, addrs []netip.Addr, diffs *differences) error {
	if got := l.setting(devconfProxyARP); got != "1" {
		diffs.add("net.ipv4.conf.%s.proxy_arp is %s, not 1", l.name, got)
	}
	if got := l.setting(devconfForwarding); got != "1" {
		diffs.add("net.ipv4.conf.%s.forwarding is %s, not 1", l.name, got)
	}
	switch got, err := p.home.readSysctl("ipv4/neigh/" + l.name + "/proxy_delay"); {
	case err != nil:
		return err
	case got != "0":
		diffs.add("net.ipv4.neigh.%s.proxy_delay is %s, not 0", l.name, got)
	}
	if _, v6 := families(addrs); !v6 {
		return nil
	}
	switch got, err := p.home.readSysctl("ipv6/conf/" + l.name + "/accept_ra"); {
	case err != nil:
		return err
	case got != "0":
		diffs.add("net.ipv6.conf.%s.accept_ra is %s, not 0", l.name, got)
	}
	return nil
}

// checkPod compares the pod's side.
func (p *Plumber) checkPod(ctx context.Context, x Expected, diffs *differences) error {
	ns, err := openNetns(x.Netns)
	if errors.Is(err, ErrNetnsGone) {
		diffs.add("%w", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := ns.rtnl()
	if err != nil {
		return err
	}
	defer c.Close()
	get := getLink(x.IfName)
	if err := c.exchange(get); errors.Is(err, unix.ENODEV) {
		diffs.add("interface %s is missing in %s", x.IfName, x.Netns)
		return nil
	} else if err != nil {
		return err
	}
	l, err := get.link()
	if err != nil {
		return err
	}
	if !l.up {
		diffs.add("interface %s in %s is down", x.IfName, x.Netns)
	}
	if x.ContainerMAC != "" && !sameMAC(x.ContainerMAC, l.mac) {
		diffs.add("interface %s in %s has MAC %s, not %s", x.IfName, x.Netns, l.mac, x.ContainerMAC)
	}
	return checkPodTables(ctx, c, l, x, diffs)
}

// checkPodTables compares the pod's addresses and routes.
func checkPodTables(ctx context.Context, c *rtnl, l link, x Expected, diffs *differences) error {
	have, err := c.addrs(ctx, l.index)
	if err != nil {
		return err
	}
	for _, a := range x.Addrs {
		if !containsAddr(have, a) {
			diffs.add("address %s is missing on %s in %s", a, x.IfName, x.Netns)
		}
	}
	paths, err := c.routes(ctx, l.index)
	if err != nil {
		return err
	}
	for _, r := range routes(x.Addrs) {
		if paths[r] {
			continue
		}
		if r.Gateway.IsValid() {
			diffs.add("route %s via %s dev %s is missing in %s", r.Dst, r.Gateway, x.IfName, x.Netns)
		} else {
			diffs.add("route %s dev %s is missing in %s", r.Dst, x.IfName, x.Netns)
		}
	}
	return nil
}

// addrs lists a link's addresses.
func (c *rtnl) addrs(ctx context.Context, index int) ([]netip.Addr, error) {
	h := make([]byte, unix.SizeofIfAddrmsg)
	order.PutUint32(h[4:], uint32(index))
	answers, err := c.dump(ctx, newRequest("list addresses", unix.RTM_GETADDR, 0, h))
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, b := range answers {
		// Without strict checking the kernel lists those of all links.
		if len(b) < unix.SizeofIfAddrmsg || int(order.Uint32(b[4:])) != index {
			continue
		}
		as := attrs(b[unix.SizeofIfAddrmsg:])
		v, ok := as[unix.IFA_LOCAL]
		if !ok {
			v = as[unix.IFA_ADDRESS]
		}
		if a, ok := netip.AddrFromSlice(v); ok {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// routes lists the routes of the main table out of a link.
func (c *rtnl) routes(ctx context.Context, index int) (map[Route]bool, error) {
	found := map[Route]bool{}
	for _, fam := range []byte{unix.AF_INET, unix.AF_INET6} {
		h := make([]byte, unix.SizeofRtMsg)
		h[0] = fam
		answers, err := c.dump(ctx, newRequest("list routes", unix.RTM_GETROUTE, 0, h))
		if err != nil {
			return nil, err
		}
		for _, b := range answers {
			if r, ok := parseRoute(b, index); ok {
				found[r] = true
			}
		}
	}
	return found, nil
}

// parseRoute reads a route of the main table, if it leads out of the link.
func parseRoute(b []byte, index int) (Route, bool) {
	if len(b) < unix.SizeofRtMsg || b[4] != unix.RT_TABLE_MAIN || b[7] != unix.RTN_UNICAST {
		return Route{}, false
	}
	as := attrs(b[unix.SizeofRtMsg:])
	if v := as[unix.RTA_OIF]; len(v) != 4 || int(order.Uint32(v)) != index {
		return Route{}, false
	}
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	if a, ok := netip.AddrFromSlice(as[unix.RTA_DST]); ok {
		dst = a
	}
	gw, _ := netip.AddrFromSlice(as[unix.RTA_GATEWAY])
	return Route{netip.PrefixFrom(dst, int(b[1])), gw}, true
}

func containsAddr(addrs []netip.Addr, a netip.Addr) bool {
	for _, b := range addrs {
		if a == b {
			return true
		}
	}
	return false
}

func sameMAC(text string, mac net.HardwareAddr) bool {
	m, err := net.ParseMAC(text)
	return err == nil && m.String() == mac.String()
}
