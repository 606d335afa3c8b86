package tunnel

import (
	"context"
	"errors"
	"slices"

	"github.com/hoplite-net/hoplite/bgp"
)

// Sync makes the devices as desired and returns when the kernel has it. One that
// fails does not keep the other from its work. The error is all failures but
// ErrUnsupported, which only State tells, since trying again changes nothing; Run
// does so all the same, for whoever loads the module. A second Sync with nothing
// new changes nothing.
func (d *Devices) Sync(ctx context.Context, desired Desired) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	desired = desired.clean()
	d.mu.Lock()
	d.desired = &desired
	d.mu.Unlock()
	return d.sync(ctx)
}

// clean is a copy that nobody else changes.
func (d Desired) clean() Desired {
	d.Local = d.Local.Unmap().WithZone("")
	d.Addrs = slices.Clone(d.Addrs)
	for i, a := range d.Addrs {
		d.Addrs[i] = a.Unmap()
	}
	d.Peers = slices.Clone(d.Peers)
	for i := range d.Peers {
		p := &d.Peers[i]
		p.Underlay = p.Underlay.Unmap().WithZone("")
		p.NextHops = slices.Clone(p.NextHops)
		for j, a := range p.NextHops {
			p.NextHops[j] = a.Unmap().WithZone("")
		}
	}
	return d
}

// sync makes all as last desired; with writing held.
func (d *Devices) sync(ctx context.Context) error {
	d.mu.Lock()
	desired := d.desired
	d.mu.Unlock()
	if desired == nil {
		return nil
	}
	var failures []error
	for kind := range bgp.Tunnels.All() {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if desired.Kinds.Has(kind) {
			err = d.ensure(ctx, kind, *desired)
		} else {
			err = d.remove(kind)
		}
		if !errors.Is(err, ErrUnsupported) {
			failures = append(failures, err)
		}
	}
	d.show(desired.Kinds)
	return errors.Join(failures...)
}

// ensure makes one device, and all that is on it, as desired.
func (d *Devices) ensure(ctx context.Context, kind bgp.Encapsulation, desired Desired) error {
	s, err := desired.spec(kind)
	if err != nil {
		if desired.Local.IsValid() {
			err = errors.Join(err, d.remove(kind))
		}
		d.fail(kind, err)
		return err
	}
	l, changed, err := d.ensureLink(s)
	if l.index == 0 {
		d.note(kind, found{}, err)
		return err
	}
	f := found{link: l, serves: l.up && s.fits(l)}
	var addrErr, peerErr error
	f.addrs, addrErr = d.ensureAddrs(ctx, l, desired.Addrs)
	if kind == bgp.VXLAN {
		if changed {
			d.forgetEntries() // some go with a device that was down
		}
		peerErr = d.ensureEntries(ctx, l, desired)
	}
	err = errors.Join(err, addrErr, peerErr)
	d.note(kind, f, err)
	return err
}

// remove deletes the device of a kind, if there is one of ours.
func (d *Devices) remove(kind bgp.Encapsulation) error {
	l, err := d.ours(kind)
	if errors.Is(err, ErrForeign) {
		err = nil // not ours, not wanted
	}
	if err == nil && l.index != 0 {
		if err = d.exchange(deleteLink(l.name, l.index)); err == nil {
			d.log.Info("tunnel device deleted", "device", l.name)
			l = link{}
		}
	}
	d.note(kind, found{link: l, serves: l.up}, err)
	return err
}
