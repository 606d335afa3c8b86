package route_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/agent/route"
)

// TestNoPacketIsLostWhileTargetsChange: between two hosts with two cables,
// datagrams flow to prefixes whose next hop changes from one cable to the other
// every few milliseconds. A hundred other routes change with it.
func TestNoPacketIsLostWhileTargetsChange(t *testing.T) {
	bothWays(t, func(t *testing.T, h *host) {
		far := h.cables()
		s := h.syncer()
		hops := []route.Hop{forHop("192.0.2.2", "p"), forHop("2001:db8::2", "p")}
		all := slicesOf("10.1.0.0/26", hops[0], 100)
		all = append(all, slicesOf("fd01::/122", hops[1], 1)...)
		ways := []map[route.Hop]route.Target{
			{hops[0]: target(h.up, "192.0.2.2", false), hops[1]: target(h.up, "2001:db8::2", false)},
			{hops[0]: target(h.index("hop.vxlan"), "172.30.1.12", true), hops[1]: target(h.index("hop.vxlan"), "fd00:30::12", true)},
		}
		s.SetTargets(ways[0])
		s.Update(all)
		must(t, s.Sync(t.Context()))
		flows := []*flow{newFlow(h, far, "10.1.0.5"), newFlow(h, far, "fd01::5")}
		for i := range ways {
			s.SetTargets(ways[1-i])
			must(t, s.Sync(t.Context()))
			for _, f := range flows {
				f.begin()
			}
		}
		before := [2]uint64{far.packets("far0"), far.packets("far1")}
		var sending sync.WaitGroup
		for _, f := range flows {
			sending.Go(f.send)
			go f.receive()
		}
		const changes = 200
		pace := time.NewTicker(4 * time.Millisecond)
		defer pace.Stop()
		for i := range changes {
			<-pace.C
			s.SetTargets(ways[(i+1)%2])
			must(t, s.Sync(t.Context()))
		}
		for _, f := range flows {
			close(f.stop)
		}
		sending.Wait()
		for _, f := range flows {
			close(f.sentAll)
			<-f.received
			if sent := f.sent.Load(); f.lost > 0 || sent < changes {
				t.Errorf("%d packets of %d to %s lost", f.lost, sent, f.to)
			}
		}
		for i, device := range []string{"far0", "far1"} {
			if n := far.packets(device) - before[i]; n < changes {
				t.Errorf("%d packets by way of %s: the test tests nothing", n, device)
			}
		}
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

func slicesOf(first string, hop route.Hop, n int) []route.Learned {
	var all []route.Learned
	p := prefix(first)
	for range n {
		all = append(all, route.Learned{Prefix: p, Hops: []route.Hop{hop}})
		a := p.Addr().As16()
		a[14]++
		p = netip.PrefixFrom(netip.AddrFrom16(a).Unmap(), p.Bits())
	}
	return all
}

// cables makes another host at the far ends of the uplink and of a device that
// stands for a tunnel. Neighbours are known: resolving them is not what is tested.
func (h *host) cables() *host {
	h.t.Helper()
	far := &host{t: h.t, ns: nstest.New(h.t)}
	h.tunnel()
	h.ip("link set far0 netns "+far.ns.Path, "link set far1 netns "+far.ns.Path,
		"link set up0 address 02:00:00:00:00:01", "link set hop.vxlan address 02:00:00:00:00:02",
		"neigh replace 192.0.2.2 lladdr 02:00:00:00:00:03 dev up0", "neigh replace 2001:db8::2 lladdr 02:00:00:00:00:03 dev up0",
		"neigh replace 172.30.1.12 lladdr 02:00:00:00:00:04 dev hop.vxlan",
		"neigh replace fd00:30::12 lladdr 02:00:00:00:00:04 dev hop.vxlan")
	far.ip("link set far0 address 02:00:00:00:00:03", "link set far1 address 02:00:00:00:00:04",
		"link set far0 up", "link set far1 up", "addr add 10.1.0.5/32 dev lo", "addr add fd01::5/128 dev lo nodad")
	for _, device := range []string{"all", "far0", "far1"} {
		far.ns.SetSysctl(h.t, "net/ipv4/conf/"+device+"/rp_filter", "0")
	}
	// No reply is needed, but a way back is what makes a source address good.
	far.ip("route add 192.0.2.0/24 dev far0", "route add 2001:db8::/64 dev far0")
	return far
}

// packets is how many a device has received.
func (h *host) packets(device string) uint64 {
	h.t.Helper()
	link, err := h.ns.Handle(h.t).LinkByName(device)
	must(h.t, err)
	return link.Attrs().Statistics.RxPackets
}

// flow is datagrams from one host to an address of another, two each half
// millisecond: from a socket that is connected, and so remembers the route, and
// from one that is not.
type flow struct {
	t        *testing.T
	to       *net.UDPAddr
	senders  []*net.UDPConn
	receiver *net.UDPConn
	stop     chan struct{} // closed when it was enough
	sentAll  chan struct{}
	received chan struct{} // closed when lost is known
	sent     atomic.Uint64
	lost     uint64
}

func newFlow(from, to *host, address string) *flow {
	f := &flow{t: from.t.(*testing.T), stop: make(chan struct{}), sentAll: make(chan struct{}), received: make(chan struct{})}
	source := &net.UDPAddr{IP: net.ParseIP("192.0.2.1")}
	if prefix(address + "/32").Addr().Is6() {
		source.IP = net.ParseIP("2001:db8::1")
	}
	var err error
	to.ns.Do(to.t, func() { f.receiver, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address)}) })
	must(from.t, err)
	from.t.Cleanup(func() { _ = f.receiver.Close() })
	f.to = f.receiver.LocalAddr().(*net.UDPAddr)
	from.ns.Do(from.t, func() {
		for _, open := range []func() (*net.UDPConn, error){
			func() (*net.UDPConn, error) { return net.DialUDP("udp", source, f.to) },
			func() (*net.UDPConn, error) { return net.ListenUDP("udp", source) },
		} {
			conn, err := open()
			must(from.t, err)
			from.t.Cleanup(func() { _ = conn.Close() })
			f.senders = append(f.senders, conn)
		}
	})
	return f
}

// begin waits until a datagram arrives: a device that was just set up drops
// some at first.
func (f *flow) begin() {
	const probe = 1 << 63
	buf := binary.BigEndian.AppendUint64(nil, probe)
	for end := time.Now().Add(10 * time.Second); ; {
		for _, conn := range f.senders[1:] {
			_, _ = conn.WriteToUDP(binary.BigEndian.AppendUint64(nil, probe), f.to)
		}
		must(f.t, f.receiver.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		if _, err := f.receiver.Read(buf); err == nil {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("nothing arrives at %s", f.to)
		}
	}
}

// send sends numbered datagrams until f is stopped.
func (f *flow) send() {
	pace := time.NewTicker(500 * time.Microsecond)
	defer pace.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-pace.C:
		}
		for i, conn := range f.senders {
			number := binary.BigEndian.AppendUint64(nil, f.sent.Load())
			f.sent.Add(1)
			var err error
			if i == 0 {
				_, err = conn.Write(number)
			} else {
				_, err = conn.WriteToUDP(number, f.to)
			}
			if err != nil {
				f.t.Errorf("send to %s: %v", f.to, err)
				return
			}
		}
	}
}

// receive reads what arrives until all that was sent has, or a second after the
// last of it: veth delivers at once, so that what has not come by then will not.
func (f *flow) receive() {
	defer close(f.received)
	seen := make(map[uint64]bool)
	buf := make([]byte, 8)
	for last, done := time.Now(), false; ; {
		select {
		case <-f.sentAll:
			done = true
		default:
		}
		f.lost = f.sent.Load() - uint64(len(seen))
		if done && (f.lost == 0 || time.Since(last) > time.Second) {
			return
		}
		_ = f.receiver.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := f.receiver.Read(buf); err != nil {
			continue
		}
		if number := binary.BigEndian.Uint64(buf); number < f.sent.Load() { // no probe
			seen[number], last = true, time.Now()
		}
	}
}
