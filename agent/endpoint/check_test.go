package endpoint

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// inPod has the pod's handle and eth0.
func (x *site) inPod(t *testing.T) (*netlink.Handle, netlink.Link) {
	t.Helper()
	h := x.pod.Handle(t)
	l, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return h, l
}

func TestCheckSeesWhatAPodLost(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*testing.T, *site) error
		says string
	}{
		"address": {func(t *testing.T, x *site) error {
			h, l := x.inPod(t)
			a, _ := netlink.ParseAddr("10.244.0.5/32")
			return h.AddrDel(l, a)
		}, "address 10.244.0.5 is missing on eth0"},
		"IPv6 address": {func(t *testing.T, x *site) error {
			h, l := x.inPod(t)
			a, _ := netlink.ParseAddr("fd00:10::5/128")
			return h.AddrDel(l, a)
		}, "address fd00:10::5 is missing on eth0"},
		"default route": {func(t *testing.T, x *site) error {
			h, l := x.inPod(t)
			return h.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IP(Gateway4.AsSlice())})
		}, "route 0.0.0.0/0 via 169.254.1.1 dev eth0 is missing"},
		"IPv6 default route": {func(t *testing.T, x *site) error {
			h, l := x.inPod(t)
			return h.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IP(Gateway6.AsSlice())})
		}, "route ::/0 via fe80::ecee:eeff:feee:eeee dev eth0 is missing"},
		"up": {func(t *testing.T, x *site) error {
			h, l := x.inPod(t)
			return h.LinkSetDown(l)
		}, "interface eth0 in"},
		"name": {func(t *testing.T, x *site) error {
			h, l := x.inPod(t)
			return errors.Join(h.LinkSetDown(l), h.LinkSetName(l, "eth9"))
		}, "interface eth0 is missing"},
		"MAC": {func(t *testing.T, x *site) error {
			h, l := x.inPod(t)
			return h.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 0, 0, 1})
		}, "has MAC 02:00:00:00:00:01"},
		"namespace": {func(t *testing.T, x *site) error { x.pod.Remove(t); return nil }, ErrNetnsGone.Error()},
		"all (Del)": {func(t *testing.T, x *site) error { mustDel(t, x.p, x.s.Key); return nil }, "was deleted"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newSite(t)
			if err := c.do(t, x); err != nil {
				t.Fatal(err)
			}
			if err := x.check(t); !errors.Is(err, ErrDiffers) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Check: %v, want %q", err, c.says)
			}
		})
	}
}

// Plugins that come later in the list may do this.
func TestCheckToleratesWhatLaterPluginsChange(t *testing.T) {
	x := newSite(t)
	h, l := x.inPod(t)
	extra, _ := netlink.ParseAddr("192.0.2.7/32")
	_, dst, _ := net.ParseCIDR("198.51.100.0/24")
	tbf := &netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: x.link.Attrs().Index, Handle: netlink.MakeHandle(1, 0),
		Parent: netlink.HANDLE_ROOT}, Rate: 1 << 20, Limit: 1 << 20, Buffer: 1 << 15}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	steps := map[string]error{
		"address": h.AddrAdd(l, extra),
		"route":   h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.IP(Gateway4.AsSlice())}),
		"MTU":     errors.Join(h.LinkSetMTU(l, 1400), x.h.LinkSetMTU(x.link, 1400)),
		"MAC":     h.LinkSetHardwareAddr(l, mac),
	}
	if err := x.h.QdiscAdd(tbf); err != nil {
		t.Logf("without a queueing discipline: %v", err)
	}
	for what, err := range steps {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	err := x.p.Check(t.Context(), Expected{Key: x.s.Key, Netns: x.s.Netns, Addrs: x.s.Addrs,
		HostName: x.link.Attrs().Name, HostMAC: HostMAC, ContainerMAC: mac.String()})
	if err != nil {
		t.Error(err)
	}
}

func TestCheckOfTheNeverMade(t *testing.T) {
	nstest.Require(t)
	p, pod := newPlumber(t, newNode(t)), nstest.New(t)
	s := newSpec(pod, "10.244.0.5")
	err := p.Check(t.Context(), Expected{Key: s.Key, Netns: s.Netns, Addrs: s.Addrs})
	if !errors.Is(err, ErrDiffers) || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("Check: %v", err)
	}
}
