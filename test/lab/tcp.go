package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// connect opens a TCP connection between two endpoints, both ends of which are this process's.
func connect(ctx context.Context, from, to Endpoint) (client, server *net.TCPConn, err error) {
	var listener net.Listener
	err = to.Do(func() error {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(to.IP(), 0).String())
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listen at %s: %w", to.label(), err)
	}
	defer listener.Close()
	source, err := from.source(to.IP())
	if err != nil {
		return nil, nil, err
	}
	type accepted struct {
		conn net.Conn
		err  error
	}
	accepts := make(chan accepted, 1)
	go func() {
		conn, err := listener.Accept()
		accepts <- accepted{conn, err}
	}()
	var conn net.Conn
	err = from.Do(func() error {
		dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
		conn, err = dialer.DialContext(ctx, "tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("connect %s to %s: %w", from.label(), to.label(), err)
	}
	other := <-accepts
	if other.err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("accept at %s: %w", to.label(), other.err)
	}
	return conn.(*net.TCPConn), other.conn.(*net.TCPConn), nil
}
