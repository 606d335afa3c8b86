package nat

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/bgp"
)

// tunnel makes a device on both nodes, with an address of each family out of the
// node's own block, and leads nothing through it yet. The rules know a tunnel by
// the name of its device, so VXLAN stands here for any kind.
func (w world) tunnel(t *testing.T, name string, vni, port int) {
	t.Helper()
	for ns, c := range map[*nstest.NS][4]string{
		w.node: {"192.0.2.1", "192.0.2.2", "10.244.0.1", "fd00:244::1"},
		w.out:  {"192.0.2.2", "192.0.2.1", "10.244.1.1", "fd00:244::1:1"},
	} {
		sh(t, ns, `ip link add %[1]s type vxlan id %[2]d dstport %[3]d local %[4]s nolearning
			ip link set %[1]s up; bridge fdb append 00:00:00:00:00:00 dev %[1]s dst %[5]s
			ip addr add %[6]s/32 dev %[1]s; ip addr add %[7]s/128 dev %[1]s nodad`, name, vni, port, c[0], c[1], c[2], c[3])
	}
	for ns, peer := range map[*nstest.NS]*nstest.NS{w.node: w.out, w.out: w.node} {
		link, err := peer.Handle(t).LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		via, via6 := "192.0.2.2", "fe80::2"
		if ns == w.out {
			via, via6 = "192.0.2.1", "fe80::1"
		}
		sh(t, ns, "for a in %s %s; do ip neigh replace $a lladdr %s dev %s nud permanent; done", via, via6, link.Attrs().HardwareAddr, name)
	}
}

// lead sends what is for the other node's pods out of a device, each way.
func (w world) lead(t *testing.T, there, back string) {
	t.Helper()
	// An IPv6 gateway that is routed by way of another device is refused, even onlink.
	via6 := func(dev, node string) string {
		if strings.HasPrefix(dev, "hop.") {
			return "fe80::" + node
		}
		return "2001:db8::" + node
	}
	sh(t, w.node, "ip route replace 10.244.1.0/24 via 192.0.2.2 dev %[1]s onlink; ip route replace fd00:244::1:0/112 via %[2]s dev %[1]s onlink", there, via6(there, "2"))
	sh(t, w.out, "ip route replace 10.244.0.0/24 via 192.0.2.1 dev %[1]s onlink; ip route replace fd00:244::/112 via %[2]s dev %[1]s onlink", back, via6(back, "1"))
}

// newTunnels is a world with two tunnels between the nodes.
func newTunnels(t *testing.T) world {
	w := newWorld(t)
	sh(t, w.out, "ip addr add fd00:244::1:2/128 dev lo; ip route del 10.244.0.0/24; ip route del fd00:244::/64")
	sh(t, w.node, "ip route del 10.244.1.0/24")
	w.tunnel(t, "hop.vxlan", vxlanVNI, 4789)
	w.tunnel(t, "hop.ipip", 9, 9999)
	for _, ns := range []*nstest.NS{w.node, w.out} {
		// A packet comes one way and goes the other while a mode changes.
		for _, dev := range []string{"all", "uplink", "peer", "hop.vxlan", "hop.ipip"} {
			sh(t, ns, "f=/proc/sys/net/ipv4/conf/%s/rp_filter; ! [ -e $f ] || echo 0 >$f", dev)
		}
	}
	return w
}

var tunnelsBetween = Desired{
	Pools:   twoFamilies.Pools,
	Nodes:   append([]netip.Addr{netip.MustParseAddr("2001:db8::2")}, twoFamilies.Nodes...),
	Tunnels: bgp.EncapsulationsOf(bgp.IPIP, bgp.VXLAN),
}

func TestNothingBetweenPodsAndNodesIsMasqueradedInAnyMode(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, _ *nstest.NS) {
		w := newTunnels(t)
		for _, c := range []string{"iptables", "ip6tables"} {
			sh(t, w.node, "%[1]s-%[2]s -P FORWARD DROP; %[1]s-%[2]s -P INPUT DROP; %[1]s-%[2]s -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", c, m)
			// What stands in for another kind of tunnel has its own port; IPv6 asks for its neighbours.
			sh(t, w.node, "%s-%s -A INPUT -p udp --dport 9999 -j ACCEPT", c, m)
		}
		sh(t, w.node, "ip6tables-%s -A INPUT -p ipv6-icmp -j ACCEPT", m)
		mustSync(t, newSyncer(t, w.node, Config{Mode: m}), tunnelsBetween)
		for mode, way := range map[string][2]string{
			"native":          {"uplink", "peer"},
			"vxlan":           {"hop.vxlan", "hop.vxlan"},
			"ipip":            {"hop.ipip", "hop.ipip"},
			"native to vxlan": {"hop.vxlan", "peer"},
			"vxlan to native": {"uplink", "hop.vxlan"},
			"ipip to vxlan":   {"hop.vxlan", "hop.ipip"},
		} {
			t.Run(mode, func(t *testing.T) {
				w.lead(t, way[0], way[1])
				for _, c := range []struct {
					what     string
					from     *nstest.NS
					bind     string
					to       *nstest.NS
					dst, see string
				}{
					{"pod to pod", w.pod, "", w.out, "10.244.1.2", "10.244.0.2"},
					{"pod to pod, IPv6", w.pod, "", w.out, "fd00:244::1:2", "fd00:244::2"},
					{"pod to the other node by its tunnel address", w.pod, "", w.out, "10.244.1.1", "10.244.0.2"},
					{"node to pod by its tunnel address", w.node, "10.244.0.1", w.out, "10.244.1.2", "10.244.0.1"},
					{"node to pod by its tunnel address, IPv6", w.node, "fd00:244::1", w.out, "fd00:244::1:2", "fd00:244::1"},
					{"node to pod", w.node, "192.0.2.1", w.out, "10.244.1.2", "192.0.2.1"},
					{"pod elsewhere to pod", w.out, "10.244.1.2", w.pod, "10.244.0.2", "10.244.1.2"},
					{"pod elsewhere to pod, IPv6", w.out, "fd00:244::1:2", w.pod, "fd00:244::2", "fd00:244::1:2"},
					{"the other node to pod by its tunnel address", w.out, "10.244.1.1", w.pod, "10.244.0.2", "10.244.1.1"},
					{"the other node to pod", w.out, "192.0.2.2", w.pod, "10.244.0.2", "192.0.2.2"},
					{"pod to outside: the node's", w.pod, "", w.out, "198.51.100.1", "192.0.2.1"},
				} {
					if got := source(t, c.from, c.bind, c.to, c.dst); got.String() != c.see {
						t.Errorf("%s: %s saw %s, want %s", c.what, c.dst, got, c.see)
					}
				}
			})
		}
	})
}

// echo answers each datagram with what was in it and the source it had.
func echo(t *testing.T, ns *nstest.NS, addr string) netip.AddrPort {
	t.Helper()
	var conn *net.UDPConn
	var err error
	ns.Do(t, func() { conn, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(addr)}) })
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 100)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort(append(buf[:n], from.String()...), from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// flow asks the echo one question after the other until stop is closed. Every
// one must be answered, and have come with the flow's own source.
func flow(t *testing.T, ns *nstest.NS, bind string, to netip.AddrPort, stop <-chan struct{}) (asked uint64, err error) {
	var conn *net.UDPConn
	ns.Do(t, func() {
		conn, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(bind)}, net.UDPAddrFromAddrPort(to))
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	own := conn.LocalAddr().String()
	buf := make([]byte, 100)
	for {
		select {
		case <-stop:
			return asked, nil
		default:
		}
		asked++
		if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, asked)); err != nil {
			return asked, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return asked, err
		}
		n, err := conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return asked, errors.New("a packet was lost")
		}
		if err != nil {
			return asked, err
		}
		if got := string(buf[8:n]); got != own || binary.BigEndian.Uint64(buf) != asked {
			return asked, errors.New("the packet came from " + got + ", not " + own)
		}
	}
}

func TestTunnelsComeAndGoUnderTraffic(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, _ *nstest.NS) {
		w := newTunnels(t)
		w.lead(t, "hop.vxlan", "hop.vxlan")
		s := newSyncer(t, w.node, Config{Mode: m})
		without := tunnelsBetween
		without.Tunnels = 0
		mustSync(t, s, without)
		run(t, s)
		stop := make(chan struct{})
		var flows sync.WaitGroup
		for what, f := range map[string]struct {
			ns       *nstest.NS
			bind, to string
		}{
			"pod":        {w.pod, "10.244.0.2", "10.244.1.2"},
			"pod, IPv6":  {w.pod, "fd00:244::2", "fd00:244::1:2"},
			"node":       {w.node, "10.244.0.1", "10.244.1.2"},
			"node, IPv6": {w.node, "fd00:244::1", "fd00:244::1:2"},
		} {
			server := echo(t, w.out, f.to)
			flows.Go(func() {
				if asked, err := flow(t, f.ns, f.bind, server, stop); err != nil || asked < 100 {
					t.Errorf("%s: packet %d: %v", what, asked, err)
				}
			})
		}
		for range 3 {
			for _, kinds := range []bgp.Encapsulations{bgp.EncapsulationsOf(bgp.VXLAN), bgp.Tunnels, bgp.EncapsulationsOf(bgp.VXLAN), 0} {
				d := tunnelsBetween
				d.Tunnels = kinds
				mustSync(t, s, d)
			}
		}
		close(stop)
		flows.Wait()
	})
}
