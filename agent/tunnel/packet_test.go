package tunnel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/bgp"
)

var vxlanOnly = bgp.EncapsulationsOf(bgp.VXLAN)

// TestPodsReachEachOtherThroughVXLAN in both families, with packets as large as
// their MTU, over an underlay of either.
func TestPodsReachEachOtherThroughVXLAN(t *testing.T) {
	for _, c := range []struct {
		underlay string
		ipv6     bool
		mtu      int
	}{{"IPv4", false, 1450}, {"IPv6", true, 1430}} {
		t.Run(c.underlay+" underlay", func(t *testing.T) {
			f := newFabric(t, vxlanOnly, c.ipv6)
			f.routeAll("hop.vxlan")
			seen := f.router.capture("node1", func() {
				for _, to := range f.nodes[1:] {
					for _, family := range []int{4, 6} {
						f.nodes[0].pod.reaches(to.podAddr(family), 100)
						f.nodes[0].pod.reaches(to.podAddr(family), c.mtu)
						to.pod.reaches(f.nodes[0].podAddr(family), c.mtu)
						f.nodes[0].reaches(to.podAddr(family), c.mtu)
					}
				}
			})
			inner := 0
			for _, packet := range seen {
				if vxlan := outer(packet); vxlan != nil {
					checkVXLAN(t, vxlan)
					inner++
				} else if isPods(packet) {
					t.Errorf("a pod's packet as it is: %x", packet[:40])
				}
			}
			if want := 2 * 2 * 4 * 2; inner != want { // nodes, families, pings, and the answers
				t.Errorf("%d VXLAN packets, want %d", inner, want)
			}
			for _, family := range []int{4, 6} {
				said := f.nodes[0].pod.ping(f.nodes[1].podAddr(family), c.mtu+1)
				if !strings.Contains(strings.ToLower(said), "mtu") || !strings.Contains(said, fmt.Sprint(c.mtu)) {
					t.Errorf("a packet of %d bytes: %q", c.mtu+1, said)
				}
			}
		})
	}
}

// outer returns the UDP datagram to the VXLAN port, or nil.
func outer(packet []byte) []byte {
	headers, protocol := 20, packet[9]
	if packet[0]>>4 == 6 {
		headers, protocol = 40, packet[6]
	}
	if protocol != unix.IPPROTO_UDP || binary.BigEndian.Uint16(packet[headers+2:]) != 4789 {
		return nil
	}
	return packet[headers:]
}

func isPods(packet []byte) bool {
	source := packet[12:16]
	if packet[0]>>4 == 6 {
		source = packet[8:24]
	}
	a, _ := netip.AddrFromSlice(source)
	return netip.MustParsePrefix("10.244.0.0/16").Contains(a) || netip.MustParsePrefix("fd00::/16").Contains(a)
}

func checkVXLAN(t *testing.T, udp []byte) {
	t.Helper()
	if checksum := binary.BigEndian.Uint16(udp[6:]); checksum == 0 {
		t.Error("no UDP checksum")
	}
	// Flags with the VNI's bit alone, VNI 4096 (RFC 7348 section 5).
	if header := binary.BigEndian.Uint64(udp[8:]); header != 0x08000000_00100000 {
		t.Errorf("VXLAN header %016x", header)
	}
	if to := net.HardwareAddr(udp[16:22]); to[0]&1 != 0 {
		t.Errorf("a frame to the multicast address %s", to)
	}
}

// TestTheHostItselfComesFromItsTunnelAddress: a remote pod's answer must come back
// through the tunnel, too.
func TestTheHostItselfComesFromItsTunnelAddress(t *testing.T) {
	f := newFabric(t, vxlanOnly, false)
	f.routeAll("hop.vxlan")
	for _, family := range []int{4, 6} {
		server := f.nodes[1].pod.listen(f.nodes[1].podAddr(family))
		var conn net.Conn
		var err error
		f.nodes[0].ns.Do(t, func() { conn, err = net.Dial("tcp", server) })
		must(t, err)
		if got := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().String(); got != f.nodes[0].own(family) {
			t.Errorf("connection from %s, want %s", got, f.nodes[0].own(family))
		}
		f.nodes[0].inUse(f.nodes[0].d, f.nodes[0].own(family), 1)
		must(t, conn.Close())
	}
}

// TestNothingIsSentToAll: what has no FDB entry, as anything multicast, stays.
func TestNothingIsSentToAll(t *testing.T) {
	f := newFabric(t, vxlanOnly, false)
	n := f.nodes[0]
	n.ip("route add 10.99.0.0/24 via 192.0.2.200 dev hop.vxlan onlink") // a next hop that is no node: ARP
	sent := n.capture("hop.vxlan", func() {
		seen := f.router.capture("node1", func() {
			for _, to := range []string{"10.99.0.1", "ff02::1%hop.vxlan", "224.0.0.1"} {
				_, _ = n.try("", "ping", "-n", "-c", "1", "-W", "0.1", "-I", "hop.vxlan", to)
			}
		})
		for _, packet := range seen {
			if outer(packet) != nil {
				t.Errorf("sent: %x", packet)
			}
		}
	})
	if len(sent) == 0 {
		t.Error("nothing was there to be kept back")
	}
}

// TestLooseReversePathFilter: what a node sends natively may be answered through
// the tunnel, also where all's rp_filter is strict.
func TestLooseReversePathFilter(t *testing.T) {
	f := newFabric(t, vxlanOnly, false)
	f.native()
	n, other := f.nodes[0], f.nodes[1]
	n.ns.SetSysctl(t, "net/ipv4/conf/all/rp_filter", "1")
	n.route(other, "up0")
	other.route(n, "hop.vxlan")
	n.pod.reaches(other.podAddr(4), 100)
}

// TestWithoutAnAddress: the same holds on a node that may have no addresses of its own.
func TestWithoutAnAddress(t *testing.T) {
	f := newFabric(t, vxlanOnly, false)
	f.native()
	n, other := f.nodes[0], f.nodes[1]
	n.d.mu.Lock()
	want := *n.d.desired
	n.d.mu.Unlock()
	want.Addrs = nil
	must(t, n.d.Sync(t.Context(), want))
	n.route(other, "up0")
	other.route(n, "hop.vxlan")
	n.pod.reaches(other.podAddr(4), 100)
}

func TestChecksumsAreRightWithAndWithoutOffload(t *testing.T) {
	for _, on := range []bool{true, false} {
		f := newFabric(t, vxlanOnly, false)
		f.routeAll("hop.vxlan")
		for _, n := range f.nodes {
			_, err := n.d.setChecksumOffload("hop.vxlan", on)
			must(t, err)
		}
		for _, family := range []int{4, 6} {
			f.nodes[0].pod.sends(f.nodes[1].pod, f.nodes[1].podAddr(family), 1<<20)
			f.nodes[0].sends(f.nodes[2].pod, f.nodes[2].podAddr(family), 1<<20)
		}
	}
}
