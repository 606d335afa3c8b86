package tunnel

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// features switches devices' offloads, by ioctl: it is what ethtool(8) uses for
// this one on all kernels.
type features struct{ fd int }

func openFeatures() (features, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return features{-1}, fmt.Errorf("open a socket for ioctls: %w", err)
	}
	return features{fd}, nil
}

func (f features) close() {
	if f.fd > 0 {
		_ = unix.Close(f.fd)
	}
}

// setChecksumOffload makes the device leave checksums to others, or not.
func (f features) setChecksumOffload(device string, on bool) (changed bool, err error) {
	value := uint32(0)
	if on {
		value = 1
	}
	have, err := f.ethtool(device, unix.ETHTOOL_GTXCSUM, 0)
	if err != nil || have == value {
		return false, err
	}
	_, err = f.ethtool(device, unix.ETHTOOL_STXCSUM, value)
	return true, err
}

// ethtool carries out a command on struct ethtool_value.
func (f features) ethtool(device string, command, value uint32) (uint32, error) {
	data := &struct{ cmd, data uint32 }{command, value}
	request := struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(data)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(data)
	switch {
	case errno == 0:
		return data.data, nil
	case errors.Is(errno, unix.EOPNOTSUPP):
		return value, nil // such a device offloads nothing
	}
	return 0, fmt.Errorf("checksum offload of %s: %w", device, errno)
}
