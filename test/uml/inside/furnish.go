package inside

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openFiles is how many files a process may have open: as many as the machines that the lab is made for allow.
const openFiles = 1 << 20

// furnish makes a machine of a kernel whose root is the host's.
func furnish(write []string) error {
	if err := coverRoot(); err != nil {
		return err
	}
	for _, m := range []struct{ fstype, dir, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"bpf", "/sys/fs/bpf", ""},
		{"devtmpfs", "/dev", ""},
		{"devpts", "/dev/pts", "ptmxmode=666"},
		{"tmpfs", "/dev/shm", ""},
		{"mqueue", "/dev/mqueue", ""},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := mount(m.fstype, m.dir, m.data); err != nil {
			return err
		}
	}
	for _, dir := range write {
		if err := mount("hostfs", dir, dir); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"fd": "", "stdin": "0", "stdout": "1", "stderr": "2"} {
		if err := os.Symlink(filepath.Join("/proc/self/fd", target), filepath.Join("/dev", name)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("uml")); err != nil {
		return fmt.Errorf("set the hostname: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: openFiles, Max: openFiles}); err != nil {
		return fmt.Errorf("allow more open files: %w", err)
	}
	return loopback()
}

func mount(fstype, dir, data string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(fstype, dir, fstype, 0, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fstype, dir, err)
	}
	return nil
}

// coverRoot makes the root an overlay over the host's, whose changes are in memory.
func coverRoot() error {
	// Any directory that every system has. It is only looked at until the root has changed.
	const store = "/run"
	if err := mount("tmpfs", store, "mode=755"); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(store, d), 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(store, "root")
	options := fmt.Sprintf("lowerdir=/,upperdir=%s/upper,workdir=%s/work", store, store)
	if err := mount("overlay", root, options); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The old root goes on top of the new one, and away; see pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to the overlay: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's root: %w", err)
	}
	return os.Chdir("/")
}
