package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// stream is one direction of a meter: packets of 8 bytes, each a number.
type stream struct {
	from, to Endpoint
	out, in  *net.UDPConn
	batch    *ipv4.PacketConn // out, for many packets with one call, whatever the family
	target   *net.UDPAddr

	probed, marked sync.Once
	arrives        chan struct{} // closed when a probe has arrived
	swept          chan struct{} // closed when a marker has arrived

	// Of the sender, until it has ended.
	messages     []ipv4.Message
	sent         uint64
	refused      int
	refusal      error
	begun, ended time.Time

	last       atomic.Int64 // when the last packet came, Unix nanoseconds
	mu         sync.Mutex
	got        []bool // by number
	received   int
	duplicates int
	gap        time.Duration
	lastComes  time.Time
}

// Packets that do not count: one says that the way is there, the other that all
// which was sent before has arrived or never will.
const (
	probe  = ^uint64(0)
	marker = probe - 1
)

// batchSize is how many packets are sent with one call at most, and between two ticks.
const batchSize = 32

// newStreams opens a socket at either end.
func newStreams(p Pair) (there, back *stream, err error) {
	left, err := listenUDP(p.A, p.B.IP())
	if err != nil {
		return nil, nil, err
	}
	right, err := listenUDP(p.B, left.LocalAddr().(*net.UDPAddr).AddrPort().Addr())
	if err != nil {
		left.Close()
		return nil, nil, err
	}
	return newStream(p.A, p.B, left, right), newStream(p.B, p.A, right, left), nil
}

func newStream(from, to Endpoint, out, in *net.UDPConn) *stream {
	s := &stream{
		from: from, to: to, out: out, in: in, batch: ipv4.NewPacketConn(out), target: in.LocalAddr().(*net.UDPAddr),
		arrives: make(chan struct{}), swept: make(chan struct{}), messages: newMessages(8),
	}
	for i := range s.messages {
		s.messages[i].Addr = s.target
	}
	return s
}

func newMessages(size int) []ipv4.Message {
	all := make([]ipv4.Message, batchSize)
	for i := range all {
		all[i].Buffers = [][]byte{make([]byte, size)}
	}
	return all
}

// listenUDP opens a socket at the endpoint with room for seconds of packets, so
// that a reader kept from running loses none.
func listenUDP(e Endpoint, towards netip.Addr) (conn *net.UDPConn, err error) {
	source, err := e.source(towards)
	if err != nil {
		return nil, err
	}
	err = e.Do(func() error {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
		return err
	})
	if err != nil {
		return nil, err
	}
	err = control(conn, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20); err != nil {
			return err
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// first sends probes until one arrives.
func (s *stream) first(ctx context.Context) error {
	return until(ctx, 10*time.Millisecond, fmt.Sprintf("wait for a packet from %s to reach %s", s.from.label(), s.to.label()), func() error {
		return s.call(probe, s.arrives)
	})
}

// call sends one packet that does not count, until it has been heard.
func (s *stream) call(number uint64, heard chan struct{}) error {
	select {
	case <-heard:
		return nil
	default:
	}
	if _, err := s.out.WriteTo(binary.BigEndian.AppendUint64(nil, number), s.target); err != nil {
		return err
	}
	return fmt.Errorf("none has arrived at %s", s.target)
}

// send sends the packets below due that have not been sent, or as many of them as one call takes.
func (s *stream) send(due uint64) {
	n := int(min(due-s.sent, batchSize))
	for i := range n {
		binary.BigEndian.PutUint64(s.messages[i].Buffers[0], s.sent+uint64(i))
	}
	for left := s.messages[:n]; len(left) > 0; {
		done, err := s.batch.WriteBatch(left, 0)
		if err != nil {
			// The first of them: the others get their own chance.
			s.refused, s.refusal, done = s.refused+1, err, 1
		}
		left = left[done:]
	}
	s.sent += uint64(n)
}

func (s *stream) receive() {
	batch, messages := ipv4.NewPacketConn(s.in), newMessages(64)
	for {
		n, err := batch.ReadBatch(messages, 0)
		if err != nil {
			return
		}
		s.note(messages[:n], time.Now())
	}
}

func (s *stream) note(messages []ipv4.Message, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range messages {
		if m.N != 8 {
			continue
		}
		switch number := binary.BigEndian.Uint64(m.Buffers[0]); number {
		case probe:
			s.probed.Do(func() { close(s.arrives) })
		case marker:
			s.marked.Do(func() { close(s.swept) })
		default:
			s.count(number)
			if !s.lastComes.IsZero() {
				s.gap = max(s.gap, now.Sub(s.lastComes))
			}
			s.lastComes = now
			s.last.Store(now.UnixNano())
		}
	}
}

func (s *stream) count(number uint64) {
	for uint64(len(s.got)) <= number {
		s.got = append(s.got, false)
	}
	if s.got[number] {
		s.duplicates++
		return
	}
	s.got[number] = true
	s.received++
}

// drain waits until everything sent has arrived. Otherwise, until a packet sent
// after all others has, which has swept the queues on its way, and half a second
// of silence more, for packets on another way; or 5 s, if nothing arrives any more.
func (s *stream) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = until(ctx, 10*time.Millisecond, "drain", func() error {
		if s.complete() {
			return nil
		}
		return s.call(marker, s.swept)
	})
	for quiet := time.Now(); !s.complete() && time.Since(quiet) < 500*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		if last := time.Unix(0, s.last.Load()); last.After(quiet) {
			quiet = last
		}
	}
}

func (s *stream) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(s.received) >= s.sent
}

func (s *stream) loss() Loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := Loss{
		From: s.from.label(), To: s.to.label(), Sent: int(s.sent), Received: s.received, Lost: int(s.sent) - s.received,
		Duplicates: s.duplicates, LongestGap: s.gap, SendErrors: s.refused, SendError: s.refusal,
	}
	run, seen := 0, false
	for n := range l.Sent {
		if n < len(s.got) && s.got[n] {
			run = 0
			continue
		}
		if !seen {
			seen, l.FirstLost = true, time.Duration(float64(s.ended.Sub(s.begun))*float64(n)/float64(l.Sent))
		}
		run++
		l.LongestLoss = max(l.LongestLoss, run)
	}
	// Silence at either end counts too.
	if s.lastComes.IsZero() {
		l.LongestGap = s.ended.Sub(s.begun)
	} else {
		l.LongestGap = max(l.LongestGap, s.ended.Sub(s.lastComes))
	}
	return l
}
