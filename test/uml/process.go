package uml

import (
	"fmt"
	"math/rand/v2"
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
		err := pin()
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

// pin binds the calling thread to one of the CPUs it may run on, any: several kernels may be up at once.
func pin() error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("which CPUs may be used: %w", err)
	}
	nth := rand.IntN(allowed.Count())
	for cpu := 0; ; cpu++ {
		if !allowed.IsSet(cpu) {
			continue
		}
		if nth == 0 {
			one.Set(cpu)
			return unix.SchedSetaffinity(0, &one)
		}
		nth--
	}
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
