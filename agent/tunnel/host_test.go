package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/agent/watch"
	"github.com/hoplite-net/hoplite/bgp"
)

// host is a network namespace.
type host struct {
	t  testing.TB
	ns *nstest.NS
}

// newHost has an uplink up0 of 1,500 bytes that leads nowhere, with 192.0.2.1/24
// and 2001:db8::1/64.
func newHost(t testing.TB) *host {
	t.Helper()
	nstest.Require(t)
	h := &host{t, nstest.New(t)}
	h.ip("link add up0 type veth peer name far0", "link set far0 up", "link set up0 up",
		"addr add 192.0.2.1/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad")
	return h
}

// ip runs commands of ip(8), in one process, and returns what they print.
func (h *host) ip(commands ...string) string {
	h.t.Helper()
	return h.run(strings.Join(commands, "\n")+"\n", "ip", "-batch", "-")
}

func (h *host) run(input, name string, args ...string) string {
	h.t.Helper()
	out, err := h.try(input, name, args...)
	if err != nil {
		h.t.Fatalf("%s %v %s: %v\n%s", name, args, input, err, out)
	}
	return out
}

func (h *host) try(input, name string, args ...string) (string, error) {
	h.t.Helper()
	var out []byte
	var err error
	h.ns.Do(h.t, func() {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err = cmd.CombinedOutput()
	})
	return string(out), err
}

func (h *host) devices() *Devices {
	h.t.Helper()
	return h.devicesWith(Config{})
}

func (h *host) devicesWith(c Config) *Devices {
	h.t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	var d *Devices
	var err error
	h.ns.Do(h.t, func() { d, err = New(c) })
	must(h.t, err)
	h.t.Cleanup(d.Close)
	return d
}

// start runs d with a watcher, as the agent does.
func (h *host) start(d *Devices) {
	h.t.Helper()
	var w *watch.Watcher
	var err error
	h.ns.Do(h.t, func() { w, err = watch.New(watch.Config{IgnorePorts: []uint32{d.PortID()}}) })
	must(h.t, err)
	w.Listen(watch.Listener{Link: d.LinkEvent, Addr: d.AddrEvent, Netconf: d.NetconfEvent, Overrun: d.RequestAudit})
	must(h.t, d.Load(h.t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.Run(ctx) })
	running.Go(func() { _ = d.Run(ctx) })
	h.t.Cleanup(func() { cancel(); running.Wait() })
}

// view is all there is to see of the tunnel devices, as ip(8) and bridge(8) word
// it, without indexes and counters.
func (h *host) view() string {
	h.t.Helper()
	var all []string
	for kind := range bgp.Tunnels.All() {
		name := Name(kind)
		// Each may fail: the device may go at any time.
		show := func(program string, args ...string) {
			out, _ := h.try("", program, args...)
			all = append(all, lines(out)...)
		}
		if _, err := h.try("", "ip", "link", "show", name); err != nil {
			continue
		}
		show("ip", "-d", "-o", "link", "show", name)
		show("ip", "-o", "addr", "show", name)
		show("ip", "neigh", "show", "dev", name, "nud", "permanent")
		show("bridge", "fdb", "show", "dev", name)
		for _, setting := range []string{"ipv4/conf/%s/rp_filter", "ipv4/conf/%s/forwarding", "ipv6/conf/%s/accept_ra", "ipv6/conf/%s/disable_ipv6"} {
			setting = fmt.Sprintf("net/"+setting, name)
			value, _ := h.try("", "cat", "/proc/sys/"+setting)
			all = append(all, setting+"="+strings.TrimSpace(value))
		}
	}
	return strings.Join(all, "\n")
}

func lines(s string) []string {
	var all []string
	for line := range strings.Lines(s) {
		// A device's and an address's line start with the device's index.
		_, after, ok := strings.Cut(line, ": ")
		if !ok {
			after = line
		}
		all = append(all, strings.TrimSpace(after))
	}
	slices.Sort(all)
	return all
}

// eventually waits for want, as long as repairs are promised to take.
func (h *host) eventually(what string, done func() bool) {
	h.t.Helper()
	for end := time.Now().Add(time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("a second later: no %s:\n%s", what, h.view())
		}
	}
}

func (h *host) contains(want ...string) {
	h.t.Helper()
	view := h.view()
	for _, w := range want {
		if !strings.Contains(view, w) {
			h.t.Errorf("no %q in:\n%s", w, view)
		}
	}
}

func (h *host) lacks(unwanted ...string) {
	h.t.Helper()
	view := h.view()
	for _, u := range unwanted {
		if strings.Contains(view, u) {
			h.t.Errorf("%q is in:\n%s", u, view)
		}
	}
}

func (h *host) index(device string) int {
	h.t.Helper()
	link, err := h.ns.Handle(h.t).LinkByName(device)
	must(h.t, err)
	return link.Attrs().Index
}

// checksumOffload asks the kernel as ethtool -k does.
func (h *host) checksumOffload(device string) bool {
	h.t.Helper()
	var f features
	var err error
	h.ns.Do(h.t, func() { f, err = openFeatures() })
	must(h.t, err)
	defer f.close()
	value, err := f.ethtool(device, unix.ETHTOOL_GTXCSUM, 7)
	must(h.t, err)
	if value > 1 {
		h.t.Fatalf("%s has no checksum offload to switch", device)
	}
	return value == 1
}

// unchanged fails if f changes anything, be it for a moment.
func (h *host) unchanged(f func()) {
	h.t.Helper()
	before := h.view()
	if told := h.told(f); len(told) > 0 {
		h.t.Errorf("notifications of types %v", told)
	}
	if after := h.view(); after != before {
		h.t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func contextWithDeadline(t *testing.T, at time.Time) (context.Context, context.CancelFunc) {
	return context.WithDeadline(t.Context(), at)
}

// told are the kernel's notifications, of anything, in the time that f takes.
func (h *host) told(f func()) []uint16 {
	h.t.Helper()
	var fd int
	var err error
	h.ns.Do(h.t, func() { fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE) })
	must(h.t, err)
	defer unix.Close(fd)
	must(h.t, unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	for _, group := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_IPV6_IFINFO,
	} {
		must(h.t, unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
	}
	f()
	// The kernel tells within the system call that changes something.
	var types []uint16
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EAGAIN {
			return types
		}
		must(h.t, err)
		types = append(types, order.Uint16(buf[:n][4:]))
	}
}

// two is what most tests want: both addresses, two peers with one, one without
// an underlay address.
func two() Desired {
	return Desired{
		Kinds:     bgp.EncapsulationsOf(bgp.VXLAN),
		Local:     netip.MustParseAddr("192.0.2.1"),
		UplinkMTU: 1500,
		Addrs:     addrs("10.244.0.1", "fd00:1::1"),
		Peers: []Peer{
			{Underlay: netip.MustParseAddr("192.0.2.2"), NextHops: addrs("192.0.2.2", "2001:db8::2")},
			{Underlay: netip.MustParseAddr("192.0.2.3"), NextHops: addrs("192.0.2.3")},
			{NextHops: addrs("2001:db8::4")},
		},
	}
}

func addrs(list ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range list {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
