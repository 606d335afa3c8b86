package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Remote is a lab that another process started: its machines can be used, not changed.
type Remote struct{ l *Lab }

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
	l := &Lab{name: name, state: record, cfg: Config{Root: record.Root}}
	slices.SortFunc(record.Machines, func(a, b machineRecord) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range record.Machines {
		m := &Machine{Name: r.Name, Addresses: r.Addresses, lab: l, init: r.Init}
		if err := m.open(); err != nil {
			return nil, fmt.Errorf("machine %s: %w", r.Name, err)
		}
		l.machines = append(l.machines, m)
		if m.Name == "control" {
			l.control = m
		}
	}
	return &Remote{l: l}, nil
}

// Machines are all of the lab's machines.
func (r *Remote) Machines() []*Machine { return r.l.machines }

// Binary is the path of one of the product's programs: netctl, ...
func (r *Remote) Binary(name string) string { return r.l.cfg.binary(name) }

// Kubectl is Lab.Kubectl.
func (r *Remote) Kubectl(ctx context.Context, args ...string) *Cmd { return r.l.Kubectl(ctx, args...) }

// Command prepares a command inside the machine or the pod of that name.
func (r *Remote) Command(ctx context.Context, where, name string, args ...string) (*Cmd, error) {
	for _, m := range r.l.machines {
		if m.Name == where {
			return m.Command(ctx, name, args...), nil
		}
		if id, err := os.Readlink(m.Path(podLink(where))); err == nil {
			return (&Pod{Name: where, Node: &Node{Machine: m}, ContainerID: filepath.Base(id)}).Exec(ctx, name, args...), nil
		}
	}
	return nil, fmt.Errorf("lab %s has no machine or pod %q: `lab list` says what it has", r.l.name, where)
}

// Pods are the names of a machine's pods.
func (r *Remote) Pods(m *Machine) []string {
	entries, _ := os.ReadDir(m.Path(podLink("")))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Down ends a lab that another process started, or removes what is left of it,
// and says whether there was one. It removes what other dead labs have left too.
func Down(ctx context.Context, name string) (bool, error) {
	record, err := readRecord(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, Sweep(ctx)
	}
	if err == nil && record.Owner.PID != os.Getpid() {
		// It cleans up after itself; if it does not, we do.
		record.Owner.signal(unix.SIGTERM)
		patience, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if record.Owner.gone(patience) != nil {
			record.Owner.kill()
			if err := record.Owner.gone(ctx); err != nil {
				return true, err
			}
		}
	}
	return true, Sweep(ctx)
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

// Owner returns the process that holds the lab of that name, and whether
// everything asked for is up.
func Owner(name string) (pid int, ready bool, err error) {
	record, err := readRecord(name)
	if err == nil && !record.Owner.alive() {
		err = fmt.Errorf("the lab %q died with its process %d", name, record.Owner.PID)
	}
	return record.Owner.PID, record.Ready, err
}

// Close lets go of the lab, which stays up.
func (r *Remote) Close() {
	for _, m := range r.l.machines {
		for _, n := range m.ns {
			n.file.Close()
		}
	}
}
