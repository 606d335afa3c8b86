package uml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// runDir is the one thing that a run has on the host's file system: the job,
// and the kernel's own files. It is locked while the run lasts.
type runDir struct {
	path string
	lock *os.File
}

const runDirPattern = "hoplite-uml-*"

// makeRunDir also removes the directories of runs whose process was killed.
func makeRunDir() (*runDir, error) {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), runDirPattern))
	if err != nil {
		return nil, err
	}
	for _, path := range old {
		if dir, err := lockRunDir(path); err == nil {
			dir.remove()
		}
	}
	for {
		path, err := os.MkdirTemp("", runDirPattern)
		if err != nil {
			return nil, err
		}
		dir, err := lockRunDir(path)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
			continue // another run took it for an old one
		}
		return dir, err
	}
}

// lockRunDir fails if the directory is in use or gone.
func lockRunDir(path string) (*runDir, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		_, err = os.Stat(path) // names are random: what is there is what was opened
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &runDir{path, f}, nil
}

func (d *runDir) remove() {
	_ = os.RemoveAll(d.path)
	d.lock.Close()
}
