package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Run deletes in batches: when no Del has come for quiet, or since the first
// for patience. Deleting holds the kernel's RTNL lock, so the next Del would
// wait behind a deletion begun at once.
const (
	quiet    = 25 * time.Millisecond
	patience = 250 * time.Millisecond
	// retry is how long Run waits after the kernel refused to delete.
	retry = time.Second
)

// Del takes an attachment away and returns the addresses that it had, which
// may be given out again at once. What is not there is no error, and frees
// nothing. A veth of that name which is not Hoplite's is left alone.
//
// When Del returns no packet finds its way to the pod any more; the veth itself
// lives on until Run or Flush deletes it.
func (p *Plumber) Del(ctx context.Context, k Key) (freed []netip.Addr, err error) {
	if err := k.validate(); err != nil {
		return nil, err
	}
	unlock, err := p.lock(ctx, k)
	if err != nil {
		return nil, err
	}
	defer unlock()
	known, _ := p.table.get(k)
	l, err := p.link(HostIf(k))
	if errors.Is(err, unix.ENODEV) {
		// Its namespace took it along, or somebody deleted it.
		p.table.drop(k)
		return known.Addrs, nil
	}
	if err != nil {
		return nil, fmt.Errorf("take %s away: %w", k, err)
	}
	o, ours := l.owner(k, known)
	if !ours {
		p.log.Warn("link with the name of a host veth is not ours, left alone", "link", l.name, "alias", l.alias, "attachment", k)
		p.table.drop(k)
		return known.Addrs, nil
	}
	if o.Dying {
		return nil, nil
	}
	if err := p.retire(l, o); err != nil {
		return nil, fmt.Errorf("take %s away: %w", k, err)
	}
	p.table.drop(k)
	return o.Addrs, nil
}

// retire takes a veth out of service. Setting it down, too, would cost the
// synchronize_net that this is here to avoid.
func (p *Plumber) retire(l link, o owner) error {
	o.Dying = true
	alias, err := o.alias()
	if err != nil {
		return err
	}
	reqs := []*request{setLink("retire "+l.name, l.index).
		attr(unix.IFLA_IFALIAS, []byte(alias)).u32(unix.IFLA_GROUP, Group).allow(unix.ENODEV)}
	for _, a := range o.Addrs {
		reqs = append(reqs, delLinkRoute(host(a), p.protocol, l.name, l.index))
	}
	if err := p.sockets.exchange(reqs...); err != nil {
		return err
	}
	p.morgue.lay(l.name, o.Addrs)
	return nil
}

// Run deletes what Del took out of service, until ctx ends; then once more.
func (p *Plumber) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return p.Flush(context.WithoutCancel(ctx))
		case <-p.morgue.wake:
		}
		p.settle(ctx)
		if err := p.Flush(context.WithoutCancel(ctx)); err != nil {
			p.log.Error("cannot delete the veths of removed pods, will try again", "err", err, "after", retry)
			select {
			case <-ctx.Done():
			case <-time.After(retry):
			}
			p.morgue.rouse()
		}
	}
}

// settle waits for a pause in the Dels.
func (p *Plumber) settle(ctx context.Context) {
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		pause := time.NewTimer(quiet)
		select {
		case <-p.morgue.wake:
			pause.Stop()
		case <-pause.C:
			return
		case <-end.C:
			pause.Stop()
			return
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

// Flush returns when everything that Del took out of service before is deleted.
func (p *Plumber) Flush(ctx context.Context) error {
	select {
	case p.morgue.work <- struct{}{}:
		defer func() { <-p.morgue.work }()
	case <-ctx.Done():
		return fmt.Errorf("wait for the deletion of removed pods' veths: %w", ctx.Err())
	}
	dead := p.morgue.all()
	if len(dead) == 0 {
		return nil
	}
	if err := p.sockets.exchange(delGroup(Group)); err != nil {
		return fmt.Errorf("delete %d veths of removed pods: %w", len(dead), err)
	}
	p.morgue.bury(dead)
	return nil
}
