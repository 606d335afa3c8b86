package nat

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

func TestModeIsTheHosts(t *testing.T) {
	nstest.Require(t)
	for _, c := range []struct {
		name, setup string
		want        Mode
	}{
		{"nothing there", ":", ModeNFT},
		{"more legacy rules", "iptables-legacy -A INPUT -j ACCEPT; iptables-legacy -A INPUT -j ACCEPT; iptables-nft -A INPUT -j ACCEPT", ModeLegacy},
		{"as many of each", "iptables-legacy -A INPUT -j ACCEPT; iptables-nft -A INPUT -j ACCEPT", ModeNFT},
		{"legacy IPv6 rules", "ip6tables-legacy -A INPUT -j ACCEPT", ModeLegacy},
		{"the kubelet's nft hint against legacy rules", "iptables-nft -t mangle -N KUBE-IPTABLES-HINT; iptables-legacy -A INPUT -j ACCEPT", ModeNFT},
		{"the kubelet's legacy canary against nft rules", "iptables-legacy -t mangle -N KUBE-KUBELET-CANARY; iptables-nft -A INPUT -j ACCEPT", ModeLegacy},
	} {
		t.Run(c.name, func(t *testing.T) {
			node := nstest.New(t)
			sh(t, node, "%s", c.setup)
			before := sh(t, node, "cat /proc/thread-self/net/ip_tables_names")
			if got := newSyncer(t, node, Config{}).Mode(); got != c.want {
				t.Errorf("mode %s, want %s", got, c.want)
			}
			if after := sh(t, node, "cat /proc/thread-self/net/ip_tables_names"); after != before {
				t.Errorf("looking made legacy tables: %q, before %q", after, before)
			}
		})
	}
}

// An agent that runs again must not be led by what it wrote itself, and takes
// away what it wrote into the other back end.
func TestOwnRulesDoNotDecideAndDoNotStay(t *testing.T) {
	nstest.Require(t)
	node := nstest.New(t)
	mustSync(t, newSyncer(t, node, Config{}), twoFamilies)
	sh(t, node, "iptables-legacy -A INPUT -j ACCEPT")
	s := newSyncer(t, node, Config{})
	if s.Mode() != ModeLegacy {
		t.Fatalf("mode %s with one legacy rule and ours in nft", s.Mode())
	}
	mustSync(t, s, twoFamilies)
	if left := sh(t, node, "(iptables-nft-save; ip6tables-nft-save) 2>/dev/null | grep HOPLITE || :"); left != "" {
		t.Errorf("left in nft:\n%s", left)
	}
}

func TestModeErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := detect(ModeAuto); err == nil || !strings.Contains(err.Error(), "install the iptables package") {
		t.Errorf("without iptables: %v", err)
	}
	if _, err := detect(ModeLegacy); err == nil || !strings.Contains(err.Error(), "iptables-legacy") {
		t.Errorf("without iptables-legacy: %v", err)
	}
	if _, err := detect("nftables"); err == nil || !strings.Contains(err.Error(), "auto, nft or legacy") {
		t.Errorf("unknown mode: %v", err)
	}
	script := "#!/bin/sh\necho 'iptables v1.8.9 (legacy)'\n"
	if err := os.WriteFile(filepath.Join(dir, "iptables"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if m, err := detect(ModeAuto); err != nil || m != ModeLegacy {
		t.Errorf("with an iptables that says it is legacy: %s, %v", m, err)
	}
}

// Without ip6tables IPv4 works, and only pools of IPv6 make that an error.
func TestWithoutIP6Tables(t *testing.T) {
	nstest.Require(t)
	dir := t.TempDir()
	for _, name := range []string{"iptables-nft", "iptables-nft-save"} {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	path := os.Getenv("PATH")
	t.Setenv("PATH", dir)
	node := nstest.New(t)
	s := newSyncer(t, node, Config{})
	four := twoFamilies
	four.Pools = four.Pools[:2]
	mustSync(t, s, four)
	err := s.Sync(context.Background(), twoFamilies)
	if err == nil || !strings.Contains(err.Error(), "IPv6 rules: no ip6tables-nft in PATH") {
		t.Errorf("with an IPv6 pool: %v", err)
	}
	t.Setenv("PATH", path)
	if got := sh(t, node, "iptables-nft -S FORWARD"); !strings.Contains(got, "HOPLITE") {
		t.Errorf("no IPv4 rules:\n%s", got)
	}
}

func TestFamilyThatIsNotWantedLeavesNothing(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, twoFamilies)
		four := Desired{Pools: twoFamilies.Pools[:2], Nodes: twoFamilies.Nodes[:2]}
		mustSync(t, s, four)
		out := sh(t, node, "ip6tables-%s-save 2>/dev/null; ipset list -n", m)
		if strings.Contains(out, "HOPLITE") || strings.Contains(out, "-v6") {
			t.Errorf("left of IPv6:\n%s", out)
		}
	})
}

func TestPoolThatNoSetHoldsIsRefused(t *testing.T) {
	for _, p := range []string{"0.0.0.0/0", "::/0", "::ffff:10.0.0.0/104"} {
		_, err := wantedEntries(Desired{Pools: []Pool{{Prefix: netip.MustParsePrefix(p)}}})
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestRulesAreComparedByMeaning(t *testing.T) {
	a, _ := parseRule(`-A X -i hop+ -m comment --comment "it\'s \"a\" b" -m set ! --match-set s dst -j ACCEPT`)
	b := newRule([]string{"-m", "set", "!", "--match-set", "s", "dst", "-j", "ACCEPT", "-m", "comment", "--comment", `it's "a" b`, "-i", "hop+"})
	if !a.equal(b) {
		t.Errorf("%q is not %q", a, b)
	}
	c, _ := parseRule(`-A X -i hop+ -m set --match-set s dst -m comment --comment "it's \"a\" b" -j ACCEPT`)
	if a.equal(c) {
		t.Error("a negation makes no difference")
	}
	for line, ends := range map[string]bool{
		"-A FORWARD -j DROP": true,
		`-A FORWARD -m comment --comment "no entry" -j REJECT --reject-with icmp-port-unreachable`: true,
		"-A FORWARD -i eth0 -j DROP": false,
		"-A FORWARD -j DOCKER-USER":  false,
		"-A FORWARD":                 false,
	} {
		if r, _ := parseRule(line); r.endsChain() != ends {
			t.Errorf("%s ends the chain: %v", line, r.endsChain())
		}
	}
}
