package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

var order = binary.NativeEndian

// request is one message to the kernel, and after exchange what came of it.
type request struct {
	// what is done to what, for errors: "add address 10.0.0.1/32 to hop.ipip".
	what string
	msg  []byte
	// allowed errors count as success: the work was done already.
	allowed []unix.Errno
	err     error
	answer  []byte // the body of the last answer
}

// ask starts a message with the fixed header given.
func ask(what string, kind, flags uint16, header []byte) *request {
	return &request{what: what, msg: rtnl.StartMessage(kind, flags, header)}
}

// allow makes the given errors count as success.
func (r *request) allow(errnos ...unix.Errno) *request {
	r.allowed = errnos
	return r
}

// attr appends an attribute.
func (r *request) attr(kind uint16, value []byte) *request {
	r.msg = rtnl.AppendAttribute(r.msg, kind, value)
	return r
}

func (r *request) u32(kind uint16, v uint32) *request {
	return r.attr(kind, order.AppendUint32(nil, v))
}

// str appends a string, NUL-terminated.
func (r *request) str(kind uint16, s string) *request { return r.attr(kind, append([]byte(s), 0)) }

// nest appends an attribute that holds what fill appends.
func (r *request) nest(kind uint16, fill func()) *request {
	rtnl.Nest(&r.msg, kind, fill)
	return r
}

// errNoAnswer: it is not known how things are.
var errNoAnswer = errors.New("the kernel could not be asked")

// batchBytes is how much goes to the kernel in one system call; the answers to
// it must fit into the socket's buffer.
const batchBytes = 32 << 10

// exchange sends the requests in order, as many at a time as fit, and waits for
// the answers. One that is refused does not stop those after it: each has its
// err, and the result is the first.
func (d *Devices) exchange(requests ...*request) error {
	for rest := requests; len(rest) > 0; {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size+len(rest[n].msg) <= batchBytes) {
			size += len(rest[n].msg)
			n++
		}
		if err := d.exchangeBatch(rest[:n], size); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return firstError(requests)
}

func (d *Devices) exchangeBatch(requests []*request, size int) error {
	base := d.conn.NextSeq(len(requests))
	batch := make([]byte, 0, size)
	for i, r := range requests {
		order.PutUint32(r.msg, uint32(len(r.msg)))
		order.PutUint32(r.msg[8:], base+uint32(i))
		batch = append(batch, r.msg...)
	}
	if err := d.conn.Send(batch); err != nil {
		return fmt.Errorf("%s: %w: %w", requests[0].what, errNoAnswer, err)
	}
	for open := len(requests); open > 0; {
		datagram, err := d.conn.Receive()
		if err != nil {
			return fmt.Errorf("%s: %w: %w", requests[0].what, errNoAnswer, err)
		}
		for m := range rtnl.Messages(datagram) {
			// Unsigned: the answer to an older request becomes large, and is dropped.
			if i := m.Seq - base; i < uint32(len(requests)) && requests[i].accept(m) {
				open--
			}
		}
	}
	return nil
}

// accept takes one message of the answer and says whether it was the last.
func (r *request) accept(m rtnl.Message) (last bool) {
	if m.Type != unix.NLMSG_ERROR {
		r.answer = slices.Clone(m.Body)
		return false
	}
	r.err = nil
	if refused := m.Result(); refused != nil && !slices.Contains(r.allowed, refused.Errno) {
		r.err = fmt.Errorf("%s: %w", r.what, refused)
	}
	return true
}

// firstError is the first request's that was refused; how many more were, it says.
func firstError(requests []*request) error {
	var first error
	more := 0
	for _, r := range requests {
		switch {
		case r.err == nil:
		case first == nil:
			first = r.err
		default:
			more++
		}
	}
	if more > 0 {
		return fmt.Errorf("%w (and %d more like it)", first, more)
	}
	return first
}

// dumpAttempts bounds how often an interrupted listing is started again.
const dumpAttempts = 10

// dump lists what body asks for. reset is called before each attempt, since an
// interrupted listing is started anew.
func (d *Devices) dump(ctx context.Context, what string, kind uint16, body []byte, reset func(), each func([]byte)) error {
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		reset()
		interrupted, err := d.conn.Dump(kind, body, func(m rtnl.Message) { each(m.Body) })
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if !interrupted {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", what, errInterrupted)
}

var errInterrupted = errors.New("what is listed changed during each attempt")

// attributes are those in b by type; of several the last.
func attributes(b []byte) map[uint16][]byte {
	all := make(map[uint16][]byte)
	for kind, value := range rtnl.Attributes(b) {
		all[kind] = value
	}
	return all
}

func word(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return order.Uint32(b)
}
