package uml

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limit bounds a test on a busy machine; none takes nearly as long.
const limit = 2 * time.Minute

// setUp skips where the kernel is missing, unless skipping is forbidden, and
// gives the test a directory for all that its kernels leave on the host while they run.
func setUp(t *testing.T) (context.Context, Options, string) {
	t.Helper()
	const build = "../../build"
	if _, err := Kernel(build); err != nil {
		skip(t, err)
	}
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx, Options{Build: build}, tmp
}

func skip(t *testing.T, reason error) {
	t.Helper()
	if os.Getenv("HOPLITE_NO_SKIP") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// shell runs a script and returns its exit code, and what it wrote to both outputs.
func shell(t *testing.T, ctx context.Context, o Options, script string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	o.Stdout, o.Stderr = &out, &errs
	code, err := Run(ctx, o, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return code, out.String(), errs.String()
}

func TestPacketsPassAnIPIPTunnelBetweenTwoNamespaces(t *testing.T) {
	ctx, o, _ := setUp(t)
	code, stdout, stderr := shell(t, ctx, o, `set -e
		ip netns add a; ip netns add b
		ip link add eth0 netns a type veth peer name eth0 netns b
		for x in "a 1 2" "b 2 1"; do set -- $x
			ip -n $1 addr add 192.0.2.$2/24 dev eth0; ip -n $1 link set eth0 up
			ip -n $1 link add tun type ipip local 192.0.2.$2 remote 192.0.2.$3
			ip -n $1 addr add 10.0.0.$2/24 dev tun; ip -n $1 link set tun up
		done
		ip netns exec a ping -c 3 -i 0.1 -W 10 10.0.0.2
		ip -n b -s link show tun`)
	if code != 0 || !strings.Contains(stdout, " 0% packet loss") || !strings.Contains(stdout, "link/ipip") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

func TestExitCodeAndOutputAreTheCommandsOwn(t *testing.T) {
	ctx, o, _ := setUp(t)
	o.Dir, o.Env = "/usr", []string{"PATH=/usr/bin:/bin", "GREETING=a b\tc"}
	for _, c := range []struct {
		script, stdout, stderr string
		code                   int
	}{
		{"exit 0", "", "", 0},
		{"exit 42", "", "", 42},
		{"kill -9 $$", "", "", 128 + 9},
		{"pwd; echo \"$GREETING $HOPLITE_KERNEL\"; echo wrong >&2", "/usr\na b\tc uml\n", "wrong\n", 0},
		{`printf '\000\003\004\r\n\026\377'`, "\x00\x03\x04\r\n\x16\xff", "", 0},
		{"test ! -t 1 && echo is no terminal", "is no terminal\n", "", 0},
		{"echo early; sleep 100 & echo late >&2", "early\n", "late\n", 0},
	} {
		if code, stdout, stderr := shell(t, ctx, o, c.script); code != c.code || stdout != c.stdout || stderr != c.stderr {
			t.Errorf("%s: exit code %d, output %q, errors %q; want %d, %q, %q", c.script, code, stdout, stderr, c.code, c.stdout, c.stderr)
		}
	}
	if _, err := Run(ctx, o, "no-such-command"); err == nil || !strings.Contains(err.Error(), "no such command") {
		t.Errorf("a command that does not exist: %v", err)
	}
}

// One writer for both outputs gets all in the order in which it was written.
func TestOneWriterForBothOutputs(t *testing.T) {
	ctx, o, _ := setUp(t)
	var both strings.Builder
	o.Stdout, o.Stderr = &both, &both
	code, err := Run(ctx, o, "sh", "-c", "for i in 1 2 3 4 5; do echo $i; echo $i >&2; done")
	if err != nil || code != 0 || both.String() != "1\n1\n2\n2\n3\n3\n4\n4\n5\n5\n" {
		t.Errorf("exit code %d, %v, output %q", code, err, both.String())
	}
}

// All of what a command writes arrives, though it ends at once and the lines are slow.
func TestNoOutputIsLost(t *testing.T) {
	ctx, o, _ := setUp(t)
	code, stdout, _ := shell(t, ctx, o, "seq 300000")
	if lines := strings.Count(stdout, "\n"); code != 0 || lines != 300000 || !strings.HasSuffix(stdout, "\n300000\n") {
		t.Errorf("exit code %d and %d lines of 300000", code, lines)
	}
}

func TestTheHostsFilesAreSeenAndNotChanged(t *testing.T) {
	ctx, o, tmp := setUp(t)
	private, shared := filepath.Join(tmp, "private"), filepath.Join(tmp, "shared")
	for _, dir := range []string{private, shared} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("host\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o.Write = []string{shared}
	script := `for dir in "$PRIVATE" "$SHARED"; do cat $dir/file; echo uml >$dir/file; cat $dir/file; echo >$dir/new; done
		rm /etc/passwd; test ! -e /etc/passwd`
	o.Env = append(Environment(), "PRIVATE="+private, "SHARED="+shared)
	if code, stdout, stderr := shell(t, ctx, o, script); code != 0 || stdout != "host\numl\nhost\numl\n" {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
	for dir, want := range map[string]string{private: "host\n", shared: "uml\n"} {
		if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", dir, got, err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(private, "new")); err == nil {
		t.Error("a file made in there is on the host")
	}
	if _, err := os.Stat(filepath.Join(shared, "new")); err != nil {
		t.Errorf("a file made in a directory to write to: %v", err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
	nothingLeft(t, ctx, tmp)
}

// Two kernels on one CPU would take twice the time.
func TestKernelsHaveCPUsOfTheirOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, errors.New("needs root to make a network namespace: run with sudo"))
	}
	done := make(chan error, 1)
	var all, seen unix.CPUSet
	go func() { done <- pinAll(&all, &seen) }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if seen != all {
		t.Errorf("%d kernels have %d CPUs of %d", all.Count(), seen.Count(), all.Count())
	}
}

// pinAll pins its thread as many times as there are CPUs, and notes where to.
func pinAll(all, seen *unix.CPUSet) error {
	runtime.LockOSThread() // never unlocked
	// Kernels that are up meanwhile have theirs in another network namespace.
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNET), unix.SchedGetaffinity(0, all)); err != nil {
		return err
	}
	for range all.Count() {
		release, err := pin()
		defer release()
		var here unix.CPUSet
		if err := errors.Join(err, unix.SchedGetaffinity(0, &here), unix.SchedSetaffinity(0, all)); err != nil {
			return err
		}
		for i := range here {
			seen[i] |= here[i]
		}
	}
	return nil
}

func TestNothingIsLeftWhenTheContextEnds(t *testing.T) {
	ctx, o, tmp := setUp(t)
	ctx, cancel := context.WithCancel(ctx)
	o.Stdout = writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }) // it is up
	if _, err := Run(ctx, o, "sh", "-c", "sleep 1000 & echo up; sleep 1000"); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want %v", err, context.Canceled)
	}
	nothingLeft(t, t.Context(), tmp)
}

func TestNothingIsLeftWhenTheCallerIsKilled(t *testing.T) {
	ctx, o, tmp := setUp(t)
	command := exec.CommandContext(ctx, filepath.Join(o.Build, "bin/uml"), "--", "sh", "-c", "sleep 1000 & echo up; sleep 1000")
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()
	// Its directory could not be removed by anybody; the next run does.
	noProcess(t, ctx, tmp)
	if code, _, _ := shell(t, ctx, o, "true"); code != 0 {
		t.Errorf("the next run: exit code %d", code)
	}
	nothingLeft(t, ctx, tmp)
}

// nothingLeft fails the test unless all processes and files of kernels whose directory for such is tmp are gone.
func nothingLeft(t *testing.T, ctx context.Context, tmp string) {
	t.Helper()
	noProcess(t, ctx, tmp)
	if left, err := filepath.Glob(filepath.Join(tmp, runDirPattern)); err != nil || len(left) > 0 {
		t.Errorf("left: %v (%v)", left, err)
	}
}

// noProcess waits until no process's working directory is below tmp: all of a kernel's are.
func noProcess(t *testing.T, ctx context.Context, tmp string) {
	t.Helper()
	for {
		var left []string
		links, _ := filepath.Glob("/proc/[0-9]*/cwd")
		for _, link := range links {
			if dir, err := os.Readlink(link); err == nil && strings.HasPrefix(dir, tmp+"/") {
				left = append(left, link)
			}
		}
		if len(left) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("processes are left: %v", left)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestACommandThatStopsReadingDoesNotHoldTheKernelUp(t *testing.T) {
	ctx, o, _ := setUp(t)
	o.Stdout = writerFunc(func([]byte) (int, error) { return 0, unix.EPIPE })
	if code, err := Run(ctx, o, "seq", "100000"); err != nil || code != 0 {
		t.Errorf("exit code %d, %v", code, err)
	}
}
