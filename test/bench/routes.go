package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
)

// Last octets of machines on the nodes' subnet. The sender's is above the
// nodes': in the mesh, the side with the higher address connects.
const (
	firstPeerOctet = 100 // of 100 peers
	senderOctet    = 200
	birdOctet      = 201
	floorOctet     = 202
)

// routesTimeout bounds one run, at a small fraction of the rates expected.
const routesTimeout = time.Minute

// sendingMachine is the machine of all BGP sessions to agents, which know it as a node of the mesh.
func (b *bench) sendingMachine(ctx context.Context) (*lab.Machine, error) {
	if b.sender != nil {
		return b.sender, nil
	}
	m, err := b.l.AddMachine("sender", senderOctet)
	if err != nil {
		return nil, err
	}
	if err := b.createNode(ctx, "sender", m.Addresses[0]); err != nil {
		return nil, err
	}
	b.sender = m
	return m, nil
}

// createNode makes a Node object of that address, which the agents take for a peer.
func (b *bench) createNode(ctx context.Context, name string, address netip.Addr) error {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := b.l.Client().Create(ctx, node); err != nil {
		return err
	}
	before := client.MergeFrom(node.DeepCopy())
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address.String()}}
	return b.l.Client().Status().Patch(ctx, node, before)
}

// receiver is somebody who puts what the sender says into a kernel.
type receiver struct {
	name                 string
	machine              *lab.Machine
	process              interface{ PID() int }
	session              *session
	taken, withdrew, cpu []time.Duration
}

// measureRoutes has one sender say the same to an agent and to BIRD, by turns.
func (b *bench) measureRoutes(ctx context.Context) error {
	sender, err := b.sendingMachine(ctx)
	if err != nil {
		return err
	}
	bird, err := b.l.AddMachine("bird", birdOctet)
	if err != nil {
		return err
	}
	daemon, err := bird.StartBIRD(ctx, birdConf(bird.Addresses[0], sender.Addresses[0]))
	if err != nil {
		return err
	}
	bare, err := b.l.AddMachine("floor", floorOctet)
	if err != nil {
		return err
	}
	floor := &kernelFloor{machine: bare, nextHop: sender.Addresses[0]}
	node := b.l.Node(routeNode)
	if err := waitSessions(ctx, node, len(b.l.Nodes())-1); err != nil {
		return err
	}
	receivers := []*receiver{
		{name: hopliteName, machine: node.Machine, process: node.Agent},
		{name: "bird", machine: bird, process: daemon},
	}
	for _, r := range receivers {
		if err := r.connect(ctx, sender); err != nil {
			return err
		}
		defer r.session.close()
	}
	b.report.Routes = map[string]*Speed{}
	for _, size := range sizes {
		speed, err := b.compare(ctx, receivers, floor, size.routes, sender.Addresses[0])
		if err != nil {
			return fmt.Errorf("%s routes: %w", size.name, err)
		}
		b.report.Routes[size.name] = speed
		b.say("  %s routes: %.3f s, floor %.3f, BIRD %.3f (withdrawn in %.3f, BIRD %.3f)",
			size.name, speed.Seconds, speed.FloorSeconds, speed.BIRDSeconds, speed.WithdrawSeconds, speed.BIRDWithdrawSeconds)
	}
	return nil
}

// birdConf is a BIRD that learns from the sender and exports to the kernel. Its
// scan of the kernel's routes is as rare as the agent's.
func birdConf(self, sender netip.Addr) string {
	return fmt.Sprintf(`router id %[1]s;
protocol device { }
protocol kernel {
  scan time 300;
  ipv4 { import none; export all; };
}
protocol bgp sender {
  local %[1]s as %[3]d;
  neighbor %[2]s as %[3]d;
  direct;
  passive;
  ipv4 { import all; export none; };
}
`, self, sender, asn)
}

func (r *receiver) connect(ctx context.Context, sender *lab.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var err error
	if r.session, err = dialBGP(ctx, sender, sender.Addresses[0], r.machine.Addresses[0]); err != nil {
		return fmt.Errorf("%s: %w", r.name, err)
	}
	// What a new session brings with it is not what is measured.
	return pause(ctx, time.Second)
}

// compare runs one size several times. The smaller it is, the more often.
func (b *bench) compare(ctx context.Context, receivers []*receiver, floor *kernelFloor, n int, nextHop netip.Addr) (*Speed, error) {
	prefixes := remotePrefixes(n)
	announcement, withdrawal := announce(prefixes, nextHop), withdraw(prefixes)
	runs := b.repeat
	if n <= 10_000 {
		runs = 2*b.repeat + 1
	}
	for _, r := range receivers {
		r.taken, r.withdrew, r.cpu = nil, nil, nil
	}
	floor.taken = nil
	for run := range runs {
		if err := floor.run(ctx, prefixes); err != nil {
			return nil, err
		}
		for i := range receivers {
			r := receivers[(run+i)%len(receivers)]
			usedBefore, err := processTime(r.process.PID())
			if err != nil {
				return nil, err
			}
			took, err := r.run(ctx, announcement, n)
			if err != nil {
				return nil, err
			}
			used, err := processTime(r.process.PID())
			if err != nil {
				return nil, err
			}
			r.cpu = append(r.cpu, used-usedBefore)
			r.taken = append(r.taken, took)
			if took, err = r.run(ctx, withdrawal, -n); err != nil {
				return nil, err
			}
			r.withdrew = append(r.withdrew, took)
		}
	}
	ours, birds := receivers[0], receivers[1]
	return &Speed{
		Routes: n, Seconds: seconds(median(ours.taken)), BIRDSeconds: seconds(median(birds.taken)),
		FloorSeconds:    seconds(median(floor.taken)),
		RatioToBIRD:     ratio(median(ours.taken), median(birds.taken)),
		WithdrawSeconds: seconds(median(ours.withdrew)), BIRDWithdrawSeconds: seconds(median(birds.withdrew)),
		CPUSeconds: seconds(median(ours.cpu)), BIRDCPUSeconds: seconds(median(birds.cpu)),
		Runs: allSeconds(ours.taken), BIRDRuns: allSeconds(birds.taken),
	}, nil
}

// run sends the UPDATEs and waits until the kernel has so many more routes.
func (r *receiver) run(ctx context.Context, updates []byte, more int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, routesTimeout)
	defer cancel()
	before, err := r.atRest(ctx)
	if err != nil {
		return 0, err
	}
	want := before + more
	sent := make(chan error, 1)
	start := time.Now()
	go func() { sent <- r.session.send(updates) }()
	for {
		asked := time.Now()
		have, err := countRoutes(r.machine)
		now := time.Now()
		switch {
		case err != nil:
			return 0, err
		case have == want:
			return now.Sub(start), <-sent
		case r.session.failed() != nil:
			return 0, fmt.Errorf("%s: %w", r.name, r.session.failed())
		}
		// Counting takes the kernel up to some milliseconds: no more than a sixth of a core is spent on it.
		if err := pause(ctx, max(time.Millisecond, 5*now.Sub(asked))); err != nil {
			return 0, fmt.Errorf("%s has %d routes in the kernel after %s, of %d: %w", r.name, have, routesTimeout, want, err)
		}
	}
}

// atRest waits until the routes have not changed for a while, and whatever the
// last run left to do in the background is done. It returns their number.
func (r *receiver) atRest(ctx context.Context) (int, error) {
	for last := -1; ; {
		have, err := countRoutes(r.machine)
		if err != nil || have == last {
			return have, err
		}
		last = have
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return 0, fmt.Errorf("the routes of %s do not come to rest: %w", r.name, err)
		}
	}
}

// remotePrefixes are n blocks of other nodes.
func remotePrefixes(n int) []netip.Prefix {
	first := remotePool.Addr().As4()
	prefixes := make([]netip.Prefix, n)
	for i := range prefixes {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(first[:])+uint32(i)<<6)
		prefixes[i] = netip.PrefixFrom(netip.AddrFrom4(a), 26)
	}
	return prefixes
}

// countRoutes is the number of prefixes in the machine's main IPv4 table, by
// the kernel's own count: much cheaper than reading them all, and heard by nobody.
func countRoutes(m *lab.Machine) (int, error) {
	file, err := os.Open(procNet(m, "fib_triestat"))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	inMain := false
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, "\t") {
			inMain = line == "Main:"
		}
		if text, ok := strings.CutPrefix(line, "\tPrefixes:"); ok && inMain {
			return strconv.Atoi(strings.TrimSpace(text))
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("%s does not tell the number of prefixes in the main table", file.Name())
}
