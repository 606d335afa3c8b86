package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// The devices that packets between nodes leave by.
const (
	Uplink      = uplink
	IPIPDevice  = "hop.ipip"
	VXLANDevice = "hop.vxlan"
)

// Way is how a kernel sends to an address.
type Way struct {
	Device string
	// Gateway is invalid for an address that is on-link.
	Gateway netip.Addr
	// Source is the address it would use itself.
	Source netip.Addr
	// Route is the destination of the route that it goes by: a pod's block, 0.0.0.0/0, ...
	Route netip.Prefix
}

// Way asks the machine's kernel how it sends to the address.
func (m *Machine) Way(to netip.Addr) (way Way, err error) {
	err = m.Netlink(func(h *netlink.Handle) error {
		way, err = wayOf(h, to)
		return err
	})
	if err != nil {
		err = fmt.Errorf("how %s sends to %s: %w", m.Name, to, err)
	}
	return way, err
}

func wayOf(h *netlink.Handle, to netip.Addr) (Way, error) {
	routes, err := h.RouteGet(to.AsSlice())
	if err != nil {
		return Way{}, err
	}
	if len(routes) == 0 {
		return Way{}, fmt.Errorf("no route")
	}
	link, err := h.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return Way{}, err
	}
	w := Way{Device: link.Attrs().Name}
	if a, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		w.Gateway = a.Unmap()
	}
	if via, ok := routes[0].Via.(*netlink.Via); ok && via != nil {
		w.Gateway, _ = netip.AddrFromSlice(via.Addr)
	}
	if a, ok := netip.AddrFromSlice(routes[0].Src); ok {
		w.Source = a.Unmap()
	}
	// The kernel shows either what comes of the route or the route.
	matched, err := h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil || len(matched) == 0 || matched[0].Dst == nil {
		return w, err
	}
	dst, _ := netip.AddrFromSlice(matched[0].Dst.IP)
	bits, _ := matched[0].Dst.Mask.Size()
	w.Route = netip.PrefixFrom(dst.Unmap(), bits)
	return w, nil
}

// Subnet is the number of the fabric's node subnet that the node is on.
func (n *Node) Subnet() int { return n.cfg.Subnet }

// DeviceFor is the device by which one node sends to the other's pods in the mode, once the mode has settled.
func DeviceFor(mode v1alpha1.PoolMode, from, to *Node) string {
	onLink := from.Subnet() == to.Subnet()
	switch {
	case mode == v1alpha1.ModeIPIP, mode == v1alpha1.ModeIPIPCrossSubnet && !onLink:
		return IPIPDevice
	case mode == v1alpha1.ModeVXLAN, mode == v1alpha1.ModeVXLANCrossSubnet && !onLink:
		return VXLANDevice
	}
	return Uplink
}

// Pool is DefaultPool in another mode.
func Pool(mode v1alpha1.PoolMode) *v1alpha1.IPPool {
	p := DefaultPool()
	p.Spec.Mode = mode
	return p
}

// SetMode changes a pool's mode, as `kubectl patch ippool NAME --type merge` does. It does not wait.
func (l *Lab) SetMode(ctx context.Context, pool string, mode v1alpha1.PoolMode) error {
	p := &v1alpha1.IPPool{}
	p.Name = pool
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"mode":%q}}`, mode))
	if err := l.client.Patch(ctx, p, patch); err != nil {
		return fmt.Errorf("set mode %s of pool %s: %w", mode, pool, err)
	}
	return nil
}

// WaitMode waits until every node sends to the other nodes' pods with addresses
// of the pool as the mode wants it, or to those of the given nodes' pods only.
func (l *Lab) WaitMode(ctx context.Context, pool string, mode v1alpha1.PoolMode, nodes ...*Node) error {
	p := &v1alpha1.IPPool{}
	if err := l.client.Get(ctx, client.ObjectKey{Name: pool}, p); err != nil {
		return err
	}
	prefix, err := p.Prefix()
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		nodes = l.Nodes()
	}
	for _, from := range nodes {
		if err := from.waitMode(ctx, prefix, mode, nodes); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) waitMode(ctx context.Context, pool netip.Prefix, mode v1alpha1.PoolMode, nodes []*Node) error {
	what := fmt.Sprintf("wait until %s sends to the others' pods as mode %s says", n.Name, mode)
	return n.Netlink(func(h *netlink.Handle) error {
		return until(ctx, 5*time.Millisecond, what, func() error {
			for _, to := range nodes {
				if to == n {
					continue
				}
				want := DeviceFor(mode, n, to)
				for _, a := range to.podAddresses(pool) {
					way, err := wayOf(h, a)
					if err != nil {
						return err
					}
					if !pool.Contains(way.Route.Addr()) {
						return fmt.Errorf("no route to %s on %s", a, to.Name)
					}
					if way.Device != want {
						return fmt.Errorf("to %s on %s by %s, want %s", a, to.Name, way.Device, want)
					}
				}
			}
			return nil
		})
	})
}

func (n *Node) podAddresses(pool netip.Prefix) []netip.Addr {
	var all []netip.Addr
	for _, p := range n.Pods() {
		for _, a := range p.IPs() {
			if pool.Contains(a) {
				all = append(all, a)
			}
		}
	}
	return all
}

// TeachFabric tells the fabric's router the way to every block there is, as a
// network knows it that takes part in BGP: then pods reach each other natively across subnets.
func (l *Lab) TeachFabric(ctx context.Context) error {
	blocks := &v1alpha1.IPAMBlockList{}
	if err := l.client.List(ctx, blocks); err != nil {
		return err
	}
	return l.fabric.Netlink(func(h *netlink.Handle) error {
		for _, b := range blocks.Items {
			prefix, err := netip.ParsePrefix(b.Spec.CIDR)
			n := l.Node(b.Spec.Node)
			if err != nil || n == nil {
				continue
			}
			for _, via := range n.Addresses {
				if via.Is4() != prefix.Addr().Is4() {
					continue
				}
				if err := h.RouteReplace(&netlink.Route{Dst: ipNet(prefix), Gw: via.AsSlice()}); err != nil {
					return fmt.Errorf("route of %s by way of %s: %w", prefix, n.Name, err)
				}
			}
		}
		return nil
	})
}

// Addrs are the addresses of one of the machine's devices, without link-local ones; none where there is no such device.
func (m *Machine) Addrs(device string) (all []netip.Addr, err error) {
	err = m.Do(func() error {
		link, err := netlink.LinkByName(device)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		addrs, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.IsLinkLocalUnicast() {
				all = append(all, addr.Unmap())
			}
		}
		return err
	})
	return all, err
}

// Has says whether the machine has a device of that name.
func (m *Machine) Has(device string) (bool, error) {
	err := m.Netlink(func(h *netlink.Handle) error {
		_, err := h.LinkByName(device)
		return err
	})
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	return err == nil, err
}
