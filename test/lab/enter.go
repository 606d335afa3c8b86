package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// namespaces are open descriptors of namespaces, entered in this order. The
// network namespace of a pod comes after those of its node, whose mounts its path needs.
type namespaces []namespace

type namespace struct {
	kind int // unix.CLONE_NEW...
	file *os.File
}

// enter runs f on a thread of its own inside the namespaces, then the thread
// ends. Processes that f starts live in the namespaces, sockets that it opens
// stay in them. Goroutines that f starts do not.
func (ns namespaces) enter(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: no other goroutine may get this thread. The Go runtime
		// makes no new thread from a locked one, so none inherits the namespaces.
		runtime.LockOSThread()
		done <- ns.enterThread(f)
	}()
	return <-done
}

func (ns namespaces) enterThread(f func() error) error {
	for _, n := range ns {
		if n.kind == unix.CLONE_NEWNS {
			// A thread that shares root and working directory with others may not change its mount namespace.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare the root directory: %w", err)
			}
		}
		if err := unix.Setns(int(n.file.Fd()), n.kind); err != nil {
			return fmt.Errorf("enter %s: %w", n.file.Name(), err)
		}
	}
	return f()
}

// Cmd is an exec.Cmd that runs inside a machine or a pod: the program is
// looked up, and its files are opened, in there. Fields are set as for an
// exec.Cmd.
type Cmd struct {
	*exec.Cmd
	ns   func() (namespaces, func(), error)
	name string
}

func newCmd(ctx context.Context, ns func() (namespaces, func(), error), name string, args []string) *Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...) // the path is found in Start, inside
	cmd.Args[0] = name
	// Not more than a moment for grandchildren that hold the output open.
	cmd.WaitDelay = 2 * time.Second
	return &Cmd{Cmd: cmd, ns: ns, name: name}
}

// Start is exec.Cmd's, inside.
func (c *Cmd) Start() error {
	ns, release, err := c.ns()
	if err != nil {
		return err
	}
	defer release()
	return ns.enter(func() error {
		path, err := lookPath(c.name)
		if err != nil {
			return err
		}
		c.Path = path
		if c.Env == nil {
			// So that what it starts finds ip and iptables too.
			c.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":"+sbin)
		}
		return c.Cmd.Start()
	})
}

// sbin is where Debian keeps network tools; users other than root do not have it in PATH, nor do some CI systems.
const sbin = "/usr/local/sbin:/usr/sbin:/sbin"

func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range filepath.SplitList(sbin) {
		if err == nil {
			break
		}
		if file, e := exec.LookPath(filepath.Join(dir, name)); e == nil {
			return file, nil
		}
	}
	return path, err
}

// Run is exec.Cmd's, inside.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output is exec.Cmd's, inside; the error has what the command wrote to standard error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	if err != nil {
		err = c.explain(err, stderr.String())
	}
	return stdout.Bytes(), err
}

// CombinedOutput is exec.Cmd's, inside; the error has the output too.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	if err != nil {
		err = c.explain(err, out.String())
	}
	return out.Bytes(), err
}

func (c *Cmd) explain(err error, output string) error {
	command := strings.Join(append([]string{c.name}, c.Args[1:]...), " ")
	if output = strings.TrimSpace(output); output != "" {
		return fmt.Errorf("%s: %w: %s", command, err, output)
	}
	return fmt.Errorf("%s: %w", command, err)
}

// until calls ready every interval until it returns nil, and gives up with its
// last error when ctx ends.
func until(ctx context.Context, interval time.Duration, what string, ready func() error) error {
	for {
		err := ready()
		if err == nil {
			return nil
		}
		var final *finalError
		if errors.As(err, &final) {
			return fmt.Errorf("%s: %w", what, final.error)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w (last: %w)", what, ctx.Err(), err)
		case <-time.After(interval):
		}
	}
}

// finalError ends until at once: waiting longer cannot help.
type finalError struct{ error }
