package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
)

const (
	asn     = 64512 // the default of agents
	bgpPort = 179
	// holdTime is more than anything here takes; the other side's may be shorter.
	holdTime  = 90 * time.Second
	keepalive = 2 * time.Second
)

// session is a BGP session from one of the lab's machines: it says what it is
// told to and ignores what it hears.
type session struct {
	conn net.Conn
	from netip.Addr
	work sync.WaitGroup
	stop context.CancelFunc

	mu  sync.Mutex
	err error // why it ended, if not by close
}

// dialBGP opens a session from the address of the machine, trying until the
// other side wants it, and returns when it is Established.
func dialBGP(ctx context.Context, m *lab.Machine, from, to netip.Addr) (*session, error) {
	var s *session
	err := lab.Until(ctx, fmt.Sprintf("open a BGP session from %s to %s", from, to), func() (err error) {
		s, err = tryBGP(ctx, m, from, to)
		return err
	})
	return s, err
}

func tryBGP(ctx context.Context, m *lab.Machine, from, to netip.Addr) (*session, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: 5 * time.Second}
	var conn net.Conn
	// To a numeric address, DialContext makes its socket on this thread, inside.
	err := m.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(to, bgpPort).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, from: from}
	in := bufio.NewReader(conn)
	if err := s.open(in); err != nil {
		conn.Close()
		return nil, err
	}
	background, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.work.Go(func() { s.listen(background, in) })
	s.work.Go(func() { s.keepAlive(background) })
	return s, s.send(endOfRIB())
}

func (s *session) open(in *bufio.Reader) error {
	if err := s.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if err := s.send(openMessage(asn, s.from, uint16(holdTime.Seconds()))); err != nil {
		return err
	}
	for _, want := range []byte{msgOpen, msgKeepalive} {
		kind, _, err := readMessage(in)
		if err != nil {
			return err
		}
		if kind != want {
			return fmt.Errorf("a message of type %d came, not %d", kind, want)
		}
		if kind == msgOpen {
			if err := s.send(message(msgKeepalive, nil)); err != nil {
				return err
			}
		}
	}
	return s.conn.SetDeadline(time.Time{})
}

// send writes whole messages. Calls do not get into each other's way.
func (s *session) send(messages []byte) error {
	_, err := s.conn.Write(messages)
	return err
}

func (s *session) listen(ctx context.Context, in *bufio.Reader) {
	for {
		if _, _, err := readMessage(in); err != nil {
			s.fail(ctx, err)
			return
		}
	}
}

func (s *session) keepAlive(ctx context.Context) {
	tick := time.NewTicker(keepalive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.send(message(msgKeepalive, nil)); err != nil {
				s.fail(ctx, err)
				return
			}
		}
	}
}

func (s *session) fail(ctx context.Context, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && ctx.Err() == nil {
		s.err = fmt.Errorf("BGP session from %s: %w", s.from, err)
	}
}

// failed is why the session has ended, nil while it has not.
func (s *session) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// close ends the session with a Cease (RFC 4486: administrative shutdown).
func (s *session) close() {
	s.stop()
	_ = s.send(message(msgNotification, []byte{6, 2}))
	s.conn.Close()
	s.work.Wait()
}
