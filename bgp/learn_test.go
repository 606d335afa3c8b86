package bgp

import (
	"context"
	"io"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// BenchmarkLearn measures from the first byte of the UPDATEs until every prefix has been looked up, the way an agent
// follows the changes.
func BenchmarkLearn(b *testing.B) {
	for _, c := range []struct {
		name       string
		count, per int
		told       []gobgp.ExtendedCommunityInterface
	}{
		{"1k", 1000, 800, nil}, {"10k", 10000, 800, nil}, {"100k", 100000, 800, nil},
		{"100k-told", 100000, 800, communities(Tunnels, settled)}, {"100k-one-each", 100000, 1, nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				benchmarkLearn(b, c.count, c.per, c.told)
			}
		})
	}
}

func benchmarkLearn(b *testing.B, count, per int, told []gobgp.ExtendedCommunityInterface) {
	b.StopTimer()
	local, peer := netip.MustParseAddr("127.99.0.1"), netip.MustParseAddr("127.99.0.2")
	s := New(Config{ASN: testASN, RouterID: local, ListenPort: 10179, ListenAddresses: []netip.Addr{local}})
	s.SetImport(Import{Within: pools("20.0.0.0/8"), Except: pfx("20.250.0.0/26")})
	if err := s.Start(context.Background()); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := s.Stop(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	if err := s.SetPeers(context.Background(), []Peer{{
		Address: peer, ASN: testASN, Type: NodeMesh, LocalAddress: local, HoldTime: time.Minute,
	}}); err != nil {
		b.Fatal(err)
	}
	updates := hostRoutes(b, peer, count, per, told)
	p := openRaw(b, peer, netip.AddrPortFrom(local, 10179), 60)
	p.keepAlive()

	before, busy := heap(), cpu()
	b.StartTimer()
	start := time.Now()
	go func() {
		for _, u := range updates {
			if _, err := p.Write(u); err != nil {
				return
			}
		}
	}()
	found := 0
	for found < count {
		<-s.Changes()
		routes, err := s.LookupAll(s.TakeDirty())
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range routes {
			if r.Exists() {
				found++
			}
		}
	}
	took := time.Since(start)
	b.StopTimer()
	b.ReportMetric(float64(count)/took.Seconds(), "prefixes/s")
	b.ReportMetric((cpu() - busy).Seconds(), "cpu-s")
	b.ReportMetric(float64(heap()-before)/float64(count), "B/route")
}

// BenchmarkChoose is what a look-up costs on our side of GoBGP, for one path.
func BenchmarkChoose(b *testing.B) {
	peer := netip.MustParseAddr("192.0.2.1")
	s := New(Config{ASN: testASN})
	v := &view{
		mesh:  newImportPolicy(Import{Within: []Pool{{pfx("10.0.0.0/8")[0], 26}}, Except: pfx("10.250.0.0/26")}),
		types: map[netip.Addr]PeerType{peer: NodeMesh},
	}
	nh, _ := gobgp.NewPathAttributeNextHop(peer)
	attrs := []gobgp.PathAttributeInterface{gobgp.NewPathAttributeOrigin(0), nh, gobgp.NewPathAttributeLocalPref(100)}
	told := gobgp.NewPathAttributeExtendedCommunities(communities(Tunnels, settled))
	for name, attrs := range map[string][]gobgp.PathAttributeInterface{"plain": attrs, "told": append(attrs, told)} {
		paths := []*apiutil.Path{{PeerAddress: peer, PeerASN: testASN, Attrs: attrs}}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !s.choose(v, pfxChosen, paths).Exists() {
					b.Fatal("no route")
				}
			}
		})
	}
}

var pfxChosen = netip.MustParsePrefix("10.1.0.0/26")

// heap is how much is in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// cpu is the processor time used so far, which does not depend on what else the machine does.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// hostRoutes are n UPDATEs' bytes that announce count /32 prefixes from 20.0.0.0 on, per of them in each, all of which
// tell the same.
func hostRoutes(
	tb testing.TB, hop netip.Addr, count, per int, told []gobgp.ExtendedCommunityInterface,
) (updates [][]byte) {
	nh, err := gobgp.NewPathAttributeNextHop(hop)
	if err != nil {
		tb.Fatal(err)
	}
	attrs := []gobgp.PathAttributeInterface{
		gobgp.NewPathAttributeOrigin(0), gobgp.NewPathAttributeAsPath(nil), nh, gobgp.NewPathAttributeLocalPref(100),
	}
	if len(told) > 0 {
		attrs = append(attrs, gobgp.NewPathAttributeExtendedCommunities(told))
	}
	var nlri []gobgp.PathNLRI
	for i := range count {
		a := netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)})
		n, _ := gobgp.NewIPAddrPrefix(netip.PrefixFrom(a, 32))
		if nlri = append(nlri, gobgp.PathNLRI{NLRI: n}); len(nlri) == per || i == count-1 {
			b, err := gobgp.NewBGPUpdateMessage(nil, attrs, nlri).Serialize()
			if err != nil {
				tb.Fatal(err)
			}
			updates, nlri = append(updates, b), nil
		}
	}
	return updates
}

// keepAlive holds the session up and throws away what comes in.
func (p *rawPeer) keepAlive() {
	go func() { _, _ = io.Copy(io.Discard, p) }()
	go func() {
		for p.send(gobgp.NewBGPKeepAliveMessage()) == nil {
			time.Sleep(time.Second)
		}
	}()
}
