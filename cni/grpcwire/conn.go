package grpcwire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// conn is a blocking unix socket with a deadline. It reads frames and writes bytes.
type conn struct {
	fd       int
	deadline time.Time
	in       []byte // read and not yet consumed
	buf      [16 << 10]byte
}

func dial(path string, deadline time.Time) (*conn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &DialError{path, fmt.Errorf("make a socket: %w", err)}
	}
	c := &conn{fd: fd, deadline: deadline}
	if err := c.connect(path); err != nil {
		c.close()
		return nil, &DialError{path, err}
	}
	// The kernel notes who called listen(): unlike the file's owner, this cannot
	// change between looking and talking.
	peer, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		c.close()
		return nil, &DialError{path, fmt.Errorf("ask who listens: %w", err)}
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		c.close()
		return nil, &UntrustedError{path, peer.Uid}
	}
	return c, nil
}

// connect may block while the server's backlog is full; SO_SNDTIMEO bounds that.
func (c *conn) connect(path string) error {
	for {
		if err := c.arm(syscall.SO_SNDTIMEO); err != nil {
			return err
		}
		err := syscall.Connect(c.fd, &syscall.SockaddrUnix{Name: path})
		if err != syscall.EINTR && err != syscall.EAGAIN {
			return err
		}
	}
}

func (c *conn) close() { _ = syscall.Close(c.fd) }

// arm sets the socket's time-out to what is left until the deadline. A time-out
// also makes system calls return EINTR on any signal, and Go's scheduler sends
// signals: every caller retries.
func (c *conn) arm(option int) error {
	left := time.Until(c.deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	// A time-out of zero would be none at all.
	tv := syscall.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
	return syscall.SetsockoptTimeval(c.fd, syscall.SOL_SOCKET, option, &tv)
}

func (c *conn) write(b []byte) error {
	for len(b) > 0 {
		if err := c.arm(syscall.SO_SNDTIMEO); err != nil {
			return err
		}
		// MSG_NOSIGNAL: a write to a closed connection is an error, not SIGPIPE.
		n, err := syscall.SendmsgN(c.fd, b, nil, nil, syscall.MSG_NOSIGNAL)
		if err != nil && err != syscall.EINTR && err != syscall.EAGAIN {
			return fmt.Errorf("write: %w", err)
		}
		b = b[max(n, 0):]
	}
	return nil
}

// fill reads until n bytes are there.
func (c *conn) fill(n int) error {
	for len(c.in) < n {
		if err := c.arm(syscall.SO_RCVTIMEO); err != nil {
			return err
		}
		got, err := syscall.Read(c.fd, c.buf[:])
		switch {
		case err == syscall.EINTR || err == syscall.EAGAIN:
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case got == 0:
			return fmt.Errorf("the agent closed the connection: %w", io.ErrUnexpectedEOF)
		default:
			c.in = append(c.in, c.buf[:got]...)
		}
	}
	return nil
}

// The frame types and flags of RFC 9113 section 6.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindow       = 0x8
	frameContinuation = 0x9

	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	frameHeaderLen = 9
	// maxFrame is the frame size every HTTP/2 endpoint starts with; we never raise it.
	maxFrame = 16 << 10
)

type frame struct {
	kind, flags byte
	stream      uint32
	payload     []byte
}

// readFrame returns the next frame. Its payload is valid until the next call.
func (c *conn) readFrame() (frame, error) {
	if err := c.fill(frameHeaderLen); err != nil {
		return frame{}, err
	}
	length := int(c.in[0])<<16 | int(c.in[1])<<8 | int(c.in[2])
	if length > maxFrame {
		return frame{}, fmt.Errorf("a frame of %d bytes is larger than the %d allowed: not a gRPC server?", length, maxFrame)
	}
	if err := c.fill(frameHeaderLen + length); err != nil {
		return frame{}, err
	}
	f := frame{
		kind: c.in[3], flags: c.in[4],
		stream:  binary.BigEndian.Uint32(c.in[5:]) &^ (1 << 31),
		payload: c.in[frameHeaderLen : frameHeaderLen+length],
	}
	c.in = c.in[frameHeaderLen+length:]
	return f, f.strip()
}

// buffered says whether readFrame would return without waiting.
func (c *conn) buffered() bool {
	return len(c.in) >= frameHeaderLen && len(c.in)-frameHeaderLen >= int(c.in[0])<<16|int(c.in[1])<<8|int(c.in[2])
}

// strip takes padding and priority off the payload.
func (f *frame) strip() error {
	if f.kind != frameData && f.kind != frameHeaders {
		return nil
	}
	front, back := 0, 0
	if f.flags&flagPadded != 0 && len(f.payload) > 0 {
		front, back = 1, int(f.payload[0])
	}
	if f.kind == frameHeaders && f.flags&flagPriority != 0 {
		front += 5
	}
	if front+back > len(f.payload) {
		return errors.New("a frame's padding is longer than the frame")
	}
	f.payload = f.payload[front : len(f.payload)-back]
	return nil
}

// appendFrame encodes a frame.
func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}
