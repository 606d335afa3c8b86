package agent

import (
	"maps"
	"net/netip"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/encap"
	"github.com/hoplite-net/hoplite/agent/route"
)

// ways knows how the kernel reaches next hops without a tunnel. It asks the
// kernel, once for each address and again when routes, links or addresses
// change, since only the kernel knows all that counts: rules, metrics, gateways.
type ways struct {
	mu    sync.Mutex
	asked map[netip.Addr]bool
	known map[netip.Addr]encap.Way
}

// lookAll asks about all the addresses anew, and forgets others.
func (w *ways) lookAll(addrs map[netip.Addr]bool) map[netip.Addr]encap.Way {
	found := lookUp(addrs)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked, w.known = addrs, found
	return maps.Clone(found)
}

// lookNew asks about those addresses that it has not asked about; ok is false
// when there are none.
func (w *ways) lookNew(addrs []netip.Addr) (all map[netip.Addr]encap.Way, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if !w.asked[a] {
			fresh[a] = true
		}
	}
	if len(fresh) == 0 {
		return nil, false
	}
	if w.asked == nil {
		w.asked, w.known = make(map[netip.Addr]bool), make(map[netip.Addr]encap.Way)
	}
	maps.Copy(w.asked, fresh)
	maps.Copy(w.known, lookUp(fresh))
	return maps.Clone(w.known), true
}

// moved says whether the kernel answers otherwise now.
func (w *ways) moved() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !maps.Equal(lookUp(w.asked), w.known)
}

// lookUp asks the kernel. An address behind one of our own routes or devices,
// such as a pod's, is no way to another node.
func lookUp(addrs map[netip.Addr]bool) map[netip.Addr]encap.Way {
	found := make(map[netip.Addr]encap.Way, len(addrs))
	outward := make(map[int]bool) // by device
	for a := range addrs {
		routes, err := netlink.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			continue
		}
		r := routes[0]
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		if _, asked := outward[r.LinkIndex]; !asked {
			outward[r.LinkIndex] = leadsOut(r.LinkIndex)
		}
		if !outward[r.LinkIndex] {
			continue
		}
		way := encap.Way{Onlink: true, Target: route.Target{Device: r.LinkIndex, Gateway: a}}
		if gateway, ok := netip.AddrFromSlice(r.Gw); ok && !gateway.IsUnspecified() {
			way = encap.Way{Target: route.Target{Device: r.LinkIndex, Gateway: gateway.Unmap()}}
		}
		found[a] = way
	}
	return found
}

func leadsOut(index int) bool {
	link, err := netlink.LinkByIndex(index)
	return err == nil && !strings.HasPrefix(link.Attrs().Name, "hop") && link.Attrs().Flags&unix.IFF_LOOPBACK == 0
}
