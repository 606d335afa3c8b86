package tunnel

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// repairPause bounds how often Run repairs: someone may change what we write as
	// fast as we do.
	repairPause = 100 * time.Millisecond
)

// LinkEvent has Run look again if the change is of a tunnel device, or of one
// that has or had the name of one.
func (d *Devices) LinkEvent(ev rtnl.LinkEvent) {
	if _, named := KindOf(ev.Name); named || d.has(ev.Index) {
		signal(d.kick)
	}
}

// AddrEvent has Run look again if an address of a tunnel device changed.
func (d *Devices) AddrEvent(ev rtnl.AddrEvent) { d.lookAt(ev.Index) }

// NetconfEvent has Run look again if a tunnel device's forwarding or rp_filter
// changed.
func (d *Devices) NetconfEvent(ev rtnl.NetconfEvent) { d.lookAt(ev.Index) }

func (d *Devices) lookAt(index int) {
	if d.has(index) {
		signal(d.kick)
	}
}

// has says whether index is a tunnel device's.
func (d *Devices) has(index int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dev := range d.devices {
		if index > 0 && dev.Index == index {
			return true
		}
	}
	return false
}

// RequestAudit asks Run to compare everything: notifications were lost.
func (d *Devices) RequestAudit() {
	d.forgetEntries()
	signal(d.kick)
}

// heard takes note of a change of a neighbour or FDB entry.
func (d *Devices) heard(n neighbour, deleted bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := &d.entries
	if n.index != e.index || !e.known || !e.listing && e.expects(n, deleted) {
		return
	}
	e.known = false
	signal(d.kick)
}

// Run keeps the devices as last desired until ctx ends, then returns nil. What
// someone else changes is back within a second, if its notification comes here;
// whether it does or not, after the next audit.
func (d *Devices) Run(ctx context.Context) error {
	var listening sync.WaitGroup
	defer listening.Wait()
	listening.Go(func() { d.listener.run(ctx, d.heard, d.RequestAudit) })
	audit := time.NewTimer(d.untilAudit())
	defer audit.Stop()
	retry := firstRetry
	said := ""
	for {
		wait := lastRetry
		if err := d.repair(ctx); err != nil && ctx.Err() == nil {
			if err.Error() != said {
				said = err.Error()
				d.log.Error("tunnel devices are not as they should be, will try again", "error", err)
			}
			wait, retry = retry, min(2*retry, lastRetry)
		} else {
			retry, said = firstRetry, ""
			if !d.lacksSupport() {
				wait = d.every
			}
		}
		if !pause(ctx, repairPause) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.kick:
		case <-time.After(wait):
		case <-audit.C:
			d.forgetEntries()
			audit.Reset(d.untilAudit())
		}
	}
}

func (d *Devices) repair(ctx context.Context) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	return d.sync(ctx)
}

func (d *Devices) untilAudit() time.Duration { return d.every*4/5 + rand.N(d.every*2/5+1) }

// lacksSupport says whether a wanted device's type is one the kernel lacks: its
// module may be loaded later, of which nobody tells.
func (d *Devices) lacksSupport() bool {
	for _, dev := range d.State() {
		if errors.Is(dev.Err, ErrUnsupported) {
			return true
		}
	}
	return false
}

// pause is false if ctx ended.
func pause(ctx context.Context, long time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(long):
		return true
	}
}
