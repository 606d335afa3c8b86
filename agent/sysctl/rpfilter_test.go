package sysctl

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

const (
	rpAll    = "net/ipv4/conf/all/rp_filter"
	rpUplink = "net/ipv4/conf/up0/rp_filter"
)

var tunnelled = Desired{IPv4: true, Uplinks: []string{"up0", "gone0"}, Asymmetric: true}

// TestStrictReversePathFilterBecomesLooseWithTunnels: the kernel goes by the
// higher of the two values.
func TestStrictReversePathFilterBecomesLooseWithTunnels(t *testing.T) {
	for _, c := range []struct{ all, uplink, want string }{
		{"0", "0", "0"},
		{"0", "1", "2"},
		{"0", "2", "2"},
		{"1", "0", "2"},
		{"1", "1", "2"},
		{"1", "2", "2"},
		{"2", "0", "0"},
		{"2", "1", "1"},
		{"2", "2", "2"},
	} {
		t.Run("all "+c.all+" uplink "+c.uplink, func(t *testing.T) {
			ns, k := newHost(t), newKeeper(t)
			before := map[string]string{rpAll: c.all, rpUplink: c.uplink, "net/ipv4/conf/far0/rp_filter": "1"}
			set(t, ns, before)
			k.Set(Desired{IPv4: true, Uplinks: tunnelled.Uplinks})
			ensure(t, ns, k)
			expect(t, ns, before)

			k.Set(tunnelled)
			ensure(t, ns, k)
			expect(t, ns, map[string]string{rpAll: c.all, rpUplink: c.want, "net/ipv4/conf/far0/rp_filter": "1"})
			if n := ensure(t, ns, k); n != 0 {
				t.Errorf("a second Ensure wrote %d settings", n)
			}
			restore(t, ns, k)
			expect(t, ns, before)
		})
	}
}

func TestRunLoosensTheReversePathFilterAgain(t *testing.T) {
	ns, k := newHost(t), newKeeper(t)
	set(t, ns, map[string]string{rpAll: "0", rpUplink: "0"})
	k.Set(tunnelled)
	start(t, ns, k)
	for _, strict := range []string{rpUplink, rpAll} {
		ns.SetSysctl(t, rpUplink, "0")
		ns.SetSysctl(t, strict, "1")
		for end := time.Now().Add(2 * poll); ns.Sysctl(t, rpUplink) != "2"; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s is strict, and nothing was done about it", strict)
			}
		}
	}
}

// TestRestoreIsStrictAgainAfterARestart: what the second agent finds is the
// first one's work.
func TestRestoreIsStrictAgainAfterARestart(t *testing.T) {
	ns := newHost(t)
	record := filepath.Join(t.TempDir(), "sysctl.json")
	set(t, ns, map[string]string{rpAll: "0", rpUplink: "1"})
	var last *Keeper
	for range 2 {
		last = New(Config{Log: slog.New(slog.DiscardHandler), Record: record})
		last.Set(tunnelled)
		ns.SetSysctl(t, "net/ipv4/conf/default/forwarding", "0") // something to write, and so to record
		ensure(t, ns, last)
	}
	expect(t, ns, map[string]string{rpUplink: "2"})
	restore(t, ns, last)
	expect(t, ns, map[string]string{rpUplink: "1"})
}

func set(t *testing.T, ns *nstest.NS, values map[string]string) {
	t.Helper()
	for name, value := range values {
		ns.SetSysctl(t, name, value)
	}
}

func restore(t *testing.T, ns *nstest.NS, k *Keeper) {
	t.Helper()
	var err error
	ns.Do(t, func() { err = k.Restore() })
	if err != nil {
		t.Fatal(err)
	}
}
