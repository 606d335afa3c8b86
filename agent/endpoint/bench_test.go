package endpoint

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// The floor is what the kernel's work costs when done with nothing around it:
// the veth with its peer in place, address, routes, up, by vishvananda/netlink
// as any CNI plugin does it, sockets opened once, no alias, no settings.
type floor struct {
	node *netlink.Handle
	pods []*netlink.Handle
	fds  []vnetns.NsHandle
}

func newFloor(b *testing.B, node *nstest.NS, pods []*nstest.NS) *floor {
	f := &floor{node: node.Handle(b)}
	for _, pod := range pods {
		f.pods = append(f.pods, pod.Handle(b))
		fd, err := vnetns.GetFromPath(pod.Path)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { fd.Close() })
		f.fds = append(f.fds, fd)
	}
	return f
}

func (f *floor) add(i int, addr netip.Addr) error {
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(f.fds[i])}
	veth.Name, veth.MTU = fmt.Sprintf("floor%d", i), 1450
	if err := f.node.LinkAdd(veth); err != nil {
		return err
	}
	if err := f.node.LinkSetUp(veth); err != nil {
		return err
	}
	eth0, err := f.pods[i].LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := f.pods[i].LinkSetUp(eth0); err != nil {
		return err
	}
	ip := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
	if err := f.pods[i].AddrAdd(eth0, &netlink.Addr{IPNet: ip}); err != nil {
		return err
	}
	gw := &net.IPNet{IP: net.IPv4(169, 254, 1, 1).To4(), Mask: net.CIDRMask(32, 32)}
	index := eth0.Attrs().Index
	if err := f.pods[i].RouteAdd(&netlink.Route{LinkIndex: index, Dst: gw, Scope: unix.RT_SCOPE_LINK}); err != nil {
		return err
	}
	if err := f.pods[i].RouteAdd(&netlink.Route{LinkIndex: index, Gw: gw.IP}); err != nil {
		return err
	}
	return f.node.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Dst: ip, Scope: unix.RT_SCOPE_LINK})
}

// pods are so many that what is deleted in between is a batch.
const benchPods = 64

type bench struct {
	node  *nstest.NS
	p     *Plumber
	specs []Spec
	floor *floor
}

func newBench(b *testing.B, v6 bool) *bench {
	nstest.Require(b)
	x := &bench{node: newNode(b)}
	x.p = newPlumber(b, x.node)
	var pods []*nstest.NS
	for i := range benchPods {
		pods = append(pods, nstest.New(b))
		addrs := []string{fmt.Sprintf("10.244.0.%d", i)}
		if v6 {
			addrs = append(addrs, fmt.Sprintf("fd00:10::%x", i+1))
		}
		x.specs = append(x.specs, newSpec(pods[i], addrs...))
	}
	x.floor = newFloor(b, x.node, pods)
	return x
}

// clear deletes all veths, the floor's, too.
func (x *bench) clear(b *testing.B) {
	for _, s := range x.specs {
		mustDel(b, x.p, s.Key)
	}
	mustFlush(b, x.p)
	for i := range x.specs {
		if l, err := x.floor.node.LinkByName(fmt.Sprintf("floor%d", i)); err == nil {
			if err := x.floor.node.LinkSetGroup(l, Group); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := x.p.sockets.exchange(delGroup(Group)); err != nil {
		b.Fatal(err)
	}
}

// each calls f b.N times, from so many goroutines, with the index of a pod that
// no other call has since the last between.
func each(b *testing.B, parallel int, f func(i int) error, between func()) {
	took := make([]time.Duration, b.N)
	b.ResetTimer()
	for done := 0; done < b.N; {
		batch := min(benchPods, b.N-done)
		var next atomic.Int64
		var wg sync.WaitGroup
		for range parallel {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := int(next.Add(1)) - 1; i < batch; i = int(next.Add(1)) - 1 {
					start := time.Now()
					if err := f(i); err != nil {
						b.Error(err)
					}
					took[done+i] = time.Since(start)
				}
			}()
		}
		wg.Wait()
		done += batch
		b.StopTimer()
		between()
		b.StartTimer()
	}
	b.StopTimer()
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "per-s")
}

func BenchmarkAdd(b *testing.B) {
	ctx := context.Background()
	for _, parallel := range []int{1, 16} {
		b.Run(fmt.Sprintf("floor/%d", parallel), func(b *testing.B) {
			x := newBench(b, false)
			each(b, parallel, func(i int) error { return x.floor.add(i, x.specs[i].Addrs[0]) }, func() { x.clear(b) })
		})
		for _, name := range []string{"ipv4", "dual"} {
			b.Run(fmt.Sprintf("%s/%d", name, parallel), func(b *testing.B) {
				x := newBench(b, name == "dual")
				each(b, parallel, func(i int) error { _, err := x.p.Add(ctx, x.specs[i]); return err }, func() { x.clear(b) })
			})
		}
	}
}

// BenchmarkDel has the deletions at work beside it, as a node does.
func BenchmarkDel(b *testing.B) {
	for _, parallel := range []int{1, 16} {
		b.Run(fmt.Sprintf("ipv4/%d", parallel), func(b *testing.B) {
			x := newBench(b, false)
			ctx, cancel := context.WithCancel(context.Background())
			ran := make(chan error)
			go func() { ran <- x.p.Run(ctx) }()
			add := func() {
				for _, s := range x.specs {
					mustAdd(b, x.p, s)
				}
			}
			add()
			each(b, parallel, func(i int) error { _, err := x.p.Del(ctx, x.specs[i].Key); return err }, func() { x.clear(b); add() })
			cancel()
			if err := <-ran; err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkFlush is what a batch of deletions costs, out of everybody's sight.
func BenchmarkFlush(b *testing.B) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			x := newBench(b, false)
			for range b.N {
				b.StopTimer()
				for _, s := range x.specs[:n] {
					mustAdd(b, x.p, s)
					mustDel(b, x.p, s.Key)
				}
				b.StartTimer()
				mustFlush(b, x.p)
			}
		})
	}
}

// BenchmarkAddOverFloor takes turns, so that a busy machine slows both alike.
func BenchmarkAddOverFloor(b *testing.B) {
	x := newBench(b, false)
	ctx := context.Background()
	var floor, ours []time.Duration
	b.ResetTimer()
	for n := range b.N {
		i := n % (benchPods / 2)
		j := i + benchPods/2
		start := time.Now()
		if err := x.floor.add(i, x.specs[i].Addrs[0]); err != nil {
			b.Fatal(err)
		}
		middle := time.Now()
		if _, err := x.p.Add(ctx, x.specs[j]); err != nil {
			b.Fatal(err)
		}
		floor, ours = append(floor, middle.Sub(start)), append(ours, time.Since(middle))
		if j == benchPods-1 {
			b.StopTimer()
			x.clear(b)
			b.StartTimer()
		}
	}
	median := func(d []time.Duration) float64 {
		sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
		return float64(d[len(d)/2].Microseconds())
	}
	b.ReportMetric(median(floor), "floor-p50-µs")
	b.ReportMetric(median(ours), "p50-µs")
	b.ReportMetric(median(ours)/median(floor), "ratio")
	b.ReportMetric(0, "ns/op")
}
