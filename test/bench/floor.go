package main

import (
	"context"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// floor is the kind that nothing which is started for each pod can beat: a
// program that does nothing is started and, in this process, with sockets that
// are open already, the kernel is asked for what a pod needs and nothing more.
//
//   - ADD: a veth with its peer already in the pod, both up, address, the pod's
//     two routes, the node's route to it;
//   - DEL: the veth's deletion.
type floor struct {
	trivial string
	pods    []*pod
	node    []*netlink.Handle // in the host's namespace, one for each pod: a handle takes one request at a time
}

func newFloor(trivial string, pods []*pod, host *space) (*floor, error) {
	f := &floor{trivial: trivial, pods: pods}
	for range pods {
		h, err := netlink.NewHandleAt(host.fd, unix.NETLINK_ROUTE)
		if err != nil {
			return nil, err
		}
		f.node = append(f.node, h)
	}
	return f, nil
}

func (f *floor) name() string { return floorName }

func (f *floor) start(ctx context.Context) error {
	if out, err := execute(ctx, f.trivial, "{}", "CNI_COMMAND=NONE"); err != nil {
		return fmt.Errorf("%s: %w: %s", f.trivial, err, out)
	}
	return nil
}

var (
	hostMask = net.CIDRMask(32, 32)
	gateway  = &net.IPNet{IP: net.IPv4(169, 254, 1, 1).To4(), Mask: hostMask}
)

// address is the pod's: of the range that RFC 2544 sets aside for benchmarks.
func (f *floor) address(pod int) *net.IPNet {
	return &net.IPNet{IP: net.IPv4(198, 19, byte(pod>>8), byte(pod)).To4(), Mask: hostMask}
}

func hostVeth(pod int) string { return fmt.Sprintf("floor%d", pod) }

func (f *floor) add(ctx context.Context, pod int) error {
	if err := f.start(ctx); err != nil {
		return err
	}
	if err := f.plumb(f.node[pod], f.pods[pod].inner, pod); err != nil {
		return fmt.Errorf("floor ADD %s: %w", f.pods[pod].name, err)
	}
	return nil
}

func (f *floor) plumb(node, inner *netlink.Handle, pod int) error {
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: ifName, PeerNamespace: netlink.NsFd(f.pods[pod].fd)}
	veth.Name, veth.MTU = hostVeth(pod), 1500
	if err := node.LinkAdd(veth); err != nil {
		return err
	}
	if err := node.LinkSetUp(veth); err != nil {
		return err
	}
	eth0, err := inner.LinkByName(ifName)
	if err != nil {
		return err
	}
	if err := inner.LinkSetUp(eth0); err != nil {
		return err
	}
	address, index := f.address(pod), eth0.Attrs().Index
	if err := inner.AddrAdd(eth0, &netlink.Addr{IPNet: address}); err != nil {
		return err
	}
	if err := inner.RouteAdd(&netlink.Route{LinkIndex: index, Dst: gateway, Scope: unix.RT_SCOPE_LINK}); err != nil {
		return err
	}
	if err := inner.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gateway.IP}); err != nil {
		return err
	}
	return node.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Dst: address, Scope: unix.RT_SCOPE_LINK})
}

func (f *floor) del(ctx context.Context, pod int) error {
	if err := f.start(ctx); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostVeth(pod)}}
	if err := f.node[pod].LinkDel(veth); err != nil {
		return fmt.Errorf("floor DEL %s: %w", f.pods[pod].name, err)
	}
	return nil
}
