package route

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// Hop names a next hop. Prefixes that are reached the same way share one, so
// that changing where it leads is one message to the kernel, however many
// prefixes there are.
type Hop struct {
	Addr netip.Addr // BGP's next hop: the owner's node address
	Pool string     // the pool whose mode decides how to get there; "" outside all pools
}

func (h Hop) String() string {
	if h.Pool == "" {
		return h.Addr.String()
	}
	return h.Addr.String() + " for pool " + h.Pool
}

// Target is where a Hop leads: out of a device, via a gateway. The zero
// Target: nowhere yet.
type Target struct {
	Device  int // interface index
	Gateway netip.Addr
	Onlink  bool // the gateway need not be on a subnet of the device: a tunnel's far end
}

// leads tells whether t leads anywhere.
func (t Target) leads() bool { return t.Device > 0 && t.Gateway.IsValid() }

func (t Target) wire() rtnl.Hop {
	return rtnl.Hop{Device: uint32(t.Device), Gateway: t.Gateway, Onlink: t.Onlink}
}

// ErrNoTarget means that nobody has said yet where a next hop leads.
var ErrNoTarget = errors.New("no way to next hop")

// SetTargets says where the given hops lead; it says nothing of others. While a
// hop's target is zero, routes that are in the kernel stay as they are.
func (s *Syncer) SetTargets(targets map[Hop]Target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, t := range targets {
		key.Addr = key.Addr.Unmap()
		t.Gateway = t.Gateway.Unmap().WithZone("")
		if s.hops[key] == nil && !t.leads() {
			continue
		}
		h := s.hop(key)
		if h.target == t {
			continue
		}
		h.target = t
		if !t.leads() {
			h.since = s.now()
		}
		s.queueHop(h)
		s.refreshHop(h)
		s.forgetHop(h)
	}
	s.wake()
}

// Current returns where the kernel's route to p leads, as far as is known: by
// Load, or what was written or heard of since. It is empty for a prefix that
// has no route of ours, or one that leads nowhere.
func (s *Syncer) Current(p netip.Prefix) []Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[p.Masked()]; e != nil {
		return s.current(e)
	}
	return nil
}

func (s *Syncer) current(e *entry) []Target {
	have := e.have.Value()
	if o := have.object; o != nil {
		if !o.target.leads() {
			return nil
		}
		return []Target{o.target}
	}
	var targets []Target
	for hop := range rtnl.Unpack(have.hops, e.prefix.Addr().Is6()) {
		targets = append(targets, Target{Device: int(hop.Device), Gateway: hop.Gateway, Onlink: hop.Onlink})
	}
	return targets
}

// Installed returns where the kernel has h lead: its next hop object, or, where
// it has none, its routes; false if they differ, or there is none.
func (s *Syncer) Installed(h Hop) (Target, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.Addr = h.Addr.Unmap()
	known := s.hops[h]
	if known == nil {
		return Target{}, false
	}
	if o := known.object; o != nil && o.target.leads() {
		return o.target, true
	}
	var installed Target
	for _, w := range known.ways() {
		for _, e := range w.entries {
			t, ok := s.leadsTo(e, known)
			switch {
			case !ok:
			case !installed.leads():
				installed = t
			case installed != t:
				return Target{}, false
			}
		}
	}
	return installed, installed.leads()
}

// leadsTo returns where e's route leads by way of h. Of several next hops it
// is the one that was written for h, or else the one whose gateway h is.
func (s *Syncer) leadsTo(e *entry, h *hop) (Target, bool) {
	targets := s.current(e)
	if e.way == &h.alone {
		if len(targets) == 1 {
			return targets[0], true
		}
		return Target{}, false
	}
	if len(targets) > 0 && e.have == e.way.state {
		return h.target, true
	}
	i := slices.IndexFunc(targets, func(t Target) bool { return t.Gateway == h.Addr })
	if i < 0 {
		return Target{}, false
	}
	return targets[i], true
}
