package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab/inside"
)

// ErrTooBig says that a packet did not fit and that its sender was told: by its
// own kernel, or by an ICMP message ("fragmentation needed", "packet too big").
var ErrTooBig = errors.New("the packet is too big, and its sender was told so")

// Whole sends a packet of that many bytes, IP header included, that may not be
// fragmented, to the echo server of a pod or machine. It is nil when the packet
// came back, and ErrTooBig if that was the answer.
func Whole(ctx context.Context, from interface {
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}, to netip.Addr, size int) error {
	conn, err := from.Dial(ctx, "udp", netip.AddrPortFrom(to, inside.UDPPort).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	headers := 20 + 8
	err = control(conn.(*net.UDPConn), func(fd int) error {
		if to.Is6() {
			headers = 40 + 8
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		return err
	}
	payload := make([]byte, size-headers)
	answer := make([]byte, size)
	for range 5 { // an ICMP message is known to the next attempt
		if _, err = conn.Write(payload); err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			var n int
			if n, err = conn.Read(answer); err == nil && n != len(payload) {
				err = fmt.Errorf("%d bytes came back of %d", n, len(payload))
			}
		}
		if errors.Is(err, unix.EMSGSIZE) {
			return ErrTooBig
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return fmt.Errorf("%d bytes to %s: %w", size, to, err)
}

// MTU is that of the pod's interface, and of the veth's end on the node.
func (p *Pod) MTU() (inside, outside int, err error) {
	var peer int
	err = p.Do(func() error {
		link, err := netlink.LinkByName(p.IfName)
		if err == nil {
			inside, peer = link.Attrs().MTU, link.Attrs().ParentIndex
		}
		return err
	})
	if err != nil {
		return 0, 0, fmt.Errorf("%s of %s: %w", p.IfName, p.Name, err)
	}
	err = p.Node.Netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByIndex(peer)
		if err == nil {
			outside = link.Attrs().MTU
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("the end on %s of %s: %w", p.Node.Name, p.Name, err)
	}
	return inside, outside, err
}

// uplinkMTU is that of the machines' uplinks.
const uplinkMTU = 1500

// PodMTU is what the modes leave of the uplinks' MTU to pods.
func PodMTU(modes ...v1alpha1.PoolMode) int {
	overhead := 0
	for _, m := range modes {
		switch m {
		case v1alpha1.ModeIPIP, v1alpha1.ModeIPIPCrossSubnet:
			overhead = max(overhead, 20)
		case v1alpha1.ModeVXLAN, v1alpha1.ModeVXLANCrossSubnet:
			overhead = max(overhead, 50)
		}
	}
	return uplinkMTU - overhead
}

// WaitMTU waits until both ends of all the pods' veths have the MTU.
func WaitMTU(ctx context.Context, want int, pods ...*Pod) error {
	return until(ctx, 20*time.Millisecond, fmt.Sprintf("wait until pods have MTU %d", want), func() error {
		for _, p := range pods {
			inside, outside, err := p.MTU()
			if err != nil {
				return err
			}
			if inside != want || outside != want {
				return fmt.Errorf("%s has %d, its end on the node %d", p.Name, inside, outside)
			}
		}
		return nil
	})
}
