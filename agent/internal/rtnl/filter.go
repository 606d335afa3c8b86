package rtnl

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// portOffset is where nlmsg_pid lies in a message. In a notification it holds
// the port of the socket through which the change was asked for.
const portOffset = 12

// attachFilter makes the kernel drop notifications of changes made through the
// given ports. A datagram of notifications holds one message, or several of one
// request, so that looking at the first is enough.
func attachFilter(fd int, ignorePorts []uint32) error {
	if len(ignorePorts) == 0 {
		return nil
	}
	if len(ignorePorts) > 200 {
		return fmt.Errorf("netlink filter: %d ports to ignore, at most 200 can be", len(ignorePorts))
	}
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portOffset}}
	for i, port := range ignorePorts {
		program = append(program, unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K,
			// The load reads big-endian, the message holds the machine's order.
			K:  binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, port)),
			Jt: uint8(len(ignorePorts) - i),
		})
	}
	program = append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	)
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("attach the netlink socket's filter: %w", err)
	}
	return nil
}
