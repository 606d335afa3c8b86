package rtnl

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRouteReadsBackAsWritten(t *testing.T) {
	for _, c := range []struct {
		prefix string
		hops   []string
		table  uint32
		metric uint32
	}{
		{prefix: "10.0.0.0/26", table: 254},
		{prefix: "10.0.0.0/26", hops: []string{"192.0.2.1"}, table: 1000, metric: 7},
		{prefix: "0.0.0.0/0", hops: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}, table: 254},
		{prefix: "fd00::/122", table: 254, metric: 1024},
		{prefix: "fd00::/122", hops: []string{"fe80::1"}, table: 70000},
		{prefix: "::/0", hops: []string{"2001:db8::1", "2001:db8::2"}, table: 254},
	} {
		q := Request{
			Kind: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE, Seq: 9, Prefix: netip.MustParsePrefix(c.prefix),
			Table: c.table, Metric: c.metric, Protocol: 104, Type: unix.RTN_UNICAST,
		}
		hops := testHops(c.hops)
		for _, hop := range hops {
			q.Hops += string(hop.Pack(nil))
		}
		if got := slices.Collect(Unpack(q.Hops, q.Prefix.Addr().Is6())); !slices.Equal(got, hops) {
			t.Errorf("%v: packed and unpacked, next hops are %v", c, got)
		}
		b := q.Append([]byte("before"))[len("before"):]
		count := 0
		for m := range Messages(b) {
			count++
			if m.Type != q.Kind || m.Flags != unix.NLM_F_CREATE|unix.NLM_F_REQUEST || m.Seq != 9 {
				t.Errorf("%v: header %+v", c, m)
			}
			var r Route
			if err := r.Parse(m.Body); err != nil {
				t.Fatalf("%v: %v", c, err)
			}
			if r.Prefix != q.Prefix || r.Table != c.table || r.Metric != c.metric || r.Protocol != 104 || r.Type != unix.RTN_UNICAST {
				t.Errorf("%v: read back as %+v", c, r)
			}
			if !slices.Equal(r.Hops, hops) || r.Bare || r.Special {
				t.Errorf("%v: read back with next hops %v", c, r.Hops)
			}
		}
		if count != 1 {
			t.Errorf("%v: %d messages", c, count)
		}
	}
}

// TestEndpoint: what looks like the route to a local pod, and what by its type or
// device alone only might.
func TestEndpoint(t *testing.T) {
	pod := Request{Kind: unix.RTM_NEWROUTE, Prefix: netip.MustParsePrefix("10.0.0.5/32"), Table: 254, Type: unix.RTN_UNICAST, Device: 7}
	for name, c := range map[string]struct {
		change func(*Request)
		want   bool
	}{
		"a pod's":   {func(*Request) {}, true},
		"blackhole": {func(q *Request) { q.Type = unix.RTN_BLACKHOLE }, false},
		"by a gateway": {func(q *Request) {
			q.Device, q.Hops = 0, string(testHops([]string{"192.0.2.1"})[0].Pack(nil))
		}, false},
		"by an object": {func(q *Request) { q.NextHop = 5 }, false},
	} {
		q := pod
		c.change(&q)
		for m := range Messages(q.Append(nil)) {
			var r Route
			if err := r.Parse(m.Body); err != nil || r.Endpoint() != c.want {
				t.Errorf("%s: Endpoint() = %v (%v), want %v", name, r.Endpoint(), err, c.want)
			}
		}
	}
}

func TestNextHopReadsBackAsWritten(t *testing.T) {
	for _, hop := range testHops([]string{"192.0.2.1", "fe80::1"}) {
		hop.Device = 9
		n := NextHop{ID: 77, Protocol: 104, Hop: hop}
		for m := range Messages(n.Append(nil, unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE, 5)) {
			got, err := ParseNextHop(m.Body)
			if err != nil || got != n || m.Seq != 5 || m.Flags != unix.NLM_F_CREATE|unix.NLM_F_REQUEST {
				t.Errorf("%+v is read back as %+v (%v), header %+v", n, got, err, m)
			}
		}
	}
}

// testHops are next hops via the addresses, onlink and out of device 7 every other one.
func testHops(gateways []string) []Hop {
	var hops []Hop
	for i, g := range gateways {
		hop := Hop{Gateway: netip.MustParseAddr(g)}
		if i%2 == 0 {
			hop.Device, hop.Onlink = 7, true
		}
		hops = append(hops, hop)
	}
	return hops
}

func TestRenumberKeepsOrderAndAsksOnceForAnAnswer(t *testing.T) {
	var b []byte
	for i := range uint32(3) {
		q := Request{Kind: unix.RTM_DELROUTE, Seq: i, Prefix: netip.MustParsePrefix("10.0.0.0/26")}
		b = q.Append(b)
	}
	Renumber(b, 100, unix.NLM_F_ACK)
	next := uint32(100)
	for m := range Messages(b) {
		if m.Seq != next || (m.Flags&unix.NLM_F_ACK != 0) != (next == 102) {
			t.Errorf("message %d: %+v", next-100, m)
		}
		next++
	}
	if next != 103 {
		t.Errorf("%d messages", next-100)
	}
}

func TestErrorsComeInWords(t *testing.T) {
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// No such link: refused to anyone, privileged or not, in any namespace.
	body := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(body[4:], 1<<30)
	if err := c.Send(appendMessage(nil, unix.RTM_GETLINK, unix.NLM_F_REQUEST, c.NextSeq(1), body)); err != nil {
		t.Fatal(err)
	}
	datagram, err := c.Receive()
	if err != nil {
		t.Fatal(err)
	}
	for m := range Messages(datagram) {
		result := m.Result()
		if result == nil || !errors.Is(result, unix.ENODEV) {
			t.Errorf("result %v, want ENODEV", result)
		}
	}
	if e := (&Error{Errno: unix.EINVAL, Text: "because"}); !strings.Contains(e.Error(), "because") {
		t.Errorf("%q lacks the kernel's words", e.Error())
	}
}

// TestKernelWithoutNextHops: this kernel answers to a type that it does not know
// as an old one does to that of next hop objects.
func TestKernelWithoutNextHops(t *testing.T) {
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const unknown = 0x3fe // rtnetlink's types count up from 0x10; Linux 6.18 has come to 0x7b
	_, err = c.Dump(unknown, make([]byte, unix.SizeofNhmsg), func(Message) {})
	if err = noNextHops(err); !errors.Is(err, ErrNoNextHops) {
		t.Errorf("%v, want ErrNoNextHops", err)
	}
	if _, err := c.DumpNextHops(func(NextHop) {}); err != nil && !errors.Is(err, ErrNoNextHops) {
		t.Error(err)
	}
}

// FuzzParse: no bytes make the parsers panic, loop or return nonsense.
func FuzzParse(f *testing.F) {
	for n := range 3 {
		q := Request{Kind: unix.RTM_NEWROUTE, Prefix: netip.MustParsePrefix("10.0.0.0/26"), Table: 300, Metric: 1}
		for _, hop := range testHops([]string{"192.0.2.1", "192.0.2.2"}[:n]) {
			q.Hops += string(hop.Pack(nil))
		}
		f.Add(q.Append(nil))
	}
	f.Add(appendMessage(nil, unix.NLMSG_ERROR, unix.NLM_F_ACK_TLVS, 1, make([]byte, 40)))
	n := NextHop{ID: 1, Hop: Hop{Device: 1, Gateway: netip.MustParseAddr("fe80::1")}}
	f.Add(n.Append(nil, unix.RTM_NEWNEXTHOP, 0, 1))
	f.Add(appendMessage(nil, unix.RTM_NEWLINK, 0, 1, make([]byte, 40)))
	var r Route
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for m := range Messages(b) {
			total += unix.SizeofNlMsghdr + len(m.Body)
			_ = m.Result()
			if err := r.Parse(m.Body); err == nil {
				if !r.Prefix.IsValid() {
					t.Errorf("invalid prefix from %x", m.Body)
				}
				for _, hop := range r.Hops {
					if !hop.Gateway.IsValid() {
						t.Errorf("invalid next hop from %x", m.Body)
					}
				}
			}
			_, _ = ParseLink(m.Body)
			_, _ = ParseNetconf(m.Body)
			if n, err := ParseNextHop(m.Body); err == nil && (n.ID == 0 || !n.Special && !n.Gateway.IsValid()) {
				t.Errorf("next hop object %+v from %x", n, m.Body)
			}
			if a, err := ParseAddr(m.Body); err == nil && !a.Prefix.IsValid() {
				t.Errorf("invalid address from %x", m.Body)
			}
		}
		if total > len(b) {
			t.Errorf("%d bytes of messages in %d bytes", total, len(b))
		}
	})
}
