package nat

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is the network namespace a Syncer works in. iptables is a child
// process, and a child lives in the namespace of the thread that starts it, so
// whatever runs iptables must run on a thread that is there.
type namespace struct {
	file *os.File
	id   nsID
}

type nsID struct{ dev, ino uint64 }

const threadNS = "/proc/thread-self/ns/net"

func currentNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	file, err := os.Open(threadNS)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	id, err := threadNamespaceID()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &namespace{file: file, id: id}, nil
}

func (n *namespace) close() { n.file.Close() }

// do runs f on a thread in the namespace and returns its error. An agent never
// leaves its namespace, so that it needs no setns, and with it CAP_SYS_ADMIN.
func (n *namespace) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := threadNamespaceID()
	if err != nil {
		return err
	}
	if id == n.id {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func threadNamespaceID() (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(threadNS, &st); err != nil {
		return nsID{}, fmt.Errorf("stat %s: %w", threadNS, err)
	}
	return nsID{st.Dev, st.Ino}, nil
}
