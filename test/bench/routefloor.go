package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/test/lab"
)

// kernelFloor is what the kernel needs for routes when it is told of them as
// fast as it can be: messages made beforehand, many in one system call, no
// answer but for the last of each call.
type kernelFloor struct {
	machine *lab.Machine
	nextHop netip.Addr
	taken   []time.Duration
}

// floorBatch is how many bytes of messages go into one call; more does not help.
const floorBatch = 32 << 10

// run writes the routes, notes how long it took, and deletes them again.
func (f *kernelFloor) run(ctx context.Context, prefixes []netip.Prefix) error {
	return f.machine.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open a netlink socket: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("bind a netlink socket: %w", err)
		}
		additions := f.messages(prefixes, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		start := time.Now()
		if err := exchange(ctx, fd, additions); err != nil {
			return fmt.Errorf("add %d routes: %w", len(prefixes), err)
		}
		f.taken = append(f.taken, time.Since(start))
		if err := exchange(ctx, fd, f.messages(prefixes, unix.RTM_DELROUTE, 0)); err != nil {
			return fmt.Errorf("delete %d routes: %w", len(prefixes), err)
		}
		return nil
	})
}

// messages are the routes' messages in batches, the last of each with a request for an answer.
func (f *kernelFloor) messages(prefixes []netip.Prefix, kind, flags uint16) [][]byte {
	var batches [][]byte
	var batch []byte
	for i, p := range prefixes {
		full := len(batch) >= floorBatch || i == len(prefixes)-1
		own := flags | unix.NLM_F_REQUEST
		if full {
			own |= unix.NLM_F_ACK
		}
		batch = appendRoute(batch, kind, own, p, f.nextHop)
		if full {
			batches, batch = append(batches, batch), nil
		}
	}
	return batches
}

// appendRoute appends a message about an IPv4 route: nlmsghdr, rtmsg, RTA_DST, RTA_GATEWAY (rtnetlink(7)).
func appendRoute(b []byte, kind, flags uint16, p netip.Prefix, gateway netip.Addr) []byte {
	const length = unix.SizeofNlMsghdr + unix.SizeofRtMsg + 2*(unix.SizeofRtAttr+4)
	order := binary.NativeEndian
	b = order.AppendUint32(b, length)
	b = order.AppendUint16(b, kind)
	b = order.AppendUint16(b, flags)
	b = append(b, make([]byte, 8)...) // sequence and port: there is one question at a time
	b = append(b, unix.AF_INET, byte(p.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST)
	b = order.AppendUint32(b, 0) // rtm_flags
	for _, a := range []struct {
		kind uint16
		addr netip.Addr
	}{{unix.RTA_DST, p.Addr()}, {unix.RTA_GATEWAY, gateway}} {
		b = order.AppendUint16(b, unix.SizeofRtAttr+4)
		b = order.AppendUint16(b, a.kind)
		b = append(b, a.addr.AsSlice()...)
	}
	return b
}

// exchange sends the batches and waits for the answer to each. The first
// answer is that to the last message, unless one before it failed.
func exchange(ctx context.Context, fd int, batches [][]byte) error {
	answer := make([]byte, 4096)
	for _, batch := range batches {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		n, _, err := unix.Recvfrom(fd, answer, 0)
		if err != nil {
			return err
		}
		if n < unix.SizeofNlMsghdr+4 {
			return fmt.Errorf("the kernel's answer has %d bytes", n)
		}
		if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
			return unix.Errno(-code)
		}
	}
	return nil
}
