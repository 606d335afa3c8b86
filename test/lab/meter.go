package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"
)

// Endpoint is where a meter's packets, or a connection, begin and end: a *Pod,
// a *Node, or one of them At a certain address.
type Endpoint interface {
	// Do runs f on a thread in its network namespace.
	Do(f func() error) error
	// IP is its first address.
	IP() netip.Addr
	// source is the address it uses towards another.
	source(to netip.Addr) (netip.Addr, error)
	label() string
}

func (p *Pod) label() string  { return p.Name }
func (n *Node) label() string { return n.Name }

func (p *Pod) source(netip.Addr) (netip.Addr, error) { return p.IP(), nil }

// source is the kernel's choice, as for a program that does not care.
func (n *Node) source(to netip.Addr) (netip.Addr, error) {
	way, err := n.Way(to)
	return way.Source, err
}

// At is the endpoint at one of its other addresses.
func At(e Endpoint, a netip.Addr) Endpoint { return at{e, a} }

type at struct {
	Endpoint
	address netip.Addr
}

func (e at) IP() netip.Addr                        { return e.address }
func (e at) source(netip.Addr) (netip.Addr, error) { return e.address, nil }
func (e at) label() string                         { return fmt.Sprintf("%s (%s)", e.Endpoint.label(), e.address) }

// Pair is two endpoints that send to each other.
type Pair struct{ A, B Endpoint }

// Meter sends numbered UDP packets both ways between two endpoints and counts what arrives.
type Meter struct{ mesh *Mesh }

// StartMeter starts sending, rate packets per second in each direction (1000
// is usual). It returns once a packet has arrived either way, and counts from then on.
func StartMeter(ctx context.Context, a, b Endpoint, rate int) (*Meter, error) {
	mesh, err := StartMesh(ctx, rate, Pair{a, b})
	if err != nil {
		return nil, err
	}
	return &Meter{mesh}, nil
}

// Stop stops sending, waits for packets on their way, and returns the counts:
// from a to b, and from b to a.
func (m *Meter) Stop() (there, back Loss) {
	losses := m.mesh.Stop()
	return losses[0], losses[1]
}

// Mesh is meters between several pairs at once. One goroutine sends for all of
// them, several packets with one call, so that a slow machine keeps up.
type Mesh struct {
	streams   []*stream
	stop      context.CancelFunc
	sender    sync.WaitGroup
	receivers sync.WaitGroup
	losses    func() []Loss
}

// StartMesh is StartMeter for several pairs.
func StartMesh(ctx context.Context, rate int, pairs ...Pair) (*Mesh, error) {
	sending, stop := context.WithCancel(context.Background())
	m := &Mesh{stop: stop}
	m.losses = sync.OnceValue(m.finish)
	for _, p := range pairs {
		there, back, err := newStreams(p)
		if err != nil {
			m.Stop()
			return nil, fmt.Errorf("meter between %s and %s: %w", p.A.label(), p.B.label(), err)
		}
		for _, s := range []*stream{there, back} {
			m.streams = append(m.streams, s)
			m.receivers.Go(s.receive)
		}
	}
	for _, s := range m.streams {
		if err := s.first(ctx); err != nil {
			m.Stop()
			return nil, err
		}
	}
	m.sender.Go(func() { m.send(sending, rate) })
	return m, nil
}

// Stop stops sending, waits for packets on their way, and returns two counts for each pair: there, and back.
func (m *Mesh) Stop() []Loss { return m.losses() }

func (m *Mesh) finish() []Loss {
	m.stop()
	m.sender.Wait()
	var drained sync.WaitGroup
	for _, s := range m.streams {
		drained.Go(s.drain)
	}
	drained.Wait()
	for _, s := range m.streams {
		s.in.Close()
	}
	m.receivers.Wait()
	var all []Loss
	for _, s := range m.streams {
		all = append(all, s.loss())
	}
	return all
}

// send keeps to the schedule: after a pause it catches up, so that the number
// sent is rate × time. It does so by and by, since the kernel's queue between
// two namespaces has room for 1,000 packets, and what it drops there nobody has lost.
func (m *Mesh) send(ctx context.Context, rate int) {
	begun := time.Now()
	for _, s := range m.streams {
		s.begun = begun
	}
	tick := sendTick()
	for ctx.Err() == nil {
		due := uint64(time.Since(begun).Seconds()*float64(rate)) + 1
		for _, s := range m.streams {
			s.send(due)
		}
		time.Sleep(tick)
	}
	for _, s := range m.streams {
		s.ended = time.Now()
	}
}

// sendTick is how often packets that are due are sent. A machine with one
// processor is a slow one, on which being woken costs more than sending.
func sendTick() time.Duration {
	if runtime.NumCPU() == 1 {
		return 5 * time.Millisecond
	}
	return time.Millisecond
}

// Loss is what became of the packets in one direction.
type Loss struct {
	From, To             string
	Sent, Received, Lost int
	// Duplicates are packets that came once more.
	Duplicates int
	// LongestLoss is the most packets lost in a row; FirstLost is when the first that was lost was due, after the beginning.
	LongestLoss int
	FirstLost   time.Duration
	// LongestGap is the longest time without a packet. On a busy machine it may be long with nothing lost.
	LongestGap time.Duration
	// SendErrors counts packets that the sender's own kernel refused (they are Lost too); SendError is the last refusal.
	SendErrors int
	SendError  error
}

func (l Loss) String() string {
	s := fmt.Sprintf("%s to %s: %d sent, %d received, %d lost (at most %d in a row), longest gap %s",
		l.From, l.To, l.Sent, l.Received, l.Lost, l.LongestLoss, l.LongestGap.Round(time.Millisecond))
	if l.Lost > 0 {
		s += fmt.Sprintf(", the first %s after the beginning", l.FirstLost.Round(time.Millisecond))
	}
	if l.Duplicates > 0 {
		s += fmt.Sprintf(", %d came twice", l.Duplicates)
	}
	if l.SendErrors > 0 {
		s += fmt.Sprintf(", %d refused by the sender's kernel (%v)", l.SendErrors, l.SendError)
	}
	return s
}

// Clean is nil when packets were sent and each came exactly once.
func (l Loss) Clean() error {
	if l.Sent > 0 && l.Lost == 0 && l.Duplicates == 0 {
		return nil
	}
	return errors.New(l.String())
}
