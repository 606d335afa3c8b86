package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/agent/cluster"
	"github.com/hoplite-net/hoplite/agent/nat"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

var (
	v4 = netip.MustParseAddr
	v6 = netip.MustParseAddr
)

func state(self cluster.Node, peers ...cluster.Node) cluster.State {
	return cluster.State{Self: self, SelfKnown: true, Peers: peers, BGP: (*v1alpha1.BGPConfiguration)(nil).Resolved()}
}

func TestTheMeshIsEveryNodeThatCanBeReached(t *testing.T) {
	self := cluster.Node{Name: "a", IPv4: v4("192.0.2.1"), IPv6: v6("2001:db8::1")}
	s := state(self,
		cluster.Node{Name: "both", IPv4: v4("192.0.2.2"), IPv6: v6("2001:db8::2")},
		cluster.Node{Name: "six", IPv6: v6("2001:db8::3")},
		cluster.Node{Name: "not up yet"})
	want := []bgp.Peer{
		{Name: "both", Address: v4("192.0.2.2"), LocalAddress: self.IPv4, Port: 179, ASN: 64512, Type: bgp.NodeMesh},
		{Name: "six", Address: v6("2001:db8::3"), LocalAddress: self.IPv6, Port: 179, ASN: 64512, Type: bgp.NodeMesh},
	}
	if got := meshPeers(s); !slices.Equal(got, want) {
		t.Errorf("peers %v, want %v", got, want)
	}
	off := false
	s.BGP.NodeMesh = &off
	if got := meshPeers(s); len(got) != 0 {
		t.Errorf("without a mesh there are peers: %v", got)
	}
}

func TestRouterIDIsTheAddressOrMadeFromTheName(t *testing.T) {
	if got := routerID(cluster.Node{Name: "a", IPv4: v4("192.0.2.1")}); got != v4("192.0.2.1") {
		t.Errorf("with an IPv4 address: %s", got)
	}
	a, b := routerID(cluster.Node{Name: "a"}), routerID(cluster.Node{Name: "b"})
	if a == b || a != routerID(cluster.Node{Name: "a"}) || !a.Is4() || a.IsUnspecified() || a.IsMulticast() {
		t.Errorf("without one: %s and %s", a, b)
	}
}

func TestNATKnowsAllPoolsAndNodes(t *testing.T) {
	s := state(cluster.Node{Name: "a", IPv4: v4("192.0.2.1")}, cluster.Node{Name: "b", IPv6: v6("2001:db8::2")})
	s.Pools = []v1alpha1.IPPool{
		{ObjectMeta: metav1.ObjectMeta{Name: "out"}, Spec: v1alpha1.IPPoolSpec{CIDR: "10.0.0.0/16", NATOutgoing: true, Disabled: true}},
		{ObjectMeta: metav1.ObjectMeta{Name: "in"}, Spec: v1alpha1.IPPoolSpec{CIDR: "10.1.0.0/16"}},
		{ObjectMeta: metav1.ObjectMeta{Name: "bad"}, Spec: v1alpha1.IPPoolSpec{CIDR: "banana"}},
	}
	got := natDesired(s, 0)
	if want := []nat.Pool{{Prefix: netip.MustParsePrefix("10.0.0.0/16"), NATOutgoing: true}, {Prefix: netip.MustParsePrefix("10.1.0.0/16")}}; !slices.Equal(got.Pools, want) {
		t.Errorf("pools %v, want %v", got.Pools, want)
	}
	if want := []netip.Addr{v4("192.0.2.1"), v6("2001:db8::2")}; !slices.Equal(got.Nodes, want) {
		t.Errorf("nodes %v, want %v", got.Nodes, want)
	}
}

func TestAnAgentWithoutANameSaysWhatToSet(t *testing.T) {
	if err := Run(t.Context(), Config{}); err == nil || !strings.Contains(err.Error(), "--node-name") {
		t.Errorf("%v", err)
	}
}
