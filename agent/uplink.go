package agent

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// uplink is the device that holds the node's address. Pods get its MTU: in
// native mode their packets travel as they are.
type uplink struct {
	name string
	mtu  int // bytes
}

func findUplink(address netip.Addr) (uplink, error) {
	if !address.IsValid() {
		return uplink{}, errors.New("this node's Node object has no InternalIP address: pods wait for one")
	}
	links, err := netlinksafe.LinkList()
	if err != nil {
		return uplink{}, fmt.Errorf("list the node's devices: %w", err)
	}
	family := netlink.FAMILY_V4
	if address.Is6() {
		family = netlink.FAMILY_V6
	}
	addrs, err := netlinksafe.AddrList(nil, family)
	if err != nil {
		return uplink{}, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || ip.Unmap() != address {
			continue
		}
		for _, link := range links {
			if link.Attrs().Index == a.LinkIndex {
				return uplink{link.Attrs().Name, link.Attrs().MTU}, nil
			}
		}
	}
	return uplink{}, fmt.Errorf("no device of this node has its address %s, which its Node object names as InternalIP: "+
		"correct the Node's address (the kubelet's --node-ip) or the device's", address)
}
