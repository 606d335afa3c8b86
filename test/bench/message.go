package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// The few BGP messages that a peer needs which sends prefixes and keeps none
// (RFC 4271 section 4), made by hand: as many prefixes in an UPDATE as there is
// room for, and nothing between one UPDATE and the next.

const (
	bgpHeader = 19
	bgpLimit  = 4096 // of a message

	msgOpen         = 1
	msgUpdate       = 2
	msgNotification = 3
	msgKeepalive    = 4
)

// message frames a body.
func message(kind byte, body []byte) []byte {
	m := make([]byte, bgpHeader, bgpHeader+len(body))
	for i := range 16 {
		m[i] = 0xff
	}
	binary.BigEndian.PutUint16(m[16:], uint16(bgpHeader+len(body)))
	m[18] = kind
	return append(m, body...)
}

// openMessage offers IPv4 unicast and four-octet AS numbers, and no graceful
// restart: when the session ends, so do the routes.
func openMessage(asn uint32, id netip.Addr, hold uint16) []byte {
	capabilities := []byte{1, 4, 0, 1, 0, 1} // RFC 4760 section 8: AFI 1, SAFI 1
	capabilities = append(capabilities, 65, 4)
	capabilities = binary.BigEndian.AppendUint32(capabilities, asn) // RFC 6793
	body := []byte{4}
	body = binary.BigEndian.AppendUint16(body, uint16(asn)) // the lab's are below 65536
	body = binary.BigEndian.AppendUint16(body, hold)
	body = append(body, id.AsSlice()...)
	body = append(body, byte(len(capabilities)+2), 2, byte(len(capabilities))) // RFC 5492
	return message(msgOpen, append(body, capabilities...))
}

// endOfRIB is IPv4's (RFC 4724 section 2).
func endOfRIB() []byte { return message(msgUpdate, make([]byte, 4)) }

// announce is the UPDATEs that announce the prefixes within the AS.
func announce(prefixes []netip.Prefix, nextHop netip.Addr) []byte {
	attributes := []byte{
		0x40, 1, 1, 0, // ORIGIN IGP
		0x40, 2, 0, // AS_PATH, empty
		0x40, 3, 4,
	}
	attributes = append(attributes, nextHop.AsSlice()...)
	attributes = append(attributes, 0x40, 5, 4, 0, 0, 0, 100) // LOCAL_PREF
	head := []byte{0, 0}
	head = binary.BigEndian.AppendUint16(head, uint16(len(attributes)))
	head = append(head, attributes...)
	return updates(prefixes, func(nlri []byte) []byte { return append(head[:len(head):len(head)], nlri...) })
}

// withdraw is the UPDATEs that withdraw the prefixes.
func withdraw(prefixes []netip.Prefix) []byte {
	return updates(prefixes, func(nlri []byte) []byte {
		body := binary.BigEndian.AppendUint16(nil, uint16(len(nlri)))
		return append(append(body, nlri...), 0, 0)
	})
}

// updates packs prefixes into as few messages as they fit in.
func updates(prefixes []netip.Prefix, body func(nlri []byte) []byte) []byte {
	room := bgpLimit - bgpHeader - len(body(nil))
	var all, nlri []byte
	flush := func() {
		if len(nlri) > 0 {
			all = append(all, message(msgUpdate, body(nlri))...)
			nlri = nlri[:0]
		}
	}
	for _, p := range prefixes {
		size := 1 + (p.Bits()+7)/8
		if len(nlri)+size > room {
			flush()
		}
		nlri = append(nlri, byte(p.Bits()))
		nlri = append(nlri, p.Addr().AsSlice()[:size-1]...)
	}
	flush()
	return all
}

// readMessage reads one message. A NOTIFICATION is an error.
func readMessage(r io.Reader) (kind byte, body []byte, err error) {
	header := make([]byte, bgpHeader)
	if _, err := io.ReadFull(r, header); err != nil {
		return 0, nil, err
	}
	length := int(binary.BigEndian.Uint16(header[16:]))
	if length < bgpHeader || length > bgpLimit {
		return 0, nil, fmt.Errorf("a BGP message of %d bytes", length)
	}
	body = make([]byte, length-bgpHeader)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	if header[18] == msgNotification {
		if len(body) < 2 {
			return 0, nil, errors.New("a NOTIFICATION without a code")
		}
		return 0, nil, fmt.Errorf("NOTIFICATION with code %d, subcode %d", body[0], body[1])
	}
	return header[18], body, nil
}
