package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Repair puts right what somebody changed of an endpoint on the node: alias,
// MAC, settings, up, routes, and the veth itself if it is gone while the pod's
// namespace is not. It does nothing to an endpoint that is as it should be, nor
// to one that Del has taken away or that neither Add nor List has seen.
//
// ErrNetnsGone says that the veth is gone and the namespace, too (or is not
// known): it is for the runtime's DEL to clear up.
func (p *Plumber) Repair(ctx context.Context, e Endpoint) error {
	unlock, err := p.lock(ctx, e.Key)
	if err != nil {
		return err
	}
	defer unlock()
	known, ok := p.table.get(e.Key)
	if !ok {
		return nil
	}
	l, err := p.link(known.HostIf)
	switch {
	case errors.Is(err, unix.ENODEV):
		err = p.recreate(ctx, known)
	case err == nil:
		err = p.mend(l, known)
	}
	if err != nil {
		return fmt.Errorf("repair %s: %w", e.Key, err)
	}
	return nil
}

// recreate plumbs an endpoint anew.
func (p *Plumber) recreate(ctx context.Context, e Endpoint) error {
	ns, err := e.alive()
	if err != nil {
		return fmt.Errorf("its veth %s is gone: %w", e.HostIf, err)
	}
	defer ns.Close()
	e.MTU = p.fit(e.MTU, e.Pinned, e.Addrs)
	made, err := p.plumb(ctx, e, ns)
	if err != nil {
		return err
	}
	p.table.put(made)
	p.log.Info("veth was gone, made again", "link", made.HostIf, "attachment", e.Key, "addresses", e.Addrs)
	return nil
}

// mend compares the host veth with what it should be, and writes the difference.
func (p *Plumber) mend(l link, e Endpoint) error {
	o, ours := l.owner(e.Key, e)
	if !ours {
		return fmt.Errorf("link %s is not ours (alias %q): delete or rename it", l.name, l.alias)
	}
	if o.Dying {
		return nil
	}
	if l.index != e.HostIndex {
		e.HostIndex = l.index
		p.table.put(e)
	}
	_, v6 := families(e.Addrs)
	if err := p.hostSysctls(l.name, v6); err != nil {
		return err
	}
	reqs, err := p.differences(l, o, e)
	if err != nil {
		return err
	}
	// These say themselves whether they were needed.
	reqs = append(reqs, setProxyDelay(l.name, l.index))
	if v6 {
		reqs = append(reqs, addAddr(netip.PrefixFrom(Gateway6, 64), l.name, l.index).allow(unix.EEXIST))
	}
	adds := make([]*request, len(e.Addrs))
	for i, a := range e.Addrs {
		adds[i] = addLinkRoute(host(a), p.protocol, l.name, l.index).allow(unix.EEXIST)
	}
	if err := p.sockets.exchange(append(reqs, adds...)...); err != nil {
		return err
	}
	for i, a := range e.Addrs {
		if adds[i].refused != unix.EEXIST {
			continue
		}
		if diff := p.routeDiffers(a, l); diff != nil {
			return diff
		}
	}
	return nil
}

// differences are the changes that bring l to what it should be.
func (p *Plumber) differences(l link, o owner, e Endpoint) ([]*request, error) {
	_, v6 := families(e.Addrs)
	alias, err := o.alias()
	if err != nil {
		return nil, err
	}
	var reqs []*request
	// An alias that reads well says the truth, whichever version wrote it.
	if _, ok := parseAlias(l.alias); !ok {
		reqs = append(reqs, setLink("restore alias of "+l.name, l.index).attr(unix.IFLA_IFALIAS, []byte(alias)))
	}
	if group, wrong := e.group(l.group); wrong {
		reqs = append(reqs, setLink("restore group of "+l.name, l.index).u32(unix.IFLA_GROUP, group))
	}
	if l.mtu != e.MTU {
		reqs = append(reqs, setMTU(l.name, l.index, e.MTU))
	}
	if !bytes.Equal(l.mac, hostMAC) {
		reqs = append(reqs, setLink("restore MAC of "+l.name, l.index).attr(unix.IFLA_ADDRESS, hostMAC))
	}
	if l.setting(devconfProxyARP) != "1" || l.setting(devconfForwarding) != "1" {
		reqs = append(reqs, setLink("restore settings of "+l.name, l.index).hostSettings(v6))
	}
	if !l.up {
		reqs = append(reqs, setUp(l.name, l.index))
	}
	return reqs, nil
}

// group is the link group that e's veth should have, and whether the one it has
// says something of it that is not so. Other groups are the administrator's.
func (e Endpoint) group(has uint32) (want uint32, wrong bool) {
	if e.Pinned {
		return Pinned, has != Pinned
	}
	return 0, has == Group || has == Pinned
}

// routeDiffers says, as an error, how the route of a is not out of l.
func (p *Plumber) routeDiffers(a netip.Addr, l link) error {
	r := getRoute(a)
	err := p.sockets.exchange(r)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("route to %s is missing", host(a))
	}
	if err != nil {
		return err
	}
	if len(r.answers) == 0 || len(r.answers[0]) < unix.SizeofRtMsg {
		return fmt.Errorf("%s: no answer", r.what)
	}
	b := r.answers[0]
	oif := 0
	if v := attrs(b[unix.SizeofRtMsg:])[unix.RTA_OIF]; len(v) == 4 {
		oif = int(order.Uint32(v))
	}
	switch bits, protocol := int(b[1]), b[5]; {
	case bits != a.BitLen():
		return fmt.Errorf("route to %s is missing", host(a))
	case oif != l.index:
		return fmt.Errorf("route to %s leads to interface index %d, not to %s: delete it", host(a), oif, l.name)
	case protocol != p.protocol:
		return fmt.Errorf("route to %s has protocol %d, not %d: delete it", host(a), protocol, p.protocol)
	}
	return nil
}
