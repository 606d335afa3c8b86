package nat

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// Mode is an iptables back end: the same command, two kernels' worth of tables.
// A packet passes both, but each program sees only its own.
type Mode string

const (
	ModeAuto   Mode = "auto"
	ModeNFT    Mode = "nft"
	ModeLegacy Mode = "legacy"
)

func (m Mode) other() Mode {
	if m == ModeNFT {
		return ModeLegacy
	}
	return ModeNFT
}

// detect returns the back end in use on this node. In a container that is the
// host's, not the image's, so it is read from the rules that are there:
// chains that the kubelet makes decide (KUBE-IPTABLES-HINT exists for that);
// without them the back end with more rules, ours not counted; without any, nft.
// A back end without its binary is no candidate.
func detect(want Mode) (Mode, error) {
	var have []Mode
	for _, m := range []Mode{ModeNFT, ModeLegacy} {
		if command(m, false) != "" {
			have = append(have, m)
		}
	}
	switch want {
	case ModeNFT, ModeLegacy:
		if command(want, false) == "" {
			return "", fmt.Errorf("iptables mode %s is configured but there is no iptables-%s in PATH: install it, or set the mode to auto", want, want)
		}
		return want, nil
	case ModeAuto, "":
	default:
		return "", fmt.Errorf("iptables mode %q is unknown: use auto, nft or legacy", want)
	}
	switch len(have) {
	case 0:
		return "", fmt.Errorf("no iptables in PATH: install the iptables package (iptables-nft or iptables-legacy)")
	case 1:
		return have[0], nil
	}
	nft, legacy := census(ModeNFT), census(ModeLegacy)
	switch {
	case nft.kubelet:
		return ModeNFT, nil
	case legacy.kubelet, legacy.rules > nft.rules:
		return ModeLegacy, nil
	}
	return ModeNFT, nil
}

// count is what a back end holds, over both families.
type count struct {
	kubelet bool
	rules   int
}

// kubeletChains are in the mangle table; nobody else makes chains of these names.
var kubeletChains = regexp.MustCompile(`(?m)^:(KUBE-IPTABLES-HINT|KUBE-KUBELET-CANARY) `)

// census reads a back end's rules. The save commands are used since, other than
// listing, they do not create legacy tables that nobody has used yet. A command
// that fails counts for nothing: the other back end is then the likely one.
func census(m Mode) count {
	var c count
	for _, v6 := range []bool{false, true} {
		path := command(m, v6)
		if path == "" {
			continue
		}
		out, err := exec.Command(path + "-save").Output()
		if err != nil {
			continue
		}
		c.kubelet = c.kubelet || kubeletChains.Match(out)
		for line := range bytes.Lines(out) {
			if bytes.HasPrefix(line, []byte("-")) && !bytes.Contains(line, []byte(chainPrefix)) {
				c.rules++
			}
		}
	}
	return c
}

// command is the path of a back end's iptables, "" without one: by its own
// name, else plain iptables if that says it is of this back end.
func command(m Mode, v6 bool) string {
	plain := "iptables"
	if v6 {
		plain = "ip6tables"
	}
	if path, err := exec.LookPath(plain + "-" + string(m)); err == nil {
		return path
	}
	path, err := exec.LookPath(plain)
	if err != nil {
		return ""
	}
	version, err := exec.Command(path, "--version").Output()
	if err != nil {
		return ""
	}
	// Before 1.8 there was only legacy, and nothing in brackets.
	if nft := bytes.Contains(version, []byte("nf_tables")); nft == (m == ModeNFT) {
		return path
	}
	return ""
}

// lockWait is how long a command waits for the xtables lock, in seconds.
const lockWait = 5

func openIPTables(m Mode, v6 bool) (*iptables.IPTables, error) {
	proto, name := iptables.ProtocolIPv4, "iptables"
	if v6 {
		proto, name = iptables.ProtocolIPv6, "ip6tables"
		if _, err := os.Stat("/proc/thread-self/net/if_inet6"); err != nil {
			return nil, fmt.Errorf("the kernel has no IPv6 (ipv6.disable=1?)")
		}
	}
	path := command(m, v6)
	if path == "" {
		return nil, fmt.Errorf("no %s-%s in PATH: install it", name, m)
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path), iptables.Timeout(lockWait))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ipt, nil
}

// tableInUse reports whether the table exists. Listing a legacy table that
// does not would create it; an nft one costs nothing.
func tableInUse(m Mode, v6 bool, table string) bool {
	if m == ModeNFT {
		return true
	}
	name := "/proc/thread-self/net/ip_tables_names"
	if v6 {
		name = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return false
	}
	for _, t := range strings.Fields(string(b)) {
		if t == table {
			return true
		}
	}
	return false
}
