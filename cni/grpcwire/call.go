package grpcwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2/hpack"
)

const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// stream is the connection's first and only one.
	stream = 1
	// initialWindow is how much either side may send before it is allowed more.
	initialWindow = 65535

	// serverGrace is how much longer the server may think than we wait.
	serverGrace = time.Second

	settingEnablePush    = 0x2
	settingInitialWindow = 0x4

	resetRefused = 0x7
)

// call is one unary call on a fresh connection.
type call struct {
	*conn
	method  string
	request []byte // what is left to send, in its envelope

	// What the server lets us send: on the connection, on the stream. The
	// stream's base is the setting that its window was reckoned from.
	connWindow, streamWindow, streamBase int64

	headers *hpack.Decoder
	block   []byte // a header block still being continued, or nil
	ending  bool   // that block ends the stream
	fields  map[string]string
	body    []byte
	done    bool
}

// run sends the request and reads until the answer is complete.
func (c *call) run() error {
	c.connWindow, c.streamWindow, c.streamBase = initialWindow, initialWindow, initialWindow
	c.fields = map[string]string{}
	c.headers = hpack.NewDecoder(4096, func(f hpack.HeaderField) { c.fields[f.Name] = f.Value })
	out := c.opening()
	for {
		out = c.appendRequest(out)
		// While more is here to read, what we owe in return can wait: often the
		// whole answer has come at once.
		if len(out) > 0 && !c.buffered() {
			if err := c.write(out); err != nil {
				return err
			}
			out = out[:0]
		}
		f, err := c.readFrame()
		if err != nil {
			return err
		}
		if out, err = c.take(f, out); err != nil || c.done {
			return err
		}
	}
}

// opening is what a client says first, up to and with the call's headers.
func (c *call) opening() []byte {
	var settings []byte
	for _, s := range [][2]uint32{{settingEnablePush, 0}, {settingInitialWindow, MaxMessage + maxFrame}} {
		settings = binary.BigEndian.AppendUint16(settings, uint16(s[0]))
		settings = binary.BigEndian.AppendUint32(settings, s[1])
	}
	b := appendFrame([]byte(preface), frameSettings, 0, 0, settings)
	b = appendFrame(b, frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, MaxMessage+maxFrame-initialWindow))

	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	left := max(time.Until(c.deadline), 0) + serverGrace
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", c.method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
		{"grpc-timeout", strconv.FormatInt(left.Milliseconds(), 10) + "m"},
	} {
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}) // a bytes.Buffer does not fail
	}
	return appendFrame(b, frameHeaders, flagEndHeaders, stream, block.Bytes())
}

// appendRequest encodes as much of the request as the server allows now.
func (c *call) appendRequest(b []byte) []byte {
	for len(c.request) > 0 {
		n := min(int64(len(c.request)), maxFrame, c.connWindow, c.streamWindow)
		if n <= 0 {
			return b
		}
		var flags byte
		if n == int64(len(c.request)) {
			flags = flagEndStream
		}
		b = appendFrame(b, frameData, flags, stream, c.request[:n])
		c.request = c.request[n:]
		c.connWindow -= n
		c.streamWindow -= n
	}
	return b
}

// take acts on a frame from the server, and appends what must be said in return.
func (c *call) take(f frame, out []byte) ([]byte, error) {
	if (c.block != nil) != (f.kind == frameContinuation) {
		return out, errors.New("a header block is not followed by its continuation")
	}
	switch f.kind {
	case frameSettings:
		if f.flags&flagAck != 0 {
			return out, nil
		}
		return appendFrame(out, frameSettings, flagAck, 0, nil), c.settings(f.payload)
	case framePing:
		if f.flags&flagAck != 0 {
			return out, nil
		}
		return appendFrame(out, framePing, flagAck, 0, f.payload), nil
	case frameWindow:
		return out, c.window(f)
	case frameGoAway:
		return out, goAway(f.payload)
	case frameReset:
		return out, reset(f)
	case frameHeaders, frameContinuation:
		return out, c.headerBlock(f)
	case frameData:
		return out, c.data(f)
	}
	return out, nil // RFC 9113 section 4.1: unknown types are ignored
}

func (c *call) settings(p []byte) error {
	for ; len(p) >= 6; p = p[6:] {
		if binary.BigEndian.Uint16(p) == settingInitialWindow {
			v := int64(binary.BigEndian.Uint32(p[2:]))
			c.streamWindow += v - c.streamBase
			c.streamBase = v
		}
	}
	return nil
}

func (c *call) window(f frame) error {
	if len(f.payload) != 4 {
		return errors.New("a WINDOW_UPDATE frame has the wrong length")
	}
	n := int64(binary.BigEndian.Uint32(f.payload) &^ (1 << 31))
	if f.stream == 0 {
		c.connWindow += n
	} else {
		c.streamWindow += n
	}
	return nil
}

// goAway: a server that stops says up to which stream it will still answer.
func goAway(p []byte) error {
	if len(p) >= 4 && binary.BigEndian.Uint32(p)&^(1<<31) >= stream {
		return nil
	}
	return &LostError{Unprocessed: true, Err: errors.New("the agent is stopping")}
}

func reset(f frame) error {
	if len(f.payload) != 4 {
		return errors.New("a RST_STREAM frame has the wrong length")
	}
	code := binary.BigEndian.Uint32(f.payload)
	return &LostError{Unprocessed: code == resetRefused, Err: fmt.Errorf("the agent broke the call off (HTTP/2 error %d)", code)}
}

func (c *call) headerBlock(f frame) error {
	if f.kind == frameHeaders {
		c.block, c.ending = []byte{}, f.flags&flagEndStream != 0
	}
	c.block = append(c.block, f.payload...)
	if len(c.block) > MaxMessage {
		return errors.New("the answer's headers are too long")
	}
	if f.flags&flagEndHeaders == 0 {
		return nil
	}
	block := c.block
	c.block, c.done = nil, c.ending
	if _, err := c.headers.Write(block); err != nil {
		return fmt.Errorf("the answer's headers: %w", err)
	}
	return c.headers.Close()
}

func (c *call) data(f frame) error {
	if len(c.body)+len(f.payload) > MaxMessage {
		return fmt.Errorf("the answer is longer than %d bytes", MaxMessage)
	}
	c.body = append(c.body, f.payload...)
	c.done = f.flags&flagEndStream != 0
	return nil
}

// answer judges a complete answer.
func (c *call) answer() ([]byte, error) {
	status, ok := c.fields["grpc-status"]
	if !ok {
		return nil, &LostError{Err: fmt.Errorf("the answer has no grpc-status (HTTP status %s, %s): not a gRPC server?",
			c.fields[":status"], c.fields["content-type"])}
	}
	code, err := strconv.ParseUint(strings.TrimSpace(status), 10, 32)
	if err != nil {
		return nil, &LostError{Err: fmt.Errorf("the answer's grpc-status: %w", err)}
	}
	if Code(code) != OK {
		return nil, &Status{Code(code), unescape(c.fields["grpc-message"])}
	}
	message, err := open(c.body)
	if err != nil {
		return nil, &LostError{Err: err}
	}
	return message, nil
}
