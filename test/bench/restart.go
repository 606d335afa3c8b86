package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/test/lab"
)

const (
	packetRate = 1000
	// down is how long there is no agent; up is how long traffic goes on after
	// everything is as before, for what comes late to be seen.
	down = time.Second
	up   = 2 * time.Second
)

// measureRestart has pods of two nodes talk while the agent of one is gone for a while, again and again.
func (b *bench) measureRestart(ctx context.Context) error {
	here, there := b.l.Node(podNode), b.l.Node(otherNode)
	var pods []*lab.Pod
	for _, n := range []*lab.Node{here, there} {
		p, err := n.AddPod(ctx, "talker-"+n.Name, lab.PodOptions{NoServer: true})
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	mesh := len(b.l.Nodes()) - 1
	if err := waitSessions(ctx, here, mesh); err != nil {
		return err
	}
	var neighbours []*routeMonitor
	for _, n := range b.l.Nodes() {
		if n == here {
			continue
		}
		m, err := monitorRoutes(n.Machine)
		if err != nil {
			return err
		}
		defer m.close()
		if err := m.prove(ctx); err != nil {
			return err
		}
		neighbours = append(neighbours, m)
	}
	r := &RestartReport{}
	for _, way := range []struct {
		signal string
		end    func() error
		into   *Interruption
	}{
		{"SIGTERM", func() error { return here.Agent.Stop(ctx) }, &r.SIGTERM},
		{"SIGKILL", func() error { here.Agent.Kill(); return nil }, &r.SIGKILL},
	} {
		for range b.repeat {
			if err := interrupt(ctx, here, mesh, pods, neighbours, way.end, way.into); err != nil {
				return fmt.Errorf("%s: %w", way.signal, err)
			}
		}
		b.say("  %s ×%d: %d of %d packets lost, %d route events at neighbours",
			way.signal, way.into.Restarts, way.into.Lost, way.into.Sent, way.into.RouteEvents)
		r.Interruption.add(*way.into)
	}
	b.report.Restart = r
	for _, p := range pods {
		if err := p.Del(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (i *Interruption) add(more Interruption) {
	i.Restarts += more.Restarts
	i.Sent += more.Sent
	i.Lost += more.Lost
	i.RouteEvents += more.RouteEvents
	i.LongestGap = max(i.LongestGap, more.LongestGap)
}

// interrupt is one restart under traffic.
func interrupt(ctx context.Context, n *lab.Node, mesh int, pods []*lab.Pod, neighbours []*routeMonitor, end func() error, into *Interruption) error {
	for _, m := range neighbours {
		m.seen.Store(0)
	}
	meter, err := lab.StartMeter(ctx, pods[0], pods[1], packetRate)
	if err != nil {
		return err
	}
	restarted := restart(ctx, n, mesh, end)
	there, back := meter.Stop()
	if restarted != nil {
		return restarted
	}
	once := Interruption{Restarts: 1}
	for _, l := range []lab.Loss{there, back} {
		once.Sent += l.Sent
		once.Lost += l.Lost
		once.LongestGap = max(once.LongestGap, ms(l.LongestGap))
	}
	for _, m := range neighbours {
		once.RouteEvents += int(m.seen.Load())
		if err := m.failed(); err != nil {
			return err
		}
	}
	into.add(once)
	return nil
}

func restart(ctx context.Context, n *lab.Node, mesh int, end func() error) error {
	if err := pause(ctx, down/2); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	if err := pause(ctx, down); err != nil {
		return err
	}
	if err := n.Agent.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := n.Agent.WaitReady(ctx); err != nil {
		return err
	}
	if err := waitSessions(ctx, n, mesh); err != nil {
		return err
	}
	return pause(ctx, up)
}

// routeMonitor counts the changes of routes to pods in a machine's kernel.
type routeMonitor struct {
	machine *lab.Machine
	seen    atomic.Int64
	stop    chan struct{}
	ended   sync.WaitGroup

	mu  sync.Mutex
	err error
}

func monitorRoutes(machine *lab.Machine) (*routeMonitor, error) {
	ns, err := netns.GetFromPath(machine.Netns())
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	m := &routeMonitor{machine: machine, stop: make(chan struct{})}
	events := make(chan netlink.RouteUpdate, 1024)
	err = netlink.RouteSubscribeWithOptions(events, m.stop, netlink.RouteSubscribeOptions{
		Namespace: &ns,
		ErrorCallback: func(err error) {
			select {
			case <-m.stop:
			default:
				m.mu.Lock()
				m.err = fmt.Errorf("listen for changes of routes on %s: %w", machine.Name, err)
				m.mu.Unlock()
			}
		},
	})
	if err != nil {
		return nil, err
	}
	m.ended.Go(func() {
		for e := range events {
			if e.Table == unix.RT_TABLE_MAIN && e.Dst != nil && toPods(e.Dst) {
				m.seen.Add(1)
			}
		}
	})
	return m, nil
}

func toPods(n *net.IPNet) bool {
	a, ok := netip.AddrFromSlice(n.IP)
	return ok && podPool.Contains(a.Unmap())
}

// proofPrefix is at the end of the pods' pool, where no node has a block.
var proofPrefix = &net.IPNet{IP: net.IPv4(192, 168, 255, 192).To4(), Mask: net.CIDRMask(26, 32)}

// prove makes sure that a change is seen: a count of 0 must not be blindness.
func (m *routeMonitor) prove(ctx context.Context) error {
	before := m.seen.Load()
	route := &netlink.Route{Dst: proofPrefix, Type: unix.RTN_BLACKHOLE}
	err := m.machine.Netlink(func(h *netlink.Handle) error {
		return errors.Join(h.RouteAdd(route), h.RouteDel(route))
	})
	if err != nil {
		return fmt.Errorf("add and delete a route on %s: %w", m.machine.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return lab.Until(ctx, "wait until a route's coming and going on "+m.machine.Name+" are noticed", func() error {
		if seen := m.seen.Load() - before; seen < 2 {
			return fmt.Errorf("%d of 2 changes seen", seen)
		}
		return nil
	})
}

func (m *routeMonitor) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *routeMonitor) close() {
	close(m.stop)
	m.ended.Wait()
}
