package grpcwire

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

const limit = 20 * time.Second

// server is a real gRPC server whose GC method a test provides.
type server struct {
	agentv1.UnimplementedCNIServer
	gc func(context.Context, *agentv1.GCRequest) (*agentv1.GCResponse, error)
}

func (s *server) GC(ctx context.Context, r *agentv1.GCRequest) (*agentv1.GCResponse, error) {
	return s.gc(ctx, r)
}

func socketPath(t testing.TB) string {
	// Not t.TempDir: its path can be longer than a socket's may be.
	dir, err := os.MkdirTemp("", "wire")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func serve(t testing.TB, gc func(context.Context, *agentv1.GCRequest) (*agentv1.GCResponse, error)) (string, *grpc.Server) {
	path := socketPath(t)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	agentv1.RegisterCNIServer(s, &server{gc: gc})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return path, s
}

const method = "/hoplite.agent.v1.CNI/GC"

func invoke(path string, req *agentv1.GCRequest, timeout time.Duration) (*agentv1.GCResponse, error) {
	b, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	answer, err := Invoke(path, method, b, time.Now().Add(timeout))
	if err != nil {
		return nil, err
	}
	resp := &agentv1.GCResponse{}
	return resp, proto.Unmarshal(answer, resp)
}

func attachments(n int) []*agentv1.Attachment {
	list := make([]*agentv1.Attachment, n)
	for i := range list {
		list[i] = &agentv1.Attachment{ContainerId: strings.Repeat("c", 64), Ifname: "eth0"}
	}
	return list
}

func TestCallsAndAnswersOfEverySizeArrive(t *testing.T) {
	path, _ := serve(t, func(_ context.Context, r *agentv1.GCRequest) (*agentv1.GCResponse, error) {
		return &agentv1.GCResponse{Removed: r.GetValid()}, nil
	})
	// 73 bytes each: within one frame, over the frame size, over the initial
	// window of 64 KiB, over the windows grpc-go grows to.
	for _, n := range []int{0, 1, 100, 300, 1000, 20000, 50000} {
		req := &agentv1.GCRequest{Valid: attachments(n)}
		resp, err := invoke(path, req, limit)
		if err != nil {
			t.Fatalf("%d attachments: %v", n, err)
		}
		if !proto.Equal(&agentv1.GCRequest{Valid: resp.GetRemoved()}, req) {
			t.Errorf("%d attachments came back as %d", n, len(resp.GetRemoved()))
		}
	}
}

func TestAnAnswerThatIsTooLongIsRefused(t *testing.T) {
	path, _ := serve(t, func(context.Context, *agentv1.GCRequest) (*agentv1.GCResponse, error) {
		return &agentv1.GCResponse{Errors: []string{strings.Repeat("x", MaxMessage)}}, nil
	})
	_, err := invoke(path, &agentv1.GCRequest{}, limit)
	var lost *LostError
	if !errors.As(err, &lost) || !strings.Contains(err.Error(), "longer than") {
		t.Fatalf("got %v", err)
	}
}

func TestAStatusArrivesWithItsMessage(t *testing.T) {
	for _, message := range []string{"", "plain", "100 % 日本語\nzweite Zeile %41", strings.Repeat("lang ", 8000)} {
		path, _ := serve(t, func(context.Context, *agentv1.GCRequest) (*agentv1.GCResponse, error) {
			return nil, status.Error(codes.ResourceExhausted, message)
		})
		_, err := invoke(path, &agentv1.GCRequest{}, limit)
		var s *Status
		if !errors.As(err, &s) || s.Code != ResourceExhausted || s.Message != message {
			t.Errorf("message of %d bytes: got %.200v", len(message), err)
		}
	}
}

func TestAnUnknownMethodIsUnimplemented(t *testing.T) {
	path, _ := serve(t, nil)
	_, err := Invoke(path, "/hoplite.agent.v1.CNI/Nothing", nil, time.Now().Add(limit))
	var s *Status
	if !errors.As(err, &s) || s.Code != Unimplemented {
		t.Fatalf("got %v", err)
	}
}

func TestTheServerLearnsTheDeadlineAndTheContentType(t *testing.T) {
	got := make(chan time.Duration, 1)
	path, _ := serve(t, func(ctx context.Context, _ *agentv1.GCRequest) (*agentv1.GCResponse, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if ct := md.Get("content-type"); len(ct) != 1 || ct[0] != "application/grpc" {
			t.Errorf("content-type %v", ct)
		}
		d, _ := ctx.Deadline()
		got <- time.Until(d)
		return &agentv1.GCResponse{}, nil
	})
	if _, err := invoke(path, &agentv1.GCRequest{}, limit); err != nil {
		t.Fatal(err)
	}
	if left := <-got; left <= 0 || left > limit+serverGrace {
		t.Errorf("the server has %s left of %s", left, limit)
	}
}

func TestACallEndsAtItsDeadlineAndTheServerIsTold(t *testing.T) {
	ended := make(chan struct{})
	path, _ := serve(t, func(ctx context.Context, _ *agentv1.GCRequest) (*agentv1.GCResponse, error) {
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	_, err := invoke(path, &agentv1.GCRequest{}, 200*time.Millisecond)
	var lost *LostError
	if !errors.As(err, &lost) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	select {
	case <-ended:
	case <-time.After(limit):
		t.Error("the server's handler still runs")
	}
}

func TestWhatComesAfterTheDeadlineIsADeadlineExceeded(t *testing.T) {
	broken := &LostError{Unprocessed: true, Err: errors.New("reset")}
	if err := lost(broken, time.Now().Add(limit)); err != broken {
		t.Errorf("before: %v", err)
	}
	if err := lost(broken, time.Now()); !errors.Is(err, os.ErrDeadlineExceeded) || !err.Unprocessed {
		t.Errorf("after: %#v", err)
	}
}

func TestADeadServerMayHaveActed(t *testing.T) {
	entered := make(chan struct{})
	path, s := serve(t, func(ctx context.Context, _ *agentv1.GCRequest) (*agentv1.GCResponse, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	go func() {
		<-entered
		s.Stop() // closes every connection at once, as dying does
	}()
	_, err := invoke(path, &agentv1.GCRequest{}, limit)
	var lost *LostError
	if !errors.As(err, &lost) || lost.Unprocessed {
		t.Fatalf("got %v", err)
	}
}

func TestNoServerIsADialError(t *testing.T) {
	path := socketPath(t)
	_, err := invoke(path, &agentv1.GCRequest{}, limit)
	var dial *DialError
	if !errors.As(err, &dial) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	_, err = invoke(path, &agentv1.GCRequest{}, limit)
	if !errors.As(err, &dial) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a socket left behind: %v", err)
	}
}

// A server that is starting has bound its socket and does not accept yet: calls
// wait in its backlog. When that is full, even connecting blocks.
func TestConnectingToAFullBacklogEndsAtTheDeadline(t *testing.T) {
	path := socketPath(t)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	waiting, err := dial(path, time.Now().Add(limit)) // fills the backlog of one
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.close()
	_, err = invoke(path, &agentv1.GCRequest{}, 100*time.Millisecond)
	var dialed *DialError
	if !errors.As(err, &dialed) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

func TestAServerOfAnotherUserIsNotTrusted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to listen as someone else")
	}
	path := socketPath(t)
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	listenAs(t, path, 65534)
	_, err := invoke(path, &agentv1.GCRequest{}, limit)
	var untrusted *UntrustedError
	if !errors.As(err, &untrusted) || untrusted.UID != 65534 {
		t.Fatalf("got %v", err)
	}
}
