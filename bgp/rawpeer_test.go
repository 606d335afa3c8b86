package bgp

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// rawPeer is the far end of a session, spoken by hand: it can send what no good speaker would.
type rawPeer struct {
	net.Conn
	addr netip.Addr
	caps []gobgp.ParameterCapabilityInterface // the speaker's
}

// message is a BGP message as received.
type message struct {
	kind byte
	*gobgp.BGPMessage
}

// dialRaw connects from an address to a speaker's and sends nothing.
func dialRaw(from netip.Addr, to netip.AddrPort) (*rawPeer, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
	c, err := d.Dial("tcp", to.String())
	if err != nil {
		return nil, err
	}
	return &rawPeer{Conn: c, addr: from}, nil
}

// openRaw goes on to an established session, trying until the speaker is ready for it.
func openRaw(t testing.TB, from netip.Addr, to netip.AddrPort, hold uint16) *rawPeer {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		p, err := dialRaw(from, to)
		if err != nil {
			continue
		}
		if err = p.open(hold); err == nil {
			t.Cleanup(func() { _ = p.Close() })
			return p
		}
		_ = p.Close()
	}
	t.Fatalf("no session from %s to %s", from, to)
	return nil
}

func (p *rawPeer) open(hold uint16) error {
	caps := gobgp.NewOptionParameterCapability([]gobgp.ParameterCapabilityInterface{
		gobgp.NewCapFourOctetASNumber(testASN),
		gobgp.NewCapMultiProtocol(gobgp.RF_IPv4_UC),
		gobgp.NewCapMultiProtocol(gobgp.RF_IPv6_UC),
		gobgp.NewCapGracefulRestart(false, false, 120, []*gobgp.CapGracefulRestartTuple{
			gobgp.NewCapGracefulRestartTuple(gobgp.RF_IPv4_UC, true),
			gobgp.NewCapGracefulRestartTuple(gobgp.RF_IPv6_UC, true),
		}),
	})
	open, err := gobgp.NewBGPOpenMessage(testASN, hold, p.addr, []gobgp.OptionParameterInterface{caps})
	if err != nil {
		return err
	}
	if err := p.send(open); err != nil {
		return err
	}
	m, err := p.receive()
	if err != nil || m.kind != gobgp.BGP_MSG_OPEN {
		return errors.Join(err, errors.New("no OPEN"))
	}
	for _, o := range m.Body.(*gobgp.BGPOpen).OptParams {
		if c, ok := o.(*gobgp.OptionParameterCapability); ok {
			p.caps = append(p.caps, c.Capability...)
		}
	}
	if err := p.send(gobgp.NewBGPKeepAliveMessage()); err != nil {
		return err
	}
	if m, err := p.receive(); err != nil || m.kind != gobgp.BGP_MSG_KEEPALIVE {
		return errors.Join(err, errors.New("no KEEPALIVE"))
	}
	return nil
}

func (p *rawPeer) send(m *gobgp.BGPMessage) error {
	b, err := m.Serialize()
	if err != nil {
		return err
	}
	_, err = p.Write(b)
	return err
}

func (p *rawPeer) receive() (message, error) {
	_ = p.SetReadDeadline(time.Now().Add(patience))
	header := make([]byte, gobgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(p, header); err != nil {
		return message{}, err
	}
	body := make([]byte, int(binary.BigEndian.Uint16(header[16:]))-len(header))
	if _, err := io.ReadFull(p, body); err != nil {
		return message{}, err
	}
	m, err := gobgp.ParseBGPMessage(append(header, body...))
	return message{header[18], m}, err
}

// until reads messages until one is of the kind, and returns it and the kinds before it.
func (p *rawPeer) until(kind byte) (message, []byte, error) {
	var before []byte
	for {
		m, err := p.receive()
		if err != nil || m.kind == kind {
			return m, before, err
		}
		before = append(before, m.kind)
	}
}

func (l *lab) at(i int) netip.AddrPort { return netip.AddrPortFrom(l.addr(i), uint16(l.port)) }

func TestGarbageFromAPeersAddressIsSurvived(t *testing.T) {
	l := newLab(t)
	marker := []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}
	cases := map[string][]byte{
		"a message of unknown type":     append(marker[:16:16], 0, 19, 77),
		"a message of type 0":           append(marker[:16:16], 0, 19, 0),
		"a length below the header's":   append(marker[:16:16], 0, 3, 1),
		"a length beyond all":           append(marker[:16:16], 255, 255, 1),
		"an OPEN cut short":             append(marker[:16:16], 0, 29, 1, 4, 252),
		"an OPEN without a body":        append(marker[:16:16], 0, 19, 1),
		"an UPDATE before OPEN":         append(marker[:16:16], 0, 23, 2, 0, 0, 0, 0),
		"a NOTIFICATION before OPEN":    append(marker[:16:16], 0, 21, 3, 6, 3),
		"a NOTIFICATION without a body": append(marker[:16:16], 0, 19, 3),
		"a ROUTE-REFRESH before OPEN":   append(marker[:16:16], 0, 23, 5, 0, 1, 0, 1),
		"something that is not BGP":     []byte("GET / HTTP/1.1\r\nHost: node\r\n\r\n"),
		"nothing":                       nil,
	}
	// Each comes from a peer of its own: after one the speaker takes no connection of that peer for a while.
	peers := []Peer{l.mesh(2, 3)}
	for i := range len(cases) {
		peers = append(peers, l.mesh(2, 10+i))
	}
	b := l.start(2, nil, peers...)
	i := 0
	for name, garbage := range cases {
		from := l.addr(10 + i)
		i++
		eventually(t, name, func() string {
			p, err := dialRaw(from, l.at(2))
			if err != nil {
				t.Fatalf("before %s: %v", name, err)
			}
			defer func() { _ = p.Close() }()
			if m, err := p.receive(); err != nil || m.kind != gobgp.BGP_MSG_OPEN {
				return "not taken yet"
			}
			_, _ = p.Write(garbage)
			_ = p.Conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, p)
			return ""
		})
		ask[[]PeerStatus](b, "Peers", none{})
	}
	l.start(3, []string{"10.3.0.0/26"}, l.mesh(3, 2))
	b.reaches("10.3.0.0/26", 3)
}

func TestStrangersAreRefused(t *testing.T) {
	l := newLab(t)
	l.start(2, nil, l.mesh(2, 3))
	p, err := dialRaw(l.addr(77), l.at(2))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if m, err := p.receive(); !errors.Is(err, io.EOF) && !errors.As(err, new(*net.OpError)) {
		t.Errorf("a stranger got a message of type %d (%v), want a closed connection", m.kind, err)
	}
}

func TestOwnPathsComeBeforeEndOfRIB(t *testing.T) {
	l := newLab(t)
	l.start(2, []string{"10.2.0.0/26", "10.2.0.64/26"}, l.mesh(2, 3))
	p := openRaw(t, l.addr(3), l.at(2), 90)
	for announced := 0; ; {
		m, _, err := p.until(gobgp.BGP_MSG_UPDATE)
		if err != nil {
			t.Fatal(err)
		}
		update := m.Body.(*gobgp.BGPUpdate)
		announced += len(update.NLRI)
		if eor, family := update.IsEndOfRib(); eor && family == gobgp.RF_IPv4_UC {
			if announced != 2 {
				t.Errorf("%d own paths came before the End-of-RIB, want 2", announced)
			}
			return
		}
	}
}

func TestStopSendsNoCeaseAndRemovalDoes(t *testing.T) {
	l := newLab(t)
	b := l.start(2, []string{"10.2.0.0/26"}, l.mesh(2, 3))
	p := openRaw(t, l.addr(3), l.at(2), 90)
	b.up(3)
	b.must("SetPeers", []Peer{})
	if m, _, err := p.until(gobgp.BGP_MSG_NOTIFICATION); err != nil {
		t.Errorf("no NOTIFICATION when the peer is removed: %v", err)
	} else if n := m.Body.(*gobgp.BGPNotification); n.ErrorCode != gobgp.BGP_ERROR_CEASE {
		t.Errorf("NOTIFICATION %d/%d when the peer is removed, want a Cease", n.ErrorCode, n.ErrorSubcode)
	}

	b.must("SetPeers", []Peer{l.mesh(2, 3)})
	p = openRaw(t, l.addr(3), l.at(2), 90)
	b.up(3)
	b.must("Stop", none{})
	if _, before, err := p.until(gobgp.BGP_MSG_NOTIFICATION); err == nil {
		t.Errorf("Stop sent a NOTIFICATION, after messages of types %v", before)
	}
	if err := b.Call("Node.Lookup", pfx("10.3.0.0/26")[0], &Route{}); err == nil || err.Error() != ErrNotRunning.Error() {
		t.Errorf("a lookup after Stop says %v, want %v", err, ErrNotRunning)
	}
	if got := ask[[]netip.Prefix](b, "TakeDirty", none{}); len(got) > 0 {
		t.Errorf("Stop marked %v dirty", got)
	}
}

// TestOpenSaysWhatARestartNeeds checks the capabilities in OPEN: both families, graceful restart for both (RFC 4724
// section 3), and the restart state and preserved forwarding only towards the peers we come back to (section 4.1).
func TestOpenSaysWhatARestartNeeds(t *testing.T) {
	l := newLab(t)
	b := l.startWith(2, NodeConfig{RestartTime: 77 * time.Second, EORDeadline: time.Second}, nil, l.mesh(2, 3))
	check := func(p *rawPeer, restarting bool) {
		t.Helper()
		negotiated, graceful := capabilities(p.caps)
		if len(negotiated) != 2 || len(graceful) != 2 {
			t.Errorf("OPEN has the families %v, with graceful restart %v; want both in each", negotiated, graceful)
		}
		for _, c := range p.caps {
			gr, ok := c.(*gobgp.CapGracefulRestart)
			if !ok {
				continue
			}
			if gr.Time != 77 || (gr.Flags&8 != 0) != restarting || (gr.Tuples[0].Flags&0x80 != 0) != restarting {
				t.Errorf("graceful restart: time %d, flags %#x, forwarding %#x, want 77 and restarting %t", gr.Time,
					gr.Flags, gr.Tuples[0].Flags, restarting)
			}
		}
	}
	check(openRaw(t, l.addr(3), l.at(2), 90), true)
	eventually(t, "synchronised", func() string { return map[bool]string{false: "no"}[ask[bool](b, "Synced", none{})] })
	b.must("SetPeers", []Peer{l.mesh(2, 3), l.mesh(2, 4)})
	check(openRaw(t, l.addr(4), l.at(2), 90), false)
}
