package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// listener hears of changes of hop.vxlan's neighbours and FDB entries.
//
// The kernel has one group for those of all devices, and on a node each pod's
// ARP makes changes in it. So the agent's general subscription leaves it out, and
// this one has the kernel drop, before they take room in the socket's buffer or
// wake anyone up, all changes but those on the one device. Comparing lists
// instead, each second, would take a few milliseconds of the RTNL lock with
// 1,000 nodes, forever; this takes nothing while nothing happens.
type listener struct {
	socket *os.File
	own    uint32 // the port of our own writes
}

// listen subscribes, in the network namespace of the calling thread, to nothing
// as yet.
func listen(own uint32) (*listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// 1,000 nodes at once are 1,000 FDB entries of our own to be told of. To miss
	// some costs a look at all.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 2<<20)
	l := &listener{socket: os.NewFile(uintptr(fd), "neighbour notifications"), own: own}
	err = l.follow(0)
	if err == nil {
		err = errors.Join(
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
			unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.RTNLGRP_NEIGH),
		)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("subscribe to changes of neighbours: %w", err)
	}
	return l, nil
}

func (l *listener) close() { _ = l.socket.Close() }

// follow has the kernel deliver what is about the device with this index; 0: nothing.
func (l *listener) follow(index int) error {
	const (
		port   = 12 // nlmsg_pid: whose change it is
		device = unix.SizeofNlMsghdr + 4
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	// The load reads big-endian, the message holds the machine's order.
	equal := func(value uint32, then, otherwise uint8) unix.SockFilter {
		return unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K,
			K:    binary.BigEndian.Uint32(order.AppendUint32(nil, value)), Jt: then, Jf: otherwise,
		}
	}
	result := func(bytes uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: bytes} }
	program := []unix.SockFilter{load(port), equal(l.own, 2, 0), load(device), equal(uint32(index), 1, 0), result(0), result(1 << 16)}
	if index == 0 {
		program = []unix.SockFilter{result(0)}
	}
	raw, err := l.socket.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if err = errors.Join(controlErr, err); err != nil {
		return fmt.Errorf("filter changes of neighbours: %w", err)
	}
	return nil
}

// run hands each change to heard, until ctx ends; lost says that some were lost.
func (l *listener) run(ctx context.Context, heard func(n neighbour, deleted bool), lost func()) {
	defer context.AfterFunc(ctx, func() { _ = l.socket.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, rtnl.MaxDatagram)
	for {
		n, err := l.socket.Read(buf)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			lost()
			continue
		case err != nil:
			return // closed
		}
		for m := range rtnl.Messages(buf[:n]) {
			if m.Type != unix.RTM_NEWNEIGH && m.Type != unix.RTM_DELNEIGH {
				continue
			}
			if n, ok := parseNeighbour(m.Body); ok {
				heard(n, m.Type == unix.RTM_DELNEIGH)
			}
		}
	}
}
