package endpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	wire "github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// rtnl speaks rtnetlink in one namespace. Several requests travel in one
// datagram, which saves system calls where an ADD makes a dozen of them; the
// kernel carries them out in order and does not stop at the first that fails.
//
// It exists beside vishvananda/netlink because that can send only one request
// at a time and knows neither IFLA_AF_SPEC's settings nor RTM_SETNEIGHTBL.
type rtnl struct {
	fd  int
	seq uint32
	buf []byte
	// fail, in tests, is asked before each request; an error stands for the
	// kernel's refusal.
	fail func(what string) error
}

// request is one rtnetlink message, and after exchange what came of it.
type request struct {
	// what is done to what, for errors: "add route 10.244.0.5/32".
	what string
	msg  []byte
	// allowed errors count as success: the work was done already.
	allowed []unix.Errno
	err     error
	// refused is the kernel's error, allowed or not.
	refused unix.Errno
	// done says that the kernel acknowledged it as carried out.
	done    bool
	answers [][]byte
}

// order is the byte order of rtnetlink: the machine's.
var order = binary.NativeEndian

// newRequest starts a message of type typ with the fixed header given.
func newRequest(what string, typ uint16, flags uint16, header []byte) *request {
	return &request{what: what, msg: wire.StartMessage(typ, flags, header)}
}

// allow makes the given errors count as success.
func (r *request) allow(errs ...unix.Errno) *request {
	r.allowed = errs
	return r
}

// attr appends an attribute.
func (r *request) attr(typ uint16, value []byte) *request {
	r.msg = wire.AppendAttribute(r.msg, typ, value)
	return r
}

func (r *request) u32(typ uint16, v uint32) *request {
	return r.attr(typ, order.AppendUint32(nil, v))
}

func (r *request) u64(typ uint16, v uint64) *request {
	return r.attr(typ, order.AppendUint64(nil, v))
}

// str appends a string attribute, NUL-terminated as IFLA_IFNAME must be.
func (r *request) str(typ uint16, s string) *request {
	return r.attr(typ, append([]byte(s), 0))
}

// nest appends an attribute holding what fill appends.
func (r *request) nest(typ uint16, fill func()) *request {
	wire.Nest(&r.msg, typ, fill)
	return r
}

// raw appends bytes without an attribute header (a nested fixed header).
func (r *request) raw(b []byte) { r.msg = append(r.msg, b...) }

// kernelError is the kernel's refusal of one request.
type kernelError struct {
	what  string
	errno unix.Errno
	// detail is the kernel's own sentence (extended acknowledgement), or empty.
	detail string
}

func (e *kernelError) Error() string {
	if e.detail != "" {
		return fmt.Sprintf("%s: %v (%s)", e.what, e.errno, e.detail)
	}
	return fmt.Sprintf("%s: %v", e.what, e.errno)
}

func (e *kernelError) Unwrap() error { return e.errno }

// openRTNL opens a socket in the namespace of the calling thread.
func openRTNL() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	// Without the echoed request an acknowledgement is 20 bytes; with the
	// kernel's sentence an error can be understood. Both are niceties.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &rtnl{fd: fd, buf: make([]byte, 32<<10)}, nil
}

func (c *rtnl) Close() error { return unix.Close(c.fd) }

// exchange sends the requests as one datagram and waits for all answers. Each
// request's err is set; the result is the first of them, or a failure of the
// socket itself, after which the socket is of no more use.
func (c *rtnl) exchange(reqs ...*request) error {
	var out []byte
	sent := make([]*request, 0, len(reqs))
	first := c.seq + 1
	for _, r := range reqs {
		r.err, r.refused, r.done, r.answers = nil, 0, false, nil
		if c.fail != nil {
			if r.err = c.fail(r.what); r.err != nil {
				continue
			}
		}
		c.seq++
		order.PutUint32(r.msg[0:], uint32(len(r.msg)))
		order.PutUint32(r.msg[8:], c.seq)
		out = append(out, r.msg...)
		sent = append(sent, r)
	}
	if len(sent) > 0 {
		if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("send to rtnetlink: %w", err)
		}
		if err := c.receive(first, sent); err != nil {
			return err
		}
	}
	for _, r := range reqs {
		if r.err != nil {
			return r.err
		}
	}
	return nil
}

// receive reads until the last of sent, numbered from first, is acknowledged.
func (c *rtnl) receive(first uint32, sent []*request) error {
	for open := len(sent); open > 0; {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from rtnetlink: %w", err)
		}
		for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(order.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return fmt.Errorf("receive from rtnetlink: message of %d bytes in %d", size, len(b))
			}
			// Unsigned: what is older than first becomes large, and is dropped.
			if i := order.Uint32(b[8:]) - first; i < uint32(len(sent)) && sent[i].accept(b[:size]) {
				open--
			}
			b = b[min(len(b), align(size)):]
		}
	}
	return nil
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// accept takes one message of the answer and says whether it was the last.
func (r *request) accept(msg []byte) (last bool) {
	typ, flags := order.Uint16(msg[4:]), order.Uint16(msg[6:])
	body := msg[unix.SizeofNlMsghdr:]
	if flags&unix.NLM_F_DUMP_INTR != 0 {
		r.err = errInterrupted
	}
	switch typ {
	case unix.NLMSG_DONE, unix.NLMSG_ERROR:
		if len(body) < 4 {
			r.err = fmt.Errorf("%s: acknowledgement of %d bytes", r.what, len(body))
		} else if code := int32(order.Uint32(body)); code < 0 {
			r.refuse(unix.Errno(-code), body, flags)
		} else {
			r.done = true
		}
		return true
	default:
		r.answers = append(r.answers, append([]byte(nil), body...))
		return false
	}
}

// refuse records a refusal, unless it is an allowed one.
func (r *request) refuse(errno unix.Errno, body []byte, flags uint16) {
	r.refused = errno
	if slices.Contains(r.allowed, errno) {
		return
	}
	e := &kernelError{what: r.what, errno: errno}
	const ackTLVs, header = 0x200, 4 + unix.SizeofNlMsghdr // NLM_F_ACK_TLVS; struct nlmsgerr
	if flags&ackTLVs != 0 && len(body) > header {
		if text, ok := attrs(body[header:])[1]; ok { // NLMSGERR_ATTR_MSG
			e.detail = cstring(text)
		}
	}
	r.err = e
}

// errInterrupted says that what a dump listed changed during it.
var errInterrupted = errors.New("the kernel's table changed while it was listed")

// dump carries out a listing, again if it was interrupted, until ctx ends. An
// incomplete listing is never returned: an endpoint missing from it would have
// its address given out twice.
func (c *rtnl) dump(ctx context.Context, r *request) ([][]byte, error) {
	order.PutUint16(r.msg[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	for {
		err := c.exchange(r)
		if !errors.Is(err, errInterrupted) {
			return r.answers, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w: %w", r.what, err, ctx.Err())
		}
	}
}

// attrs splits a run of attributes by type; later ones win.
func attrs(b []byte) map[uint16][]byte {
	m := map[uint16][]byte{}
	for len(b) >= unix.SizeofNlAttr {
		size := int(order.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			break
		}
		m[order.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = b[unix.SizeofNlAttr:size]
		b = b[min(len(b), align(size)):]
	}
	return m
}

// cstring is the text up to the first NUL.
func cstring(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// sockets lends out sockets of one namespace, so that no ADD waits for another's.
type sockets struct {
	open func() (*rtnl, error)
	mu   sync.Mutex
	free []*rtnl
}

// idle is how many unused sockets are kept.
const idle = 8

func (s *sockets) get() (*rtnl, error) {
	s.mu.Lock()
	if n := len(s.free); n > 0 {
		c := s.free[n-1]
		s.free = s.free[:n-1]
		s.mu.Unlock()
		return c, nil
	}
	s.mu.Unlock()
	return s.open()
}

func (s *sockets) put(c *rtnl) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) < idle {
		s.free = append(s.free, c)
		return
	}
	_ = c.Close()
}

// exchange does so on a borrowed socket.
func (s *sockets) exchange(reqs ...*request) error {
	c, err := s.get()
	if err != nil {
		return err
	}
	err = c.exchange(reqs...)
	var refused *kernelError
	if err == nil || errors.As(err, &refused) || c.fail != nil {
		s.put(c)
	} else {
		_ = c.Close()
	}
	return err
}

func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.free {
		_ = c.Close()
	}
	s.free = nil
}
