package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Remote is a lab that another process started: its machines can be used, not changed.
type Remote struct {
	l *Lab
	// Root is the checkout its programs come from.
	Root string
}

// Open finds a lab that is up, by its name.
func Open(name string) (*Remote, error) {
	record, err := readRecord(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no lab named %q is up: start one with `lab up`", name)
	}
	if err != nil {
		return nil, err
	}
	if !record.Owner.alive() {
		return nil, fmt.Errorf("the lab %q died with its process %d: remove what is left with `lab down`", name, record.Owner.PID)
	}
	l := &Lab{name: name, state: record}
	for _, r := range record.Machines {
		m := &Machine{Name: r.Name, Addresses: r.Addresses, lab: l, init: r.Init}
		if err := m.open(); err != nil {
			return nil, fmt.Errorf("machine %s: %w", r.Name, err)
		}
		l.machines = append(l.machines, m)
	}
	return &Remote{l: l}, nil
}

// Machine finds a machine by its name.
func (r *Remote) Machine(name string) (*Machine, error) { return r.l.Machine(name) }

// Kubeconfig is an administrator's kubeconfig, for use in a machine's network
// namespace. It is there once the lab is ready.
func (r *Remote) Kubeconfig() string { return filepath.Join(r.l.dir(), adminKubeconfig) }

// Down ends a lab that another process started, or removes what is left of it.
func Down(ctx context.Context, name string) error {
	record, err := readRecord(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no lab named %q is up", name)
	}
	if err == nil && record.Owner.PID != os.Getpid() {
		// It cleans up after itself; if it does not, we do.
		record.Owner.signal(unix.SIGTERM)
		patience, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if record.Owner.gone(patience) != nil {
			record.Owner.kill()
		}
	}
	return Sweep(ctx)
}

// Names lists the labs there are, dead or alive.
func Names() ([]string, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// adminKubeconfig lies in the lab's directory.
const adminKubeconfig = "admin.kubeconfig"

// IsReady says whether the lab of that name is up with everything asked for.
func IsReady(name string) (bool, error) {
	record, err := readRecord(name)
	if err != nil {
		return false, err
	}
	if !record.Owner.alive() {
		return false, fmt.Errorf("the lab %q died with its process %d", name, record.Owner.PID)
	}
	return record.Ready, nil
}
