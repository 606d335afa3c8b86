// Package rtnl is as much of rtnetlink's wire format (RFC 3549, linux/rtnetlink.h)
// as the agent needs in bulk: a socket, message and attribute iteration, and
// routes. The general-purpose library allocates a struct and waits for an
// answer per route; here thousands of routes travel in one system call.
package rtnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// MaxDatagram is more than the kernel puts in one datagram (32 KiB in a dump).
const MaxDatagram = 64 << 10

// answerTimeout bounds a wait for the kernel. It answers within the system call
// that asked, so that running into it means a lost answer.
const answerTimeout = 10 * time.Second

// Conn is a NETLINK_ROUTE socket in the network namespace of the thread that
// opened it. It is not safe for concurrent use.
type Conn struct {
	fd   int
	port uint32
	seq  uint32
	buf  []byte
}

// Dial opens a socket for requests.
func Dial() (*Conn, error) {
	fd, port, err := open(4<<20, 1<<20, nil)
	if err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set the netlink socket's timeout: %w", err)
	}
	// Each is a refinement that old kernels lack: filters of dumps applied by
	// the kernel (4.20), errors in words (4.12), errors without the request (4.2).
	for _, option := range []int{unix.NETLINK_GET_STRICT_CHK, unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1)
	}
	return &Conn{fd: fd, port: port, buf: make([]byte, MaxDatagram)}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// PortID is what the kernel puts into notifications of changes made through c.
func (c *Conn) PortID() uint32 { return c.port }

// SetReceiveBuffer sets the size, in bytes, of the buffer for answers.
func (c *Conn) SetReceiveBuffer(bytes int) error {
	return unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
}

// NextSeq reserves n consecutive sequence numbers and returns the first.
func (c *Conn) NextSeq(n int) uint32 {
	if c.seq+uint32(n) < c.seq || c.seq == 0 {
		c.seq = 1
	}
	first := c.seq
	c.seq += uint32(n)
	return first
}

// Send sends whole messages, which the kernel carries out before Send returns.
func (c *Conn) Send(messages []byte) error {
	for {
		err := unix.Sendto(c.fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// Receive returns the next datagram from the kernel, valid until the next call.
// ENOBUFS means that answers were lost; those still in the buffer are dropped
// then, since the kernel reports no second loss before the buffer was empty.
func (c *Conn) Receive() ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return nil, fmt.Errorf("the kernel did not answer a netlink request within %v", answerTimeout)
		case err != nil:
			c.drain()
			return nil, os.NewSyscallError("recvfrom", err)
		case fromKernel(from):
			return c.buf[:n], nil
		}
	}
}

func (c *Conn) drain() {
	for {
		_, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return
		}
	}
}

// Subscription is a socket that receives notifications.
type Subscription struct {
	file *os.File
	buf  []byte
}

// Subscribe joins multicast groups (RTNLGRP_*). Changes made through a socket
// whose port is in ignorePorts are not delivered: the kernel drops them before
// they take room in the socket's buffer.
func Subscribe(ignorePorts []uint32, groups ...int) (*Subscription, error) {
	fd, _, err := open(8<<20, 0, ignorePorts)
	if err != nil {
		return nil, err
	}
	for _, group := range groups {
		err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		if group == unix.RTNLGRP_NEXTHOP && errors.Is(err, unix.EINVAL) {
			continue // a kernel without next hop objects (before 5.3) has nothing to tell of them
		}
		if err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("join netlink group %d: %w", group, err)
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make the netlink socket non-blocking: %w", err)
	}
	return &Subscription{file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, MaxDatagram)}, nil
}

// Close closes the socket.
func (s *Subscription) Close() error { return s.file.Close() }

// rest is how long Receive lets notifications gather when there are none left:
// adding one pod causes a dozen, and waking up for each would take the processor
// from the very work they tell of.
const rest = 10 * time.Millisecond

// Receive waits for a datagram, valid until the next call, or for ctx to end.
// ENOBUFS means that notifications were lost.
func (s *Subscription) Receive(ctx context.Context) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := s.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	for rested := false; ; {
		var (
			n    int
			from unix.Sockaddr
			got  error
		)
		err := raw.Read(func(fd uintptr) bool {
			n, from, got = unix.Recvfrom(int(fd), s.buf, 0)
			return !rested || !errors.Is(got, unix.EAGAIN)
		})
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, err
		case errors.Is(got, unix.EINTR):
		case errors.Is(got, unix.EAGAIN):
			rested = true
			time.Sleep(rest)
		case got != nil:
			return nil, os.NewSyscallError("recvfrom", got)
		case fromKernel(from):
			return s.buf[:n], nil
		}
	}
}

// fromKernel refuses what another process sent to the socket's port.
func fromKernel(from unix.Sockaddr) bool {
	sender, ok := from.(*unix.SockaddrNetlink)
	return ok && sender.Pid == 0
}

func open(receive, send int, ignorePorts []uint32) (fd int, port uint32, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, 0, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
			fd = -1
		}
	}()
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receive)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, send)
	// The filter is there before the first notification can be.
	if err := attachFilter(fd, ignorePorts); err != nil {
		return fd, 0, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fd, 0, fmt.Errorf("bind a netlink socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fd, 0, fmt.Errorf("read a netlink socket's port: %w", err)
	}
	if own, ok := name.(*unix.SockaddrNetlink); ok {
		port = own.Pid
	}
	return fd, port, nil
}

// setBuffer tries to go past the sysctl's limit, which takes CAP_NET_ADMIN.
// A smaller buffer only makes overruns likelier, and those are handled.
func setBuffer(fd, force, plain, bytes int) {
	if bytes > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, bytes)
	}
}
