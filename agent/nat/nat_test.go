package nat

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// bothModes runs f with each iptables back end, in a namespace of its own. One
// after the other: some promises have a time in them.
func bothModes(t *testing.T, f func(t *testing.T, m Mode, node *nstest.NS)) {
	nstest.Require(t)
	for _, m := range []Mode{ModeNFT, ModeLegacy} {
		t.Run(string(m), func(t *testing.T) {
			f(t, m, nstest.New(t))
		})
	}
}

// twoFamilies is a dual-stack cluster of two nodes and three pools.
var twoFamilies = Desired{
	Pools: []Pool{
		{netip.MustParsePrefix("10.244.0.0/16"), true},
		{netip.MustParsePrefix("10.250.0.0/24"), false},
		{netip.MustParsePrefix("fd00:244::/64"), true},
	},
	Nodes: []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1"),
	},
}

func newSyncer(t *testing.T, ns *nstest.NS, cfg Config) *Syncer {
	t.Helper()
	var s *Syncer
	var err error
	ns.Do(t, func() { s, err = New(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func mustSync(t *testing.T, s *Syncer, d Desired) {
	t.Helper()
	if err := s.Sync(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

// sh runs a shell command in the namespace and returns its output.
func sh(t *testing.T, ns *nstest.NS, format string, args ...any) string {
	t.Helper()
	command := fmt.Sprintf(format, args...)
	var out []byte
	var err error
	ns.Do(t, func() { out, err = exec.Command("sh", "-ec", command).CombinedOutput() })
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

var volatile = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]|^Size in memory.*\n|^Header.*\n`)

// snapshot is everything a user's tools show of both back ends and all sets.
func snapshot(t *testing.T, ns *nstest.NS) string {
	t.Helper()
	out := sh(t, ns, "for c in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do echo == $c; $c-save 2>/dev/null; done; echo == ipset; ipset -s list")
	return volatile.ReplaceAllString(out, "")
}

// makeTables makes the built-in tables exist, so that snapshots can be compared.
func makeTables(t *testing.T, ns *nstest.NS, m Mode) {
	t.Helper()
	for _, c := range []string{"iptables", "ip6tables"} {
		sh(t, ns, "%[1]s-%[2]s -P FORWARD DROP; %[1]s-%[2]s -t nat -A POSTROUTING -s 203.0.113.9 -j ACCEPT 2>/dev/null || %[1]s-%[2]s -t nat -A POSTROUTING -s 2001:db8:f::9 -j ACCEPT", c, m)
	}
}

func TestRulesAndSetsSayWhatIsDesired(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		mustSync(t, newSyncer(t, node, Config{Mode: m}), twoFamilies)
		for cmd, v := range map[string]string{"iptables": "v4", "ip6tables": "v6"} {
			want := fmt.Sprintf(`-A POSTROUTING -m comment --comment "hoplite: natOutgoing" -j HOPLITE-POSTROUTING
-A HOPLITE-POSTROUTING -m set --match-set hoplite-masq-%[1]s src -m set ! --match-set hoplite-cluster-%[1]s dst -m comment --comment "hoplite: from natOutgoing pools to outside all pools and nodes" -j MASQUERADE --random-fully
-A FORWARD -m comment --comment "hoplite: traffic of pods" -j HOPLITE-FORWARD
-A HOPLITE-FORWARD -m set --match-set hoplite-pools-%[1]s src -m set --match-set hoplite-cluster-%[1]s dst -m comment --comment "hoplite: pools to pools and nodes" -j ACCEPT
-A HOPLITE-FORWARD -m set --match-set hoplite-cluster-%[1]s src -m set --match-set hoplite-pools-%[1]s dst -m comment --comment "hoplite: pools and nodes to pools" -j ACCEPT
-A HOPLITE-FORWARD -i hop.+ -m comment --comment "hoplite: nothing else out of tunnels" -j RETURN
-A HOPLITE-FORWARD -i hop+ -m comment --comment "hoplite: from pods" -j ACCEPT
-A HOPLITE-FORWARD -o hop+ -m comment --comment "hoplite: to pods" -j ACCEPT
`, v)
			got := sh(t, node, "%[1]s-%[2]s -t nat -S | grep -e -A; %[1]s-%[2]s -S | grep -e -A", cmd, m)
			if got != want {
				t.Errorf("%s rules:\n%s\nwant:\n%s", cmd, got, want)
			}
		}
		for set, want := range map[string]string{
			"hoplite-masq-v4":    "10.244.0.0/16",
			"hoplite-pools-v4":   "10.244.0.0/16 10.250.0.0/24",
			"hoplite-cluster-v4": "10.244.0.0/16 10.250.0.0/24 192.0.2.1 192.0.2.2",
			"hoplite-masq-v6":    "fd00:244::/64",
			"hoplite-pools-v6":   "fd00:244::/64",
			"hoplite-cluster-v6": "2001:db8::1 fd00:244::/64",
		} {
			if got := members(t, node, set); got != want {
				t.Errorf("set %s holds %s, want %s", set, got, want)
			}
		}
	})
}

func members(t *testing.T, ns *nstest.NS, set string) string {
	t.Helper()
	return strings.TrimSpace(sh(t, ns, "ipset list %s | sed 1,/Members/d | sort | tr '\\n' ' '", set))
}

// logged puts commands in front of PATH that note how they were called.
func logged(t *testing.T) (log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	for _, name := range []string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"} {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\necho \"$0 $*\" >>%s\nexec %s \"$@\"\n", log, real)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real+"-save", filepath.Join(dir, name+"-save")); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}

// calls returns the logged calls since the last, and those of them that write.
func calls(t *testing.T, log string) (all, writing []string) {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.RemoveAll(log); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		all = append(all, line)
		if !strings.Contains(line, " -S ") && !strings.Contains(line, "--version") {
			writing = append(writing, line)
		}
	}
	return all, writing
}

func TestSyncTwiceWritesNothing(t *testing.T) {
	nstest.Require(t)
	log := logged(t)
	for _, m := range []Mode{ModeNFT, ModeLegacy} {
		t.Run(string(m), func(t *testing.T) {
			s := newSyncer(t, nstest.New(t), Config{Mode: m})
			mustSync(t, s, twoFamilies)
			all, writing := calls(t, log)
			if len(writing) == 0 {
				t.Fatal("the first Sync wrote nothing: the log does not work")
			}
			for _, c := range all {
				if !strings.Contains(c, "--version") && !strings.Contains(c, "--wait") {
					t.Errorf("does not wait for the xtables lock: %s", c)
				}
			}
			before := s.Writes()
			mustSync(t, s, twoFamilies)
			if _, writing = calls(t, log); len(writing) > 0 {
				t.Errorf("the second Sync ran %d writing commands:\n%s", len(writing), strings.Join(writing, ""))
			}
			if n := s.Writes() - before; n > 0 {
				t.Errorf("the second Sync wrote %d times", n)
			}
		})
	}
}

func TestCleanupLeavesTheNodeAsItWas(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		for _, other := range []Mode{ModeNFT, ModeLegacy} {
			makeTables(t, node, other)
		}
		sh(t, node, "iptables-%[1]s -A FORWARD -j REJECT; iptables-%[1]s -N FOREIGN; iptables-%[1]s -A FOREIGN -i hop+ -j DROP; ipset create foreign hash:net; ipset add foreign 10.244.0.0/16", m)
		before := snapshot(t, node)
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, twoFamilies)
		// What an agent that found the other back end left.
		mustSync(t, newSyncer(t, node, Config{Mode: m.other()}), twoFamilies)
		if err := s.Cleanup(context.Background()); err != nil {
			t.Fatal(err)
		}
		if after := snapshot(t, node); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if err := s.Cleanup(context.Background()); err != nil {
			t.Errorf("second Cleanup: %v", err)
		}
	})
}

func TestJumpIsMovedOnlyWhenItIsNeverReached(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, twoFamilies)
		ours := `-A FORWARD -m comment --comment "hoplite: traffic of pods" -j HOPLITE-FORWARD`
		rules := func() []string {
			return strings.Split(strings.TrimSpace(sh(t, node, "iptables-%s -S FORWARD | grep -e -A", m)), "\n")
		}
		sh(t, node, "iptables-%s -I FORWARD -i eth0 -j DROP", m)
		before := s.Writes()
		mustSync(t, s, twoFamilies)
		if got := rules(); s.Writes() != before || got[1] != ours {
			t.Errorf("fought over the place behind a rule with a match: %q", got)
		}
		sh(t, node, "iptables-%s -I FORWARD -j DROP", m)
		mustSync(t, s, twoFamilies)
		if got := rules(); got[0] != ours || len(got) != 3 {
			t.Errorf("behind a DROP of everything: %q", got)
		}
	})
}
