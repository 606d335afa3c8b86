package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// ErrMalformed is returned for bytes that no kernel would send.
var ErrMalformed = errors.New("malformed netlink message")

// Message is one message of a datagram; Body is what follows the header.
type Message struct {
	Type  uint16
	Flags uint16
	Seq   uint32
	Port  uint32
	Body  []byte
}

// Messages yields the whole messages at the start of a datagram.
func Messages(datagram []byte) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for len(datagram) >= unix.SizeofNlMsghdr {
			length := int(native.Uint32(datagram))
			if length < unix.SizeofNlMsghdr || length > len(datagram) {
				return
			}
			m := Message{
				Type:  native.Uint16(datagram[4:]),
				Flags: native.Uint16(datagram[6:]),
				Seq:   native.Uint32(datagram[8:]),
				Port:  native.Uint32(datagram[12:]),
				Body:  datagram[unix.SizeofNlMsghdr:length],
			}
			if !yield(m) {
				return
			}
			datagram = datagram[min(align(length), len(datagram)):]
		}
	}
}

// Attributes yields type and value of the whole attributes in b.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			length := int(native.Uint16(b))
			if length < unix.SizeofNlAttr || length > len(b) {
				return
			}
			kind := native.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, b[unix.SizeofNlAttr:length]) {
				return
			}
			b = b[min(align(length), len(b)):]
		}
	}
}

// Error is the kernel's refusal of a request.
type Error struct {
	Errno unix.Errno
	// Text is the kernel's explanation, empty if it gave none.
	Text string
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return fmt.Sprintf("%v (%s)", e.Errno, e.Text)
}

// Unwrap makes errors.Is(err, unix.EEXIST) work.
func (e *Error) Unwrap() error { return e.Errno }

// Result decodes an NLMSG_ERROR or NLMSG_DONE; nil means success.
func (m Message) Result() *Error {
	if len(m.Body) < 4 {
		return nil
	}
	code := int32(native.Uint32(m.Body))
	if code >= 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code)}
	if m.Flags&unix.NLM_F_ACK_TLVS == 0 {
		return e
	}
	// The request's header follows, and all of the request unless it was capped.
	rest := m.Body[4:]
	if m.Type == unix.NLMSG_ERROR {
		skip := unix.SizeofNlMsghdr
		if m.Flags&unix.NLM_F_CAPPED == 0 && len(rest) >= 4 {
			skip = align(int(native.Uint32(rest)))
		}
		if skip < 0 || skip > len(rest) {
			return e
		}
		rest = rest[skip:]
	}
	for kind, value := range Attributes(rest) {
		if kind == unix.NLMSGERR_ATTR_MSG {
			e.Text = cString(value)
		}
	}
	return e
}

// Dump sends a request and yields its answers' bodies to each, valid only
// during the call. Answers with NLM_F_DUMP_INTR set are incomplete: interrupted
// reports that, and what each has seen may lack or repeat entries.
func (c *Conn) Dump(kind uint16, body []byte, each func(Message)) (interrupted bool, err error) {
	seq := c.NextSeq(1)
	if err := c.Send(appendMessage(nil, kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, seq, body)); err != nil {
		return false, err
	}
	for {
		datagram, err := c.Receive()
		if err != nil {
			return false, err
		}
		for m := range Messages(datagram) {
			if m.Seq != seq {
				continue
			}
			interrupted = interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if failure := m.Result(); failure != nil {
					return interrupted, failure
				}
				return interrupted, nil
			default:
				each(m)
			}
		}
	}
}

func appendMessage(b []byte, kind, flags uint16, seq uint32, body []byte) []byte {
	b = native.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(body)))
	b = native.AppendUint16(b, kind)
	b = native.AppendUint16(b, flags)
	b = native.AppendUint32(b, seq)
	b = native.AppendUint32(b, 0)
	return append(b, body...)
}

// StartMessage starts a message with the fixed header given, its length and
// sequence number to be filled in; AppendAttribute and Nest add to it.
func StartMessage(kind, flags uint16, header []byte) []byte {
	b := make([]byte, 0, 256)
	return appendMessage(b, kind, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK, 0, header)
}

// AppendAttribute appends an attribute, padded as the next one needs it.
func AppendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = append(appendHeader(b, kind, len(value)), value...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// Nest appends to the message at b an attribute that holds what fill appends to it.
func Nest(b *[]byte, kind uint16, fill func()) {
	start := len(*b)
	*b = AppendAttribute(*b, kind|unix.NLA_F_NESTED, nil)
	fill()
	native.PutUint16((*b)[start:], uint16(len(*b)-start))
}

// IfInfo is struct ifinfomsg: change says which of the flags are meant.
func IfInfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(b[4:], uint32(index))
	native.PutUint32(b[8:], flags)
	native.PutUint32(b[12:], change)
	return b
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func align(n int) int { return (n + 3) &^ 3 }

// Renumber adds base to the sequence number of each of our own messages in b,
// and sets flags on the last.
func Renumber(b []byte, base uint32, flags uint16) {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(native.Uint32(b))
		native.PutUint32(b[8:], native.Uint32(b[8:])+base)
		if length == len(b) {
			native.PutUint16(b[6:], native.Uint16(b[6:])|flags)
		}
		b = b[length:]
	}
}
