// Package tunnel keeps the node's tunnel devices, hop.ipip and hop.vxlan: what
// docs/tunnels.md says of devices, in the kernel.
//
// Each is one device for all other nodes, not one for each of them. Where a
// packet goes is the route's word: `via <node address> dev hop.ipip onlink`
// is all that IPIP needs; VXLAN also needs, of each node, a neighbour (next hop
// to MAC) and an FDB entry (MAC to underlay address), both permanent. The MAC is
// made from the node's address, so nobody has to tell it to anyone, and nothing
// is ever learned from packets.
//
// The devices are ours alone: what is on them and not wanted is removed. Ours
// is what bears our name and is of our type. A device of our name and another
// type is someone else's, reported and left alone; so is tunl0, which appears
// when the kernel's ipip module is loaded.
//
// A device that is not as it should be is changed in place where the kernel
// can, so that its index, and with it the routes, stay; else it is made anew.
//
// Everything that can be on the device is compared with each Sync, which takes
// two messages a device; neighbours and FDB entries, which are as many as nodes,
// are listed once, and after that when the kernel tells of a change that was not
// ours.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hoplite-net/hoplite/agent/internal/home"
	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
	"github.com/hoplite-net/hoplite/bgp"
)

var (
	// ErrUnsupported means that this kernel has no devices of the type.
	ErrUnsupported = errors.New("this kernel has no such tunnel devices")
	// ErrForeign means that the device's name is taken by one that is not ours.
	ErrForeign = errors.New("the name is taken by a device that is not Hoplite's, which is left alone")
)

// Desired is what there shall be.
type Desired struct {
	// Kinds are the devices.
	Kinds bgp.Encapsulations
	// Local is the node's address. Outer packets are of its family.
	Local netip.Addr
	// UplinkMTU is that of the device with Local, in bytes. 0: leave MTUs alone.
	UplinkMTU int
	// Addrs are the node's own on the tunnels, at most one a family; each device
	// gets all. Connections of the host itself to remote pods come from them.
	Addrs []netip.Addr
	// Peers are the other nodes.
	Peers []Peer
}

// Peer is another node.
type Peer struct {
	// Underlay is its address of Local's family; invalid if it has none and
	// cannot be reached through a tunnel.
	Underlay netip.Addr
	// NextHops are what routes name as the way to it, of both families: Gateway of
	// each of BGP's next hops that is this node.
	NextHops []netip.Addr
}

// Device is how a tunnel device is.
type Device struct {
	Kind  bgp.Encapsulation
	Name  string
	Index int // 0: there is none
	MTU   int // bytes
	Up    bool
	// Err is what is wrong with it, nil if it is as wanted. It wraps
	// ErrUnsupported, ErrForeign or the kernel's error number.
	Err error
}

// Config is what Devices are made from. The zero value is the product's.
type Config struct {
	Log *slog.Logger // nil: slog.Default
	// VXLANChecksumOffload leaves checksums of what goes through hop.vxlan to the
	// uplink's hardware. Without it they are made before: some combinations of
	// kernel and network card get them wrong in packets that were also translated.
	VXLANChecksumOffload bool
	Audit                time.Duration // between full comparisons in Run, ±20 %; 0: 5 minutes
	Now                  func() time.Time
}

// Devices are the node's tunnel devices. Methods may be called from several
// goroutines; those that take a context talk to the kernel, one at a time, the
// others return at once.
type Devices struct {
	log     *slog.Logger
	offload bool
	every   time.Duration
	now     func() time.Time
	kick    chan struct{}
	changed chan struct{}

	ns       *home.Namespace
	listener *listener
	diag     *diag

	// writing is held by whoever talks to the kernel; taken before mu.
	writing sync.Mutex
	conn    *rtnl.Conn
	features

	mu      sync.Mutex
	desired *Desired // nil before the first Sync
	devices map[bgp.Encapsulation]*device
	entries entries  // of hop.vxlan
	shown   []Device // what State returns
}

// device is what is known of one.
type device struct {
	Device
	addrs  []netip.Addr
	serves bool // it can send and decapsulate
	// refused is when the kernel last said that it has no such devices.
	refused time.Time
}

// New opens what it takes to talk to the kernel, in the network namespace of the
// calling thread. Nothing is read or changed before Load, Sync or Run.
func New(c Config) (*Devices, error) {
	d := &Devices{
		log: c.Log, offload: c.VXLANChecksumOffload, every: c.Audit, now: c.Now,
		kick:    make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
		devices: make(map[bgp.Encapsulation]*device),
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	if d.every == 0 {
		d.every = 5 * time.Minute
	}
	if d.now == nil {
		d.now = time.Now
	}
	for kind := range bgp.Tunnels.All() {
		d.devices[kind] = &device{Device: Device{Kind: kind, Name: Name(kind)}}
	}
	if err := d.open(); err != nil {
		d.Close()
		return nil, fmt.Errorf("open what manages tunnel devices: %w", err)
	}
	return d, nil
}

func (d *Devices) open() (err error) {
	if d.ns, err = home.Open(); err != nil {
		return err
	}
	if d.conn, err = rtnl.Dial(); err != nil {
		return err
	}
	if d.features, err = openFeatures(); err != nil {
		return err
	}
	if d.diag, err = openDiag(); err != nil {
		return err
	}
	d.listener, err = listen(d.conn.PortID())
	return err
}

// Close frees what New opened; Run must have returned. The devices stay.
func (d *Devices) Close() {
	d.writing.Lock()
	defer d.writing.Unlock()
	if d.listener != nil {
		d.listener.close()
	}
	if d.diag != nil {
		d.diag.close()
	}
	d.features.close()
	if d.conn != nil {
		_ = d.conn.Close()
	}
	if d.ns != nil {
		d.ns.Close()
	}
}

// PortID is the netlink port of this package's own writes, for whoever
// subscribes to notifications to ignore.
func (d *Devices) PortID() uint32 { return d.conn.PortID() }

// Addrs are the addresses on the devices, in order: after Load, what the agent
// before this one had given them.
func (d *Devices) Addrs() []netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []netip.Addr
	for _, dev := range d.devices {
		all = append(all, dev.addrs...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// State is how each device is that is wanted or present.
func (d *Devices) State() []Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.shown)
}

// Ready are the kinds that can send and decapsulate now: their device is there
// and up.
func (d *Devices) Ready() bgp.Encapsulations {
	d.mu.Lock()
	defer d.mu.Unlock()
	var kinds []bgp.Encapsulation
	for kind, dev := range d.devices {
		if dev.serves {
			kinds = append(kinds, kind)
		}
	}
	return bgp.EncapsulationsOf(kinds...)
}

// Changed receives when State, Addrs or Ready may have changed. A device that
// was made anew has another index, which routes must follow.
func (d *Devices) Changed() <-chan struct{} { return d.changed }

// Load reads what there is: to be called once, before Sync and Run.
func (d *Devices) Load(ctx context.Context) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	var failures []error
	for kind := range bgp.Tunnels.All() {
		l, err := d.ours(kind)
		if errors.Is(err, ErrForeign) {
			continue // it concerns nobody until one of the name is wanted
		}
		f := found{link: l, serves: l.up}
		if err == nil && l.index != 0 {
			f.addrs, err = d.listAddrs(ctx, l.index)
		}
		if err == nil && kind == bgp.VXLAN {
			err = d.adopt(l.index)
		}
		d.note(kind, f, err)
		failures = append(failures, err)
	}
	d.show(bgp.EncapsulationsOf())
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("read the tunnel devices: %w", err)
	}
	return nil
}

// found is what was found of a device, or what has been made of it.
type found struct {
	link
	serves bool
	addrs  []netip.Prefix
}

// note keeps it. What could not be asked about is believed to be as it was.
func (d *Devices) note(kind bgp.Encapsulation, f found, err error) {
	if f.index == 0 && errors.Is(err, errNoAnswer) {
		d.fail(kind, err)
		return
	}
	var addrs []netip.Addr
	for _, p := range f.addrs {
		if !p.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, p.Addr())
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	dev := d.devices[kind]
	if addrs == nil && f.index != 0 && err != nil {
		addrs = dev.addrs
	}
	if dev.serves != f.serves || !slices.Equal(dev.addrs, addrs) {
		signal(d.changed)
	}
	dev.Index, dev.MTU, dev.Up, dev.Err = f.index, f.mtu, f.up, err
	dev.serves, dev.addrs = f.serves, addrs
}

// fail keeps only that it is not as wanted.
func (d *Devices) fail(kind bgp.Encapsulation, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.devices[kind].Err = err
}

// show makes what is known public.
func (d *Devices) show(wanted bgp.Encapsulations) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var next []Device
	for kind := range bgp.Tunnels.All() {
		if dev := d.devices[kind]; dev.Index != 0 || wanted.Has(kind) {
			next = append(next, dev.Device)
		}
	}
	if !slices.EqualFunc(next, d.shown, Device.equal) {
		signal(d.changed)
	}
	d.shown = next
}

func (d Device) equal(other Device) bool {
	return d.Kind == other.Kind && d.Index == other.Index && d.MTU == other.MTU && d.Up == other.Up &&
		fmt.Sprint(d.Err) == fmt.Sprint(other.Err)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
