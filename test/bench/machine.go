package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machineFacts says what the figures are taken on, and with what.
func machineFacts(ctx context.Context, root string) (Machine, error) {
	m := Machine{Time: time.Now().UTC().Format(time.RFC3339), Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: cpuModel()}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	if _, err := fmt.Sscan(string(load), &m.Load[0], &m.Load[1], &m.Load[2]); err != nil {
		return m, fmt.Errorf("/proc/loadavg: %w", err)
	}
	if m.Version, err = versionOf(ctx, filepath.Join(root, "build/bin/hoplite-agent")); err != nil {
		return m, err
	}
	m.BIRD, err = versionOf(ctx, "/usr/sbin/bird")
	return m, err
}

// versionOf is the last word that a program says to --version.
func versionOf(ctx context.Context, program string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	words := strings.Fields(string(out))
	if err != nil || len(words) == 0 {
		return "", fmt.Errorf("%s --version: %w: %s", program, err, out)
	}
	return words[len(words)-1], nil
}

// cpuModel is the processor's name, empty where the kernel does not tell.
func cpuModel() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
