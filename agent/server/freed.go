package server

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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
//
// It is the allocator's ipam.FreedLog. A note that cannot be made or removed
// is logged and no more: all it costs is that after a restart an address may
// be used again too soon, or too late.
type FreedLog struct {
	dir string
	log *slog.Logger
}

// NewFreedLog makes the directory where it is missing.
func NewFreedLog(dir string, log *slog.Logger) (*FreedLog, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of freed addresses: %w", err)
	}
	return &FreedLog{dir, log}, nil
}

// A colon is legal in a file name, but scripts trip over it.
func (l *FreedLog) path(a netip.Addr) string {
	return filepath.Join(l.dir, strings.ReplaceAll(a.String(), ":", "_"))
}

// Freed notes that the address was freed at that time.
func (l *FreedLog) Freed(a netip.Addr, at time.Time) {
	path := l.path(a)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(f.Close(), os.Chtimes(path, at, at))
	}
	if err != nil {
		l.log.Warn("freed address not noted", "address", a, "error", err)
	}
}

// Forget removes the note: the address is in use again, or not ours any more.
func (l *FreedLog) Forget(a netip.Addr) {
	if err := os.Remove(l.path(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Warn("note of a freed address not removed", "address", a, "error", err)
	}
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
