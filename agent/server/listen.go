package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Listen opens the agent's socket: mode 0600, and a connection from a process
// that is not root is closed before a byte of it is read. A socket that a dead
// agent left is replaced at once, never missing in between; that no live agent
// holds it is for Lock to make sure.
func Listen(path string, log *slog.Logger) (net.Listener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The file stays when the agent stops: a caller then gets "connection
	// refused", which says "restarting" better than a file that is gone.
	l.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &rootListener{UnixListener: l, log: log}, nil
}

type rootListener struct {
	*net.UnixListener
	log *slog.Logger
}

func (l *rootListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := peerCredentials(conn)
		if err == nil && cred.Uid == 0 {
			return conn, nil
		}
		if err != nil {
			l.log.Warn("refused a connection to the agent's socket", "error", err)
		} else {
			l.log.Warn("refused a connection to the agent's socket: only root may use it", "uid", cred.Uid, "pid", cred.Pid)
		}
		_ = conn.Close()
	}
}

func peerCredentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}

// Lock makes this the only agent on the node: two would give out the same
// addresses. It does not wait; the lock goes with the process.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the agent's directory: %w", err)
	}
	path := filepath.Join(dir, "agent.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another hoplite-agent runs on this node (it holds %s): %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// ErrLocked: another agent runs on the node. During a rolling update that is
// the old one, about to go.
var ErrLocked = errors.New("locked")
