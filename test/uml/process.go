package uml

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// run runs the kernel's process on one CPU: it has one of its own, and its
// threads of execution, which hand over to each other, are several times slower
// where the host spreads them. It is killed when this process dies.
func run(cmd *exec.Cmd, started func()) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	// The processes in there are processes out here, all of its group; they also die with it, each for itself.
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, whose CPU the child inherits and whose end would kill it, is of no use to others.
		runtime.LockOSThread()
		release, err := pin()
		defer release()
		if err == nil {
			err = cmd.Start()
		}
		started()
		if err != nil {
			done <- fmt.Errorf("start the second kernel: %w", err)
			return
		}
		// All of its memory, if it panics, would be too much of an explanation.
		_ = unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
		done <- cmd.Wait()
	}()
	return <-done
}

// pin binds the calling thread to one of the CPUs it may run on: if possible one
// that no other kernel has, until it is released.
func pin() (release func(), err error) {
	release = func() {}
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return release, fmt.Errorf("which CPUs may be used: %w", err)
	}
	var cpus []int
	for cpu := 0; len(cpus) < allowed.Count(); cpu++ {
		if allowed.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	rand.Shuffle(len(cpus), func(i, j int) { cpus[i], cpus[j] = cpus[j], cpus[i] })
	chosen := cpus[0]
	for _, cpu := range cpus {
		// A name without a file, which ends with the process at the latest.
		if l, err := net.Listen("unix", fmt.Sprintf("@hoplite-uml-cpu-%d", cpu)); err == nil {
			chosen, release = cpu, func() { l.Close() }
			break
		}
	}
	one.Set(chosen)
	return release, unix.SchedSetaffinity(0, &one)
}

// memoryDir is where the kernel keeps its memory, a file: in memory, if the
// host's has room. In containers /dev/shm is often tiny.
func memoryDir(mib int) string {
	const shm = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err == nil && fs.Type == unix.TMPFS_MAGIC && fs.Blocks*uint64(fs.Bsize) >= uint64(mib)<<20 {
		return shm
	}
	return os.TempDir()
}
