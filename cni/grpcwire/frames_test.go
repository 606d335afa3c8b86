package grpcwire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Most of what HTTP/2 allows a server to do, grpc-go does not; these servers do,
// frame by frame, with x/net's framer.
func serveFrames(t *testing.T, script func(*http2.Framer)) string {
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		hello := make([]byte, len(http2.ClientPreface))
		if _, err := c.Read(hello); err != nil || string(hello) != http2.ClientPreface {
			t.Errorf("preface %q, %v", hello, err)
			return
		}
		framer := http2.NewFramer(c, c)
		script(framer)
		for { // until the client hangs up
			if _, err := framer.ReadFrame(); err != nil {
				return
			}
		}
	}()
	return path
}

func headers(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

func raw(t *testing.T, script func(*http2.Framer)) ([]byte, error) {
	return Invoke(serveFrames(t, script), "/x/Y", []byte("question"), time.Now().Add(limit))
}

// try fails the test on a framer's error.
func try(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestPaddingPriorityContinuationAndUnknownFramesAreUnderstood(t *testing.T) {
	got, err := raw(t, func(f *http2.Framer) {
		first := headers(":status", "200", "content-type", "application/grpc")
		last := headers("grpc-status", "0", "grpc-message", "")
		try(t,
			f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 7}),
			f.WriteRawFrame(0xbe, 0, 0, []byte("unknown")),
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: true,
				PadLength: 9, Priority: http2.PriorityParam{Weight: 3}}),
			f.WriteDataPadded(1, false, envelope([]byte("answer"))[:7], make([]byte, 20)),
			f.WriteDataPadded(1, false, envelope([]byte("answer"))[7:], make([]byte, 200)),
			// END_STREAM stands on the HEADERS frame, the block goes on after it.
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: last[:1], EndStream: true}),
			f.WriteContinuation(1, false, last[1:3]),
			f.WriteContinuation(1, true, last[3:]))
	})
	if err != nil || string(got) != "answer" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestSettingsAndPingsAreAcknowledged(t *testing.T) {
	acks := make(chan string, 2)
	_, err := raw(t, func(f *http2.Framer) {
		try(t, f.WriteSettings(), f.WritePing(false, [8]byte{'h', 'e', 'l', 'l', 'o'}))
		for len(acks) < 2 {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Error(err)
				return
			}
			switch frame := frame.(type) {
			case *http2.SettingsFrame:
				if frame.IsAck() {
					acks <- "settings"
				}
			case *http2.PingFrame:
				if frame.IsAck() {
					acks <- string(frame.Data[:5])
				}
			}
		}
		try(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true,
			BlockFragment: headers(":status", "200", "grpc-status", "5")}))
	})
	var s *Status
	if !errors.As(err, &s) || s.Code != NotFound {
		t.Fatalf("got %v", err)
	}
	if a, b := <-acks, <-acks; a != "settings" || b != "hello" {
		t.Errorf("acknowledged %q, %q", a, b)
	}
}

// A window may shrink below zero (RFC 9113 section 6.9.2) and be opened in drops.
func TestTheRequestKeepsWithinTheServersWindow(t *testing.T) {
	request := bytes.Repeat([]byte("q"), 100_000)
	received := 0
	path := serveFrames(t, func(f *http2.Framer) {
		allowed := initialWindow
		try(t, f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}))
		shrunk := initialWindow - 10
		for ended := false; !ended; {
			frame, err := f.ReadFrame()
			if err != nil {
				t.Error(err)
				return
			}
			data, ok := frame.(*http2.DataFrame)
			if !ok {
				continue
			}
			received += len(data.Data())
			ended = data.StreamEnded()
			if received > allowed {
				t.Errorf("received %d, allowed were %d", received, allowed)
				return
			}
			if received == allowed && !ended {
				allowed += 9_999
				// The connection has room enough: it is the stream that holds back.
				try(t, f.WriteWindowUpdate(0, 100_000), f.WriteWindowUpdate(1, uint32(9_999+shrunk)))
				shrunk = 0
			}
		}
		try(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true,
			BlockFragment: headers(":status", "200", "grpc-status", "5")}))
	})
	_, err := Invoke(path, "/x/Y", request, time.Now().Add(limit))
	var s *Status
	if !errors.As(err, &s) {
		t.Fatalf("got %v", err)
	}
	if want := len(request) + 5; received != want {
		t.Errorf("received %d of %d bytes", received, want)
	}
}

func TestWhatTheServerSaysItHasNotDoneIsUnprocessed(t *testing.T) {
	for name, c := range map[string]struct {
		script      func(*http2.Framer)
		unprocessed bool
	}{
		"refused":          {func(f *http2.Framer) { try(t, f.WriteRSTStream(1, http2.ErrCodeRefusedStream)) }, true},
		"broken off":       {func(f *http2.Framer) { try(t, f.WriteRSTStream(1, http2.ErrCodeInternal)) }, false},
		"gone away before": {func(f *http2.Framer) { try(t, f.WriteGoAway(0, http2.ErrCodeNo, nil)) }, true},
		"gone away after, dead": {func(f *http2.Framer) {
			try(t, f.WriteGoAway(1, http2.ErrCodeNo, nil), f.WriteRSTStream(1, http2.ErrCodeCancel))
		}, false},
	} {
		_, err := raw(t, c.script)
		var lost *LostError
		if !errors.As(err, &lost) || lost.Unprocessed != c.unprocessed {
			t.Errorf("%s: got %#v", name, err)
		}
	}
}

func TestNonsenseIsAnErrorAndNoCrash(t *testing.T) {
	ok := headers(":status", "200", "content-type", "application/grpc")
	end := func(f *http2.Framer, block []byte) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: true})
	}
	for name, c := range map[string]struct {
		script func(*http2.Framer)
		want   string
	}{
		"no grpc-status": {func(f *http2.Framer) { try(t, end(f, headers(":status", "503", "content-type", "text/html"))) }, "HTTP status 503"},
		"no number":      {func(f *http2.Framer) { try(t, end(f, headers("grpc-status", "fine"))) }, "grpc-status"},
		"no message":     {func(f *http2.Framer) { try(t, end(f, headers("grpc-status", "0"))) }, "no message"},
		"bad hpack":      {func(f *http2.Framer) { try(t, end(f, []byte{0xff, 0xff, 0xff, 0xff})) }, "headers"},
		"frame too long": {func(f *http2.Framer) {
			f.AllowIllegalWrites = true
			try(t, f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, maxFrame+1)))
		}, "not a gRPC server"},
		"padding too long": {func(f *http2.Framer) {
			try(t, f.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 0}))
		}, "padding"},
		"window of two bytes": {func(f *http2.Framer) { try(t, f.WriteRawFrame(http2.FrameWindowUpdate, 0, 0, []byte{1, 1})) }, "WINDOW_UPDATE"},
		"reset of two bytes":  {func(f *http2.Framer) { try(t, f.WriteRawFrame(http2.FrameRSTStream, 0, 1, []byte{1, 1})) }, "RST_STREAM"},
		"block not continued": {func(f *http2.Framer) {
			try(t, f.WriteRawFrame(http2.FrameHeaders, 0, 1, ok), f.WritePing(false, [8]byte{}))
		}, "continuation"},
		"continued from nowhere": {func(f *http2.Framer) { try(t, f.WriteRawFrame(http2.FrameContinuation, 4, 1, ok)) }, "continuation"},
		"compressed": {func(f *http2.Framer) {
			try(t, f.WriteData(1, false, append([]byte{1}, binary.BigEndian.AppendUint32(nil, 0)...)), end(f, headers("grpc-status", "0")))
		}, "compressed"},
		"half a message": {func(f *http2.Framer) {
			try(t, f.WriteData(1, false, envelope([]byte("answer"))[:8]), end(f, headers("grpc-status", "0")))
		}, "says 6"},
	} {
		_, err := raw(t, c.script)
		var lost *LostError
		if !errors.As(err, &lost) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, c.want)
		}
	}
}

// FuzzServer: whatever a server sends, the client returns.
func FuzzServer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add(appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, headers("grpc-status", "0")))
	f.Add(appendFrame(nil, frameData, flagPadded|flagEndStream, 1, []byte{1, 0, 0, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, sent []byte) {
		c := call{conn: &conn{fd: -1, deadline: time.Now().Add(limit), in: sent}, method: "/x/Y", request: envelope(nil)}
		c.headers = hpack.NewDecoder(4096, func(f hpack.HeaderField) {})
		for {
			f, err := c.readFrame() // fd -1: an error as soon as the bytes are used up
			if err != nil {
				return
			}
			if _, err := c.take(f, nil); err != nil || c.done {
				_, _ = c.answer()
				return
			}
		}
	})
}

const listenerEnv = "HOPLITE_TEST_LISTEN"

// listenAs runs this test binary again as another user, to listen.
func listenAs(t *testing.T, path string, uid uint32) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	// The build's own folder may be closed to other users.
	copied := path + ".test"
	if err := os.WriteFile(copied, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied)
	cmd.Dir = "/"
	cmd.Env = []string{listenerEnv + "=" + path}
	cmd.SysProcAttr = as(uid)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if b := make([]byte, 5); true {
		if _, err := stdout.Read(b); err != nil || string(b) != "ready" {
			t.Fatalf("listener: %q, %v", b, err)
		}
	}
}

func TestMain(m *testing.M) {
	if path := os.Getenv(listenerEnv); path != "" {
		if _, err := net.Listen("unix", path); err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString("ready")
		select {}
	}
	os.Exit(m.Run())
}
