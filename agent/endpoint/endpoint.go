// Package endpoint plumbs pods: a veth pair, its addresses and its routes.
//
// On the node, an unnumbered veth "hop<hash>" with a fixed MAC, which answers
// ARP for everything at once (proxy_arp=1, proxy_delay=0), and a /32 (/128)
// route to each of the pod's addresses, bearing Hoplite's protocol number. In
// the pod, eth0 with the addresses, and a default route by way of 169.254.1.1
// (IPv6: the host veth's link-local address), which no interface has: the host
// veth's MAC is all that matters of it.
//
// The kernel is the database. The host veth's alias says whose it is; List
// reads everything back, and no file can disagree with it. Nothing is global:
// work on one attachment waits only for work on the same one, and neither Add
// nor Del lists links or routes.
//
// The MTU is the node's, and follows it while pods run (SetMTU).
//
// Deleting a veth costs the kernel a synchronize_net, some 20 ms, but deleting
// many costs one, too. So Del takes the routes away and puts the veth in a link
// group of its own, and Run deletes that group. Whatever could meet such a veth
// (an Add for the same namespace, key or address) first waits for its deletion.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
)

const (
	// Group is the link group of the veths that wait for deletion: "hop".
	Group = 0x686f70
	// HostMAC is every host veth's: the pods' neighbour entries outlive anything.
	HostMAC = "ee:ee:ee:ee:ee:ee"
)

var (
	hostMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

	// Gateway4 and Gateway6 are what pods route by. Gateway6 is HostMAC's
	// EUI-64 link-local address (RFC 4291 appendix A).
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.MustParseAddr("fe80::ecee:eeff:feee:eeee")
)

var (
	// ErrExists: the interface exists in the namespace, or the key is plumbed.
	ErrExists = errors.New("the interface exists already")
	// ErrDiffers: Check found the kernel different from what was expected.
	ErrDiffers = errors.New("the attachment is not as it was made")
)

// Key is an attachment as CNI knows it.
type Key struct{ ContainerID, IfName string }

func (k Key) String() string { return k.ContainerID + "/" + k.IfName }

// Pod is Kubernetes' name for it, empty outside Kubernetes. One read back from
// the kernel may have its Name cut short, ending in "~".
type Pod struct{ Namespace, Name string }

// Endpoint is a plumbed attachment.
type Endpoint struct {
	Key
	Pod   Pod
	Addrs []netip.Addr
	// HostIf and HostIndex are the host veth's name and index.
	HostIf    string
	HostIndex int
	// MTU is that of the host's end, and of the pod's if the pod left it alone.
	MTU int
	// Pinned: the CNI configuration gave the MTU, SetMTU only lowers it.
	Pinned bool
	// Netns is the path of the pod's namespace, empty when it is not known.
	Netns string

	ns nsID
}

// Spec says what to plumb.
type Spec struct {
	Key
	Pod Pod
	// Netns is the path of the pod's namespace.
	Netns string
	// Addrs are the pod's, of either family or both.
	Addrs []netip.Addr
	// MTU in bytes. A pinned one is what the CNI configuration asks for: the pod
	// gets it unless the node's is less. One that is not counts only until SetMTU
	// has said what the node's is; 0 is then the kernel's default.
	MTU    int
	Pinned bool
}

// Route is one of a pod's routes. Gateway is the zero Addr for an on-link one.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr
}

// Result is what was plumbed, as a CNI result tells it.
type Result struct {
	HostName     string
	HostIndex    int
	HostMAC      string
	ContainerMAC string
	MTU          int
	// Gateways are one per address, in the order of Spec.Addrs.
	Gateways []netip.Addr
	Routes   []Route
}

// Config is what a Plumber needs to know.
type Config struct {
	// Protocol is the number that Hoplite's routes bear (agent/route.Protocol).
	Protocol int
	// NetnsDirs are where List looks for the namespaces of pods that it finds;
	// nil means where container runtimes keep them.
	NetnsDirs []string
	// Log defaults to slog.Default().
	Log *slog.Logger
}

// Plumber plumbs the pods of one node: of the network namespace that New was
// called in. Its methods may be called from any goroutine.
type Plumber struct {
	protocol byte
	dirs     []string
	log      *slog.Logger

	home    *netns
	sockets sockets
	locks   keyLocks
	table   table
	morgue  morgue
	mtu     atomic.Int64            // the node's pods'; 0: SetMTU has not been called
	fail    func(what string) error // tests: see rtnl.fail
}

// New makes a Plumber, and deletes the veths that an earlier one had taken out
// of service without deleting them.
func New(cfg Config) (*Plumber, error) {
	if cfg.Protocol < 5 || cfg.Protocol > 255 {
		return nil, fmt.Errorf("route protocol %d: must be 5 to 255", cfg.Protocol)
	}
	home, err := openNetns("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	p := &Plumber{protocol: byte(cfg.Protocol), dirs: cfg.NetnsDirs, log: cfg.Log, home: home}
	if p.dirs == nil {
		p.dirs = []string{"/run/netns", "/run/docker/netns"}
	}
	if p.log == nil {
		p.log = slog.Default()
	}
	p.sockets.open = func() (*rtnl, error) { return p.open(home) }
	p.locks.init()
	p.table.init()
	p.morgue.init()
	if err := p.sockets.exchange(delGroup(Group)); err != nil {
		p.Close()
		return nil, fmt.Errorf("delete what an earlier agent left: %w", err)
	}
	return p, nil
}

// open opens a socket in ns.
func (p *Plumber) open(ns *netns) (*rtnl, error) {
	c, err := ns.rtnl()
	if err == nil {
		c.fail = p.fail
	}
	return c, err
}

// Close frees what New opened. Nothing changes in the kernel.
func (p *Plumber) Close() {
	p.sockets.close()
	_ = p.home.Close()
}

// Find is the endpoint whose host veth has this index, as a route's or link's
// notification names it.
func (p *Plumber) Find(hostIndex int) (Endpoint, bool) { return p.table.byIndex(hostIndex) }

// Known are all endpoints that Add made or List found, in no order.
func (p *Plumber) Known() []Endpoint { return p.table.all() }

func (s Spec) validate() error {
	if err := s.Key.validate(); err != nil {
		return err
	}
	if err := s.Pod.validate(); err != nil {
		return err
	}
	if len(s.Addrs) == 0 {
		return fmt.Errorf("no address for %s", s.Key)
	}
	for _, a := range s.Addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return fmt.Errorf("address %s: not one a pod can have", a)
		}
	}
	if s.MTU < 0 || s.MTU > maxMTU {
		return fmt.Errorf("MTU %d: must be 0 (the node's) to %d", s.MTU, maxMTU)
	}
	return nil
}

// families says which address families addrs have.
func families(addrs []netip.Addr) (v4, v6 bool) {
	for _, a := range addrs {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return v4, v6
}

// gateway is what a pod with this address routes by.
func gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return Gateway4
	}
	return Gateway6
}

// routes are a pod's, in the order they must be made.
func routes(addrs []netip.Addr) []Route {
	var rs []Route
	v4, v6 := families(addrs)
	if v4 {
		rs = append(rs, Route{Dst: host(Gateway4)}, Route{netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway4})
	}
	if v6 {
		rs = append(rs, Route{netip.PrefixFrom(netip.IPv6Unspecified(), 0), Gateway6})
	}
	return rs
}

// lock takes the attachment's lock.
func (p *Plumber) lock(ctx context.Context, k Key) (unlock func(), err error) {
	if unlock, err = p.locks.lock(ctx, k); err != nil {
		return nil, fmt.Errorf("wait for earlier work on %s: %w", k, err)
	}
	return unlock, nil
}
