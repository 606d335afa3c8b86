package nat

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// run starts Run and waits for its first look to be over.
func run(t *testing.T, s *Syncer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Run:", err)
		}
	})
	eventually(t, 5*time.Second, "Run knows the rules", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.families[0].rulesKnown && s.families[1].rulesKnown
	})
}

// eventually waits for a condition, and returns how long that took.
func eventually(t *testing.T, within time.Duration, what string, is func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Since(start) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		<-tick.C
	}
	return time.Since(start)
}

// withinASecond does damage and waits for its repair. A machine whose processors
// are busy with other tests is slow to start processes, ours as well as
// iptables, so a repair that takes longer is given two more chances.
func withinASecond(t *testing.T, what string, damage func(), repaired func() bool) {
	t.Helper()
	for try := 1; ; try++ {
		damage()
		took := eventually(t, 10*time.Second, what+" is repaired", repaired).Round(time.Millisecond)
		t.Logf("%s: back after %v", what, took)
		if took < time.Second {
			return
		}
		if try == 3 {
			t.Fatalf("%s: back only after %v, three times", what, took)
		}
	}
}

// damages are shell commands; MODE stands for the back end.
var damages = []struct{ what, command string }{
	{"rule deleted", "iptables-MODE -D HOPLITE-FORWARD -i hop+ -m comment --comment 'hoplite: from pods' -j ACCEPT"},
	{"masquerade deleted", "iptables-MODE -t nat -F HOPLITE-POSTROUTING"},
	{"forward jump deleted", "iptables-MODE -D FORWARD 1"},
	{"nat jump deleted", "iptables-MODE -t nat -D POSTROUTING 1"},
	{"chain deleted", "iptables-MODE -D FORWARD 1; iptables-MODE -F HOPLITE-FORWARD; iptables-MODE -X HOPLITE-FORWARD"},
	{"table flushed", "iptables-MODE -F; iptables-MODE -X"},
	{"IPv6 rule deleted", "ip6tables-MODE -D HOPLITE-FORWARD 4"},
	{"IPv6 nat table flushed", "ip6tables-MODE -t nat -F; ip6tables-MODE -t nat -X"},
	{"rule added to our chain", "iptables-MODE -I HOPLITE-FORWARD -j DROP"},
	{"jump doubled", "iptables-MODE -A FORWARD -j HOPLITE-FORWARD"},
	{"entry deleted", "ipset del hoplite-cluster-v4 192.0.2.2"},
	{"entry replaced", "ipset del hoplite-cluster-v4 192.0.2.2; ipset add hoplite-cluster-v4 192.0.2.3"},
	{"entry added", "ipset add hoplite-masq-v4 10.99.0.0/16"},
	{"set flushed", "ipset flush hoplite-masq-v6"},
	{"everything deleted", "for c in iptables ip6tables; do for t in nat filter; do $c-MODE -t $t -F; $c-MODE -t $t -X || true; done; done\n" +
		"for s in $(ipset list -n); do ipset destroy $s || true; done"},
}

func TestWhatSomebodyDeletesIsBackWithinASecond(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		makeTables(t, node, m)
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, twoFamilies)
		run(t, s)
		for _, d := range damages {
			before := ours(snapshot(t, node))
			withinASecond(t, d.what,
				func() { sh(t, node, "%s", strings.ReplaceAll(d.command, "MODE", string(m))) },
				func() bool { return ours(snapshot(t, node)) == before })
		}
	})
}

// ours reduces a snapshot to lines of our chains and to sets.
func ours(snapshot string) string {
	var out string
	inSets := false
	for line := range strings.SplitSeq(snapshot, "\n") {
		inSets = inSets || line == "== ipset"
		if inSets || strings.Contains(line, "HOPLITE") || strings.Contains(line, "== ") {
			out += line + "\n"
		}
	}
	return out
}

func TestUndisturbedRunWritesNothingAndStartsNoProcess(t *testing.T) {
	nstest.Require(t)
	log := logged(t)
	for _, m := range []Mode{ModeNFT, ModeLegacy} {
		t.Run(string(m), func(t *testing.T) {
			node := nstest.New(t)
			var looks atomic.Int64
			s := newSyncer(t, node, Config{Mode: m, PollInterval: 10 * time.Millisecond, Report: func(err error) {
				if err != nil {
					t.Error(err)
				}
				looks.Add(1)
			}})
			mustSync(t, s, twoFamilies)
			run(t, s)
			settle(t, &looks)
			calls(t, log)
			writes, start := s.Writes(), looks.Load()
			eventually(t, 10*time.Second, "50 polls", func() bool { return looks.Load() > start+50 })
			if all, _ := calls(t, log); len(all) > 0 {
				t.Errorf("50 polls started %d processes, such as %s", len(all), all[0])
			}
			// A node joins: one entry, no process.
			d := twoFamilies
			d.Nodes = append(d.Nodes[:len(d.Nodes):len(d.Nodes)], netip.MustParseAddr("192.0.2.9"))
			mustSync(t, s, d)
			if all, _ := calls(t, log); len(all) > 0 {
				t.Errorf("a node that joins started %d processes, such as %s", len(all), all[0])
			}
			if n := s.Writes() - writes; n != 1 {
				t.Errorf("a node that joins took %d writes, want 1", n)
			}
			// Others' rules changing elsewhere is not ours to look at.
			sh(t, node, "iptables-%[1]s -N KUBE-SERVICES; iptables-%[1]s -t mangle -N X", m)
			settle(t, &looks)
			if all, _ := calls(t, log); m == ModeNFT && len(all) > 2 {
				t.Errorf("rules of others made us start %d processes", len(all)-2)
			}
		})
	}
}

// settle waits until our own changes' notifications have been looked at.
func settle(t *testing.T, looks *atomic.Int64) {
	t.Helper()
	start := looks.Load()
	eventually(t, 10*time.Second, "own changes are looked at", func() bool { return looks.Load() > start+20 })
}

func TestRepairSurvivesConstantDamage(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, twoFamilies)
		run(t, s)
		for i := range 5 {
			withinASecond(t, fmt.Sprintf("jump deleted, time %d", i+1),
				func() { sh(t, node, "iptables-%s -D FORWARD 1", m) },
				func() bool { return strings.Contains(sh(t, node, "iptables-%s -S FORWARD", m), "HOPLITE") })
		}
	})
}

func TestThousandNodes(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		d := Desired{Pools: twoFamilies.Pools}
		a := netip.MustParseAddr("172.16.0.1")
		a6 := netip.MustParseAddr("2001:db8:1::1")
		for range 1000 {
			d.Nodes = append(d.Nodes, a, a6)
			a, a6 = a.Next(), a6.Next()
		}
		s := newSyncer(t, node, Config{Mode: m})
		start := time.Now()
		mustSync(t, s, d)
		first := time.Since(start)
		if n := s.Writes(); n < 2000 {
			t.Errorf("%d writes for 2,000 addresses", n)
		}
		run(t, s)
		before := s.Writes()
		start = time.Now()
		mustSync(t, s, d)
		again := time.Since(start)
		if n := s.Writes() - before; n > 0 {
			t.Errorf("second Sync wrote %d times", n)
		}
		d.Nodes[7] = netip.MustParseAddr("172.31.0.1")
		mustSync(t, s, d)
		if n := s.Writes() - before; n != 2 {
			t.Errorf("a node whose address changed took %d writes, want 2", n)
		}
		t.Logf("2,000 addresses: first Sync %v, again %v", first, again)
		before = s.Writes()
		sh(t, node, "ipset flush hoplite-cluster-v4")
		took := eventually(t, 10*time.Second, "the set is full again", func() bool { return s.Writes()-before >= 1002 })
		t.Logf("flushed set of 1,000 nodes: full again after %v", took)
	})
}

// BenchmarkPoll is the price of one cheap look: the agent pays it three times a second.
func BenchmarkPoll(b *testing.B) {
	nstest.Require(b)
	for _, m := range []Mode{ModeNFT, ModeLegacy} {
		b.Run(string(m), func(b *testing.B) {
			node := nstest.New(b)
			d := Desired{Pools: twoFamilies.Pools}
			a := netip.MustParseAddr("172.16.0.1")
			for range 1000 {
				d.Nodes = append(d.Nodes, a)
				a = a.Next()
			}
			node.Do(b, func() {
				s, err := New(Config{Mode: m})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				s.setWatching(true)
				if err := s.Sync(b.Context(), d); err != nil {
					b.Fatal(err)
				}
				// The legacy fingerprint is of before the writes: look once more.
				if _, err := s.look(b.Context(), true); err != nil {
					b.Fatal(err)
				}
				before := cpu(b)
				for b.Loop() {
					if _, err := s.look(b.Context(), false); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		})
	}
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
