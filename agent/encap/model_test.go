package encap

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

// The model is a cluster of nodes that each carry out the pool's mode as
// package agent does, hear of it when they hear of it, and tell each other over
// sessions that are slow, break and come back. Agents stop and start. Their
// kernels go on all the while.
//
// What must hold after every single step: no node sends through a tunnel whose
// other end is not there, and none that sends through a tunnel falls back to
// plain packets unless the mode wants them, for a router between may not know
// where to send those. And when all is quiet at last: every node sends as the
// mode asks, and no device is left that it does not need.

// slowest is how long a message may take before its session counts as broken: the hold time.
const slowest = 9 * time.Second

type modelNode struct {
	addr netip.Addr
	// The kernel's: they survive the agent.
	devices bgp.Encapsulations
	routes  map[int]bgp.Encapsulation // by peer

	// The agent's.
	running  bool
	mode     v1alpha1.PoolMode
	table    *Table
	retiring map[bgp.Encapsulation]*Retirement
	awaited  map[int]bool // peers that have not told all they know since the start
	said     bgp.Hop      // what it announces
}

type message struct {
	at  time.Time
	hop bgp.Hop
}

type model struct {
	t      *testing.T
	random *rand.Rand
	now    time.Time
	mode   v1alpha1.PoolMode // the pool's
	nodes  []*modelNode
	// lines[i][j] are the messages on their way from i to j; up tells of the session.
	lines [][][]message
	up    [][]bool
	since [][]time.Time
	log   []string
}

func newModel(t *testing.T, seed uint64, count int) *model {
	m := &model{t: t, random: rand.New(rand.NewPCG(seed, 2)), now: time.Unix(1e9, 0), mode: v1alpha1.ModeNative}
	for i := range count {
		m.nodes = append(m.nodes, &modelNode{
			addr: netip.AddrFrom4([4]byte{172, 30, byte(1 + i%2), byte(i + 11)}), routes: make(map[int]bgp.Encapsulation), mode: m.mode,
		})
		m.lines = append(m.lines, make([][]message, count))
		m.up = append(m.up, make([]bool, count))
		m.since = append(m.since, make([]time.Time, count))
	}
	for i := range count {
		m.start(i)
	}
	return m
}

func (m *model) prefix(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 26)
}

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

func (m *model) start(i int) {
	n := m.nodes[i]
	m.note("agent %d starts", i)
	n.running, n.mode = true, m.mode
	n.retiring = make(map[bgp.Encapsulation]*Retirement)
	n.awaited = make(map[int]bool)
	n.table = NewTable(func(p netip.Prefix) Before {
		used, known := n.routes[int(p.Addr().As4()[2])]
		return Before{known, used}
	})
	n.said = bgp.Hop{}
	for j := range m.nodes {
		n.awaited[j] = j != i
	}
	m.apply(i)
	for j := range m.nodes {
		m.connect(i, j)
	}
}

func (m *model) stop(i int) {
	m.note("agent %d stops", i)
	m.nodes[i].running = false
	for j := range m.nodes {
		m.disconnect(i, j)
	}
}

// connect brings a session up: both sides tell all they have.
func (m *model) connect(i, j int) {
	if i == j || !m.nodes[i].running || !m.nodes[j].running || m.up[i][j] {
		return
	}
	m.note("session %d-%d up", i, j)
	for _, d := range [][2]int{{i, j}, {j, i}} {
		m.up[d[0]][d[1]], m.since[d[0]][d[1]] = true, m.now
		m.lines[d[0]][d[1]] = nil
		m.send(d[0], d[1])
	}
}

func (m *model) disconnect(i, j int) {
	for _, d := range [][2]int{{i, j}, {j, i}} {
		m.up[d[0]][d[1]], m.lines[d[0]][d[1]] = false, nil
	}
}

func (m *model) send(i, j int) {
	if m.up[i][j] {
		m.lines[i][j] = append(m.lines[i][j], message{m.now, m.nodes[i].said})
	}
}

// deliver hands j the oldest message from i.
func (m *model) deliver(i, j int) {
	line := m.lines[i][j]
	if len(line) == 0 {
		return
	}
	m.lines[i][j] = line[1:]
	n := m.nodes[j]
	m.note("%d hears from %d: %+v", j, i, line[0].hop)
	n.table.Learn([]bgp.Route{{Prefix: m.prefix(i), Hops: []bgp.Hop{line[0].hop}}})
	m.program(j)
	n.awaited[i] = false
}

// program is agent/route's part.
func (m *model) program(i int) {
	n := m.nodes[i]
	targets, _ := n.table.Take()
	for key, target := range targets {
		used := bgp.Native
		if target.Onlink {
			used = bgp.Encapsulation(target.Device)
		}
		j := int(key.Addr.As4()[3]) - 11
		if n.routes[j] != bgp.Native && used == bgp.Native && Wanted(n.mode, i%2 == j%2) != bgp.Native {
			m.fatal("node %d falls back from %s to plain packets towards node %d, in mode %s", i, n.routes[j], j, n.mode)
		}
		n.routes[j] = used
	}
}

func (m *model) synced(i int) bool {
	for j, awaited := range m.nodes[i].awaited {
		if awaited && m.nodes[j].running {
			return false
		}
	}
	return true
}

func (m *model) sends(i int) bgp.Encapsulations {
	n := m.nodes[i]
	if !m.synced(i) {
		return n.devices
	}
	all, _ := n.table.Sends()
	for _, used := range n.routes {
		all |= bgp.EncapsulationsOf(used) & bgp.Tunnels
	}
	return all
}

// apply is package agent's part: what node.apply does, in its order.
func (m *model) apply(i int) {
	n := m.nodes[i]
	wanted := bgp.EncapsulationsOf(Tunnel(n.mode)) & bgp.Tunnels
	kinds, offered := wanted, wanted
	for kind := range bgp.Tunnels.All() {
		if wanted.Has(kind) || !n.devices.Has(kind) {
			delete(n.retiring, kind)
			continue
		}
		if n.retiring[kind] == nil {
			n.retiring[kind] = &Retirement{}
		}
		stay := n.retiring[kind].Look(m.now, m.sends(i).Has(kind), m.peers(i, kind), func() (int, error) { return m.random.IntN(2), nil })
		if stay.Why == "" {
			continue
		}
		kinds |= bgp.EncapsulationsOf(kind)
		if stay.Offered {
			offered |= bgp.EncapsulationsOf(kind)
		}
	}
	m.note("node %d in mode %s: devices %s, offers %s", i, n.mode, kinds, offered)
	n.devices = kinds
	n.table.Configure(m.inputs(i))
	m.program(i)
	_, unsettled := n.table.Sends()
	says := bgp.Statement{Said: true, Mode: n.mode, Settled: m.synced(i) && !unsettled["default"], Sends: m.sends(i)}
	if hop := (bgp.Hop{Addr: n.addr, Receives: offered, Says: says}); hop != n.said {
		n.said = hop
		for j := range m.nodes {
			m.send(i, j)
		}
	}
}

func (m *model) peers(i int, kind bgp.Encapsulation) []Peer {
	var peers []Peer
	for j, other := range m.nodes {
		if j == i {
			continue
		}
		sends, heard := m.nodes[i].table.Heard(other.addr)
		peers = append(peers, Peer{
			Name: fmt.Sprint(j), Heard: heard, Sends: sends.Has(kind), Session: m.up[i][j] && m.now.Sub(m.since[i][j]) > slowest,
		})
	}
	return peers
}

func (m *model) inputs(i int) Inputs {
	in := Inputs{
		Pools:   []Pool{{Name: "default", Prefix: netip.MustParsePrefix("10.244.0.0/16"), Mode: m.nodes[i].mode}},
		Devices: make(map[bgp.Encapsulation]int), Nodes: make(map[netip.Addr]netip.Addr), Ways: make(map[netip.Addr]Way),
	}
	for kind := range m.nodes[i].devices.All() {
		in.Devices[kind] = int(kind)
	}
	for j, other := range m.nodes {
		in.Nodes[other.addr] = other.addr
		in.Ways[other.addr] = Way{Onlink: i%2 == j%2, Target: route.Target{Device: 100, Gateway: other.addr}}
	}
	return in
}

// check is the promise that no packet is sent to where it is not taken.
func (m *model) check() {
	for i, n := range m.nodes {
		for j, used := range n.routes {
			if used != bgp.Native && !(n.devices.Has(used) && m.nodes[j].devices.Has(used)) {
				m.fatal("node %d sends to node %d by %s; their devices: %s, %s", i, j, used, n.devices, m.nodes[j].devices)
			}
		}
	}
}

func (m *model) fatal(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.log[max(0, len(m.log)-60):] {
		m.t.Log(line)
	}
	m.t.Fatalf(format, args...)
}

// settle lets everything that is under way arrive.
func (m *model) settle() {
	for i := range m.nodes {
		if !m.nodes[i].running {
			m.start(i)
		}
	}
	for range 60 {
		for i := range m.nodes {
			for j := range m.nodes {
				m.connect(i, j)
				for len(m.lines[i][j]) > 0 {
					m.deliver(i, j)
					m.check()
				}
			}
			m.nodes[i].mode = m.mode
			m.apply(i)
			m.check()
		}
		m.wait(time.Second)
	}
	for i, n := range m.nodes {
		for j, used := range n.routes {
			if want := Wanted(m.mode, i%2 == j%2); used != want {
				m.fatal("mode %s: in the end node %d sends to node %d by %s, not %s", m.mode, i, j, used, want)
			}
		}
		if want := bgp.EncapsulationsOf(Tunnel(m.mode)) & bgp.Tunnels; n.devices != want && n.devices&^want != 0 && !m.lucky(i) {
			m.fatal("mode %s: in the end node %d has devices %s, not %s", m.mode, i, n.devices, want)
		}
		if !n.said.Says.Settled {
			m.fatal("mode %s: in the end node %d does not say that it has switched", m.mode, i)
		}
	}
}

// lucky looks again: connections of the host, which the model tosses a coin for,
// may have kept a device.
func (m *model) lucky(i int) bool {
	for range 64 {
		m.apply(i)
		if m.nodes[i].devices&^(bgp.EncapsulationsOf(Tunnel(m.mode))&bgp.Tunnels) == 0 {
			return true
		}
	}
	return false
}

func TestNoPacketMeetsAMissingDevice(t *testing.T) {
	histories := uint64(250)
	if testing.Short() {
		histories = 20
	}
	for seed := range histories {
		m := newModel(t, seed, 3+int(seed%3))
		for range 4 {
			w := weathers[m.random.IntN(len(weathers))]
			for range 400 {
				m.step(w)
			}
			m.settle()
		}
	}
}
