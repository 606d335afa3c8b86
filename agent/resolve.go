package agent

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/route"
)

// resolve asks the kernel's own routing how a node's address is reached.
// onlink: on a subnet of ours, without a router between. An answer that goes by
// way of a pod or a tunnel is none: it would lead the tunnel into itself.
func resolve(a netip.Addr) (t route.Target, onlink bool, err error) {
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil {
		return t, false, fmt.Errorf("ask the kernel for the way to %s: %w", a, err)
	}
	for _, r := range routes {
		if r.LinkIndex == 0 || r.Type != unix.RTN_UNICAST {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			return t, false, fmt.Errorf("find the device on the way to %s: %w", a, err)
		}
		if strings.HasPrefix(link.Attrs().Name, "hop") {
			continue
		}
		if gateway, ok := netip.AddrFromSlice(r.Gw); ok {
			return route.Target{Device: r.LinkIndex, Gateway: gateway.Unmap()}, false, nil
		}
		return route.Target{Device: r.LinkIndex, Gateway: a}, true, nil
	}
	return t, false, fmt.Errorf("the kernel has no way to %s", a)
}

// ways are the next hops in use, and where they lead by the kernel's last word.
type ways map[route.Hop]route.Target

// find looks for the ways to the next hops that are new in learned.
func (w *ways) find(routes *route.Syncer, learned []route.Learned) {
	if *w == nil {
		*w = make(ways)
	}
	for i := range learned {
		for _, hop := range learned[i].Hops {
			if _, known := (*w)[hop]; !known {
				(*w)[hop] = route.Target{}
				w.ask(routes, hop)
			}
		}
	}
}

// findAgain looks whether ways have changed. One that is not known now stays.
func (w *ways) findAgain(routes *route.Syncer) {
	for hop := range *w {
		w.ask(routes, hop)
	}
}

func (w *ways) ask(routes *route.Syncer, hop route.Hop) {
	t, _, err := resolve(hop.Addr)
	if err == nil && t != (*w)[hop] {
		(*w)[hop] = t
		routes.SetTargets(map[route.Hop]route.Target{hop: t})
	}
}
