package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Kind is how a packet travels on the wire.
type Kind int

// The kinds.
const (
	Plain Kind = iota
	IPIP       // in IPv4: protocol 4
	VXLAN      // in UDP, port 4789
)

func (k Kind) String() string { return [...]string{"plain", "ipip", "vxlan"}[k] }

// Flow is the packets of one kind from one address to another. Of a packet in a
// tunnel the addresses are those of the inner one, and the outer ones are given too.
type Flow struct {
	From, To           netip.Addr
	Kind               Kind
	OuterFrom, OuterTo netip.Addr // invalid if Plain
}

// Capture counts the packets on a machine's uplink, in and out, that are from
// or to certain addresses, in a tunnel or not.
type Capture struct {
	prefixes []netip.Prefix
	file     *os.File
	reader   sync.WaitGroup
	outcome  func() (map[Flow]int, error)

	mu    sync.Mutex
	flows map[Flow]int
}

// Capture begins to count the packets from and to addresses in the prefixes.
func (m *Machine) Capture(prefixes ...netip.Prefix) (*Capture, error) {
	c := &Capture{prefixes: prefixes, flows: map[Flow]int{}}
	filter, err := captureFilter(prefixes)
	if err != nil {
		return nil, err
	}
	err = m.Do(func() error {
		c.file, err = packetSocket(uplink, filter)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", m.Name, err)
	}
	c.outcome = sync.OnceValues(c.finish)
	c.reader.Go(c.read)
	return c, nil
}

// Stop returns how many packets of each flow there were. All that had passed before are counted.
func (c *Capture) Stop() (map[Flow]int, error) { return c.outcome() }

func (c *Capture) finish() (map[Flow]int, error) {
	// A packet that has passed is in the socket's queue already: when that is empty, all are counted.
	err := c.drain()
	c.file.Close()
	c.reader.Wait()
	return c.flows, err
}

func (c *Capture) drain() (err error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	inner := raw.Control(func(fd uintptr) {
		for c.next(int(fd)) == nil {
		}
		var stats *unix.TpacketStats
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil && stats.Drops > 0 {
			err = fmt.Errorf("%d packets of %d were too many to count", stats.Drops, stats.Packets)
		}
	})
	return errors.Join(err, inner)
}

func (c *Capture) read() {
	raw, err := c.file.SyscallConn()
	for err == nil { // until it is closed
		err = raw.Read(func(fd uintptr) bool { return c.next(int(fd)) == nil })
	}
}

// next counts the next packet in the queue; the error says that there is none.
func (c *Capture) next(fd int) error {
	// Under the lock, so that none is in anybody's hand when the queue is empty.
	c.mu.Lock()
	defer c.mu.Unlock()
	var frame [snapLength]byte
	n, _, err := unix.Recvfrom(fd, frame[:], unix.MSG_DONTWAIT)
	if err != nil {
		return err
	}
	if flow, ok := flowOf(frame[:n]); ok && c.wanted(flow) {
		c.flows[flow]++
	}
	return nil
}

func (c *Capture) wanted(f Flow) bool {
	return slices.ContainsFunc(c.prefixes, func(p netip.Prefix) bool { return p.Contains(f.From) || p.Contains(f.To) })
}

// packetSocket sees the interface's packets, cut short, that the filter lets through.
func packetSocket(device string, filter []unix.SockFilter) (*os.File, error) {
	index, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	// No protocol yet: nothing comes in before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "capture on "+device)
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index.Index}),
	)
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
