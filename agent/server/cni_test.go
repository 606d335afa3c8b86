package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/hoplite-net/hoplite/agent/endpoint"
	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/api/delqueue"
	"github.com/hoplite-net/hoplite/ipam"
)

// pool hands out 10.0.0.1, 10.0.0.2, ...; kernel is what would be plumbed. What
// is tested here is what the server does with their answers; the real ones have
// tests of their own, and all together the end-to-end tests.
type pool struct {
	mu   sync.Mutex
	next netip.Addr
	used map[netip.Addr]bool
	err  error
}

func (p *pool) Assign(context.Context, ipam.Family) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return netip.Addr{}, p.err
	}
	p.next = p.next.Next()
	p.used[p.next] = true
	return p.next, nil
}

func (p *pool) Free(a netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.used[a]
	delete(p.used, a)
	return was
}

func (p *pool) Available(ipam.Family) error { return p.err }

type kernel struct {
	mu     sync.Mutex
	pods   map[endpoint.Key]endpoint.Spec
	gone   map[string]bool // containers whose veth went with its namespace
	addErr error
	delErr map[string]error
	after  func()
	most   int // the node's MTU, if not 0
}

func (k *kernel) Add(_ context.Context, s endpoint.Spec) (endpoint.Result, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.addErr != nil {
		return endpoint.Result{}, k.addErr
	}
	k.pods[s.Key] = s
	if k.after != nil {
		k.after()
	}
	mtu := s.MTU
	if k.most > 0 && (mtu == 0 || mtu > k.most) {
		mtu = k.most
	}
	gateways := make([]netip.Addr, len(s.Addrs))
	for i := range gateways {
		gateways[i] = endpoint.Gateway4
	}
	return endpoint.Result{HostName: "hop0", HostMAC: endpoint.HostMAC, ContainerMAC: "02:00:00:00:00:01", MTU: mtu, Gateways: gateways}, nil
}

func (k *kernel) Del(_ context.Context, key endpoint.Key) ([]netip.Addr, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.delErr[key.ContainerID]; err != nil {
		return nil, err
	}
	addrs := k.pods[key].Addrs
	delete(k.pods, key)
	return addrs, nil
}

func (k *kernel) Check(context.Context, endpoint.Expected) error { return endpoint.ErrDiffers }

func (k *kernel) List(context.Context) ([]endpoint.Endpoint, error) {
	return slices.DeleteFunc(k.Known(), func(e endpoint.Endpoint) bool { return k.gone[e.ContainerID] }), nil
}

func (k *kernel) Known() (all []endpoint.Endpoint) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, s := range k.pods {
		all = append(all, endpoint.Endpoint{Key: key, Addrs: s.Addrs})
	}
	return all
}

type nobody struct{}

func (nobody) Status() *agentv1.NodeStatus                 { return &agentv1.NodeStatus{Node: "n1"} }
func (nobody) IPAM(context.Context) (*agentv1.IPAM, error) { return &agentv1.IPAM{Node: "n1"}, nil }
func (nobody) Routes(context.Context) (*agentv1.Routes, error) {
	return &agentv1.Routes{Node: "n1"}, nil
}
func (nobody) Pools(context.Context) (*agentv1.Pools, error) { return &agentv1.Pools{Node: "n1"}, nil }

type fixture struct {
	*Server
	pool   *pool
	kernel *kernel
	client agentv1.CNIClient
}

// serve runs a server on a real socket until the test ends.
func serve(t *testing.T) fixture {
	t.Helper()
	f := fixture{
		pool:   &pool{next: netip.MustParseAddr("10.0.0.0"), used: map[netip.Addr]bool{}},
		kernel: &kernel{pods: map[endpoint.Key]endpoint.Spec{}, delErr: map[string]error{}},
	}
	log := slog.New(slog.DiscardHandler)
	f.Server = New(Config{Addresses: f.pool, Endpoints: f.kernel, Node: nobody{}, Metrics: prometheus.NewRegistry(), Log: log})
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := Listen(socket, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx, listener, time.Second) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	f.client = agentv1.NewCNIClient(conn)
	return f
}

func add(id string) *agentv1.AddRequest {
	return &agentv1.AddRequest{Attachment: &agentv1.Attachment{ContainerId: id, Ifname: "eth0"}, Netns: "/run/netns/" + id}
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the agent's socket serves root only")
	}
}

func TestAddErrorsSayWhetherToTryAgain(t *testing.T) {
	f := serve(t)
	requireRoot(t)
	for _, c := range []struct {
		what          string
		offered       bool
		assign, plumb error
		request       *agentv1.AddRequest
		want          codes.Code
	}{
		{"starting", false, nil, nil, add("a"), codes.Unavailable},
		{"exhausted", true, fmt.Errorf("x: %w", ipam.ErrExhausted), nil, add("a"), codes.ResourceExhausted},
		{"no pool", true, fmt.Errorf("x: %w", ipam.ErrNoPool), nil, add("a"), codes.ResourceExhausted},
		{"full and no API", true, errors.New("connection refused"), nil, add("a"), codes.Unavailable},
		{"namespace gone", true, nil, fmt.Errorf("x: %w", endpoint.ErrNetnsGone), add("a"), codes.InvalidArgument},
		{"exists", true, nil, fmt.Errorf("x: %w", endpoint.ErrExists), add("a"), codes.AlreadyExists},
		{"kernel refuses", true, nil, errors.New("operation not permitted"), add("a"), codes.Internal},
		{"no container", true, nil, nil, add(""), codes.InvalidArgument},
		{"a container ID that is a path", true, nil, nil, add("../../etc"), codes.InvalidArgument},
	} {
		if c.offered {
			f.Offer([]ipam.Family{ipam.IPv4})
		} else {
			f.Refuse(ErrStarting)
		}
		f.pool.err, f.kernel.addErr = c.assign, c.plumb
		if _, err := f.client.Add(t.Context(), c.request); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %s", c.what, err, c.want)
		}
		if len(f.pool.used) > 0 || len(f.kernel.pods) > 0 {
			t.Errorf("%s: it leaves %v and %v", c.what, f.pool.used, f.kernel.pods)
		}
	}
}

func TestAddTakesAnAddressOfEachFamilyOrNone(t *testing.T) {
	f := serve(t)
	requireRoot(t)
	f.Offer([]ipam.Family{ipam.IPv4, ipam.IPv6})
	f.kernel.most = 1400
	resp, err := f.client.Add(t.Context(), add("a"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"10.0.0.1/32", "10.0.0.2/32"}; !slices.Equal(resp.GetAddresses(), want) || resp.GetContainer().GetMtu() != 1400 {
		t.Errorf("got %v, want %v and MTU 1400", resp, want)
	}
	if _, err := f.client.Del(t.Context(), &agentv1.DelRequest{Attachment: add("a").GetAttachment()}); err != nil || len(f.pool.used) != 0 {
		t.Errorf("after DEL: %v, used %v", err, f.pool.used)
	}
}

// What the configuration asks for is asked of the kernel's side as such, and the
// answer says what that made of it.
func TestAddPinsTheMTUOfTheConfigurationAndTellsWhatThePodGot(t *testing.T) {
	f := serve(t)
	requireRoot(t)
	f.Offer([]ipam.Family{ipam.IPv4})
	for _, c := range []struct {
		asked, passed, given int
		pinned               bool
	}{{0, 0, 1400, false}, {1380, 1380, 1380, true}, {9000, 9000, 1500, true}} {
		req := add(fmt.Sprint("a", c.asked))
		req.Mtu = uint32(c.asked)
		f.kernel.most = c.given
		resp, err := f.client.Add(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if host, pod := resp.GetHost().GetMtu(), resp.GetContainer().GetMtu(); host != uint32(c.given) || pod != host {
			t.Errorf("%d asked: the answer says %d and %d, want %d", c.asked, host, pod, c.given)
		}
		s := f.kernel.pods[endpoint.Key{ContainerID: req.GetAttachment().GetContainerId(), IfName: "eth0"}]
		if s.MTU != c.passed || s.Pinned != c.pinned {
			t.Errorf("%d asked: %d, pinned %v was passed on", c.asked, s.MTU, s.Pinned)
		}
	}
}

// The caller is gone before the answer: nobody will use the interface.
func TestAddIsUndoneWhenTheCallerIsGone(t *testing.T) {
	f := serve(t)
	requireRoot(t)
	f.Offer([]ipam.Family{ipam.IPv4})
	ctx, cancel := context.WithCancel(t.Context())
	service := &cniService{Server: f.Server}
	f.kernel.after = cancel
	if _, err := service.Add(ctx, add("a")); err == nil {
		t.Error("an ADD nobody waits for succeeded")
	}
	if len(f.pool.used) > 0 || len(f.kernel.pods) > 0 {
		t.Errorf("it leaves %v and %v", f.pool.used, f.kernel.pods)
	}
}

func TestGCGoesOnPastErrorsAndRefusesAListItCannotRead(t *testing.T) {
	f := serve(t)
	requireRoot(t)
	f.Offer([]ipam.Family{ipam.IPv4})
	for _, id := range []string{"keep", "stuck", "gone1", "gone2"} {
		if _, err := f.client.Add(t.Context(), add(id)); err != nil {
			t.Fatal(err)
		}
	}
	f.kernel.delErr["stuck"] = errors.New("device busy")
	f.kernel.gone = map[string]bool{"gone2": true}
	resp, err := f.client.GC(t.Context(), &agentv1.GCRequest{Valid: []*agentv1.Attachment{add("keep").GetAttachment()}})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetRemoved()) != 2 || len(resp.GetErrors()) != 1 || !strings.Contains(resp.GetErrors()[0], "device busy") {
		t.Errorf("GC answered %v", resp)
	}
	if left := slices.Sorted(maps.Keys(containers(f.kernel))); !slices.Equal(left, []string{"keep", "stuck"}) {
		t.Errorf("left are %v", left)
	}
	if _, err := f.client.GC(t.Context(), &agentv1.GCRequest{Valid: []*agentv1.Attachment{{}}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a list with an attachment that names nothing: %v", err)
	}
	if len(f.kernel.pods) != 2 {
		t.Errorf("a list that cannot be read cost a pod: %v", f.kernel.pods)
	}
}

func containers(k *kernel) map[string]bool {
	all := map[string]bool{}
	for key := range k.pods {
		all[key.ContainerID] = true
	}
	return all
}

func TestStatusNamesWhatStandsInTheWay(t *testing.T) {
	f := serve(t)
	requireRoot(t)
	if _, err := f.client.Status(t.Context(), &agentv1.StatusRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("starting: %v; the plugin would not ask again", err)
	}
	f.Refuse(ipam.ErrNoPool)
	problems := func() string {
		resp, err := f.client.Status(t.Context(), &agentv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(resp.GetProblems(), "; ")
	}
	if got := problems(); got != ipam.ErrNoPool.Error() {
		t.Errorf("no pool: %q", got)
	}
	f.Offer([]ipam.Family{ipam.IPv4})
	if got := problems(); got != "" {
		t.Errorf("serving: %q", got)
	}
	f.pool.err = ipam.ErrExhausted
	if got := problems(); got != ipam.ErrExhausted.Error() {
		t.Errorf("exhausted: %q", got)
	}
}

// A queued DEL is carried out, one that fails stays, and one whose attachment
// was taken off the queue meanwhile is let be.
func TestDrain(t *testing.T) {
	f := serve(t)
	requireRoot(t)
	f.Offer([]ipam.Family{ipam.IPv4})
	dir := filepath.Join(t.TempDir(), "del")
	for _, id := range []string{"done", "stuck", "added-again"} {
		if _, err := f.client.Add(t.Context(), add(id)); err != nil {
			t.Fatal(err)
		}
	}
	f.kernel.delErr["stuck"] = errors.New("device busy")
	for _, id := range []string{"done", "stuck", "never-there"} {
		if err := delqueue.Put(dir, delqueue.Attachment{ContainerID: id, Ifname: "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	f.Drain(t.Context(), dir)
	if err := f.delQueued(t.Context(), dir, delqueue.Attachment{ContainerID: "added-again", Ifname: "eth0"}); err != nil {
		t.Error(err)
	}
	waiting, err := delqueue.List(dir)
	if err != nil || len(waiting) != 1 || waiting[0].ContainerID != "stuck" {
		t.Errorf("waiting are %v (%v), want the one that failed", waiting, err)
	}
	if left := slices.Sorted(maps.Keys(containers(f.kernel))); !slices.Equal(left, []string{"added-again", "stuck"}) {
		t.Errorf("left are %v", left)
	}
}
