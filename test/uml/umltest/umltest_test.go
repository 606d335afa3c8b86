package umltest

import (
	"os"
	"strings"
	"testing"

	"github.com/hoplite-net/hoplite/test/uml"
)

// requireKernel skips where the kernel is missing, as Rerun does.
func requireKernel(t *testing.T) {
	t.Helper()
	if _, err := uml.Kernel("../../../build"); err != nil && !uml.Inside() {
		skip(t, err)
	}
}

func TestATestThatNeedsIPIPHasIt(t *testing.T) {
	if !HasIPIP(t) {
		Rerun(t)
		return
	}
	if uml.Inside() && os.Getenv(noSkip) != "1" {
		t.Errorf("%s is %q on the second kernel", noSkip, os.Getenv(noSkip))
	}
}

// The other subtest would fail: it is not run there.
func TestASubtestIsRunAgainAlone(t *testing.T) {
	t.Run("this one", func(t *testing.T) {
		if !uml.Inside() {
			Rerun(t)
		}
	})
	t.Run("the other", func(t *testing.T) {
		if uml.Inside() {
			t.Error("it runs on the second kernel")
		}
	})
}

func TestFailureIsRelayed(t *testing.T) {
	requireKernel(t)
	if uml.Inside() {
		t.Fatal("as the test wants it")
	}
	var out strings.Builder
	err := rerun(t, exactly(t.Name()), &out)
	if err == nil || !strings.Contains(err.Error(), "exit code 1") || !strings.Contains(out.String(), "as the test wants it") {
		t.Errorf("error %v, and output:\n%s", err, out.String())
	}
}

func TestRunningNothingFails(t *testing.T) {
	requireKernel(t)
	var out strings.Builder
	if err := rerun(t, "^TestThereIsNoSuch$", &out); err == nil || !strings.Contains(err.Error(), "no test ran") {
		t.Errorf("error %v, and output:\n%s", err, out.String())
	}
}

func TestSkippingInThereFails(t *testing.T) {
	if err := judge(0, "--- PASS: TestA (0.00s)\n    --- SKIP: TestA/b (0.00s)\nPASS\n"); err == nil {
		t.Error("a run with a skipped test passes")
	}
}
