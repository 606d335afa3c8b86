package tunnel

import (
	"net"
	"net/netip"
	"testing"
)

// TestInUseCountsTheHostsConnections of either family, and no others.
func TestInUseCountsTheHostsConnections(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	for _, c := range []struct{ addr, other string }{{"10.244.0.1", "192.0.2.1"}, {"fd00:1::1", "2001:db8::1"}} {
		t.Run(c.addr, func(t *testing.T) {
			h.inUse(d, c.addr, 0)
			server := h.listen(c.other)
			h.inUse(d, c.addr, 0)

			client := h.dial("tcp", c.addr, server)
			h.inUse(d, c.addr, 1)
			h.inUse(d, c.other, 1) // the server's end
			udp := h.dial("udp", c.addr, net.JoinHostPort(c.other, "9"))
			h.inUse(d, c.addr, 2)

			// Listening is not being connected, nor is a UDP socket that anyone may write to.
			ours := h.listen(c.addr)
			var free net.PacketConn
			var err error
			h.ns.Do(t, func() { free, err = net.ListenPacket("udp", net.JoinHostPort(c.addr, "0")) })
			must(t, err)
			h.inUse(d, c.addr, 2)
			must(t, free.Close())

			other := h.dial("tcp", c.other, ours)
			h.inUse(d, c.addr, 3)
			for i, conn := range []net.Conn{other, udp, client} {
				must(t, conn.Close())
				// The server's end learns of it by a packet.
				h.eventually("end of the connection", func() bool { return h.countInUse(d, c.addr) == 2-i })
			}
		})
	}
}

// TestInUseSeesIPv4ConnectionsOfIPv6Sockets: a server that listens on :: has them.
func TestInUseSeesIPv4ConnectionsOfIPv6Sockets(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	_, port, err := net.SplitHostPort(h.listen("::"))
	must(t, err)
	client := h.dial("tcp", "192.0.2.1", net.JoinHostPort("10.244.0.1", port))
	h.inUse(d, "10.244.0.1", 1)
	must(t, client.Close())
}

func TestInUseIsOfTheNamespaceItWasMadeIn(t *testing.T) {
	here, there := newHost(t), newHost(t)
	d := here.devices()
	for _, h := range []*host{here, there} {
		conn := h.dial("tcp", "192.0.2.1", h.listen("192.0.2.1"))
		defer conn.Close()
	}
	there.ns.Do(t, func() { here.inUse(d, "192.0.2.1", 2) })
}

func (h *host) inUse(d *Devices, addr string, want int) {
	h.t.Helper()
	if got := h.countInUse(d, addr); got != want {
		h.t.Errorf("%d connections from %s, want %d", got, addr, want)
	}
}

func (h *host) countInUse(d *Devices, addr string) int {
	h.t.Helper()
	n, err := d.InUse(h.t.Context(), netip.MustParseAddr(addr))
	must(h.t, err)
	return n
}

// listen accepts connections, and closes them when the other end does.
func (h *host) listen(addr string) string {
	h.t.Helper()
	var l net.Listener
	var err error
	h.ns.Do(h.t, func() { l, err = net.Listen("tcp", net.JoinHostPort(addr, "0")) })
	must(h.t, err)
	done := make(chan struct{})
	h.t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 1))
			}()
		}
	}()
	return l.Addr().String()
}

// dial connects from an address.
func (h *host) dial(network, from, to string) net.Conn {
	h.t.Helper()
	var dialer net.Dialer
	if network == "tcp" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	} else {
		dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
	}
	var conn net.Conn
	var err error
	h.ns.Do(h.t, func() { conn, err = dialer.Dial(network, to) })
	must(h.t, err)
	if tcp, ok := conn.(*net.TCPConn); ok {
		must(h.t, tcp.SetLinger(-1)) // FIN, then TIME_WAIT, which does not count
	}
	return conn
}
