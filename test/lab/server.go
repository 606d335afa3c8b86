package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Serve starts on the machine the server that pods have: HTTP on port 80, UDP
// echo on port 7. It runs until the machine's end.
func (m *Machine) Serve(ctx context.Context) error {
	_, err := serve(ctx, m.lab, m.Command, m.Name, m.Name)
	return err
}

// server is the process in a pod.
type server struct {
	cmd  *Cmd
	done chan struct{}
}

// serve starts a server and waits until it listens.
func serve(ctx context.Context, l *Lab, command func(context.Context, string, ...string) *Cmd, name, on string) (*server, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := command(context.Background(), l.inside(), "serve", name, on)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	s := &server{cmd: cmd, done: make(chan struct{})}
	go s.collect()
	defer context.AfterFunc(ctx, s.stop)()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		s.stop()
		return nil, fmt.Errorf("the server of %s ended: %s", name, bytes.TrimSpace(stderr.Bytes()))
	}
	return s, nil
}

// collect waits for the end: a machine can't go before its processes are collected.
func (s *server) collect() {
	_ = s.cmd.Wait()
	close(s.done)
}

// stop ends the server. There may be none.
func (s *server) stop() {
	if s != nil {
		_ = s.cmd.Process.Kill()
		<-s.done
	}
}
