package agentrpc

import (
	"encoding/binary"
	"errors"
)

// The protobuf wire format, as far as the contract uses it: varints and
// length-delimited fields. Other wire types are skipped when read, so a newer
// agent may add fields of any kind.
const (
	wireVarint  = 0
	wireFixed64 = 1
	wireBytes   = 2
	wireFixed32 = 5
)

var errTruncated = errors.New("the agent's answer is cut off or not protobuf")

type encoder []byte

func (e encoder) str(field uint64, s string) encoder {
	if s == "" {
		return e
	}
	return append(e.open(field, len(s)), s...)
}

func (e encoder) strs(field uint64, list []string) encoder {
	for _, s := range list {
		// Inside a list, an empty string is an element.
		e = append(e.open(field, len(s)), s...)
	}
	return e
}

func (e encoder) uint(field uint64, v uint32) encoder {
	if v == 0 {
		return e
	}
	e = binary.AppendUvarint(e, field<<3|wireVarint)
	return binary.AppendUvarint(e, uint64(v))
}

func (e encoder) message(field uint64, m encoder) encoder {
	return append(e.open(field, len(m)), m...)
}

func (e encoder) open(field uint64, length int) encoder {
	e = binary.AppendUvarint(e, field<<3|wireBytes)
	return binary.AppendUvarint(e, uint64(length))
}

// decode calls visit for every varint and length-delimited field of a message.
func decode(b []byte, visit func(field uint64, v uint64, data []byte) error) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 {
			return errTruncated
		}
		b = b[n:]
		var v uint64
		var data []byte
		switch tag & 7 {
		case wireVarint:
			if v, n = binary.Uvarint(b); n <= 0 {
				return errTruncated
			}
		case wireBytes:
			length, head := binary.Uvarint(b)
			if head <= 0 || length > uint64(len(b)-head) {
				return errTruncated
			}
			n = head + int(length)
			data = b[head:n:n]
		case wireFixed32:
			n = 4
		case wireFixed64:
			n = 8
		default:
			return errTruncated
		}
		if n > len(b) {
			return errTruncated
		}
		b = b[n:]
		if wire := tag & 7; wire == wireVarint || wire == wireBytes {
			if err := visit(tag>>3, v, data); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a Attachment) encode() encoder {
	return encoder(nil).str(1, a.ContainerID).str(2, a.Ifname)
}

func (a *Attachment) decode(b []byte) error {
	return decode(b, func(field, _ uint64, data []byte) error {
		switch field {
		case 1:
			a.ContainerID = string(data)
		case 2:
			a.Ifname = string(data)
		}
		return nil
	})
}

func (i Interface) encode() encoder {
	return encoder(nil).str(1, i.Name).str(2, i.MAC).uint(3, i.MTU).str(4, i.Sandbox)
}

func (i *Interface) decode(b []byte) error {
	return decode(b, func(field, v uint64, data []byte) error {
		switch field {
		case 1:
			i.Name = string(data)
		case 2:
			i.MAC = string(data)
		case 3:
			i.MTU = uint32(v)
		case 4:
			i.Sandbox = string(data)
		}
		return nil
	})
}

func (r *Route) decode(b []byte) error {
	return decode(b, func(field, _ uint64, data []byte) error {
		switch field {
		case 1:
			r.Destination = string(data)
		case 2:
			r.Gateway = string(data)
		}
		return nil
	})
}

func (r AddRequest) encode() encoder {
	return encoder(nil).message(1, r.Attachment.encode()).str(2, r.Netns).
		str(3, r.PodNamespace).str(4, r.PodName).str(5, r.PodUID).uint(6, r.MTU)
}

func (r *AddResponse) decode(b []byte) error {
	return decode(b, func(field, _ uint64, data []byte) error {
		switch field {
		case 1:
			return r.Host.decode(data)
		case 2:
			return r.Container.decode(data)
		case 3:
			r.Addresses = append(r.Addresses, string(data))
		case 4:
			r.Gateways = append(r.Gateways, string(data))
		case 5:
			var route Route
			err := route.decode(data)
			r.Routes = append(r.Routes, route)
			return err
		}
		return nil
	})
}

func (r DelRequest) encode() encoder {
	return encoder(nil).message(1, r.Attachment.encode()).str(2, r.Netns)
}

func (r CheckRequest) encode() encoder {
	e := encoder(nil).message(1, r.Attachment.encode()).str(2, r.Netns)
	if r.Host != (Interface{}) {
		e = e.message(3, r.Host.encode())
	}
	if r.Container != (Interface{}) {
		e = e.message(4, r.Container.encode())
	}
	return e.strs(5, r.Addresses)
}

func (r GCRequest) encode() encoder {
	var e encoder
	for _, a := range r.Valid {
		e = e.message(1, a.encode())
	}
	return e
}

func (r *GCResponse) decode(b []byte) error {
	return decode(b, func(field, _ uint64, data []byte) error {
		switch field {
		case 1:
			var a Attachment
			err := a.decode(data)
			r.Removed = append(r.Removed, a)
			return err
		case 2:
			r.Errors = append(r.Errors, string(data))
		}
		return nil
	})
}

func (r *StatusResponse) decode(b []byte) error {
	return decode(b, func(field, _ uint64, data []byte) error {
		if field == 1 {
			r.Problems = append(r.Problems, string(data))
		}
		return nil
	})
}
