package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
)

// The pools of the lab.
var (
	// podPool has blocks so large that a node claims one and never another:
	// what is measured is ADD, not claiming.
	podPool      = netip.MustParsePrefix("192.168.0.0/16")
	podBlockSize = int32(21)
	// remotePool is where the prefixes that peers advertise come from: agents
	// take from the mesh only what is inside a pool. No pod gets an address of it.
	remotePool = netip.MustParsePrefix("10.0.0.0/8")
)

// The nodes and what each is for, so that no part of the run finds an agent
// that another has worked hard.
const (
	podNode   = "node1" // CNI; the one that restarts
	otherNode = "node2" // its neighbour with a pod
	routeNode = "node3" // learns routes; its memory is measured
)

func (b *bench) startLab(ctx context.Context) error {
	if err := lab.BuildPlugins(ctx, b.root, func(line string) { b.say("%s", line) }); err != nil {
		return err
	}
	b.say("starting a lab of three nodes")
	l, err := lab.Start(ctx, lab.Config{Root: b.root, Objects: []client.Object{
		pool("pods", v1alpha1.IPPoolSpec{CIDR: podPool.String(), BlockSize: &podBlockSize, Mode: v1alpha1.ModeNative}),
		pool("remote", v1alpha1.IPPoolSpec{CIDR: remotePool.String(), Mode: v1alpha1.ModeNative, Disabled: true}),
	}})
	b.l = l
	return err
}

func pool(name string, spec v1alpha1.IPPoolSpec) *v1alpha1.IPPool {
	return &v1alpha1.IPPool{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "IPPool"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       spec,
	}
}

// procNet is a file of the machine below /proc/net, found without entering it.
func procNet(m *lab.Machine, file string) string {
	return strings.TrimSuffix(m.Netns(), "/ns/net") + "/net/" + file
}

// sessions counts a node's Established BGP sessions, by its agent's own metrics.
func sessions(ctx context.Context, n *lab.Node) (int, error) {
	text, err := n.Get(ctx, fmt.Sprintf("http://%s:%d/metrics", n.IP(), lab.AgentPort))
	if err != nil {
		return 0, err
	}
	up := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "hoplite_bgp_peer_up{") && strings.HasSuffix(line, "} 1\n") {
			up++
		}
	}
	return up, nil
}

// waitSessions waits until so many of the node's sessions are Established.
func waitSessions(ctx context.Context, n *lab.Node, want int) error {
	return lab.Until(ctx, fmt.Sprintf("wait for %d BGP sessions of %s", want, n.Name), func() error {
		up, err := sessions(ctx, n)
		if err == nil && up < want {
			err = fmt.Errorf("%d are Established", up)
		}
		return err
	})
}
