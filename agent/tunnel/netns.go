package tunnel

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is the network namespace that the devices are in. Sockets stay where
// they were opened; /proc/sys/net shows that of the thread that opens a file.
type namespace struct {
	file *os.File
	id   nsID
}

// nsID tells namespaces apart.
type nsID struct{ dev, ino uint64 }

const threadNS = "/proc/thread-self/ns/net"

func currentNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	file, err := os.Open(threadNS)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	id, err := threadNamespace()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &namespace{file, id}, nil
}

func threadNamespace() (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(threadNS, &st); err != nil {
		return nsID{}, fmt.Errorf("look at the network namespace: %w", err)
	}
	return nsID{st.Dev, st.Ino}, nil
}

func (n *namespace) close() { _ = n.file.Close() }

// do runs f on a thread in the namespace. The agent is always in it, so that
// there it takes neither setns nor the CAP_SYS_ADMIN for it.
func (n *namespace) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := threadNamespace()
	if err != nil {
		return err
	}
	if here == n.id {
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
