package nat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/bgp"
)

// withTunnels is d on a node that takes packets of the kinds given.
func withTunnels(d Desired, kinds ...bgp.Encapsulation) Desired {
	d.Tunnels = bgp.EncapsulationsOf(kinds...)
	return d
}

var bothTunnels = withTunnels(twoFamilies, bgp.IPIP, bgp.VXLAN)

const (
	ipipInput = `-A INPUT -m comment --comment "hoplite: tunnel packets" -j HOPLITE-INPUT
-A HOPLITE-INPUT ! -i hop+ -p ipencap -m set --match-set hoplite-nodes-v4 src -m comment --comment "hoplite: ipip from nodes" -j ACCEPT
-A HOPLITE-INPUT -p ipencap -m comment --comment "hoplite: ipip from anybody else" -j DROP
`
	vxlanInput = `-A HOPLITE-INPUT ! -i hop+ -p udp -m udp --dport 4789 -m bpf --bytecode "PROGRAM" -m set --match-set hoplite-nodes-VERSION src -m comment --comment "hoplite: vxlan from nodes" -j ACCEPT
-A HOPLITE-INPUT -p udp -m udp --dport 4789 -m bpf --bytecode "PROGRAM" -m comment --comment "hoplite: vxlan from anybody else" -j DROP
`
	ipipForward = `-A HOPLITE-FORWARD -i hop+ -p ipencap -m set --match-set hoplite-nodes-v4 src -m set --match-set hoplite-nodes-v4 dst -m comment --comment "hoplite: no ipip from pods as if from nodes" -j DROP
`
	vxlanForward = `-A HOPLITE-FORWARD -i hop+ -p udp -m udp --dport 4789 -m set --match-set hoplite-nodes-VERSION src -m set --match-set hoplite-nodes-VERSION dst -m comment --comment "hoplite: no vxlan from pods as if from nodes" -j DROP
`
)

func TestTunnelRulesSayWhatIsDesired(t *testing.T) {
	program4, program6 := "6,177 0 0 0,64 0 0 12,116 0 0 8,21 0 1 4096,6 0 0 1,6 0 0 0", "7,48 0 0 6,21 0 3 17,32 0 0 52,116 0 0 8,21 0 1 4096,6 0 0 1,6 0 0 0"
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, bothTunnels)
		for cmd, want := range map[string]string{
			"iptables": ipipInput + strings.NewReplacer("PROGRAM", program4, "VERSION", "v4").Replace(vxlanInput) +
				ipipForward + strings.ReplaceAll(vxlanForward, "VERSION", "v4"),
			"ip6tables": ipipInput[:strings.IndexByte(ipipInput, '\n')+1] + strings.NewReplacer("PROGRAM", program6, "VERSION", "v6").Replace(vxlanInput) +
				strings.ReplaceAll(vxlanForward, "VERSION", "v6"),
		} {
			got := sh(t, node, "%[1]s-%[2]s -S INPUT | grep -e -A; %[1]s-%[2]s -S HOPLITE-INPUT | grep -e -A; %[1]s-%[2]s -S HOPLITE-FORWARD | grep -e -A | grep 'as if'", cmd, m)
			if got != want {
				t.Errorf("%s rules:\n%s\nwant:\n%s", cmd, got, want)
			}
		}
		for set, want := range map[string]string{"hoplite-nodes-v4": "192.0.2.1 192.0.2.2", "hoplite-nodes-v6": "2001:db8::1"} {
			if got := members(t, node, set); got != want {
				t.Errorf("set %s holds %s, want %s", set, got, want)
			}
		}
		before := s.Writes()
		mustSync(t, s, bothTunnels)
		if n := s.Writes() - before; n > 0 {
			t.Errorf("the second Sync wrote %d times", n)
		}
	})
}

// Others may have tunnels of their own, which are not our business.
func TestWithoutTunnelsNothingOfThemIsThere(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, twoFamilies)
		plain := snapshot(t, node)
		for _, trace := range []string{chainInput, "4789", "ipencap", "hoplite-nodes"} {
			if strings.Contains(plain, trace) {
				t.Errorf("%s, without a tunnel:\n%s", trace, plain)
			}
		}
		mustSync(t, s, withTunnels(twoFamilies, bgp.IPIP))
		if out := snapshot(t, node); strings.Contains(out, "4789") || strings.Contains(out, "hoplite-nodes-v6") {
			t.Errorf("with IPIP only, there is also\n%s", out)
		}
		mustSync(t, s, bothTunnels)
		mustSync(t, s, withTunnels(twoFamilies, bgp.VXLAN))
		if out := snapshot(t, node); strings.Contains(out, "ipencap") {
			t.Errorf("left of IPIP:\n%s", out)
		}
		// Another agent takes the rest away, which knows of no tunnel.
		again := newSyncer(t, node, Config{Mode: m})
		mustSync(t, again, twoFamilies)
		if out := snapshot(t, node); out != plain {
			t.Errorf("when the tunnels are gone there is\n%s\nbefore them there was\n%s", out, plain)
		}
		before := again.Writes()
		mustSync(t, again, twoFamilies)
		if n := again.Writes() - before; n > 0 {
			t.Errorf("the second Sync wrote %d times", n)
		}
	})
}

func TestCleanupTakesTheTunnelsRulesAway(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		for _, each := range []Mode{ModeNFT, ModeLegacy} {
			makeTables(t, node, each)
		}
		before := snapshot(t, node)
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, bothTunnels)
		if err := s.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := snapshot(t, node); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

var tunnelDamages = []struct{ what, command string }{
	{"accepting rule deleted", "iptables-MODE -D HOPLITE-INPUT 1"},
	{"dropping rule deleted", "iptables-MODE -D HOPLITE-INPUT 4"},
	{"dropping rule deleted, IPv6", "ip6tables-MODE -D HOPLITE-INPUT 2"},
	{"rule added to our chain", "iptables-MODE -I HOPLITE-INPUT -p 4 -j DROP"},
	{"jump deleted", "iptables-MODE -D INPUT 1"},
	{"jump deleted, IPv6", "ip6tables-MODE -D INPUT 1"},
	{"chain deleted", "iptables-MODE -D INPUT 1; iptables-MODE -F HOPLITE-INPUT; iptables-MODE -X HOPLITE-INPUT || :"},
	{"rule of FORWARD deleted", "iptables-MODE -D HOPLITE-FORWARD 1"},
	{"node deleted", "ipset del hoplite-nodes-v4 192.0.2.2"},
	{"node added", "ipset add hoplite-nodes-v4 203.0.113.0/24"},
	{"nodes flushed, IPv6", "ipset flush hoplite-nodes-v6"},
	{"table flushed", "iptables-MODE -F; iptables-MODE -X; ipset destroy hoplite-nodes-v4 || :"},
}

func TestWhatSomebodyDeletesOfTunnelsIsBackWithinASecond(t *testing.T) {
	bothModes(t, func(t *testing.T, m Mode, node *nstest.NS) {
		makeTables(t, node, m)
		s := newSyncer(t, node, Config{Mode: m})
		mustSync(t, s, bothTunnels)
		run(t, s)
		for _, d := range tunnelDamages {
			before := ours(snapshot(t, node))
			withinASecond(t, d.what,
				func() { sh(t, node, "%s", strings.ReplaceAll(d.command, "MODE", string(m))) },
				func() bool { return ours(snapshot(t, node)) == before })
		}
	})
}

// without puts commands in front of PATH that fail when told of word, as if
// the kernel or iptables did not know it.
func without(t *testing.T, word string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"} {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in *' %s '*) echo \"Extension %[1]s is not supported, missing kernel module?\" >&2; exit 2;; esac\nexec %s \"$@\"\n", word, real)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(real+"-save", filepath.Join(dir, name+"-save")); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// Better that strangers' other networks wait for an administrator than that
// they come into ours.
func TestWithoutTheMatchByNetworkNumberAllVXLANIsTakenFromNodesOnly(t *testing.T) {
	nstest.Require(t)
	without(t, "bpf")
	for _, m := range []Mode{ModeNFT, ModeLegacy} {
		t.Run(string(m), func(t *testing.T) {
			w := newWorld(t)
			s := newSyncer(t, w.node, Config{Mode: m})
			mustSync(t, s, bothTunnels)
			for _, c := range []struct {
				src   string
				vni   int
				enter bool
			}{{"192.0.2.2", vxlanVNI, true}, {"198.51.100.1", vxlanVNI, false}, {"198.51.100.1", 42, false}} {
				if got := w.enters(t, w.out, vxlan(c.src, "192.0.2.1", c.vni), vxlan("192.0.2.2", "192.0.2.1", vxlanVNI)); got != c.enter {
					t.Errorf("network %d from %s enters: %v", c.vni, c.src, got)
				}
			}
			before := s.Writes()
			mustSync(t, s, bothTunnels)
			if n := s.Writes() - before; n > 0 {
				t.Errorf("the second Sync wrote %d times", n)
			}
		})
	}
}

func TestAFailureThatIsNotTheMatchesIsTold(t *testing.T) {
	nstest.Require(t)
	without(t, chainInput)
	s := newSyncer(t, nstest.New(t), Config{Mode: ModeNFT})
	if err := s.Sync(t.Context(), bothTunnels); err == nil || !strings.Contains(err.Error(), chainInput+" is not supported") {
		t.Errorf("Sync: %v", err)
	}
	if s.families[0].noBPF {
		t.Error("the match by network number was given up")
	}
}

func TestProtocolFourHasSeveralNames(t *testing.T) {
	want := newRule([]string{"-p", "4", "-j", "DROP"})
	for _, name := range []string{"4", "ipencap", "ipv4"} {
		if r, _ := parseRule("-A X -p " + name + " -j DROP"); !r.equal(want) {
			t.Errorf("%s: %q is not %q", name, r, want)
		}
	}
	if r, _ := parseRule("-A X -p ipip -j DROP"); r.equal(want) {
		t.Error("ipip, which is protocol 94, counts as 4")
	}
}
