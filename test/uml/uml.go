// Package uml runs commands on a second kernel: a user-mode Linux, which is a
// program, with the network features that the machine's own kernel may lack.
//
//	code, err := uml.Run(ctx, uml.Options{Build: "build", Stdout: os.Stdout}, "ip", "link")
//
// The kernel boots in a second. It sees the host's files and runs its programs
// as root, with nothing but lo for a network. What a command changes on the file
// system is gone with it, except in directories that Options.Write names.
// Nothing is left of it, whether the command ends, the context or the caller.
package uml

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/hoplite-net/hoplite/test/uml/inside"
)

// Options say how to run a command. Only Build has no default.
type Options struct {
	// Build is a checkout's build directory: the kernel is kernel/linux in it, and its first process bin/uml.
	Build string
	// Memory of the kernel in MiB, by default DefaultMemory. The host gives it as it is used.
	Memory int
	// Dir is the command's working directory, by default the caller's.
	Dir string
	// Env is the command's environment, by default what Environment returns. KernelEnv=KernelName is added.
	Env []string
	// Write names directories of the host that the command may write to.
	Write []string
	// Stdout and Stderr receive what the command writes, as it does; by default it is dropped. If they are the same
	// writer it gets everything in its order, by one goroutine at a time.
	Stdout, Stderr io.Writer
}

// DefaultMemory is enough for a lab of several nodes.
const DefaultMemory = 3 << 10

// KernelEnv is set to KernelName for commands on the second kernel: tests that need its features look there.
const (
	KernelEnv  = "HOPLITE_KERNEL"
	KernelName = "uml"
)

// Inside says whether this process runs on the second kernel.
func Inside() bool { return os.Getenv(KernelEnv) == KernelName }

// Kernel is the kernel in a build directory. The error says how to build it if it is missing.
func Kernel(build string) (string, error) {
	file := filepath.Join(build, "kernel/linux")
	if _, err := os.Stat(file); err != nil {
		return "", fmt.Errorf("%w: build the second kernel with `make kernel`", err)
	}
	return file, nil
}

// Run runs a command on a kernel of its own and returns its exit code, which is
// 128 and its number for one ended by a signal. An error means that the command
// was not run to its end. When ctx ends, all of it is killed.
func Run(ctx context.Context, o Options, argv ...string) (int, error) {
	if err := o.complete(); err != nil {
		return 0, err
	}
	if len(argv) == 0 {
		return 0, errors.New("no command to run on the second kernel")
	}
	kernel, err := Kernel(o.Build)
	if err != nil {
		return 0, err
	}
	init := filepath.Join(o.Build, "bin/uml")
	if _, err := os.Stat(init); err != nil {
		return 0, fmt.Errorf("%w: build it with `make lab-binary`", err)
	}
	dir, err := makeRunDir()
	if err != nil {
		return 0, err
	}
	defer dir.remove()
	job := inside.Job{Argv: argv, Env: o.Env, Dir: o.Dir, Write: o.Write, Merge: same(o.Stdout, o.Stderr)}
	content, err := json.Marshal(job)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(dir.path, inside.JobFile), content, 0o600); err != nil {
		return 0, err
	}
	status, console, err := o.boot(ctx, kernel, init, dir.path)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("run %s on the second kernel: %w", argv[0], context.Cause(ctx))
	}
	if err != nil {
		return 0, err
	}
	if len(status) == 0 {
		return 0, fmt.Errorf("run %s on the second kernel: the kernel ended before the command did: %s", argv[0], bytes.TrimSpace(console))
	}
	code, err := inside.ParseStatus(string(status))
	if err != nil {
		return 0, fmt.Errorf("run %s on the second kernel: %w", argv[0], err)
	}
	return code, nil
}

// complete fills in defaults and makes paths absolute: in there, nobody has the caller's working directory.
func (o *Options) complete() error {
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	if o.Env == nil {
		o.Env = Environment()
	}
	o.Env = append(o.Env[:len(o.Env):len(o.Env)], KernelEnv+"="+KernelName)
	paths := []*string{&o.Build, &o.Dir}
	o.Write = append([]string{}, o.Write...)
	for i := range o.Write {
		paths = append(paths, &o.Write[i])
	}
	for _, p := range paths {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	for _, w := range []*io.Writer{&o.Stdout, &o.Stderr} {
		if *w == nil {
			*w = io.Discard
		}
	}
	return nil
}

func same(a, b io.Writer) bool {
	defer func() { _ = recover() }() // types that cannot be compared panic: not the same
	return a == b
}

// passed are the variables that commands usually want, and beginnings of such.
var (
	passed         = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "TZ", "TMPDIR"}
	passedPrefixes = []string{"HOPLITE_", "GO", "LC_"}
)

// Environment is the part of this process's environment that commands get.
func Environment() []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		wanted := false
		for _, p := range passed {
			wanted = wanted || name == p
		}
		for _, p := range passedPrefixes {
			wanted = wanted || strings.HasPrefix(name, p)
		}
		if wanted {
			env = append(env, v)
		}
	}
	return env
}

// boot runs the kernel to its end. It returns what its first process reported, and what the kernel wrote on its console.
func (o *Options) boot(ctx context.Context, kernel, init, dir string) (status, console []byte, err error) {
	var report bytes.Buffer
	l, err := openLines(o.Stdout, o.Stderr, &report)
	if err != nil {
		return nil, nil, err
	}
	args := append([]string{
		fmt.Sprintf("mem=%dM", o.Memory), "uml_dir=" + dir, "quiet", "panic=-1",
		"root=host", "rootfstype=hostfs", "rootflags=/", "rw",
		"dummy.numdummies=0", "ifb.numifbs=0", // or they would have devices from the start, for nobody
		"con=null", "con0=null,fd:1", "ssl=null",
	}, l.parameters()...)
	cmd := exec.CommandContext(ctx, kernel, append(args, "init="+init, inside.JobEnv+"="+dir)...)
	// It wants nothing of ours but a place for its memory, and dumps core where it was started.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "TMPDIR=" + memoryDir(o.Memory)}
	cmd.Dir = dir
	said := &tail{limit: 4 << 10}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.ExtraFiles = l.ours
	err = run(cmd, l.started)
	l.finish()
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it is the report that counts, and the console says why there is none
	}
	return report.Bytes(), said.content, err
}
