package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Space is any network namespace as an endpoint.
type Space struct {
	Name string
	// Path is the namespace's, on the host.
	Path    string
	Address netip.Addr
}

func (s Space) label() string                         { return s.Name }
func (s Space) source(netip.Addr) (netip.Addr, error) { return s.Address, nil }

// IP is Address.
func (s Space) IP() netip.Addr { return s.Address }

// Do runs f on a thread in the namespace.
func (s Space) Do(f func() error) error {
	ns, err := netns.GetFromPath(s.Path)
	if err != nil {
		return fmt.Errorf("%s: %w", s.Path, err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter %s: %w", s.Path, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Throughput is how many bits of data per second one TCP connection carries at full speed, for the time given.
func Throughput(ctx context.Context, from, to Endpoint, during time.Duration) (float64, error) {
	client, server, err := bare(ctx, from, to)
	if err != nil {
		return 0, err
	}
	var received atomic.Int64
	var threads sync.WaitGroup
	buf := make([]byte, 256<<10)
	onCPU(&threads, 0, func() {
		for {
			if client.write(buf) != nil {
				return // it is being shut down
			}
		}
	})
	onCPU(&threads, 1, func() {
		buf := make([]byte, 256<<10)
		for {
			n, err := server.read(buf)
			if err != nil {
				return
			}
			received.Add(int64(n))
		}
	})
	time.Sleep(during / 5) // the connection gathers speed
	before, begun := received.Load(), time.Now()
	time.Sleep(during)
	for received.Load() == before && time.Since(begun) < ioPatience {
		time.Sleep(during) // none of the threads has run: a machine as busy as that
	}
	bits := float64(received.Load()-before) * 8 / time.Since(begun).Seconds()
	client.end()
	server.end()
	threads.Wait()
	client.close()
	server.close()
	if bits == 0 {
		return 0, errors.New("nothing arrived")
	}
	return bits, nil
}

// RoundTrip is the median time from a question of one byte to its answer, over one TCP connection, one question after the other.
func RoundTrip(ctx context.Context, from, to Endpoint, during time.Duration) (time.Duration, error) {
	client, server, err := bare(ctx, from, to)
	if err != nil {
		return 0, err
	}
	var threads sync.WaitGroup
	onCPU(&threads, 1, func() {
		b := make([]byte, 1)
		for {
			if _, err := server.read(b); err != nil || server.write(b) != nil {
				return
			}
		}
	})
	var took []time.Duration
	onCPU(&threads, 0, func() {
		b := make([]byte, 1)
		for end := time.Now().Add(during); ; {
			begun := time.Now()
			if begun.After(end) {
				break
			}
			if err = client.write(b); err != nil {
				break
			}
			if _, err = client.read(b); err != nil {
				break
			}
			took = append(took, time.Since(begun))
		}
		client.end()
	})
	threads.Wait()
	client.close()
	server.close()
	if err != nil {
		return 0, err
	}
	if len(took) == 0 {
		return 0, errors.New("nothing was answered")
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// ioPatience is how long a system call may wait: a peer that is gone must not keep a thread for ever.
const ioPatience = 20 * time.Second

// bareConn is a connection read and written by plain system calls, which wait: Go's poller would be part of what is measured.
type bareConn struct {
	conn *net.TCPConn
	fd   int
}

func bare(ctx context.Context, from, to Endpoint) (client, server bareConn, err error) {
	c, s, err := connect(ctx, from, to)
	if err != nil {
		return client, server, err
	}
	for conn, into := range map[*net.TCPConn]*bareConn{c: &client, s: &server} {
		into.conn = conn
		err = errors.Join(err, control(conn, func(fd int) error {
			into.fd = fd
			patience := unix.NsecToTimeval(int64(ioPatience))
			return errors.Join(unix.SetNonblock(fd, false),
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
				unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience))
		}))
	}
	if err != nil {
		c.Close()
		s.Close()
	}
	return client, server, err
}

// read and write are the system calls. With a limit to their time, they are
// not begun anew after a signal, such as Go's own to its threads.
func (b bareConn) read(buf []byte) (int, error) {
	for {
		n, err := unix.Read(b.fd, buf)
		if n == 0 && err == nil {
			err = io.EOF
		}
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (b bareConn) write(buf []byte) error {
	for {
		if _, err := unix.Write(b.fd, buf); err != unix.EINTR {
			return err
		}
	}
}

// end wakes whoever waits in a system call.
func (b bareConn) end()   { _ = unix.Shutdown(b.fd, unix.SHUT_RDWR) }
func (b bareConn) close() { b.conn.Close() }

// onCPU runs f on a thread of its own, on one processor if there are several:
// where the scheduler puts two threads makes more difference than what lies between them.
func onCPU(threads *sync.WaitGroup, nth int, f func()) {
	threads.Go(func() {
		runtime.LockOSThread() // for ever: it ends with the goroutine, and its processor with it
		var allowed, one unix.CPUSet
		if unix.SchedGetaffinity(0, &allowed) == nil && allowed.Count() > nth {
			for cpu, left := 0, nth; ; cpu++ {
				if allowed.IsSet(cpu) {
					if left == 0 {
						one.Set(cpu)
						break
					}
					left--
				}
			}
			_ = unix.SchedSetaffinity(0, &one)
		}
		f()
	})
}
