package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/endpoint"
	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/tunnel"
	"github.com/hoplite-net/hoplite/agent/watch"
)

const (
	// settingsPoll is how often the pods' veths are compared in what the kernel
	// tells nobody of. It costs a few microseconds a pod.
	settingsPoll = time.Second
	// auditEvery is how often all of every pod is compared, whatever was heard.
	auditEvery = 10 * time.Minute
)

// suspects are the pods to look at again.
type suspects struct {
	mu   sync.Mutex
	set  map[endpoint.Key]endpoint.Endpoint
	kick chan struct{}
}

func newSuspects() *suspects {
	return &suspects{set: make(map[endpoint.Key]endpoint.Endpoint), kick: make(chan struct{}, 1)}
}

func (s *suspects) add(all ...endpoint.Endpoint) {
	s.mu.Lock()
	for _, e := range all {
		s.set[e.Key] = e
	}
	s.mu.Unlock()
	signal(s.kick)
}

func (s *suspects) take() []endpoint.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]endpoint.Endpoint, 0, len(s.set))
	for _, e := range s.set {
		all = append(all, e)
	}
	clear(s.set)
	return all
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// listener hands the kernel's news to those that care.
func (n *node) listener() watch.Listener {
	suspect := func(index int) {
		if e, ok := n.endpoints.Find(index); ok {
			n.suspects.add(e)
		}
	}
	return watch.Listener{
		Route: func(r watch.Route) {
			n.routes.RouteEvent(r)
			if r.Deleted && r.Protocol == route.Protocol && r.Endpoint() {
				n.suspects.add(n.withAddress(r.Prefix.Addr())...)
			}
			// Each pod's veth brings routes of its own into the local table and for link-local addresses.
			foreign := r.Protocol != route.Protocol && r.Table != unix.RT_TABLE_LOCAL
			if foreign && (r.Prefix.Addr().IsGlobalUnicast() || r.Prefix.Bits() == 0) {
				signal(n.waysChanged)
			}
		},
		Nexthop: n.routes.NexthopEvent,
		Link: func(l watch.Link) {
			n.routes.LinkEvent(l)
			n.tunnels.LinkEvent(l)
			if _, ok := tunnel.KindOf(l.Name); ok {
				return
			}
			if strings.HasPrefix(l.Name, "hop") {
				if l.Deleted || !l.Up {
					suspect(l.Index)
				}
				return
			}
			signal(n.uplinkChanged)
			signal(n.waysChanged)
		},
		Addr: func(a watch.Addr) {
			n.routes.AddrEvent(a)
			n.tunnels.AddrEvent(a)
			if a.Deleted {
				suspect(a.Index)
			}
			if !a.Prefix.Addr().IsGlobalUnicast() {
				return // every pod's veth gets a link-local one
			}
			signal(n.uplinkChanged)
			signal(n.waysChanged)
			if self := n.last().Self; a.Deleted && (a.Prefix.Addr() == self.IPv4 || a.Prefix.Addr() == self.IPv6) {
				// Connections from an address that is gone would be waited for in vain, for most of a minute.
				go n.connections.CloseAll()
			}
		},
		Netconf: func(c watch.Netconf) {
			n.sysctls.NetconfEvent(c)
			n.tunnels.NetconfEvent(c)
			if c.Off { // a new veth's settings are told of, too
				suspect(c.Index)
			}
		},
		Overrun: func() {
			n.routes.RequestAudit()
			n.tunnels.RequestAudit()
			signal(n.waysChanged)
			n.suspects.add(n.endpoints.Known()...)
			signal(n.uplinkChanged)
		},
	}
}

// withAddress are the pods that have the address: one or none.
func (n *node) withAddress(a netip.Addr) []endpoint.Endpoint {
	return slices.DeleteFunc(n.endpoints.Known(), func(e endpoint.Endpoint) bool { return !slices.Contains(e.Addrs, a) })
}

// runEndpoints deletes what DEL took away and repairs what others break.
func (n *node) runEndpoints(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.endpoints.Run(ctx) })
	group.Go(func() error { n.repairEndpoints(ctx); return nil })
	return group.Wait()
}

func (n *node) repairEndpoints(ctx context.Context) {
	poll := time.NewTicker(settingsPoll)
	defer poll.Stop()
	audited := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.suspects.kick:
			n.repair(ctx, n.suspects.take())
		case <-poll.C:
			if time.Since(audited) > auditEvery {
				audited = time.Now()
				n.suspects.add(n.endpoints.Known()...)
			}
			for _, e := range n.endpoints.Known() {
				if delayed(e) {
					n.suspects.add(e)
				}
			}
			resized, err := n.endpoints.Resized()
			if err != nil {
				n.log.Warn("the pods' MTU cannot be compared", "error", err)
			}
			for _, e := range resized {
				n.suspects.add(e)
			}
			n.repair(ctx, n.suspects.take())
		}
	}
}

func (n *node) repair(ctx context.Context, all []endpoint.Endpoint) {
	for _, e := range all {
		err := n.endpoints.Repair(ctx, e)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, endpoint.ErrNetnsGone):
			// Its pod has gone; the runtime's DEL or GC will follow.
			n.log.Debug("a pod's interface is gone with its namespace", "container", e.ContainerID, "error", err)
		default:
			n.log.Error("a pod's interface could not be repaired", "container", e.ContainerID, "pod", e.Pod, "error", err)
			n.again(e)
		}
	}
}

// again looks at the endpoint once more with the next poll.
func (n *node) again(e endpoint.Endpoint) {
	n.suspects.mu.Lock()
	defer n.suspects.mu.Unlock()
	n.suspects.set[e.Key] = e
}

// delayed says whether the pod's gateway answers ARP late: proxy_delay, which
// has no notification.
func delayed(e endpoint.Endpoint) bool {
	value, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/neigh", e.HostIf, "proxy_delay"))
	return err == nil && strings.TrimSpace(string(value)) != "0"
}
