package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Machine is one computer of the lab: a set of network, mount, PID, UTS and IPC
// namespaces, held by a process that is PID 1 in there. Its /run, /proc and /sys
// are its own; /etc, /opt and /var/lib begin as the host's and keep changes to
// themselves. When its PID 1 dies, all of it is gone.
type Machine struct {
	// Name is its host name: node1, fabric, control, outside, ...
	Name string
	// Addresses it has on the lab's network, IPv4 first.
	Addresses []netip.Addr

	lab  *Lab
	init process
	ns   namespaces // net, uts, ipc, pid, mnt
	cmd  *exec.Cmd  // the init process, nil when another process started it

	mu        sync.Mutex
	processes []*Process
}

// startMachine makes the namespaces and waits until PID 1 has furnished them.
func (l *Lab) startMachine(name string) (*Machine, error) {
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer readyR.Close()
	cmd := exec.Command(l.inside(), "init", name)
	cmd.ExtraFiles = []*os.File{l.lifelineR, readyW} // inside.LifelineFD, inside.ReadyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setpgid:    true, // Ctrl-C at the terminal is the lab's to handle
	}
	log, err := l.createLog("init-" + name)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr, cmd.Dir = log, "/"
	err = cmd.Start()
	readyW.Close()
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", name, err)
	}
	m := &Machine{Name: name, lab: l, cmd: cmd}
	if m.init, err = identify(cmd.Process.Pid); err == nil {
		if _, err = io.ReadFull(readyR, make([]byte, 1)); err == nil {
			err = m.open()
		}
	}
	if err != nil {
		m.kill()
		said, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("start machine %s: %w: %s", name, err, strings.TrimSpace(string(said)))
	}
	if err := m.lo(); err != nil {
		m.kill()
		return nil, err
	}
	return m, l.record(m)
}

// open opens the namespaces of the machine's PID 1. The mount namespace comes
// last, since entering it takes the host's paths away.
func (m *Machine) open() error {
	for _, n := range []struct {
		kind int
		name string
	}{
		{unix.CLONE_NEWNET, "net"}, {unix.CLONE_NEWUTS, "uts"}, {unix.CLONE_NEWIPC, "ipc"},
		{unix.CLONE_NEWPID, "pid"}, {unix.CLONE_NEWNS, "mnt"},
	} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", m.init.PID, n.name))
		if err != nil {
			return err
		}
		m.ns = append(m.ns, namespace{n.kind, f})
	}
	return nil
}

// lo sets the loopback interface up.
func (m *Machine) lo() error {
	return m.Netlink(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
}

// Command prepares a command inside all of the machine's namespaces.
func (m *Machine) Command(ctx context.Context, name string, args ...string) *Cmd {
	return newCmd(ctx, func() (namespaces, func(), error) { return m.ns, func() {}, nil }, name, args)
}

// NetCommand prepares a command in the machine's network namespace only: it sees the host's files.
func (m *Machine) NetCommand(ctx context.Context, name string, args ...string) *Cmd {
	return newCmd(ctx, func() (namespaces, func(), error) { return m.ns[:1], func() {}, nil }, name, args)
}

// Do runs f on a thread in the machine's network namespace. Sockets and netlink
// handles that f opens stay there; goroutines that f starts do not run there.
func (m *Machine) Do(f func() error) error { return m.ns[:1].enter(f) }

// Netns is the path of the machine's network namespace, on the host.
func (m *Machine) Netns() string { return fmt.Sprintf("/proc/%d/ns/net", m.init.PID) }

// Path is where a file of the machine is found on the host, for reading and
// writing it, or for connecting to a socket.
func (m *Machine) Path(file string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.init.PID), file)
}

// Netlink runs f with a route netlink handle in the machine's network namespace.
func (m *Machine) Netlink(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(m.ns[0].file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", m.Name, err)
	}
	defer h.Close()
	return f(h)
}

// Sysctl writes a setting, named by its path below /proc/sys/net, in the machine's network namespace.
func (m *Machine) Sysctl(name, value string) error {
	return m.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0) })
}

// WriteFile writes a file of the machine, with the directories it needs.
func (m *Machine) WriteFile(file string, content []byte, mode os.FileMode) error {
	path := m.Path(file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, mode)
}

// kill ends the machine and everything in it, and waits until it is gone.
func (m *Machine) kill() {
	m.mu.Lock()
	processes := m.processes
	m.processes = nil
	m.mu.Unlock()
	m.init.kill()
	// The kernel's end of PID 1 waits for the collection of the children we put in there.
	for _, p := range processes {
		p.Kill()
	}
	if m.cmd != nil {
		collected := make(chan struct{})
		go func() {
			_ = m.cmd.Wait()
			close(collected)
		}()
		select {
		case <-collected:
		case <-time.After(10 * time.Second):
			// A caller of Command started a process and never waits for it: it is dead, but its number is not free.
		}
	}
	for _, n := range m.ns {
		n.file.Close()
	}
	m.lab.unlinkNetns(m.Name)
}

// process is a process that cannot be mistaken for a later one with the same number.
type process struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat: when it started, in ticks since boot.
	Start string `json:"start"`
}

func identify(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// Field 2, the name in parentheses, may hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	return process{PID: pid, Start: fields[19]}, nil
}

// alive says whether the very process still is. A zombie is dead.
func (p process) alive() bool {
	now, err := identify(p.PID)
	if err != nil || now != p {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// kill ends the process if it is still the same one.
func (p process) kill() {
	p.signal(unix.SIGKILL)
}

func (p process) signal(sig unix.Signal) {
	// The descriptor is opened before the comparison, so no other process can come in between.
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, err := identify(p.PID); err == nil && now == p {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// gone waits until the process is dead.
func (p process) gone(ctx context.Context) error {
	return until(ctx, 10*time.Millisecond, fmt.Sprintf("wait for the end of process %d", p.PID), func() error {
		if p.alive() {
			return errors.New("still there")
		}
		return nil
	})
}
