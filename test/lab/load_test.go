package lab_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// twoNodes is a lab of two machines without a cluster.
func twoNodes(t *testing.T) (context.Context, *lab.Node, *lab.Node) {
	ctx := labtest.Context(t, time.Minute)
	l := labtest.Start(t, lab.Config{NoControlPlane: true, Nodes: lab.Nodes(2)})
	return ctx, l.Node("node1"), l.Node("node2")
}

// run runs commands on a node, separated by semicolons.
func run(t *testing.T, ctx context.Context, n *lab.Node, commands string) {
	t.Helper()
	if _, err := n.Command(ctx, "sh", "-ec", commands).CombinedOutput(); err != nil {
		t.Fatal(err)
	}
}

// TestLoad: a load that nothing disturbs is clean. One that loses packets says
// so, while TCP, which has other means, loses nothing and does not break.
func TestLoad(t *testing.T) {
	ctx, a, b := twoNodes(t)
	pair := []lab.Pair{{A: a, B: b}}
	config := lab.LoadConfig{Metered: pair, Rate: 1000, Bulk: pair, BulkRate: 100e6, Chats: pair}
	measure := func() lab.LoadOutcome {
		load, err := lab.StartLoad(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // time under measurement, not a wait
		return load.Stop()
	}
	o := measure()
	if err := o.Clean(); err != nil {
		t.Errorf("nothing in the way: %v", err)
	}
	if bulk := o.Bulks[0]; bulk.Received < 2e6 || bulk.SegmentSize != 1448 || bulk.Retransmitted != 0 {
		t.Errorf("nothing in the way: %s", bulk)
	}
	if chat := o.Chats[0]; chat.Answers < 4 {
		t.Errorf("nothing in the way: %s", chat)
	}
	run(t, ctx, b, "iptables -A INPUT -m statistic --mode nth --every 20 --packet 0 -j DROP")
	o = measure()
	if o.Lost() == 0 || o.Clean() == nil || o.Broken() > 0 || o.Bulks[0].Retransmitted == 0 {
		t.Errorf("one in twenty lost: %s", o)
	}
}

// TestLoadBreaks: a connection that is reset is broken.
func TestLoadBreaks(t *testing.T) {
	ctx, a, b := twoNodes(t)
	chat, err := lab.StartChat(ctx, a, b)
	if err != nil {
		t.Fatal(err)
	}
	run(t, ctx, b, "iptables -A INPUT -p tcp -j REJECT --reject-with tcp-reset")
	labtest.Eventually(t, 20*time.Second, "the chat is broken", func() error {
		if chat.State().Err == nil {
			return errors.New("it goes on")
		}
		return nil
	})
	if o := chat.Stop(); o.Err == nil {
		t.Error(o)
	}
}

// TestMeterCountsTwice: what arrives twice is not lost, and is told of.
func TestMeterCountsTwice(t *testing.T) {
	ctx, a, b := twoNodes(t)
	run(t, ctx, a, "iptables -t mangle -A OUTPUT -p udp -m statistic --mode nth --every 10 --packet 0 -j TEE --gateway "+b.IP().String())
	m, err := lab.StartMeter(ctx, a, b, 1000)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // time under measurement, not a wait
	there, back := m.Stop()
	if there.Duplicates == 0 || there.Lost > 0 || there.Clean() == nil || back.Clean() != nil {
		t.Errorf("some doubled at node1: %s; %s", there, back)
	}
}

// TestCapture: packets are told apart by how they travel, and none is missed.
func TestCapture(t *testing.T) {
	ctx, a, b := twoNodes(t)
	for i, n := range []*lab.Node{a, b} {
		peer := []*lab.Node{b, a}[i]
		self := []string{"1", "2"}[i]
		run(t, ctx, n, strings.NewReplacer("LOCAL", n.IP().String(), "REMOTE", peer.IP().String(), "SELF", self).Replace(
			"ip link add tunnel type vxlan id 5 local LOCAL remote REMOTE dstport 4789 dev eth0;"+
				"ip addr add 10.99.0.SELF/24 dev tunnel; ip link set tunnel up; ip addr add 10.98.0.SELF/24 dev eth0"))
		if err := n.Serve(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		net  string
		kind lab.Kind
	}{{"10.98.0.", lab.Plain}, {"10.99.0.", lab.VXLAN}} {
		t.Run(c.kind.String(), func(t *testing.T) {
			capture, err := a.Capture(netip.MustParsePrefix("10.98.0.0/15"))
			if err != nil {
				t.Fatal(err)
			}
			from, to := netip.MustParseAddr(c.net+"1"), netip.MustParseAddr(c.net+"2")
			const packets = 100
			for range packets {
				if err := lab.Whole(ctx, a, to, 1000); err != nil {
					t.Fatal(err)
				}
			}
			flows, err := capture.Stop()
			if err != nil {
				t.Fatal(err)
			}
			there, back := lab.Flow{From: from, To: to, Kind: c.kind}, lab.Flow{From: to, To: from, Kind: c.kind}
			if c.kind != lab.Plain {
				there.OuterFrom, there.OuterTo, back.OuterFrom, back.OuterTo = a.IP(), b.IP(), b.IP(), a.IP()
			}
			if len(flows) != 2 || flows[there] != packets || flows[back] != packets {
				t.Errorf("captured %v, want %d of each of %v and %v", flows, packets, there, back)
			}
		})
	}
}

// TestWhole: a packet that may not be fragmented passes, or its sender is told.
func TestWhole(t *testing.T) {
	ctx, a, b := twoNodes(t)
	if err := b.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	for _, to := range b.Addresses {
		for size, want := range map[int]error{1500: nil, 1501: lab.ErrTooBig} {
			if err := lab.Whole(ctx, a, to, size); !errors.Is(err, want) {
				t.Errorf("%d bytes to %s: %v, want %v", size, to, err, want)
			}
		}
	}
}

// TestSpeed: a faster way is faster.
func TestSpeed(t *testing.T) {
	ctx, a, b := twoNodes(t)
	free, err := lab.Throughput(ctx, a, b, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	trip, err := lab.RoundTrip(ctx, a, b, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	run(t, ctx, a, "tc qdisc add dev eth0 root tbf rate 100mbit burst 512kb latency 50ms")
	held, err := lab.Throughput(ctx, a, b, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if held <= 0 || free < 2*held || trip <= 0 || trip > 10*time.Millisecond {
		t.Error("that cannot be:")
	}
	t.Logf("%.0f Mbit/s, round trip %s; held down to 100 Mbit/s: %.0f", free/1e6, trip, held/1e6)
}
