package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
)

// modeFloor is what a mode costs by the kernel alone: machines like the lab's
// nodes, on a fabric like theirs, with a namespace for a pod each, and tunnels
// and routes made by hand, with the parameters that the product's have. No
// rules, no next hop objects, no agent.
type modeFloor struct {
	l    *lab.Lab
	pods []lab.Space
}

const floorPod = "floor-pod"

func floorAddress(node int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(node), 1}) }

func (b *bench) startModeFloor(ctx context.Context) (*modeFloor, error) {
	l, err := lab.Start(ctx, lab.Config{Root: b.root, NoControlPlane: true, Nodes: modesNodes()})
	if err != nil {
		return nil, err
	}
	f := &modeFloor{l: l}
	for i, n := range l.Nodes() {
		err := shell(ctx, n, `
			ip netns add POD
			ip link add pod type veth peer name eth0 netns POD
			echo 1 > /proc/sys/net/ipv4/ip_forward
			echo 1 > /proc/sys/net/ipv4/conf/pod/proxy_arp
			echo 0 > /proc/sys/net/ipv4/neigh/pod/proxy_delay
			ip link set pod up
			ip -n POD addr add ADDRESS/32 dev eth0
			ip -n POD link set eth0 up
			ip -n POD route add 169.254.1.1 dev eth0 scope link
			ip -n POD route add default via 169.254.1.1
			ip route add ADDRESS dev pod scope link
		`, "POD", floorPod, "ADDRESS", floorAddress(i).String())
		if err != nil {
			return nil, fmt.Errorf("floor: %w", err)
		}
		f.pods = append(f.pods, lab.Space{Name: "floor on " + n.Name, Path: n.Path("/run/netns/" + floorPod), Address: floorAddress(i)})
	}
	return f, nil
}

func (f *modeFloor) close() error { return f.l.Close() }

// setMode makes the tunnels of the mode, and routes through them or past them.
func (f *modeFloor) setMode(ctx context.Context, mode v1alpha1.PoolMode) error {
	for i, n := range f.l.Nodes() {
		if err := f.prepare(ctx, i, n, mode); err != nil {
			return err
		}
		for k, other := range f.l.Nodes() {
			if k == i {
				continue
			}
			if err := f.route(ctx, n, other, floorAddress(k), lab.DeviceFor(mode, n, other)); err != nil {
				return err
			}
		}
	}
	// The router between the subnets knows the pods, for what goes plain.
	for k, n := range f.l.Nodes() {
		cmd := f.l.Fabric().Command(ctx, "ip", "route", "replace", floorAddress(k).String(), "via", n.IP().String())
		if _, err := cmd.CombinedOutput(); err != nil {
			return err
		}
	}
	return nil
}

// prepare takes away the tunnel there was, makes the mode's, and sets the pod's MTU.
func (f *modeFloor) prepare(ctx context.Context, i int, n *lab.Node, mode v1alpha1.PoolMode) error {
	device := ""
	switch {
	case hasIPIP(mode):
		device = lab.IPIPDevice
	case mode != v1alpha1.ModeNative:
		device = lab.VXLANDevice
	}
	script := `
		ip link del ` + lab.VXLANDevice + ` 2>/dev/null || true
		ip link del ` + lab.IPIPDevice + ` 2>/dev/null || true
		ip link set pod mtu MTU
		ip -n POD link set eth0 mtu MTU
	`
	switch device {
	case lab.IPIPDevice:
		script += "ip link add DEVICE type ipip local LOCAL remote any ttl 64\n"
	case lab.VXLANDevice:
		script += "ip link add DEVICE address MAC type vxlan id 4096 dstport 4789 local LOCAL nolearning udpcsum\n"
	}
	if device != "" {
		script += "ip link set DEVICE mtu MTU up\nip addr add TUNNEL/32 dev DEVICE\n"
	}
	tunnel := netip.AddrFrom4([4]byte{198, 19, byte(i), 1})
	return shell(ctx, n, script, "POD", floorPod, "MTU", fmt.Sprint(lab.PodMTU(mode)), "DEVICE", device, "LOCAL", n.IP().String(),
		"MAC", floorMAC(n), "TUNNEL", tunnel.String())
}

func (f *modeFloor) route(ctx context.Context, n, other *lab.Node, pod netip.Addr, device string) error {
	script := "ip route replace ADDRESS via REMOTE"
	if device != lab.Uplink {
		script += " dev DEVICE onlink"
	} else if n.Subnet() != other.Subnet() {
		script = "ip route replace ADDRESS via $(ip route show default | awk '{print $3}')"
	}
	if device == lab.VXLANDevice {
		script += `
			bridge fdb replace MAC dev DEVICE dst REMOTE self permanent
			ip neigh replace REMOTE lladdr MAC dev DEVICE nud permanent`
	}
	return shell(ctx, n, script, "ADDRESS", pod.String(), "REMOTE", other.IP().String(), "DEVICE", device, "MAC", floorMAC(other))
}

// floorMAC is that of a node's VXLAN device.
func floorMAC(n *lab.Node) string {
	a := n.IP().As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", a[0], a[1], a[2], a[3])
}

// shell runs a script on the node, words of it replaced; it ends at the first command that fails.
func shell(ctx context.Context, n *lab.Node, script string, replace ...string) error {
	_, err := n.Command(ctx, "sh", "-ec", strings.NewReplacer(replace...).Replace(script)).CombinedOutput()
	return err
}
