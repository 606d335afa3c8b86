package lab

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
)

// Load is everything at once that a change must not disturb: a meter on every
// pair, data in bulk, and connections that are open and mostly idle.
type Load struct {
	mesh  *Mesh
	bulks []*Bulk
	chats []*Chat
}

// LoadConfig says what a load is made of.
type LoadConfig struct {
	// Metered send each other Rate packets per second each way.
	Metered []Pair
	Rate    int
	// Bulk pairs have a connection from A to B with BulkRate bits per second.
	Bulk     []Pair
	BulkRate int
	// Chats are connections from A to B that idle.
	Chats []Pair
}

// FullLoad is the load on the nodes of a lab that has a pod on each: packets at
// 1,000 a second each way between the pods of all nodes and between a node and a pod of
// another, data from the first pod to the last, an idle connection between two
// pods and one from a node.
func FullLoad(pods []*Pod) LoadConfig {
	c := LoadConfig{Rate: 1000, BulkRate: bulkRate()}
	for i, p := range pods {
		for _, other := range pods[i+1:] {
			c.Metered = append(c.Metered, Pair{p, other})
		}
	}
	first, last := pods[0], pods[len(pods)-1]
	c.Metered = append(c.Metered, Pair{first.Node, last})
	c.Bulk = []Pair{{first, last}}
	c.Chats = []Pair{{last, first}, {last.Node, first}}
	return c
}

// bulkRate is fast enough to have full segments on their way at every moment,
// and leaves the processor to the packets that are counted.
func bulkRate() int {
	if runtime.NumCPU() == 1 {
		return 20e6
	}
	return 200e6
}

// StartLoad starts all of it, or nothing.
func StartLoad(ctx context.Context, c LoadConfig) (_ *Load, err error) {
	l := &Load{}
	defer func() {
		if err != nil {
			l.Stop()
		}
	}()
	for _, p := range c.Chats {
		chat, err := StartChat(ctx, p.A, p.B)
		if err != nil {
			return nil, err
		}
		l.chats = append(l.chats, chat)
	}
	for _, p := range c.Bulk {
		bulk, err := StartBulk(ctx, p.A, p.B, c.BulkRate)
		if err != nil {
			return nil, err
		}
		l.bulks = append(l.bulks, bulk)
	}
	l.mesh, err = StartMesh(ctx, c.Rate, c.Metered...)
	return l, err
}

// LoadOutcome is what became of a load.
type LoadOutcome struct {
	Losses []Loss
	Bulks  []BulkOutcome
	Chats  []ChatOutcome
}

// Stop ends the load, when all that was sent has arrived or is lost.
func (l *Load) Stop() LoadOutcome {
	var o LoadOutcome
	if l.mesh != nil {
		o.Losses = l.mesh.Stop()
	}
	for _, b := range l.bulks {
		o.Bulks = append(o.Bulks, b.Stop())
	}
	for _, c := range l.chats {
		o.Chats = append(o.Chats, c.Stop())
	}
	return o
}

// Sent and Lost count packets, Broken connections.
func (o LoadOutcome) Sent() (sent int) {
	for _, l := range o.Losses {
		sent += l.Sent
	}
	return sent
}

func (o LoadOutcome) Lost() (lost int) {
	for _, l := range o.Losses {
		lost += l.Lost
	}
	return lost
}

func (o LoadOutcome) Broken() (broken int) {
	for _, b := range o.Bulks {
		if b.Err != nil {
			broken++
		}
	}
	for _, c := range o.Chats {
		if c.Err != nil {
			broken++
		}
	}
	return broken
}

// Clean is nil when each packet came exactly once and no connection broke.
func (o LoadOutcome) Clean() error {
	var errs []error
	for _, l := range o.Losses {
		errs = append(errs, l.Clean())
	}
	if o.Broken() > 0 {
		errs = append(errs, fmt.Errorf("%d connections broke", o.Broken()))
	}
	if errors.Join(errs...) == nil {
		return nil
	}
	return errors.New(o.String())
}

// String has a line for each part of the load.
func (o LoadOutcome) String() string {
	var lines []string
	for _, l := range o.Losses {
		lines = append(lines, l.String())
	}
	for _, b := range o.Bulks {
		lines = append(lines, b.String())
	}
	for _, c := range o.Chats {
		lines = append(lines, c.String())
	}
	return strings.Join(lines, "\n")
}
