package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Pinned is the link group of the host veths whose MTU the CNI configuration
	// gave: "hoq". The group is where a restarting agent reads it, and one that
	// does not know it takes the veth for any other.
	Pinned = 0x686f71

	minMTU4 = 68 // RFC 791
	// minMTU6 is IPv6's (RFC 8200 section 5). The kernel takes IPv6 away from a
	// device with less, addresses, routes and all.
	minMTU6 = 1280
	maxMTU  = 65535
)

// SetMTU makes mtu, in bytes, what the node's pods have from now on, and
// returns when they have it, those whose Add was under way as well. A pinned
// MTU is only ever lowered; pods with IPv6 keep 1280.
//
// One pod's failure stops no other; the errors come together, and the same
// call again tries those pods alone. A pod whose namespace is gone is no error.
func (p *Plumber) SetMTU(ctx context.Context, mtu int) error {
	if mtu < minMTU4 || mtu > maxMTU {
		return fmt.Errorf("MTU %d: must be %d to %d", mtu, minMTU4, maxMTU)
	}
	start := time.Now()
	// The order matters. An Add that takes its lock from here on reads the new
	// value. One that has it already is among the locks, or is done and then
	// in the table, which therefore is read last.
	p.mtu.Store(int64(mtu))
	keys := p.locks.keys()
	for _, e := range p.table.all() {
		keys[e.Key] = struct{}{}
	}
	var errs []error
	resized := 0
	for k := range keys {
		done, err := p.follow(ctx, k)
		if err != nil {
			errs = append(errs, err)
		}
		if done {
			resized++
		}
	}
	if resized > 0 {
		p.log.Info("pods' MTU changed", "mtu", mtu, "pods", resized, "took", time.Since(start).Round(time.Microsecond))
	}
	return errors.Join(errs...)
}

// fit is the MTU that an endpoint is to have which has, or asks for, mtu.
func (p *Plumber) fit(mtu int, pinned bool, addrs []netip.Addr) int {
	node := int(p.mtu.Load())
	if node == 0 || pinned && mtu <= node {
		return mtu
	}
	if _, v6 := families(addrs); v6 {
		return max(node, minMTU6)
	}
	return node
}

// follow brings one endpoint to the node's MTU, if it is not there yet.
func (p *Plumber) follow(ctx context.Context, k Key) (done bool, err error) {
	unlock, err := p.lock(ctx, k)
	if err != nil {
		return false, err
	}
	defer unlock()
	e, ok := p.table.get(k)
	if !ok {
		return false, nil
	}
	return p.followLocked(e)
}

// followLocked does so for whoever has the endpoint's lock.
func (p *Plumber) followLocked(e Endpoint) (done bool, err error) {
	want := p.fit(e.MTU, e.Pinned, e.Addrs)
	if want == e.MTU {
		return false, nil
	}
	err = p.resize(e, want)
	if errors.Is(err, ErrNetnsGone) {
		p.log.Debug("a pod's MTU stays, its namespace is gone", "attachment", e.Key, "error", err)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("change the MTU of %s: %w", e.Key, err)
	}
	return true, nil
}

// Resized are the endpoints whose host veth somebody has given another MTU, for
// Repair. It asks the kernel for each, which takes about a microsecond.
func (p *Plumber) Resized() ([]Endpoint, error) {
	var resized []Endpoint
	err := p.home.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a socket to read MTUs: %w", err)
		}
		defer unix.Close(fd)
		for _, e := range p.table.all() {
			r, err := unix.NewIfreq(e.HostIf)
			if err != nil {
				return err
			}
			// A veth that is gone has its own notification.
			if unix.IoctlIfreq(fd, unix.SIOCGIFMTU, r) == nil && int(r.Uint32()) != e.MTU {
				resized = append(resized, e)
			}
		}
		return nil
	})
	return resized, err
}

// resize sets both ends of an endpoint's veth, the pod's first.
//
// A veth drops, and tells nobody, what is longer than its receiving end's MTU
// (is_skb_forwardable; packets yet to be segmented pass). The ends cannot change
// at once, so in either order one direction has a moment in which the sender may
// still, or may already, send too much. The order is therefore chosen by what
// is left when an agent stops in between: with the host's end last, that one says
// that the work is not done, and the next SetMTU does it. Going down, it is also
// the pod that knows at once that it must send less, and the host that goes on
// to take whatever comes.
//
// Each end is set in its own namespace. A request sent from the host's that names
// the pod's with IFLA_TARGET_NETNSID would not change the pod's end but move
// there what the host has under the same index.
func (p *Plumber) resize(e Endpoint, mtu int) error {
	l, err := p.link(e.HostIf)
	if errors.Is(err, unix.ENODEV) {
		return nil // if there is still a pod, Repair makes it a veth of that MTU
	}
	if err != nil {
		return err
	}
	if o, ours := l.owner(e.Key, e); !ours || o.Dying {
		return nil
	}
	if err := p.reach(&e, l); err != nil {
		return err
	}
	if err := p.resizePod(e, l, mtu); err != nil {
		return err
	}
	if err := p.sockets.exchange(setMTU(l.name, l.index, mtu)); err != nil {
		return err
	}
	e.MTU, e.HostIndex = mtu, l.index
	p.table.put(e)
	return nil
}

// reach makes sure that e.Netns leads to the pod. The path of a process, which
// List may have found it by, can end before the pod does.
func (p *Plumber) reach(e *Endpoint, l link) error {
	ns, err := e.alive()
	if err == nil {
		return ns.Close()
	}
	if !errors.Is(err, ErrNetnsGone) || l.nsid < 0 {
		return err
	}
	c, openErr := p.sockets.get()
	if openErr != nil {
		return openErr
	}
	defer p.sockets.put(c)
	found := []Endpoint{*e}
	found[0].Netns = ""
	p.locate(c, found, map[int][]int{l.nsid: {0}})
	if found[0].Netns == "" {
		return err
	}
	*e = found[0]
	return nil
}

// resizePod sets the pod's end, unless the pod, or a plugin after us in the
// list, has given it an MTU of its own that is small enough.
func (p *Plumber) resizePod(e Endpoint, l link, mtu int) error {
	ns, err := e.alive()
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := p.open(ns)
	if err != nil {
		return err
	}
	defer c.Close()
	get := getLinkByIndex(e.IfName, l.peer)
	if err := c.exchange(get); err != nil {
		return err
	}
	pod, err := get.link()
	if err != nil {
		return err
	}
	if pod.peer != l.index {
		return fmt.Errorf("interface index %d in %s is not the other end of %s", l.peer, e.Netns, l.name)
	}
	if pod.mtu < mtu && pod.mtu != e.MTU {
		return nil
	}
	return c.exchange(setMTU(e.IfName, l.peer, mtu))
}
