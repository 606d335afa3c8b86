// Package delqueue is where DELs wait for an agent that is not running: a
// directory with one file per attachment, named <container ID>@<ifname>.
//
// The CNI plugin puts, the agent drains. That no DEL is ever left behind rests
// on the order both keep:
//
//	plugin: no agent answers → Put → ask the agent once more → it did the DEL? Remove
//	agent:  bind the socket → drain (List, do, Remove) → serve
//
// Either the plugin's file is there before the agent lists, or the plugin's
// second attempt finds the agent's socket.
//
// The name alone says everything, so a name that parses is an order; what the
// file holds is for people. The package is imported by the plugin, whose start
// is counted in tenths of a millisecond: it must stay small and without init.
package delqueue

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tempPrefix starts the names of files not yet complete. A container ID cannot
// begin with it.
const tempPrefix = "."

// tempLife is how old an incomplete file must be before its writer is taken for dead.
const tempLife = time.Hour

// Attachment is one interface of one container.
type Attachment struct {
	ContainerID string `json:"containerID"`
	Ifname      string `json:"ifname"`
}

// Name is the attachment's file name.
func (a Attachment) Name() string { return a.ContainerID + "@" + a.Ifname }

// Validate says what is wrong with an attachment's names; nil: they are safe as a file name.
func (a Attachment) Validate() error {
	if err := ValidateContainerID(a.ContainerID); err != nil {
		return err
	}
	return ValidateIfname(a.Ifname)
}

// ParseName is the inverse of Name. It accepts nothing that Validate refuses.
func ParseName(name string) (Attachment, error) {
	id, ifname, ok := strings.Cut(name, "@")
	if !ok {
		return Attachment{}, fmt.Errorf("file name %q is not <container ID>@<ifname>", name)
	}
	a := Attachment{ContainerID: id, Ifname: ifname}
	if err := a.Validate(); err != nil {
		return Attachment{}, fmt.Errorf("file name %q: %w", name, err)
	}
	return a, nil
}

// Put writes down that the attachment is to be deleted, and makes the directory
// (mode 0700) if need be. The file appears whole or not at all. Putting an
// attachment that is there already is no error.
func Put(dir string, a Attachment) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	content, err := json.Marshal(a)
	if err != nil {
		return err
	}
	// CreateTemp makes the file with mode 0600.
	temp, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return fmt.Errorf("queue DEL of %s: %w", a.Name(), err)
	}
	_, err = temp.Write(append(content, '\n'))
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), filepath.Join(dir, a.Name()))
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return fmt.Errorf("queue DEL of %s: %w", a.Name(), err)
	}
	return nil
}

// Has says whether a DEL of the attachment is waiting.
func Has(dir string, a Attachment) (bool, error) {
	if err := a.Validate(); err != nil {
		return false, err
	}
	_, err := os.Lstat(filepath.Join(dir, a.Name()))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// List returns what waits, in the order of the names; a directory that is not
// there is empty. Files with other names are reported in the error, beside the
// attachments that could be read, and left alone. Remains of writers that died
// are cleared away.
func List(dir string) ([]Attachment, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list queued DELs: %w", err)
	}
	var queued []Attachment
	var errs []error
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), tempPrefix) {
			clearRemains(dir, entry)
			continue
		}
		a, err := ParseName(entry.Name())
		if err != nil {
			errs = append(errs, fmt.Errorf("DEL queue %s: %w; remove the file", dir, err))
			continue
		}
		queued = append(queued, a)
	}
	return queued, errors.Join(errs...)
}

// Remove takes an attachment's DEL off the queue. That it is not there is no error.
func Remove(dir string, a Attachment) error {
	if err := a.Validate(); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(dir, a.Name()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take DEL of %s off the queue: %w", a.Name(), err)
	}
	return nil
}

// makeDir sees to it that dir is a directory of ours that nobody else can use.
// Only the last element gets mode 0700: the socket's directory above it may
// have to be readable for others.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("DEL queue: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("DEL queue: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("DEL queue: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("DEL queue %s is not a directory: remove it", dir)
	case ok && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("DEL queue %s belongs to user %d, not to %d: remove it", dir, stat.Uid, os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return os.Chmod(dir, 0o700)
	}
	return nil
}

func clearRemains(dir string, entry fs.DirEntry) {
	info, err := entry.Info()
	if err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > tempLife {
		_ = os.Remove(filepath.Join(dir, entry.Name()))
	}
}
