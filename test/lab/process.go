package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a daemon in a machine: an agent, a server, a routing daemon. What
// it writes goes to a log file, one for all its lives.
type Process struct {
	Name string

	machine *Machine
	argv    []string
	log     string

	mu   sync.Mutex
	cmd  *Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // how it ended, once done is closed
}

// newProcess describes a daemon of the machine; Start starts it.
func (m *Machine) newProcess(name string, argv ...string) *Process {
	p := &Process{Name: name, machine: m, argv: argv, log: m.lab.logFile(name)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.processes = append(m.processes, p)
	return p
}

// Start starts the process; it is an error if it runs already.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return fmt.Errorf("%s is running already", p.Name)
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := p.machine.Command(context.Background(), p.argv[0], p.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done, p.err = cmd, done, nil
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

func (p *Process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Running says whether the process is there.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		_ = p.cmd.Process.Signal(sig)
	}
}

// Stop sends SIGTERM and waits for the end. A process that ctx outlives is
// killed, which is an error.
func (p *Process) Stop(ctx context.Context) error {
	p.Signal(unix.SIGTERM)
	select {
	case <-p.ended():
		return nil
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("%s did not end on SIGTERM and was killed: %w", p.Name, ctx.Err())
	}
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	p.Signal(unix.SIGKILL)
	<-p.ended()
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (p *Process) ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return closed
	}
	return p.done
}

// PID is the process's number on the host, 0 when it is not running.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return 0
	}
	return p.cmd.Process.Pid
}

// LogFile is the path of the log on the host.
func (p *Process) LogFile() string { return p.log }

// waitFor polls ready until it is nil. It ends at once, with the end of the
// log, when the process ends before.
func (p *Process) waitFor(ctx context.Context, what string, ready func() error) error {
	err := until(ctx, 20*time.Millisecond, fmt.Sprintf("wait until %s is %s", p.Name, what), func() error {
		if !p.Running() {
			return &finalError{fmt.Errorf("it ended: %w", p.exit())}
		}
		return ready()
	})
	if err != nil {
		return fmt.Errorf("%w\nend of %s:\n%s", err, p.log, tail(p.log, 20))
	}
	return nil
}

func (p *Process) exit() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var status *exec.ExitError
	if p.err == nil {
		return errors.New("exit status 0")
	}
	if errors.As(p.err, &status) {
		return errors.New(status.String())
	}
	return p.err
}

// tail returns the last lines of a file, for people.
func tail(file string, lines int) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
