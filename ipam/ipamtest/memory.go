// Package ipamtest helps to test what is built on ipam: a Store in memory that
// fails on demand, and the promises that every Store must keep.
package ipamtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/hoplite-net/hoplite/ipam"
)

// ErrInjected is the error of a call that a Fault made fail.
var ErrInjected = errors.New("injected failure")

// Fault is what goes wrong with a call.
type Fault int

// The faults.
const (
	None       Fault = iota
	Refused          // not carried out, an error
	LostAnswer       // carried out, and an error all the same
	Late             // an error, and carried out at some later time (see Memory.Land)
	Hang             // not carried out; no answer until the caller's context ends
	Denied           // not carried out, ipam.ErrDenied
)

// Memory is the blocks of a cluster in memory. Store gives a node's view of it.
type Memory struct {
	mu      sync.Mutex
	blocks  map[netip.Prefix]object
	version int
	late    []func()
	fault   func(node, call string) Fault
	calls   map[string]int
}

const maxLate = 3

type object struct {
	node, pool string
	version    int // of the object, over all objects
	releasing  bool
}

// NewMemory has no blocks and no faults.
func NewMemory() *Memory {
	return &Memory{blocks: make(map[netip.Prefix]object), calls: make(map[string]int)}
}

// SetFaults decides from now on what goes wrong with each call ("Claim",
// "Mark" and "Delete", which make up a Release, "Claimed", "Owned") of each node; nil: nothing. It is called with a lock held.
func (m *Memory) SetFaults(fault func(node, call string) Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// Calls is how often a call was made, whatever became of it.
func (m *Memory) Calls(call string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[call]
}

// Land carries out the oldest call that is Late; false when there is none.
// They land by themselves too, when more than maxLate are waiting.
func (m *Memory) Land() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.land()
}

func (m *Memory) land() bool {
	if len(m.late) == 0 {
		return false
	}
	m.late[0]()
	m.late = m.late[1:]
	return true
}

// Delete removes a block as a person with kubectl would.
func (m *Memory) Delete(block netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blocks, block)
}

// Put makes a block that node's, if it is nobody's.
func (m *Memory) Put(node, pool string, block netip.Prefix) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.create(node, pool, block)
}

// Owner is who has the block, empty for nobody.
func (m *Memory) Owner(block netip.Prefix) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blocks[block].node
}

// Store is the node's view.
func (m *Memory) Store(node string) ipam.Store { return view{m, node} }

func (m *Memory) create(node, pool string, block netip.Prefix) bool {
	if o, ok := m.blocks[block]; ok {
		return o.node == node
	}
	m.put(block, object{node: node, pool: pool})
	return true
}

func (m *Memory) put(block netip.Prefix, o object) {
	m.version++
	o.version = m.version
	m.blocks[block] = o
}

// call counts a call and applies its fault. do runs with the lock held.
func (m *Memory) call(ctx context.Context, node, name string, do func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[name]++
	if err := ctx.Err(); err != nil {
		return err
	}
	fault := None
	if m.fault != nil {
		fault = m.fault(node, name)
	}
	switch fault {
	case None:
		do()
		return nil
	case LostAnswer:
		do()
	case Late:
		if name == "Owned" || name == "Claimed" {
			break // nothing to carry out
		}
		if m.late = append(m.late, do); len(m.late) > maxLate {
			m.land()
		}
	case Denied:
		return fmt.Errorf("%s by %s: %w", name, node, ipam.ErrDenied)
	case Hang:
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return ctx.Err()
	}
	return fmt.Errorf("%s by %s: %w", name, node, ErrInjected)
}

type view struct {
	*Memory
	node string
}

func (v view) Claim(ctx context.Context, pool ipam.Pool, block netip.Prefix) error {
	var ours bool
	err := v.call(ctx, v.node, "Claim", func() {
		ours = v.create(v.node, pool.Name, block)
		if o := v.blocks[block]; ours && o.releasing {
			o.releasing = false
			v.put(block, o)
		}
	})
	if err == nil && !ours {
		err = fmt.Errorf("claim %s: %w", block, ipam.ErrClaimed)
	}
	return err
}

func (v view) Release(ctx context.Context, block netip.Prefix) error {
	v.mu.Lock()
	o, ok := v.blocks[block]
	v.mu.Unlock()
	if !ok || o.node != v.node {
		return nil
	}
	// Each call is void if the object has changed since it was made.
	err := v.call(ctx, v.node, "Mark", func() {
		if v.blocks[block].version == o.version {
			o.releasing = true
			v.put(block, o)
			o = v.blocks[block]
		}
	})
	if err != nil {
		return err
	}
	marked := o.version
	return v.call(ctx, v.node, "Delete", func() {
		if v.blocks[block].version == marked {
			delete(v.blocks, block)
		}
	})
}

func (v view) Claimed(ctx context.Context, pool ipam.Pool) (claimed []netip.Prefix, err error) {
	err = v.call(ctx, v.node, "Claimed", func() {
		for block := range v.blocks {
			if block.Overlaps(pool.Prefix) {
				claimed = append(claimed, block)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return claimed, nil
}

func (v view) Owned(ctx context.Context) (owned []ipam.OwnedBlock, err error) {
	err = v.call(ctx, v.node, "Owned", func() {
		for block, o := range v.blocks {
			if o.node == v.node {
				owned = append(owned, ipam.OwnedBlock{Prefix: block, Pool: o.pool, Releasing: o.releasing})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return owned, nil
}
