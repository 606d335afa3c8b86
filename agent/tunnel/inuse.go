package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// diag asks the kernel about sockets (sock_diag), in one network namespace.
type diag struct{ sockets map[int]*nl.SocketHandle }

func openDiag() (*diag, error) {
	socket, err := nl.Subscribe(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a socket that tells of sockets: %w", err)
	}
	timeout := unix.Timeval{Sec: 10}
	if err := errors.Join(socket.SetSendTimeout(&timeout), socket.SetReceiveTimeout(&timeout)); err != nil {
		socket.Close()
		return nil, err
	}
	return &diag{map[int]*nl.SocketHandle{unix.NETLINK_SOCK_DIAG: {Socket: socket}}}, nil
}

func (d *diag) close() { d.sockets[unix.NETLINK_SOCK_DIAG].Close() }

// InUse is how many connections the host itself has from addr: TCP that is
// neither listening nor over, and connected UDP. Those of pods are in namespaces
// of their own.
func (d *Devices) InUse(ctx context.Context, addr netip.Addr) (int, error) {
	addr = addr.Unmap()
	domains := []byte{unix.AF_INET6} // whose sockets may have an IPv4-mapped address
	if addr.Is4() {
		domains = append(domains, unix.AF_INET)
	}
	total := 0
	for _, domain := range domains {
		for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			n, err := d.diag.count(domain, protocol, addr)
			if err != nil {
				return 0, fmt.Errorf("count connections from %s: %w", addr, err)
			}
			total += n
		}
	}
	return total, nil
}

// States of a socket as bits (include/net/tcp_states.h). Connected UDP is
// "established".
const (
	established = 1 << 1
	// connected is all others of TCP's but TIME_WAIT, CLOSE and LISTEN.
	connected = established | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<8 | 1<<9 | 1<<11 | 1<<12
)

// count has the kernel pick the sockets: a node may have many.
func (d *diag) count(domain, protocol byte, addr netip.Addr) (int, error) {
	states := uint32(established)
	if protocol == unix.IPPROTO_TCP {
		states = connected
	}
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	request.Sockets = d.sockets
	header := make([]byte, 56) // struct inet_diag_req_v2
	header[0], header[1] = domain, protocol
	order.PutUint32(header[4:], states)
	program := nl.NewRtAttr(1, localIs(addr)) // INET_DIAG_REQ_BYTECODE
	request.AddRawData(append(header, program.Serialize()...))
	found, err := request.Execute(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if errors.Is(err, unix.ENOENT) && protocol == unix.IPPROTO_UDP {
		return 0, nil // a kernel without udp_diag; and UDP has its own ways to go on
	}
	return len(found), err
}

// localIs is a program (linux/inet_diag.h) of one instruction that accepts
// sockets with this local address and any port.
func localIs(addr netip.Addr) []byte {
	const localCondition, anyPort = 7, 0xffffffff // INET_DIAG_BC_S_COND
	size := 12 + addr.BitLen()/8
	program := []byte{localCondition, byte(size)}                      // struct inet_diag_bc_op: if so, go to the end
	program = order.AppendUint16(program, uint16(size+4))              // if not, beyond it
	program = append(program, family(addr), byte(addr.BitLen()), 0, 0) // struct inet_diag_hostcond
	program = order.AppendUint32(program, anyPort)
	return append(program, addr.AsSlice()...)
}
