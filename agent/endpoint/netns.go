package endpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNetnsGone says that a namespace's path leads nowhere, or to another
// namespace than it did: there is no pod to plumb.
var ErrNetnsGone = errors.New("the network namespace is gone")

// netns is an open network namespace.
type netns struct {
	file *os.File
	path string
	id   nsID
}

// nsID tells namespaces apart while either lives.
type nsID struct{ dev, ino uint64 }

// openNetns opens a namespace's file, such as /run/netns/x or /proc/1/ns/net.
func openNetns(path string) (*netns, error) {
	if path == "" {
		return nil, fmt.Errorf("no network namespace given")
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNetnsGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	err = unix.Fstatfs(int(f.Fd()), &fs)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && fs.Type != unix.NSFS_MAGIC {
		// What remains of /run/netns/x when the namespace is unmounted.
		err = ErrNetnsGone
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &netns{file: f, path: path, id: nsID{st.Dev, st.Ino}}, nil
}

func (ns *netns) fd() int { return int(ns.file.Fd()) }

func (ns *netns) Close() error { return ns.file.Close() }

// do runs f in the namespace, on a locked thread. f must not start goroutines
// that count on it.
func (ns *netns) do(f func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer unix.Close(home)
	var st unix.Stat_t
	if unix.Fstat(home, &st) == nil && (nsID{st.Dev, st.Ino}) == ns.id {
		defer runtime.UnlockOSThread()
		return f()
	}
	if err := unix.Setns(ns.fd(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", ns.path, err)
	}
	err = f()
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		// To go on would be to do the node's work in a pod.
		panic(fmt.Sprintf("leave network namespace %s: %v", ns.path, back))
	}
	runtime.UnlockOSThread()
	return err
}

// rtnl opens a socket in the namespace.
func (ns *netns) rtnl() (c *rtnl, err error) {
	err = ns.do(func() error {
		c, err = openRTNL()
		return err
	})
	return c, err
}

// readSysctl reads /proc/sys/net/<name> of the namespace.
func (ns *netns) readSysctl(name string) (value string, err error) {
	err = ns.do(func() error {
		b, err := os.ReadFile(sysctlPath(name))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// writeSysctl writes /proc/sys/net/<name> of the namespace. A setting that the
// kernel does not have (IPv6 off at boot) is no error.
func (ns *netns) writeSysctl(name, value string) error {
	err := ns.do(func() error { return os.WriteFile(sysctlPath(name), []byte(value), 0) })
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// enableIPv6 undoes disable_ipv6=1, which some runtimes set in a pod. It only
// writes where that is needed: writing takes the RTNL lock.
func (ns *netns) enableIPv6(link string) error {
	name := "ipv6/conf/" + link + "/disable_ipv6"
	if v, err := ns.readSysctl(name); err != nil || v == "0" {
		return err
	}
	return ns.writeSysctl(name, "0")
}

func sysctlPath(name string) string { return filepath.Join("/proc/sys/net", name) }
