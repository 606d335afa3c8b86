package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a lab leaves on the host's file system while it is up: this directory,
// with one below it per lab, and a link per machine for `ip netns`.
const (
	stateDir   = "/run/hoplite-lab"
	netnsDir   = "/run/netns"
	recordFile = "lab.json"
)

// labRecord is what another process must know to use a lab, or to remove what is left of it.
type labRecord struct {
	Name string `json:"name"`
	// Root is the checkout whose programs it runs.
	Root string `json:"root"`
	// Owner is the process whose children the machines are; they die with it.
	Owner    process         `json:"owner"`
	Machines []machineRecord `json:"machines"`
	// Ready is set once everything asked for is up.
	Ready bool `json:"ready"`
}

type machineRecord struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Init      process      `json:"init"`
}

// claim makes the lab's directory; its name must be free.
func (l *Lab) claim(ctx context.Context) error {
	owner, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	l.state = labRecord{Name: l.name, Root: l.cfg.Root, Owner: owner}
	return locked(ctx, func() error {
		if err := sweep(ctx); err != nil {
			return err
		}
		if err := os.Mkdir(l.dir(), 0o700); errors.Is(err, os.ErrExist) {
			return fmt.Errorf("a lab named %q is up: remove it with `lab down --name %s`, or choose another name", l.name, l.name)
		} else if err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(l.dir(), "logs"), 0o700); err != nil {
			return err
		}
		return l.writeRecord()
	})
}

func (l *Lab) dir() string { return filepath.Join(stateDir, l.name) }

// record notes a machine and gives its network namespace a name for `ip netns`.
func (l *Lab) record(m *Machine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	// A link, not a mount: it keeps nothing alive.
	if err := os.Symlink(m.Netns(), l.netnsLink(m.Name)); err != nil {
		return err
	}
	l.state.Machines = append(l.state.Machines, machineRecord{m.Name, m.Addresses, m.init})
	return l.writeRecord()
}

// noteAddresses brings the record of a machine up to date.
func (l *Lab) noteAddresses(m *Machine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.state.Machines {
		if l.state.Machines[i].Name == m.Name {
			l.state.Machines[i].Addresses = m.Addresses
		}
	}
	return l.writeRecord()
}

// forget drops a machine that is gone from the record.
func (l *Lab) forget(m *Machine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Machines = slices.DeleteFunc(l.state.Machines, func(r machineRecord) bool { return r.Name == m.Name })
	return l.writeRecord()
}

// writeRecord replaces the record as a whole. Callers hold l.mu or are alone.
func (l *Lab) writeRecord() error {
	content, err := json.MarshalIndent(l.state, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(l.dir(), recordFile)
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func (l *Lab) netnsLink(machine string) string { return netnsLink(l.name, machine) }

func netnsLink(lab, machine string) string { return filepath.Join(netnsDir, lab+"-"+machine) }

func (l *Lab) unlinkNetns(machine string) { _ = os.Remove(l.netnsLink(machine)) }

// logFile is where a process of the lab logs to.
func (l *Lab) logFile(name string) string { return filepath.Join(l.dir(), "logs", name+".log") }

func (l *Lab) createLog(name string) (*os.File, error) {
	return os.OpenFile(l.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

func readRecord(name string) (labRecord, error) {
	var r labRecord
	content, err := os.ReadFile(filepath.Join(stateDir, name, recordFile))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(content, &r)
}

// Sweep removes what labs whose process died without cleaning up have left.
func Sweep(ctx context.Context) error { return locked(ctx, func() error { return sweep(ctx) }) }

func sweep(ctx context.Context) error {
	entries, err := os.ReadDir(stateDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		r, err := readRecord(e.Name())
		if err == nil && r.Owner.alive() {
			continue
		}
		if err := r.remove(ctx, e.Name()); err != nil {
			return fmt.Errorf("sweep lab %s: %w", e.Name(), err)
		}
	}
	return nil
}

// remove ends the machines on record and deletes the lab's files.
func (r labRecord) remove(ctx context.Context, name string) error {
	for _, m := range r.Machines {
		m.Init.kill()
	}
	for _, m := range r.Machines {
		if err := m.Init.gone(ctx); err != nil {
			return err
		}
	}
	links, err := filepath.Glob(netnsLink(name, "*"))
	if err != nil {
		return err
	}
	for _, link := range links {
		// Only links into /proc are the lab's; a mounted namespace of that name is somebody else's.
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "/proc/") {
			if _, err := os.Stat(link); err != nil || slices.ContainsFunc(r.Machines, func(m machineRecord) bool { return link == netnsLink(name, m.Name) }) {
				_ = os.Remove(link)
			}
		}
	}
	_ = os.Remove(netnsDir) // fails if `ip netns` has been at work, or another lab
	return os.RemoveAll(filepath.Join(stateDir, name))
}

// locked runs f with stateDir there and locked, and removes stateDir if it is empty afterwards.
func locked(ctx context.Context, f func() error) error {
	var dir *os.File
	err := until(ctx, 10*time.Millisecond, "lock "+stateDir, func() error {
		if err := os.MkdirAll(stateDir, 0o700); err != nil {
			return &finalError{err}
		}
		d, err := os.Open(stateDir)
		if err != nil {
			return err
		}
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			// Another process may have removed it since.
			err = sameFile(d, stateDir)
		}
		if err != nil {
			d.Close()
			return err
		}
		dir = d
		return nil
	})
	if err != nil {
		return err
	}
	defer dir.Close()
	defer os.Remove(stateDir) // fails while labs are up
	return f()
}

func sameFile(f *os.File, path string) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	theirs, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(mine, theirs) {
		return fmt.Errorf("%s was replaced", path)
	}
	return nil
}
