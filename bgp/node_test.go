package bgp

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A node is a Speaker in a process of its own. GoBGP has package variables that every start writes, so two speakers
// in one process are a data race; and only a process can be killed or frozen the way a node is.

const nodeEnv = "HOPLITE_BGP_TEST_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(nodeEnv) != "" {
		serveNode()
		return
	}
	os.Exit(m.Run())
}

// lab is a scenario: nodes on loopback addresses that share a port.
type lab struct {
	t    *testing.T
	port int
	net  [2]byte
}

var labs atomic.Uint32

func newLab(t *testing.T) *lab {
	t.Parallel()
	n := uint32(os.Getpid())*16 + labs.Add(1)
	l := &lab{t: t, net: [2]byte{byte(1 + n>>8%250), byte(n)}}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(l.addr(254), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	l.port = ln.Addr().(*net.TCPAddr).Port
	_ = ln.Close()
	return l
}

// addr is the i-th address of the scenario's network.
func (l *lab) addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, l.net[0], l.net[1], byte(i)})
}

const testASN = 64512

// mesh is node i's mesh peer j.
func (l *lab) mesh(i, j int) Peer {
	return Peer{
		Name: fmt.Sprintf("node%d", j), Address: l.addr(j), Port: l.port, ASN: testASN, Type: NodeMesh,
		LocalAddress: l.addr(i), HoldTime: 3 * time.Second,
	}
}

func (l *lab) hops(i int) NextHops {
	return NextHops{IPv4: l.addr(i), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:aa::%d", i))}
}

type node struct {
	*rpc.Client
	l    *lab
	i    int
	cmd  *exec.Cmd
	logs *logBuffer
	once sync.Once
	// table is what a follower of the dirty prefixes has: the prefixes' next hops, see hopsTo
	table map[string][]int
}

// start runs node i: everything is set before Start, as after a restart.
func (l *lab) start(i int, prefixes []string, peers ...Peer) *node {
	l.t.Helper()
	return l.startWith(i, NodeConfig{}, prefixes, peers...)
}

func (l *lab) startWith(i int, c NodeConfig, prefixes []string, peers ...Peer) *node {
	l.t.Helper()
	n := l.create(i, c)
	n.must("SetImport", Import{Within: pools("10.0.0.0/8", "fd00::/16")})
	n.must("SetPaths", PathsArgs{paths(prefixes...), l.hops(i)})
	n.must("Start", none{})
	n.must("SetPeers", peers)
	return n
}

// create makes node i without starting its speaker.
func (l *lab) create(i int, c NodeConfig) *node {
	l.t.Helper()
	if c.ASN == 0 {
		c.ASN = testASN
	}
	c.RouterID, c.Port, c.Listen = l.addr(i), l.port, []netip.Addr{l.addr(i)}
	n := &node{l: l, i: i, logs: &logBuffer{}, table: map[string][]int{}}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), nodeEnv+"=1")
	n.cmd.Stderr = n.logs
	in, err := n.cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	n.Client = rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{out, in})
	l.t.Cleanup(func() {
		n.kill()
		for _, race := range races(n.logs.String()) {
			l.t.Errorf("node %d: %s", i, race)
		}
		if l.t.Failed() {
			l.t.Logf("log of node %d:\n%s", i, n.logs)
		}
	})
	n.must("New", c)
	return n
}

func (n *node) must(method string, args any) {
	n.l.t.Helper()
	if err := n.Call("Node."+method, args, &none{}); err != nil {
		n.l.t.Fatalf("node %d: %s: %v", n.i, method, err)
	}
}

// kill ends the process at once, as kill -9 or the kernel's out-of-memory killer would.
func (n *node) kill() {
	n.once.Do(func() {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		_ = n.Close()
	})
}

// stop is an orderly end.
func (n *node) stop() {
	n.l.t.Helper()
	n.must("Stop", none{})
	n.kill()
}

func ask[T any](n *node, method string, args any) T {
	n.l.t.Helper()
	var out T
	if err := n.Call("Node."+method, args, &out); err != nil {
		n.l.t.Fatalf("node %d: %s: %v", n.i, method, err)
	}
	return out
}

func (n *node) lookup(prefix string) Route {
	n.l.t.Helper()
	return ask[Route](n, "Lookup", netip.MustParsePrefix(prefix))
}

func (n *node) peer(j int) PeerStatus {
	n.l.t.Helper()
	for _, p := range ask[[]PeerStatus](n, "Peers", none{}) {
		if p.Address == n.l.addr(j) {
			return p
		}
	}
	return PeerStatus{State: "not configured"}
}

// hopsTo are the last bytes of the next hops, or empty if there is no route.
func (n *node) hopsTo(prefix string) []int {
	n.l.t.Helper()
	var out []int
	for _, h := range n.lookup(prefix).Hops {
		b := h.Addr.AsSlice()
		out = append(out, int(b[len(b)-1]))
	}
	return out
}

// reaches waits until the prefix's next hops are those of the given nodes.
func (n *node) reaches(prefix string, via ...int) {
	n.l.t.Helper()
	eventually(n.l.t, fmt.Sprintf("node %d: %s via %v", n.i, prefix, via), func() string {
		if got := n.hopsTo(prefix); !slices.Equal(got, via) {
			return fmt.Sprintf("via %v", got)
		}
		return ""
	})
}

// follow does what an agent does: it looks up what is dirty, and nothing else.
func (n *node) follow() {
	n.l.t.Helper()
	for _, p := range ask[[]netip.Prefix](n, "TakeDirty", none{}) {
		n.table[p.String()] = n.hopsTo(p.String())
	}
}

// follows waits until who follows the dirty prefixes has the prefix via the given nodes.
func (n *node) follows(prefix string, via ...int) {
	n.l.t.Helper()
	eventually(n.l.t, fmt.Sprintf("node %d: a follower has %s via %v", n.i, prefix, via), func() string {
		n.follow()
		if got := n.table[prefix]; !slices.Equal(got, via) {
			return fmt.Sprintf("via %v", got)
		}
		return ""
	})
}

func (n *node) up(peers ...int) {
	n.l.t.Helper()
	for _, j := range peers {
		eventually(n.l.t, fmt.Sprintf("node %d: session with %d", n.i, j), func() string {
			if p := n.peer(j); !p.Established() {
				return p.State + ": " + p.Info
			}
			return ""
		})
	}
}

// says waits until the status of peer j is not Established for a reason that contains text.
func (n *node) says(j int, text string) {
	n.l.t.Helper()
	eventually(n.l.t, fmt.Sprintf("node %d: peer %d is down with %q", n.i, j, text), func() string {
		p := n.peer(j)
		if p.Established() || !strings.Contains(p.Info, text) {
			return p.State + ": " + p.Info
		}
		return ""
	})
}

const patience = 40 * time.Second

// eventually polls until f returns an empty string; what it returned last explains a failure.
func eventually(t *testing.T, what string, f func() string) {
	t.Helper()
	last := ""
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if last = f(); last == "" {
			return
		}
	}
	t.Fatalf("%s: not after %s; last: %s", what, patience, last)
}

func pfx(ss ...string) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ss))
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// paths are plain ones.
func paths(ss ...string) []Path {
	out := make([]Path, 0, len(ss))
	for _, p := range pfx(ss...) {
		out = append(out, Path{Prefix: p})
	}
	return out
}

// pools are some that allow prefixes of any length.
func pools(ss ...string) []Pool {
	out := make([]Pool, 0, len(ss))
	for _, p := range pfx(ss...) {
		out = append(out, Pool{Prefix: p})
	}
	return out
}

// logBuffer collects a node's log.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// races are the race detector's reports in a node's log, without one that is GoBGP's and harmless: it reads whether a
// path is stale (a bool) outside the lock it is set under.
func races(log string) (found []string) {
	for _, report := range strings.Split(log, "==================") {
		if !strings.Contains(report, "WARNING: DATA RACE") {
			continue
		}
		if strings.Contains(report, "table.(*Path).IsStale()") && strings.Contains(report, "table.(*Path).MarkStale()") {
			continue
		}
		found = append(found, report)
	}
	return found
}
