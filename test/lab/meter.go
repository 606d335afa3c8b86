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

	"golang.org/x/sys/unix"
)

// Endpoint is where a meter's packets begin and end: a *Pod or a *Node.
type Endpoint interface {
	// Do runs f on a thread in its network namespace.
	Do(f func() error) error
	// IP is its first address.
	IP() netip.Addr
	label() string
}

func (p *Pod) label() string  { return p.Name }
func (n *Node) label() string { return n.Name }

// Meter sends numbered UDP packets both ways between two endpoints and counts what arrives.
type Meter struct {
	there, back *stream
	stop        context.CancelFunc
	senders     sync.WaitGroup
	receivers   sync.WaitGroup
}

// Loss is what became of the packets in one direction.
type Loss struct {
	From, To             string
	Sent, Received, Lost int
	// LongestLoss is the most packets lost in a row.
	LongestLoss int
	// LongestGap is the longest time without a packet. On a busy machine it may be long with nothing lost.
	LongestGap time.Duration
	// SendErrors counts packets that the sender's own kernel refused (they are Lost too); SendError is the last refusal.
	SendErrors int
	SendError  error
}

func (l Loss) String() string {
	s := fmt.Sprintf("%s to %s: %d sent, %d received, %d lost (at most %d in a row), longest gap %s",
		l.From, l.To, l.Sent, l.Received, l.Lost, l.LongestLoss, l.LongestGap.Round(time.Millisecond))
	if l.SendErrors > 0 {
		s += fmt.Sprintf(", %d refused by the sender's kernel (%v)", l.SendErrors, l.SendError)
	}
	return s
}

// StartMeter starts sending, rate packets per second in each direction (1000
// is usual). It returns once a packet has arrived either way, and counts from then on.
func StartMeter(ctx context.Context, a, b Endpoint, rate int) (*Meter, error) {
	left, err := listenUDP(a)
	if err != nil {
		return nil, fmt.Errorf("meter at %s: %w", a.label(), err)
	}
	right, err := listenUDP(b)
	if err != nil {
		left.Close()
		return nil, fmt.Errorf("meter at %s: %w", b.label(), err)
	}
	sending, stop := context.WithCancel(context.Background())
	m := &Meter{there: newStream(a, b, left, right), back: newStream(b, a, right, left), stop: stop}
	for _, s := range []*stream{m.there, m.back} {
		m.receivers.Go(s.receive)
	}
	for _, s := range []*stream{m.there, m.back} {
		if err := s.first(ctx); err != nil {
			m.Stop()
			return nil, err
		}
	}
	for _, s := range []*stream{m.there, m.back} {
		m.senders.Go(func() { s.send(sending, time.Second/time.Duration(rate)) })
	}
	return m, nil
}

// Stop stops sending, waits for packets on their way, and returns the counts:
// from a to b, and from b to a.
func (m *Meter) Stop() (there, back Loss) {
	m.stop()
	m.senders.Wait()
	for _, s := range []*stream{m.there, m.back} {
		s.drain()
	}
	m.there.in.Close()
	m.back.in.Close()
	m.receivers.Wait()
	return m.there.loss(), m.back.loss()
}

// stream is one direction of a meter.
type stream struct {
	from, to Endpoint
	out, in  *net.UDPConn
	target   netip.AddrPort

	probed  chan struct{} // closed when a probe has arrived
	sent    atomic.Uint64
	arrived atomic.Int64 // when the last packet came, Unix nanoseconds

	// Of the sender, until it has ended.
	refused   int
	refusal   error
	begun     time.Time
	ended     time.Time
	mu        sync.Mutex
	got       []bool // by number
	received  int
	gap       time.Duration
	lastComes time.Time
}

// probe is the number of packets that do not count.
const probe = ^uint64(0)

func newStream(from, to Endpoint, out, in *net.UDPConn) *stream {
	return &stream{from: from, to: to, out: out, in: in, target: in.LocalAddr().(*net.UDPAddr).AddrPort(), probed: make(chan struct{})}
}

// listenUDP opens a socket at the endpoint with room for seconds of packets,
// so that a reader kept from running loses none.
func listenUDP(e Endpoint) (conn *net.UDPConn, err error) {
	err = e.Do(func() error {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.IP(), 0)))
		if err != nil {
			return err
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		var set error
		if err := raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		}); err != nil {
			return err
		}
		return set
	})
	return conn, err
}

// first sends probes until one arrives.
func (s *stream) first(ctx context.Context) error {
	return until(ctx, 10*time.Millisecond, fmt.Sprintf("wait for a packet from %s to reach %s", s.from.label(), s.to.label()), func() error {
		select {
		case <-s.probed:
			return nil
		default:
		}
		_, err := s.out.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, probe), s.target)
		if err == nil {
			err = fmt.Errorf("none has arrived at %s", s.target)
		}
		return err
	})
}

// send keeps to the schedule: after a pause it catches up, so that the number sent is rate × time.
func (s *stream) send(ctx context.Context, interval time.Duration) {
	s.begun = time.Now()
	defer func() { s.ended = time.Now() }()
	var packet [8]byte
	for n := uint64(0); ctx.Err() == nil; n++ {
		if wait := time.Until(s.begun.Add(time.Duration(n) * interval)); wait > 0 {
			time.Sleep(wait)
		}
		binary.BigEndian.PutUint64(packet[:], n)
		if _, err := s.out.WriteToUDPAddrPort(packet[:], s.target); err != nil {
			s.refused, s.refusal = s.refused+1, err
		}
		s.sent.Store(n + 1)
	}
}

func (s *stream) receive() {
	var buf [64]byte
	for {
		n, _, err := s.in.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			return
		}
		if n != 8 {
			continue
		}
		s.note(binary.BigEndian.Uint64(buf[:]), time.Now())
	}
}

func (s *stream) note(number uint64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number == probe {
		select {
		case <-s.probed:
		default:
			close(s.probed)
		}
		return
	}
	s.arrived.Store(now.UnixNano())
	for uint64(len(s.got)) <= number {
		s.got = append(s.got, false)
	}
	if !s.got[number] {
		s.got[number] = true
		s.received++
	}
	if !s.lastComes.IsZero() {
		s.gap = max(s.gap, now.Sub(s.lastComes))
	}
	s.lastComes = now
}

// drain waits until everything sent has arrived, or nothing has for half a second.
func (s *stream) drain() {
	quiet := time.Now()
	for time.Since(quiet) < 500*time.Millisecond {
		s.mu.Lock()
		all := uint64(s.received) >= s.sent.Load()
		s.mu.Unlock()
		if all {
			return
		}
		if last := time.Unix(0, s.arrived.Load()); last.After(quiet) {
			quiet = last
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *stream) loss() Loss {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := int(s.sent.Load())
	l := Loss{
		From: s.from.label(), To: s.to.label(), Sent: sent, Received: s.received, Lost: sent - s.received,
		LongestGap: s.gap, SendErrors: s.refused, SendError: s.refusal,
	}
	run := 0
	for n := range sent {
		if n < len(s.got) && s.got[n] {
			run = 0
			continue
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
