package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/test/lab"
)

const (
	manyPeers  = 100
	manyRoutes = 100_000
	// settle is how long an agent is left alone before its memory is read.
	settle = 5 * time.Second
)

// measureMemory reads the resident memory of an agent that has just started,
// in each of three states.
func (b *bench) measureMemory(ctx context.Context) error {
	n := b.l.Node(routeNode)
	r := &AgentReport{SettleSeconds: settle.Seconds()}
	b.report.Agent = r

	idle, err := b.fresh(ctx, n)
	if err != nil {
		return err
	}
	r.RSS, r.RSSAnon = idle.resident, idle.anonymous

	peers, err := b.withPeers(ctx, n)
	if err != nil {
		return err
	}
	r.RSS100, r.Anon100 = peers.resident, peers.anonymous

	if _, err := b.fresh(ctx, n); err != nil {
		return err
	}
	routes, err := b.withRoutes(ctx, n)
	if err != nil {
		return err
	}
	r.RSS100k, r.Anon100k, r.Peak100k = routes.resident, routes.anonymous, routes.peak
	b.say("  idle %.0f MiB, 100 peers %.0f, 100k routes %.0f (at most %.0f)", r.RSS, r.RSS100, r.RSS100k, r.Peak100k)
	return nil
}

// fresh starts the agent anew and reads its memory once it has settled.
func (b *bench) fresh(ctx context.Context, n *lab.Node) (memory, error) {
	if err := n.Agent.Restart(ctx); err != nil {
		return memory{}, err
	}
	if err := waitSessions(ctx, n, len(b.l.Nodes())-1); err != nil {
		return memory{}, err
	}
	return settled(ctx, n)
}

// withPeers reads the agent's memory with 100 further nodes in the mesh, each of which has a block.
func (b *bench) withPeers(ctx context.Context, n *lab.Node) (_ memory, err error) {
	sender, err := b.sendingMachine(ctx)
	if err != nil {
		return memory{}, err
	}
	blocks := remotePrefixes(manyPeers)
	addresses := peerAddresses(sender.Addresses[0])
	if err := giveAddresses(sender, addresses); err != nil {
		return memory{}, err
	}
	for i, a := range addresses {
		if err := b.createNode(ctx, peerName(i), a); err != nil {
			return memory{}, err
		}
	}
	opening, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i, a := range addresses {
		s, err := dialBGP(opening, sender, a, n.IP())
		if err != nil {
			return memory{}, err
		}
		defer s.close()
		if err := s.send(announce(blocks[i:i+1], a)); err != nil {
			return memory{}, err
		}
	}
	if err := waitSessions(opening, n, len(b.l.Nodes())-1+manyPeers); err != nil {
		return memory{}, err
	}
	m, err := settled(ctx, n)
	if err != nil {
		return m, err
	}
	for i := range addresses {
		if err := b.l.Client().Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: peerName(i)}}); err != nil {
			return m, err
		}
	}
	return m, nil
}

// withRoutes reads the agent's memory with 100,000 learned routes.
func (b *bench) withRoutes(ctx context.Context, n *lab.Node) (memory, error) {
	sender, err := b.sendingMachine(ctx)
	if err != nil {
		return memory{}, err
	}
	r := &receiver{name: hopliteName, machine: n.Machine}
	if err := r.connect(ctx, sender); err != nil {
		return memory{}, err
	}
	defer r.session.close()
	prefixes := remotePrefixes(manyRoutes)
	if _, err := r.run(ctx, announce(prefixes, sender.Addresses[0]), manyRoutes); err != nil {
		return memory{}, err
	}
	m, err := settled(ctx, n)
	if err != nil {
		return m, err
	}
	_, err = r.run(ctx, withdraw(prefixes), -manyRoutes)
	return m, err
}

func peerName(i int) string { return fmt.Sprintf("peer%03d", i) }

// peerAddresses are in the sender's subnet.
func peerAddresses(sender netip.Addr) []netip.Addr {
	all := make([]netip.Addr, manyPeers)
	for i := range all {
		a := sender.As4()
		a[3] = byte(firstPeerOctet + i)
		all[i] = netip.AddrFrom4(a)
	}
	return all
}

func giveAddresses(m *lab.Machine, addresses []netip.Addr) error {
	return m.Netlink(func(h *netlink.Handle) error {
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range addresses {
			address := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: hostMask}}
			if err := h.AddrReplace(eth0, address); err != nil {
				return fmt.Errorf("give %s to %s: %w", a, m.Name, err)
			}
		}
		return nil
	})
}

// memory is a process's, in MiB.
type memory struct{ resident, anonymous, peak float64 }

func settled(ctx context.Context, n *lab.Node) (memory, error) {
	if err := pause(ctx, settle); err != nil {
		return memory{}, err
	}
	return readMemory(n.Agent.PID())
}

func readMemory(pid int) (memory, error) {
	var m memory
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		into := map[string]*float64{"VmRSS": &m.resident, "RssAnon": &m.anonymous, "VmHWM": &m.peak}[key]
		if into == nil {
			continue
		}
		var kib float64
		if _, err := fmt.Sscan(value, &kib); err != nil {
			return m, fmt.Errorf("/proc/%d/status: %s: %w", pid, line, err)
		}
		*into = round(kib/1024, 1)
	}
	if m.resident == 0 {
		return m, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
	}
	return m, nil
}
