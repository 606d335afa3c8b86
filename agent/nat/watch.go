package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watch signals changed whenever a chain that concerns us may have changed,
// until stop is called. Legacy tables have no notifications: nothing is signalled.
func (s *Syncer) watch(changed chan<- struct{}) (stop func(), err error) {
	if s.mode != ModeNFT {
		return func() {}, nil
	}
	var socket *os.File
	err = s.ns.Do(func() error {
		socket, err = subscribeNFTables()
		return err
	})
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		readEvents(socket, changed)
	}()
	return func() { socket.Close(); <-done }, nil
}

func subscribeNFTables() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netfilter socket: %w", err)
	}
	// A kube-proxy writes thousands of rules at once; losing some of its events
	// costs one needless look, so failing to get a big buffer is no error.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES),
	); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to nftables notifications: %w", err)
	}
	return os.NewFile(uintptr(fd), "nftables notifications"), nil
}

func readEvents(socket *os.File, changed chan<- struct{}) {
	buf := make([]byte, 1<<16)
	for {
		n, err := socket.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS): // some were lost
		case err != nil:
			return // closed
		case !concernsUs(buf[:n]):
			continue
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// concernsUs reports whether a datagram of notifications names one of our
// chains, a chain that jumps to them, or the table of either.
func concernsUs(b []byte) bool {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return false
		}
		if eventConcernsUs(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:n]) {
			return true
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return false
}

func eventConcernsUs(typ uint16, body []byte) bool {
	if typ>>8 != unix.NFNL_SUBSYS_NFTABLES || len(body) < nl.SizeofNfgenmsg {
		return false
	}
	if family := body[0]; family != unix.NFPROTO_IPV4 && family != unix.NFPROTO_IPV6 {
		return false
	}
	var chainAttr uint16
	switch typ & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		chainAttr = 0
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chainAttr = unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chainAttr = unix.NFTA_RULE_CHAIN
	default:
		return false
	}
	var table, chain string
	for a, v := range attributes(body[nl.SizeofNfgenmsg:]) {
		switch a {
		case 1: // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE
			table = nl.BytesToString(v)
		case chainAttr:
			chain = nl.BytesToString(v)
		}
	}
	return (table == "nat" || table == "filter") && (chainAttr == 0 || slices.Contains(chainsWatched, chain))
}

var chainsWatched = []string{"POSTROUTING", "FORWARD", "INPUT", chainPostrouting, chainForward, chainInput}

// tableInfo is struct ipt_getinfo, the same for IPv6: what a legacy table looks
// like from outside. Counters are not in it.
type tableInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32
	NumEntries uint32
	Size       uint32
}

// soGetInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const soGetInfo = 64

// legacyInfo fingerprints the legacy tables that concern a family, with one
// system call each. A rule replaced by another of the same size escapes it
// until the next audit.
func legacyInfo(v6 bool) (info [2]tableInfo, err error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if v6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return info, fmt.Errorf("socket for reading table sizes: %w", err)
	}
	defer unix.Close(fd)
	for i, table := range []string{"nat", "filter"} {
		copy(info[i].Name[:], table)
		size := uint32(unsafe.Sizeof(info[i]))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), soGetInfo,
			uintptr(unsafe.Pointer(&info[i])), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return info, fmt.Errorf("read the size of legacy table %s: %w", table, errno)
		}
	}
	return info, nil
}
