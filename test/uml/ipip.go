package uml

import (
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HasIPIP says whether the kernel that this process runs on has IP-in-IP
// tunnels: it makes one, in a namespace for that purpose. It needs root.
func HasIPIP() (bool, error) {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		done <- makeTunnel()
	}()
	err := <-done
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

func makeTunnel() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	tunnel := &netlink.Iptun{
		LinkAttrs: netlink.LinkAttrs{Name: "probe"},
		Local:     net.IPv4(192, 0, 2, 1),
		Remote:    net.IPv4(192, 0, 2, 2),
	}
	if err := netlink.LinkAdd(tunnel); err != nil {
		return fmt.Errorf("make an ipip device: %w", err)
	}
	return nil
}
