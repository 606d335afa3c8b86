// Package umltest runs tests on the second kernel when the machine's own lacks
// what they need.
//
//	func TestTunnel(t *testing.T) {
//		if !umltest.HasIPIP(t) {
//			umltest.Rerun(t)
//			return
//		}
//		...
//	}
package umltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/uml"
)

// noSkip, when set to 1, turns a skip into a failure.
const noSkip = "HOPLITE_NO_SKIP"

// HasIPIP is uml.HasIPIP, found out once. On the second kernel it has to be so.
func HasIPIP(t testing.TB) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, errors.New("needs root to make network devices: run with sudo"))
	}
	has, err := hasIPIP()
	if err != nil {
		t.Fatal(err)
	}
	if !has && uml.Inside() {
		t.Fatal("the second kernel has no ipip: see test/kernel/config")
	}
	return has
}

var hasIPIP = sync.OnceValues(uml.HasIPIP)

// Rerun runs the calling test on the second kernel, in a process of its own,
// with HOPLITE_KERNEL=uml and HOPLITE_NO_SKIP=1. The calling test passes if it
// passes there, and shows what it writes. Where the kernel has not been built
// the test is skipped; with HOPLITE_NO_SKIP=1 it fails.
func Rerun(t *testing.T) {
	t.Helper()
	RerunMatching(t, exactly(t.Name()))
}

// RerunMatching is Rerun for all tests that match the pattern, as -test.run has it. None is an error.
func RerunMatching(t *testing.T, pattern string) {
	t.Helper()
	if uml.Inside() {
		t.Fatal("this is the second kernel already")
	}
	if err := rerun(t, pattern, t.Output()); errors.Is(err, os.ErrNotExist) {
		skip(t, err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// skip skips the test, or fails it where that is forbidden.
func skip(t testing.TB, reason error) {
	t.Helper()
	if os.Getenv(noSkip) == "1" {
		t.Fatalf("%v (and %s=1 forbids skipping)", reason, noSkip)
	}
	t.Skip(reason)
}

// exactly is a pattern for the test of that name; a subtest's has a pattern for each of its parts.
func exactly(name string) string { return "^" + strings.ReplaceAll(name, "/", "$/^") + "$" }

// shutdown is what is left of a test's time when its run on the second kernel is given up.
const shutdown = 5 * time.Second

func rerun(t *testing.T, pattern string, out io.Writer) error {
	root, err := lab.FindRoot()
	if err != nil {
		return err
	}
	build := filepath.Join(root, "build")
	if _, err := uml.Kernel(build); err != nil {
		return err
	}
	binary, err := testBinary(build)
	if err != nil {
		return err
	}
	ctx := t.Context()
	argv := []string{binary, "-test.run=" + pattern, "-test.v", "-test.count=1"}
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-shutdown))
		defer cancel()
		// Earlier in there, where it says what the test was at.
		argv = append(argv, fmt.Sprintf("-test.timeout=%s", max(time.Until(deadline)-2*shutdown, time.Second)))
	}
	var said bytes.Buffer
	both := io.MultiWriter(out, &said)
	code, err := uml.Run(ctx, uml.Options{
		Build: build, Env: append(uml.Environment(), noSkip+"=1"), Stdout: both, Stderr: both,
	}, argv...)
	if err != nil {
		return err
	}
	return judge(code, said.String())
}

// judge is nil for a run of tests in which at least one passed, none failed and none was skipped.
func judge(code int, output string) error {
	passed := false
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		passed = passed || strings.HasPrefix(line, "--- PASS: ")
		if strings.HasPrefix(line, "--- SKIP: ") {
			return fmt.Errorf("skipped on the second kernel: %s", line)
		}
	}
	switch {
	case code != 0:
		return fmt.Errorf("failed on the second kernel, with exit code %d", code)
	case !passed:
		return errors.New("no test ran on the second kernel")
	}
	return nil
}

// testBinary is this test's program. The second kernel has not the address
// space that the race detector needs: in place of a program with it, one without is built.
func testBinary(build string) (string, error) {
	if !raceEnabled {
		return os.Executable()
	}
	plain.Do(func() { plainFile, plainErr = buildPlain(filepath.Join(build, "plain-tests")) })
	return plainFile, plainErr
}

var (
	plain     sync.Once
	plainFile string
	plainErr  error
)

// buildPlain builds the tests of the working directory's package, which is this process's.
func buildPlain(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(dir, filepath.Base(os.Args[0]))
	aside := fmt.Sprintf("%s.%d", file, os.Getpid())
	cmd := exec.Command("go", "test", "-c", "-o", aside, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests without the race detector: %w\n%s", err, said)
	}
	return file, os.Rename(aside, file) // so that nobody runs half a file
}
