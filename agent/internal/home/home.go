// Package home is the network namespace that the agent's parts work in: the one
// they were made in. Sockets stay where they were opened; what a thread decides,
// such as which /proc/sys/net it sees and where its child processes start, needs
// a thread that is there.
package home

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace.
type Namespace struct {
	file *os.File
	id   id
}

// id tells namespaces apart.
type id struct{ dev, ino uint64 }

const threadNS = "/proc/thread-self/ns/net"

// Open opens the namespace of the calling thread.
func Open() (*Namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	file, err := os.Open(threadNS)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	id, err := ofThread()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &Namespace{file, id}, nil
}

// Close closes the namespace, which lives on as long as anybody is in it.
func (n *Namespace) Close() { _ = n.file.Close() }

// Do runs f on a thread in the namespace and returns its error. The agent never
// leaves its namespace, so that there Do takes neither setns nor the
// CAP_SYS_ADMIN for it; tests do.
func (n *Namespace) Do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := ofThread()
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

func ofThread() (id, error) {
	var st unix.Stat_t
	if err := unix.Stat(threadNS, &st); err != nil {
		return id{}, fmt.Errorf("look at the network namespace: %w", err)
	}
	return id{st.Dev, st.Ino}, nil
}
