// Package inside is what runs within the lab's namespaces: Init holds a
// machine, CNI is a node's container runtime as far as networking goes, Serve
// is the program in a pod.
package inside

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Files that the lab hands to Init as open descriptors.
const (
	// LifelineFD is a pipe nobody writes to. Its end means that the lab is gone.
	LifelineFD = 3
	// ReadyFD is a pipe that Init writes one byte to when the machine is furnished.
	ReadyFD = 4
)

// Init is process 1 of a machine, started in new mount, PID, network, UTS and
// IPC namespaces. It gives the machine its own /run, /proc and /sys, and /etc,
// /opt and /var/lib that begin as the host's and keep changes to themselves.
// Then it only collects dead children.
//
// It ends when it is killed or when the lab's process dies, however that
// happens, and the kernel then ends every process of the machine with it.
func Init(hostname string) error {
	// Process 1 that dies of a stray signal would take the machine along.
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	if err := furnish(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set the hostname %s: %w", hostname, err)
	}
	if err := os.WriteFile("/etc/hostname", []byte(hostname+"\n"), 0o644); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(LifelineFD, "lifeline"))
		os.Exit(0)
	}()
	ready := os.NewFile(ReadyFD, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		return fmt.Errorf("tell the lab that the machine is ready: %w", err)
	}
	ready.Close()
	reap()
	return nil
}

// reap collects dead children for ever. The machine's orphans become its children.
func reap() {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	for range died {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
	}
}

// ownDirs begin as the host's and keep their changes to the machine.
var ownDirs = []string{"/etc", "/opt", "/var/lib"}

// furnish lays out the machine's own file systems over the host's.
func furnish() error {
	// Nothing mounted here may show on the host, nor the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := overlays(); err != nil {
		return err
	}
	for _, m := range []struct{ fstype, dir, data string }{
		{"tmpfs", "/run", "mode=755"},
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""}, // shows the network namespace it was mounted in
	} {
		if err := unix.Mount(m.fstype, m.dir, m.fstype, unix.MS_NOSUID|unix.MS_NODEV, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.dir, err)
		}
	}
	for _, dir := range []string{"/run/netns", "/run/lock", "/etc/cni/net.d", "/opt/cni/bin", "/var/lib/cni"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// overlays covers ownDirs. Their changes live in a tmpfs that only the overlays hold.
func overlays() error {
	const store = "/run"
	if err := unix.Mount("tmpfs", store, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the store for overlays: %w", err)
	}
	for i, dir := range ownDirs {
		upper := filepath.Join(store, fmt.Sprint(i), "upper")
		work := filepath.Join(store, fmt.Sprint(i), "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
			return fmt.Errorf("lay an overlay over %s: %w", dir, err)
		}
	}
	if err := unix.Unmount(store, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the store for overlays: %w", err)
	}
	return nil
}
