// Package nstest gives tests real network namespaces.
//
//	nstest.Require(t)
//	node, pod := nstest.New(t), nstest.New(t)
//	node.Do(t, func() { ... runs in the node's namespace ... })
//
// Namespaces are bind mounts below the test's temporary directory, so that
// their Path can be given to anything that takes one (a CNI plugin, nsenter).
// They disappear with the test.
package nstest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// noSkip, when set to 1, turns a skip into a failure: CI sets it, so that a
// machine without the means cannot pass by testing nothing.
const noSkip = "HOPLITE_NO_SKIP"

// Require skips the test, with the reason, where namespaces cannot be made.
// With HOPLITE_NO_SKIP=1 it fails the test instead.
func Require(t testing.TB) {
	t.Helper()
	if err := unavailable(); err != nil {
		if os.Getenv(noSkip) == "1" {
			t.Fatalf("%v (and %s=1 forbids skipping)", err, noSkip)
		}
		t.Skip(err)
	}
}

func unavailable() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root to make network namespaces: run with sudo")
	}
	done := make(chan error, 1)
	go func() {
		// Locked and never unlocked: the thread ends with the goroutine, and the
		// namespace with it.
		runtime.LockOSThread()
		done <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("needs CAP_SYS_ADMIN to make network namespaces: unshare: %w", err)
	}
	return nil
}

// NS is a network namespace of a test.
type NS struct {
	// Path is the namespace's file, usable by other processes.
	Path string
}

// New makes a namespace with lo up. It is removed when the test ends.
func New(t testing.TB) *NS {
	t.Helper()
	ns := NewBare(t)
	h := ns.Handle(t)
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatalf("find lo of a new namespace: %v", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		t.Fatalf("set lo of a new namespace up: %v", err)
	}
	return ns
}

// NewBare makes a namespace as the kernel does: with lo down.
func NewBare(t testing.TB) *NS {
	t.Helper()
	// Not t.TempDir: its name holds the test's, and a sun_path or IFNAMSIZ
	// limit would one day meet a long one.
	dir, err := os.MkdirTemp("", "nstest-")
	if err != nil {
		t.Fatal(err)
	}
	ns := &NS{Path: filepath.Join(dir, "net")}
	t.Cleanup(func() {
		ns.Remove(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(ns.Path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: see unavailable
		done <- pin(ns.Path)
	}()
	if err := <-done; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	return ns
}

// pin moves the calling thread to a new namespace and binds that to path.
func pin(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind to %s: %w", path, err)
	}
	return nil
}

// Remove ends the namespace before the test does, as a container runtime would.
// The kernel destroys it once nothing else refers to it. Repeating it is fine.
func (ns *NS) Remove(t testing.TB) {
	t.Helper()
	err := unix.Unmount(ns.Path, unix.MNT_DETACH)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		t.Errorf("unmount %s: %v", ns.Path, err)
	}
	if err := os.Remove(ns.Path); err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
}

// Do runs f in the namespace, on the calling goroutine, its thread locked.
// Sockets and netlink handles that f opens stay in the namespace after it; a
// goroutine that f starts does not run in it. f may call t.FailNow.
func (ns *NS) Do(t testing.TB, f func()) {
	t.Helper()
	target, err := os.Open(ns.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatal(err)
	}
	defer home.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Fatalf("enter %s: %v", ns.Path, err)
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			// The thread stays locked, and so dies with the test's goroutine.
			t.Errorf("leave %s: %v", ns.Path, err)
			return
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// Handle opens a netlink handle in the namespace, closed when the test ends.
func (ns *NS) Handle(t testing.TB) *netlink.Handle {
	t.Helper()
	var h *netlink.Handle
	var err error
	ns.Do(t, func() { h, err = netlink.NewHandle(unix.NETLINK_ROUTE) })
	if err != nil {
		t.Fatalf("netlink handle in %s: %v", ns.Path, err)
	}
	t.Cleanup(h.Close)
	return h
}

// Sysctl reads a setting, named by its path below /proc/sys, in the namespace.
func (ns *NS) Sysctl(t testing.TB, name string) string {
	t.Helper()
	var b []byte
	var err error
	ns.Do(t, func() { b, err = os.ReadFile(filepath.Join("/proc/sys", name)) })
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b)
}

// SetSysctl writes a setting, named by its path below /proc/sys, in the namespace.
func (ns *NS) SetSysctl(t testing.TB, name, value string) {
	t.Helper()
	var err error
	ns.Do(t, func() { err = os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0) })
	if err != nil {
		t.Fatal(err)
	}
}
