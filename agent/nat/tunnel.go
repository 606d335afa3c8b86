package nat

import (
	"fmt"
	"slices"

	"github.com/hoplite-net/hoplite/bgp"
)

const (
	chainInput = chainPrefix + "INPUT"

	// RFC 7348's port, and the one network of ours on it (docs/tunnels.md).
	vxlanPort = "4789"
	vxlanVNI  = 4096
	// ipipProtocol is RFC 2003's.
	ipipProtocol = "4"
)

// The tunnels of each family of outer packets.
var (
	tunnels4 = bgp.Tunnels
	tunnels6 = bgp.EncapsulationsOf(bgp.VXLAN)
)

// vniProgram is a classic BPF program for the xt_bpf match, which sees a packet
// from its IP header on and yields 1 for VXLAN packets of our network. Others
// may run theirs on the same port: the kernel tells them apart by that number.
//
// Of IPv6 packets, those count as ours in which something stands before the UDP
// header: nodes send none such, and they could carry our number somewhere else.
func vniProgram(v6 bool) string {
	if v6 {
		return fmt.Sprintf("7,48 0 0 6,21 0 3 17,32 0 0 52,116 0 0 8,21 0 1 %d,6 0 0 1,6 0 0 0", vxlanVNI)
		//  ldb [6]; jneq #17, ours; ld [52]; rsh #8; jneq #VNI, others; ours: ret #1; others: ret #0
	}
	return fmt.Sprintf("6,177 0 0 0,64 0 0 12,116 0 0 8,21 0 1 %d,6 0 0 1,6 0 0 0", vxlanVNI)
	//  ldx 4*([0]&0xf); ld [x+12]; rsh #8; jneq #VNI, others; ret #1; others: ret #0
}

// tunnelRules are what a family's chains say of tunnel packets: INPUT takes
// them from nodes only, and pods do not send them to other nodes in a node's
// name. Without tunnels there is nothing of it.
type tunnelRules struct{ input, forward [][]string }

// newTunnelRules makes them. byVNI says that a match by network number can be
// had; without it, others' VXLAN packets have to come from nodes, too.
func newTunnelRules(set sets, v6 bool, kinds bgp.Encapsulations, byVNI bool) tunnelRules {
	var r tunnelRules
	comment := func(c string) []string { return []string{"-m", "comment", "--comment", "hoplite: " + c} }
	match := func(dir string) []string { return []string{"-m", "set", "--match-set", set.nodes, dir} }
	for kind := range kinds.All() {
		var outer, packet []string
		switch kind {
		case bgp.IPIP:
			outer = []string{"-p", ipipProtocol}
			packet = outer
		case bgp.VXLAN:
			outer = []string{"-p", "udp", "--dport", vxlanPort}
			packet = outer
			if byVNI {
				packet = slices.Concat(outer, []string{"-m", "bpf", "--bytecode", vniProgram(v6)})
			}
		default:
			continue
		}
		name := kind.String()
		// A node's packets come by no pod's device, whatever the address in them.
		r.input = append(r.input,
			slices.Concat([]string{"!", "-i", "hop+"}, packet, match("src"), comment(name+" from nodes"), []string{"-j", "ACCEPT"}),
			slices.Concat(packet, comment(name+" from anybody else"), []string{"-j", "DROP"}))
		r.forward = append(r.forward, slices.Concat([]string{"-i", "hop+"}, outer, match("src"), match("dst"),
			comment("no "+name+" from pods as if from nodes"), []string{"-j", "DROP"}))
	}
	return r
}

// setTunnels says which tunnels the family's rules are about.
func (f *family) setTunnels(kinds bgp.Encapsulations) {
	if kinds != f.tunnels {
		f.tunnels = kinds
		f.makeChains()
	}
}

// makeChains decides on the rules, which then have to be read again.
func (f *family) makeChains() {
	f.rulesKnown = false
	f.chains = wantedChains(f.sets, f.ipt.HasRandomFully(), newTunnelRules(f.sets, f.v6, f.tunnels, !f.noBPF))
}

// syncInput makes the chain for tunnel packets, or takes it away. A kernel or an
// iptables that cannot tell VXLAN networks apart gets rules that do not.
func (f *family) syncInput(c chain) error {
	if len(c.rules) == 0 {
		return f.removeChain(f.ipt, c)
	}
	err := f.syncChain(c)
	if err == nil || f.noBPF || !f.tunnels.Has(bgp.VXLAN) {
		return err
	}
	f.noBPF = true
	f.makeChains()
	for _, plain := range f.chains {
		if plain.name != c.name {
			continue
		}
		if f.syncChain(plain) == nil {
			f.s.log.Warn("no iptables match by BPF program (kernel module xt_bpf): VXLAN packets of any network are taken from nodes only",
				"family", f.name, "port", vxlanPort, "error", err)
			return nil
		}
	}
	// It is not that, then.
	f.noBPF = false
	f.makeChains()
	return err
}
