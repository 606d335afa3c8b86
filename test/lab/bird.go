package lab

import (
	"context"
	"fmt"
	"strings"
)

// BIRD is a foreign BGP speaker: BIRD 2 as Debian packages it, on a machine of the lab.
type BIRD struct {
	*Process
	machine      *Machine
	conf, socket string
}

// StartBIRD starts BIRD on the machine (one of Lab.AddMachine, or the fabric)
// with the configuration, and waits until it answers.
func (m *Machine) StartBIRD(ctx context.Context, configuration string) (*BIRD, error) {
	b := &BIRD{machine: m, conf: "/run/bird/bird.conf", socket: "/run/bird/bird.ctl"}
	if err := m.WriteFile(b.conf, []byte(configuration), 0o600); err != nil {
		return nil, err
	}
	b.Process = m.newProcess("bird-"+m.Name, "bird", "-f", "-c", b.conf, "-s", b.socket, "-P", "/run/bird/bird.pid")
	if err := b.Start(); err != nil {
		return nil, err
	}
	return b, b.waitFor(ctx, "answering", func() error {
		_, err := b.Query(ctx, "show status")
		return err
	})
}

// Query asks what `birdc` would: "show protocols", "show route all".
func (b *BIRD) Query(ctx context.Context, command string) (string, error) {
	args := append([]string{"-s", b.socket}, strings.Fields(command)...)
	out, err := b.machine.Command(ctx, "birdc", args...).Output()
	return string(out), err
}

// Configure replaces the configuration of a running BIRD.
func (b *BIRD) Configure(ctx context.Context, configuration string) error {
	if err := b.machine.WriteFile(b.conf, []byte(configuration), 0o600); err != nil {
		return err
	}
	out, err := b.Query(ctx, "configure")
	if err == nil && !strings.Contains(out, "Reconfigur") {
		err = fmt.Errorf("bird refused the configuration: %s", out)
	}
	return err
}
