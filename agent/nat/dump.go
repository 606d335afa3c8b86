package nat

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dump reads a set. It is done a few times a second, with an entry for every
// node in the cluster: netlink.IpsetList starts goroutines for each entry,
// and logs every attribute that it does not know.
func (s sets) dump(name string) (typ string, family uint8, have entrySet, err error) {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
	req.AddData(&nl.Nfgenmsg{NfgenFamily: s.family, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: s.s.socket}
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return "", 0, nil, err
	}
	have = entrySet{}
	for _, m := range msgs {
		if len(m) < nl.SizeofNfgenmsg {
			return "", 0, nil, fmt.Errorf("netlink message of %d bytes", len(m))
		}
		for typeID, value := range attributes(m[nl.SizeofNfgenmsg:]) {
			switch typeID {
			case nl.IPSET_ATTR_TYPENAME:
				typ = nl.BytesToString(value)
			case nl.IPSET_ATTR_FAMILY:
				family = value[0]
			case nl.IPSET_ATTR_ADT:
				for _, e := range attributes(value) {
					if p, ok := parseEntry(e); ok {
						have[p] = struct{}{}
					}
				}
			}
		}
	}
	return typ, family, have, nil
}

func parseEntry(b []byte) (netip.Prefix, bool) {
	var addr netip.Addr
	bits := -1
	for typeID, value := range attributes(b) {
		switch typeID {
		case nl.IPSET_ATTR_IP:
			for _, a := range attributes(value) {
				addr, _ = netip.AddrFromSlice(a)
			}
		case nl.IPSET_ATTR_CIDR:
			bits = int(value[0])
		}
	}
	if !addr.IsValid() {
		return netip.Prefix{}, false
	}
	if bits < 0 {
		bits = addr.BitLen() // the kernel leaves out a full length
	}
	return netip.PrefixFrom(addr, bits), true
}

// attributes walks netlink attributes: type without flags, and a value of at least one byte.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(binary.NativeEndian.Uint16(b))
			typeID := binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if n > unix.SizeofNlAttr && !yield(typeID, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}
