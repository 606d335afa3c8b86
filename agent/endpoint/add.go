package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Add plumbs an attachment. On an error nothing of it remains.
//
// It fails with ErrExists if the namespace has an interface of that name or the
// key is plumbed already, with ErrNetnsGone if there is no such namespace. What
// a Del before it left to be deleted is no obstacle: Add waits for that.
func (p *Plumber) Add(ctx context.Context, s Spec) (Result, error) {
	if err := s.validate(); err != nil {
		return Result{}, err
	}
	unlock, err := p.lock(ctx, s.Key)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if p.morgue.holds(s.Addrs) {
		if err := p.Flush(ctx); err != nil {
			return Result{}, err
		}
	}
	ns, err := openNetns(s.Netns)
	if err != nil {
		return Result{}, fmt.Errorf("plumb %s: %w", s.Key, err)
	}
	defer ns.Close()
	// Asked before: by the time plumb has failed, it may have been deleted.
	idle := p.morgue.empty()
	want := s.endpoint()
	// Read with the lock held: see SetMTU.
	want.MTU = p.fit(s.MTU, s.Pinned, s.Addrs)
	ep, err := p.plumb(ctx, want, ns)
	if errors.Is(err, ErrExists) && !idle {
		// What exists may be what a Del left to be deleted.
		if err := p.Flush(ctx); err != nil {
			return Result{}, err
		}
		ep, err = p.plumb(ctx, want, ns)
	}
	if err != nil {
		return Result{}, fmt.Errorf("plumb %s: %w", s.Key, err)
	}
	p.table.put(ep)
	return ep.result(), nil
}

// endpoint is what s asks for, not yet made.
func (s Spec) endpoint() Endpoint {
	return Endpoint{Key: s.Key, Pod: s.Pod, Addrs: s.Addrs, Netns: s.Netns, MTU: s.MTU, Pinned: s.Pinned}
}

// plumb does the work, and undoes it if any of it fails or ctx ends. It returns
// e with what the kernel made of it.
func (p *Plumber) plumb(ctx context.Context, e Endpoint, ns *netns) (_ Endpoint, err error) {
	alias, err := owner{Key: e.Key, Addrs: e.Addrs, Pod: e.Pod}.alias()
	if err != nil {
		return Endpoint{}, err
	}
	name := HostIf(e.Key)
	l, err := p.createVeth(e, name, ns)
	if err != nil {
		return Endpoint{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.rollback(name, l.index))
		}
	}()
	if err := p.plumbHost(l, alias, e); err != nil {
		return Endpoint{}, err
	}
	if err := p.plumbPod(ctx, l, e, ns); err != nil {
		return Endpoint{}, err
	}
	e.HostIf, e.HostIndex, e.MTU, e.ns = name, l.index, l.mtu, ns.id
	return e, nil
}

// createVeth makes the pair and reads back what the kernel made of it.
func (p *Plumber) createVeth(e Endpoint, name string, ns *netns) (link, error) {
	_, v6 := families(e.Addrs)
	// With IPv6 the veth comes up later, when it no longer makes itself an address.
	create := newVeth(name, e.IfName, podMAC(e.Key), e.MTU, !v6, ns.fd())
	get := getLink(name)
	err := p.sockets.exchange(create, get)
	if create.done && err != nil {
		return link{}, errors.Join(err, p.sockets.exchange(delLinkByName(name)))
	}
	if errors.Is(create.err, unix.EEXIST) {
		return link{}, fmt.Errorf("%w: %s in %s, or %s on the node", ErrExists, e.IfName, e.Netns, name)
	}
	if err != nil {
		return link{}, err
	}
	return get.link()
}

// rollback deletes what an Add made, and with the veth go its addresses,
// routes and settings.
func (p *Plumber) rollback(name string, index int) error {
	return p.sockets.exchange(delLink(name, index))
}

// plumbHost sets the host's end up: owner, settings, routes.
func (p *Plumber) plumbHost(l link, alias string, e Endpoint) error {
	_, v6 := families(e.Addrs)
	if err := p.hostSysctls(l.name, v6); err != nil {
		return err
	}
	configure := setLink("configure "+l.name, l.index).attr(unix.IFLA_IFALIAS, []byte(alias)).hostSettings(v6)
	if e.Pinned {
		configure.u32(unix.IFLA_GROUP, Pinned)
	}
	reqs := []*request{configure, setProxyDelay(l.name, l.index)}
	if v6 {
		reqs = append(reqs, setUp(l.name, l.index), addAddr(netip.PrefixFrom(Gateway6, 64), l.name, l.index))
	}
	for _, a := range e.Addrs {
		reqs = append(reqs, addLinkRoute(host(a), p.protocol, l.name, l.index))
	}
	return p.sockets.exchange(reqs...)
}

// hostSysctls writes what rtnetlink cannot. A pod's router advertisements must
// never move the node's own default route (CVE-2020-10749).
func (p *Plumber) hostSysctls(name string, v6 bool) error {
	if p.fail != nil {
		if err := p.fail("write settings of " + name); err != nil {
			return err
		}
	}
	if v6 {
		if err := p.home.enableIPv6(name); err != nil {
			return fmt.Errorf("enable IPv6 on %s: %w", name, err)
		}
	}
	if err := p.home.writeSysctl("ipv6/conf/"+name+"/accept_ra", "0"); err != nil {
		return fmt.Errorf("set accept_ra of %s: %w", name, err)
	}
	return nil
}

// plumbPod sets the pod's end up. lo comes last: it is not deleted with the
// veth, so nothing may fail, nor ctx matter, after it.
//
// With the pod's end up the host's has a carrier, but sends nothing before the
// kernel's link watch has run, which on a busy node takes its time; the first
// packet, lost, would be repeated after a second. To look a link up runs the
// link watch for it (rtnl_getlink, since Linux 6.9).
func (p *Plumber) plumbPod(ctx context.Context, l link, e Endpoint, ns *netns) error {
	c, err := p.open(ns)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, v6 := families(e.Addrs); v6 {
		if err := ns.enableIPv6(e.IfName); err != nil {
			return fmt.Errorf("enable IPv6 on %s in %s: %w", e.IfName, e.Netns, err)
		}
	}
	reqs := []*request{setUp(e.IfName, l.peer)}
	for _, a := range e.Addrs {
		reqs = append(reqs, addAddr(host(a), e.IfName, l.peer))
	}
	for _, r := range routes(e.Addrs) {
		if r.Gateway.IsValid() {
			reqs = append(reqs, addDefault(r.Gateway, e.IfName, l.peer), addNeighbour(r.Gateway, hostMAC, e.IfName, l.peer))
		} else {
			reqs = append(reqs, addLinkRoute(r.Dst, unix.RTPROT_BOOT, e.IfName, l.peer))
		}
	}
	lo := getLink("lo")
	if err := c.exchange(append(reqs, lo)...); err != nil {
		return fmt.Errorf("in %s: %w", e.Netns, err)
	}
	if _, err := p.link(l.name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if loopback, err := lo.link(); err != nil || !loopback.up {
		if err := c.exchange(setUp("lo", loopback.index)); err != nil {
			return fmt.Errorf("in %s: %w", e.Netns, err)
		}
	}
	return nil
}

// result is what a CNI result says of e.
func (e Endpoint) result() Result {
	r := Result{HostName: e.HostIf, HostIndex: e.HostIndex, HostMAC: HostMAC,
		ContainerMAC: podMAC(e.Key).String(), MTU: e.MTU, Routes: routes(e.Addrs)}
	for _, a := range e.Addrs {
		r.Gateways = append(r.Gateways, gateway(a))
	}
	return r
}
