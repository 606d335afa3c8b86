// Package inside is what runs on the second kernel: Init is its first process,
// which lays out the file systems and runs the command.
package inside

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Job is what the kernel is to run. The host writes it to JobFile in the directory that Init is given.
type Job struct {
	Argv []string
	// Env is the whole environment, Dir the working directory.
	Env []string
	Dir string
	// Write names directories whose changes are made on the host.
	Write []string
	// Merge sends what the command writes to its standard error to Stdout too.
	Merge bool
}

const JobFile = "job.json"

// The serial lines, whose other ends the host reads: the command's output, and what became of it.
const (
	Stdout = "/dev/ttyS0"
	Stderr = "/dev/ttyS1"
	Status = "/dev/ttyS2"
)

// A status is one line: an exit code, or why there is none.
const (
	exited  = "exited "
	refused = "refused "
)

// ParseStatus returns the exit code in a status, or why the command did not run to its end.
func ParseStatus(status string) (int, error) {
	line := strings.TrimSuffix(status, "\n")
	if code, ok := strings.CutPrefix(line, exited); ok {
		return strconv.Atoi(code)
	}
	if reason, ok := strings.CutPrefix(line, refused); ok {
		return 0, errors.New(reason)
	}
	return 0, fmt.Errorf("unexpected status %q", line)
}
