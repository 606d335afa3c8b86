package endpoint

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

func TestInterruptedDumpIsNoAnswer(t *testing.T) {
	msg := func(typ, flags uint16) []byte {
		b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
		order.PutUint32(b, uint32(len(b)))
		order.PutUint16(b[4:], typ)
		order.PutUint16(b[6:], flags)
		return b
	}
	for name, marked := range map[string]int{"in its middle": 1, "at its end": 2} {
		r := getVeths()
		for i, typ := range []uint16{unix.RTM_NEWLINK, unix.RTM_NEWLINK, unix.NLMSG_DONE} {
			flags := uint16(unix.NLM_F_MULTI)
			if i == marked {
				flags |= unix.NLM_F_DUMP_INTR
			}
			if last := r.accept(msg(typ, flags)); last != (i == 2) {
				t.Errorf("message %d: last = %t", i, last)
			}
		}
		if !errors.Is(r.err, errInterrupted) {
			t.Errorf("interrupted %s: %v", name, r.err)
		}
	}
}

func TestARefusalSaysWhatWasRefusedAndWhy(t *testing.T) {
	nstest.Require(t)
	c, err := newPlumber(t, newNode(t)).sockets.get()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	good, bad := getLink("lo"), addDefault(Gateway4, "lo", 1)
	err = c.exchange(bad, good)
	if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "add default route via 169.254.1.1 dev lo") ||
		!strings.Contains(err.Error(), "Nexthop has invalid gateway") {
		t.Errorf("refusal reads %q", err)
	}
	if l, err := good.link(); err != nil || l.name != "lo" || good.err != nil {
		t.Errorf("the request after the refused one: %+v, %v", l, err)
	}
	if _, err := c.dump(context.Background(), getVeths()); err != nil {
		t.Errorf("the socket is of no more use: %v", err)
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add(getLink("lo").msg[unix.SizeofNlMsghdr:])
	f.Add(newVeth("hop0", "eth0", hostMAC, 1500, true, 3).msg[unix.SizeofNlMsghdr:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := parseLink(b); err == nil {
			_ = l.setting(devconfProxyARP)
		}
	})
}
