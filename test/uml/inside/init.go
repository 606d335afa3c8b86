package inside

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// JobEnv tells the first process the directory of its job: the kernel makes
// environment variables of the parameters that are not its own.
const JobEnv = "HOPLITE_JOB"

// Init is process 1. It runs the job in the directory, reports what became of
// it, and turns the machine off. It does not return.
func Init(dir string) {
	// Caught, not ignored, which the command would inherit: a stray signal to process 1 is not the machine's end.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	status, err := run(dir)
	if err != nil {
		status = refused + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	// What is written last must be on its way before the power is off.
	unix.Sync()
	if err := report(status); err != nil {
		fmt.Fprintf(os.Stderr, "uml: %s: %v\n", status, err) // the console
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	os.Exit(1) // the end of process 1 is the kernel's too
}

func run(dir string) (string, error) {
	content, err := os.ReadFile(filepath.Join(dir, JobFile))
	if err != nil {
		return "", err
	}
	var job Job
	if err := json.Unmarshal(content, &job); err != nil {
		return "", err
	}
	if err := furnish(job.Write); err != nil {
		return "", err
	}
	stdout, err := openLine(Stdout)
	if err != nil {
		return "", err
	}
	stderr, err := openLine(Stderr)
	if err != nil {
		return "", err
	}
	code, err := job.runPiped(stdout, stderr)
	if err != nil {
		return "", err
	}
	return exited + fmt.Sprint(code), errors.Join(drain(stdout), drain(stderr))
}

// runPiped runs the command with pipes to the lines: on the lines themselves it would find itself on a terminal.
func (job *Job) runPiped(stdout, stderr *os.File) (int, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	var copies sync.WaitGroup
	pipe := func(line *os.File) (*os.File, error) {
		r, w, err := os.Pipe()
		if err == nil {
			copies.Go(func() { _, _ = io.Copy(line, r) })
		}
		return w, err
	}
	out, err := pipe(stdout)
	if err != nil {
		return 0, err
	}
	errs := out
	if !job.Merge {
		if errs, err = pipe(stderr); err != nil {
			return 0, err
		}
	}
	code, err := job.run(null, out, errs)
	// What the command has left running holds the pipes open.
	_ = unix.Kill(-1, unix.SIGKILL)
	out.Close()
	errs.Close()
	copies.Wait()
	return code, err
}

// run runs the job's command to its end, and returns its exit code.
func (job *Job) run(files ...*os.File) (int, error) {
	path, err := job.lookPath()
	if err != nil {
		return 0, err
	}
	child, err := os.StartProcess(path, job.Argv, &os.ProcAttr{
		Dir: job.Dir, Env: job.Env,
		Files: files,
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	// All orphans are this process's to collect.
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait for the command: %w", err)
		case pid == child.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == child.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// lookPath finds the program by the PATH of the job, from the job's directory.
func (job *Job) lookPath() (string, error) {
	name := job.Argv[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(job.Dir, name)
		}
		return name, nil
	}
	for _, v := range job.Env {
		list, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list + ":" + sbin) {
			file := filepath.Join(dir, name)
			if unix.Access(file, unix.X_OK) == nil {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("%s: no such command", name)
}

// sbin is where Debian keeps network tools, PATH or not.
const sbin = "/usr/local/sbin:/usr/sbin:/sbin"

// openLine opens a serial line that passes on every byte as it is. It is never
// closed: the kernel would close its end for good.
func openLine(path string) (*os.File, error) {
	// As a terminal it must not become the process's own.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the settings of %s: %w", path, err)
	}
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.TOSTOP
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("set %s raw: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// drain waits until all that was written to a line has left.
func drain(line *os.File) error {
	const drainOutput = 1 // of TCSBRK
	if err := unix.IoctlSetInt(int(line.Fd()), unix.TCSBRK, drainOutput); err != nil {
		return fmt.Errorf("drain %s: %w", line.Name(), err)
	}
	return nil
}

func report(status string) error {
	line, err := openLine(Status)
	if err != nil {
		return err
	}
	if _, err := line.WriteString(status + "\n"); err != nil {
		return err
	}
	return drain(line)
}

// loopback sets lo up.
func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
