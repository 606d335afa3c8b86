// Package watch listens to the kernel: one subscription to changes of routes,
// next hop objects, links, addresses and IP settings, told to whoever asked as
// "look again".
//
// Nothing depends on hearing every change. When the kernel had to drop some
// (ENOBUFS), or the socket had to be made anew, Overrun says so, and every
// listener is to compare all it keeps.
//
// What has no notification: most settings under /proc/sys (of a device's,
// only forwarding, rp_filter, proxy_arp and few others have one), iptables
// rules, and IPv4 routes that vanish with their device, its last address or
// their next hop object; nor have next hop objects that vanish with their
// device, be it only that it has no carrier any more.
package watch

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// What listeners are told.
type (
	Route   = rtnl.RouteEvent
	Link    = rtnl.LinkEvent
	Addr    = rtnl.AddrEvent
	Netconf = rtnl.NetconfEvent
	Nexthop = rtnl.NextHopEvent
)

// The devices that a Netconf can speak of besides real ones.
const (
	NetconfAll     = rtnl.NetconfAll
	NetconfDefault = rtnl.NetconfDefault
)

// Listener is called from Run's goroutine, one call at a time, in the order of
// the changes. Its functions must return at once, since what they delay fills the
// socket's buffer. Those that are nil are not called.
type Listener struct {
	// Route is told every change of a route of either family, whoever made it,
	// apart from the ports in Config.IgnorePorts.
	Route   func(Route)
	Link    func(Link)
	Addr    func(Addr)
	Netconf func(Netconf)
	// Nexthop is told every change of a next hop object, apart from those of
	// the same ports. A kernel without such objects tells of none.
	Nexthop func(Nexthop)
	// Overrun: changes of any kind may have been missed.
	Overrun func()
}

// Config is what a Watcher is made from.
type Config struct {
	Log *slog.Logger // nil: slog.Default
	// IgnorePorts are netlink ports (at most 200) whose changes nobody needs
	// to hear of, being their maker's own. The kernel drops them.
	IgnorePorts []uint32
}

// Watcher is the subscription.
type Watcher struct {
	log       *slog.Logger
	ignore    []uint32
	listeners []Listener
	sub       *rtnl.Subscription
	route     rtnl.Route
	routes    bool // some listener wants routes
}

const (
	resubscribeFirst = 100 * time.Millisecond
	resubscribeLast  = 5 * time.Second
)

var groups = []int{
	unix.RTNLGRP_LINK,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	unix.RTNLGRP_NEXTHOP,
}

// New subscribes, in the network namespace of the calling thread. From here on
// changes are kept in the socket's buffer (8 MiB) until Run reads them: so New,
// then read the kernel's state, then Run, and nothing falls between.
func New(c Config) (*Watcher, error) {
	w := &Watcher{log: c.Log, ignore: c.IgnorePorts}
	if w.log == nil {
		w.log = slog.Default()
	}
	return w, w.subscribe()
}

// Listen adds a listener; to be called before Run.
func (w *Watcher) Listen(l Listener) {
	w.listeners = append(w.listeners, l)
	w.routes = w.routes || l.Route != nil
}

// Run delivers changes until ctx ends, then closes the subscription and
// returns nil. It is to be called once.
func (w *Watcher) Run(ctx context.Context) error {
	defer func() { _ = w.sub.Close() }()
	for {
		datagram, err := w.sub.Receive(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			w.log.Info("more changes in the kernel's network than could be read; looking at everything again")
			w.overrun()
		case err != nil:
			w.log.Error("reading changes of the kernel's network failed; subscribing again", "error", err)
			if !w.resubscribe(ctx) {
				return nil
			}
			w.overrun()
		default:
			for m := range rtnl.Messages(datagram) {
				if err := w.deliver(m); err != nil {
					w.log.Warn("a change in the kernel's network could not be read", "type", m.Type, "error", err)
				}
			}
		}
	}
}

func (w *Watcher) subscribe() error {
	sub, err := rtnl.Subscribe(w.ignore, groups...)
	if err != nil {
		return err
	}
	w.sub = sub
	return nil
}

// resubscribe tries until it succeeds; false when ctx ends first.
func (w *Watcher) resubscribe(ctx context.Context) bool {
	_ = w.sub.Close()
	for pause := resubscribeFirst; ; pause = min(2*pause, resubscribeLast) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
		err := w.subscribe()
		if err == nil {
			return true
		}
		w.log.Error("subscribing to changes of the kernel's network failed; will try again", "error", err)
	}
}

func (w *Watcher) overrun() {
	for _, l := range w.listeners {
		if l.Overrun != nil {
			l.Overrun()
		}
	}
}

func (w *Watcher) deliver(m rtnl.Message) error {
	switch m.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return w.deliverRoute(m)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.deliverLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		ev, err := rtnl.ParseAddr(m.Body)
		if err != nil {
			return err
		}
		ev.Deleted = m.Type == unix.RTM_DELADDR
		for _, l := range w.listeners {
			if l.Addr != nil {
				l.Addr(ev)
			}
		}
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return w.deliverNexthop(m)
	case unix.RTM_NEWNETCONF:
		ev, err := rtnl.ParseNetconf(m.Body)
		if err != nil {
			return err
		}
		for _, l := range w.listeners {
			if l.Netconf != nil {
				l.Netconf(ev)
			}
		}
	}
	return nil
}

func (w *Watcher) deliverRoute(m rtnl.Message) error {
	if !w.routes {
		return nil
	}
	if err := w.route.Parse(m.Body); err != nil {
		return err
	}
	ev := Route{
		Route:    &w.route,
		Deleted:  m.Type == unix.RTM_DELROUTE,
		Appended: m.Flags&unix.NLM_F_APPEND != 0,
	}
	for _, l := range w.listeners {
		if l.Route != nil {
			l.Route(ev)
		}
	}
	return nil
}

func (w *Watcher) deliverNexthop(m rtnl.Message) error {
	hop, err := rtnl.ParseNextHop(m.Body)
	if err != nil {
		return err
	}
	ev := Nexthop{NextHop: hop, Deleted: m.Type == unix.RTM_DELNEXTHOP}
	for _, l := range w.listeners {
		if l.Nexthop != nil {
			l.Nexthop(ev)
		}
	}
	return nil
}

func (w *Watcher) deliverLink(m rtnl.Message) error {
	// The same messages with another family tell of a bridge's ports: there,
	// RTM_DELLINK means that a device left its bridge.
	if len(m.Body) > 0 && m.Body[0] != unix.AF_UNSPEC {
		return nil
	}
	ev, err := rtnl.ParseLink(m.Body)
	if err != nil {
		return err
	}
	ev.Deleted = m.Type == unix.RTM_DELLINK
	for _, l := range w.listeners {
		if l.Link != nil {
			l.Link(ev)
		}
	}
	return nil
}
