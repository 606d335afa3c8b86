package bgp

import (
	"slices"

	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// What a path says besides its next hop is in its extended communities (RFC 4360): an Encapsulation Extended
// Community (RFC 9012 section 4.1) for each tunnel that its owner receives, and the owner's statement:
//
//	c0 68 6f 70 | mode | settled | sends | 00
//
// GoBGP does not know type 0xc0 and carries its octets as they are. Readers ignore the last one, and values and bits
// that they do not know, so that there is room for later versions.

// statementType is "Non-Transitive Experimental Use": a statement is for our own AS only (RFC 7153 section 2.3).
const statementType gobgp.ExtendedCommunityAttrType = 0xc0

const (
	statementMagic = "hop"
	// Positions in GoBGP's value, which lacks the first octet.
	statementMode    = 3
	statementSettled = 4
	statementSends   = 5
	statementLen     = 7
)

// sendsBits are the bits of a statement's sends.
var sendsBits = []struct {
	bit    byte
	tunnel Encapsulation
}{{1, IPIP}, {2, VXLAN}}

// modes are by the numbers that statements have for them; 0 is an unknown mode.
var modes = []v1alpha1.PoolMode{
	"", v1alpha1.ModeNative, v1alpha1.ModeIPIP, v1alpha1.ModeIPIPCrossSubnet, v1alpha1.ModeVXLAN,
	v1alpha1.ModeVXLANCrossSubnet,
}

func numberOf(mode v1alpha1.PoolMode) byte { return byte(max(0, slices.Index(modes, mode))) }

func modeNumbered(n byte) v1alpha1.PoolMode {
	if int(n) < len(modes) {
		return modes[n]
	}
	return ""
}

// communities are the extended communities for what a path's owner receives and says, always in the same order: GoBGP
// sends prefixes together whose attributes are equal octet by octet.
func communities(receives Encapsulations, says Statement) []gobgp.ExtendedCommunityInterface {
	var all []gobgp.ExtendedCommunityInterface
	for tunnel := range (receives & Tunnels).All() {
		all = append(all, gobgp.NewEncapExtended(gobgp.TunnelType(tunnel)))
	}
	if !says.Said {
		return all
	}
	value := make([]byte, statementLen)
	copy(value, statementMagic)
	value[statementMode] = numberOf(says.Mode)
	if says.Settled {
		value[statementSettled] = 1
	}
	for _, s := range sendsBits {
		if says.Sends.Has(s.tunnel) {
			value[statementSends] |= s.bit
		}
	}
	return append(all, gobgp.NewUnknownExtended(statementType, value))
}

// readCommunities is the reverse of communities. It is called for every path that is looked up.
func readCommunities(all []gobgp.ExtendedCommunityInterface) (receives Encapsulations, says Statement) {
	for _, c := range all {
		switch c := c.(type) {
		case *gobgp.EncapExtended:
			switch c.TunnelType {
			case gobgp.TunnelType(IPIP), gobgp.TunnelType(VXLAN):
				receives |= EncapsulationsOf(Encapsulation(c.TunnelType))
			}
		case *gobgp.UnknownExtended:
			says = says.with(readStatement(c))
		}
	}
	return receives, says
}

func readStatement(c *gobgp.UnknownExtended) Statement {
	if c.Type != statementType || len(c.Value) != statementLen || string(c.Value[:statementMode]) != statementMagic {
		return Statement{}
	}
	s := Statement{Said: true, Mode: modeNumbered(c.Value[statementMode]), Settled: c.Value[statementSettled] == 1}
	for _, b := range sendsBits {
		if c.Value[statementSends]&b.bit != 0 {
			s.Sends |= EncapsulationsOf(b.tunnel)
		}
	}
	return s
}
