package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// FreedLog remembers when addresses were freed, across restarts of the agent:
// the kernel has no place for what is gone. It is a directory with one empty
// file an address; the modification time says when. Where it disagrees with
// the kernel, the kernel is right.
type FreedLog struct{ dir string }

// NewFreedLog makes the directory where it is missing.
func NewFreedLog(dir string) (*FreedLog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of freed addresses: %w", err)
	}
	return &FreedLog{dir}, nil
}

// A colon is legal in a file name, but scripts trip over it.
func (l *FreedLog) path(a netip.Addr) string {
	return filepath.Join(l.dir, strings.ReplaceAll(a.String(), ":", "_"))
}

// Freed notes that the address was freed at that time.
func (l *FreedLog) Freed(a netip.Addr, at time.Time) error {
	path := l.path(a)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("note freed address %s: %w", a, err)
	}
	return errors.Join(f.Close(), os.Chtimes(path, at, at))
}

// Taken forgets the address, since it is in use again.
func (l *FreedLog) Taken(a netip.Addr) error {
	if err := os.Remove(l.path(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget freed address %s: %w", a, err)
	}
	return nil
}

// Load reads every note. Files that are no note are left alone.
func (l *FreedLog) Load() (map[netip.Addr]time.Time, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("read the freed addresses: %w", err)
	}
	freed := make(map[netip.Addr]time.Time, len(entries))
	for _, entry := range entries {
		a, err := netip.ParseAddr(strings.ReplaceAll(entry.Name(), "_", ":"))
		if err != nil {
			continue
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read freed address %s: %w", a, err)
		}
		freed[a] = info.ModTime()
	}
	return freed, nil
}
