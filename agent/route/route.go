// Package route keeps the kernel's routes that bear Hoplite's protocol number
// in line with what the node owns and has learned.
//
// It writes two kinds:
//
//   - a blackhole for each block of the node, so that packets to addresses
//     nobody has do not loop between the node and its default gateway;
//   - a unicast route via one or several next hops for each learned prefix.
//
// What a prefix is learned with are Hops; where those lead, out of which device
// and via which gateway, is told apart (SetTargets) and may change while the
// prefixes stay.
//
// # Next hop objects
//
// A route by one hop names a next hop object (RTA_NH_ID, kernel 5.3) made for
// that hop, so that a new Target is one message, RTM_NEWNEXTHOP with
// NLM_F_REPLACE, after which all the routes lead elsewhere at once; no packet
// meets a moment without a route. A route by several hops has them written in
// it, and so has every route on a kernel without objects: there a new Target
// replaces the routes one by one, each without a moment in between.
//
// An object takes its routes along when it goes, and it goes when its device
// goes, is set down, or only loses its carrier: in IPv4 without a word about
// either. Hence:
//
//   - objects are made before the routes by them, in a system call of their own,
//     so that no route is ever by an object that someone else has of that number;
//   - they are deleted when the last route by them is known to be gone;
//   - an object bears our protocol number or is not touched; the kernel does not
//     compare it, so NLM_F_REPLACE is used only on what was last seen as ours;
//   - a starting agent's hops adopt the objects by which their routes already
//     go, and while a hop's Target is unknown, its routes stay as they are.
//
// An IPv6 gateway may be outside the device's subnets (Onlink), but not inside
// another device's: the kernel refuses that.
//
// A third kind bears the same protocol number and is never written or deleted
// here: the /32 or /128 of a local pod, which agent/endpoint owns. It is told
// apart by being unicast to a device without any gateway (in IPv4, scope link).
//
// # Routes of others
//
// The kernel tells routes apart by table, prefix, type of service and metric:
// the key. The protocol is no part of it, so NLM_F_REPLACE overwrites whatever
// is first at the key, whoever wrote it. Therefore:
//
//   - a route not known to be ours is created with NLM_F_CREATE|NLM_F_EXCL,
//     which the kernel refuses (EEXIST) if the key is taken;
//   - NLM_F_REPLACE, without NLM_F_CREATE, is used only on a key that holds a
//     route of ours by the last dump, write or notification; there it swaps one
//     route for the other with no moment without;
//   - a deletion names protocol and type, which the kernel does compare.
//
// A key held by another protocol is a conflict: reported, left alone, and tried
// again when the other route goes. What remains is the time between another
// process replacing our route or object and us reading the notification, under a
// millisecond; a route of theirs stacked *before* ours on the same key
// (`ip route prepend`) while no agent was running to see it; and, in IPv6, one
// behind ours, when ours goes from one hop to several or back: of those with that
// key the kernel replaces the one that could share packets with others, or could
// not, as the new one.
package route

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// Protocol is the number in rtm_protocol that marks a route as Hoplite's.
const Protocol = 104

// ErrConflict means that another protocol's route holds a prefix that we want.
var ErrConflict = errors.New("the prefix has a route of another protocol, which is left alone")

// Learned is a prefix learned by BGP. Several hops are equal-cost; their order
// means nothing. No hops: the prefix was withdrawn.
type Learned struct {
	Prefix netip.Prefix
	Hops   []Hop
}

// Config is what a Syncer is made from. The zero value is the product's.
type Config struct {
	Protocol uint8         // 0: the constant Protocol
	Table    uint32        // 0: the main table
	Log      *slog.Logger  // nil: slog.Default
	Audit    time.Duration // between full comparisons in Run, ±20 %; 0: 5 minutes
	// Inline has next hops written into the routes, as they are anyway on a
	// kernel without next hop objects (before 5.3).
	Inline bool
	Now    func() time.Time
}

// Syncer owns the routes. Its methods may be called from several goroutines:
// those that take no context only note what is wanted or was seen, and return
// at once; those that do talk to the kernel, one at a time.
type Syncer struct {
	protocol uint8
	table    uint32
	log      *slog.Logger
	every    time.Duration
	now      func() time.Time
	kick     chan struct{}

	// writing is held by whoever talks to the kernel; taken before mu.
	writing sync.Mutex
	conn    *rtnl.Conn
	batch   int // bytes a message batch may have before its last message
	buf     []byte
	ops     []op

	mu      sync.Mutex
	entries map[netip.Prefix]*entry
	hops    map[Hop]*hop
	serial  uint32          // of the last hop
	ways    map[string]*way // those of several hops
	objects map[uint32]*object
	lastID  uint32                    // that a new object was given
	blocks  map[netip.Prefix]struct{} // the last SetBlocks
	loaded  []netip.Prefix            // blackholes found by Load
	dirty   []*entry
	failing map[*entry]struct{}
	// The same of next hops, with regard to their objects.
	dirtyHops []*hop
	stuck     map[*hop]struct{}
	strays    []stray
	links     map[int]linkState
	// events counts notifications, audits counts dumps; entries remember both
	// to tell which knowledge is the newer.
	events, audits uint64
	inline         bool      // next hops are written into the routes
	objectsRead    bool      // it is known which objects there are
	tidy           bool      // there may be objects of no use
	pruned         bool      // stale routes need not be kept any more
	contradiction  bool      // the kernel's answer does not fit what we believe
	auditDue       time.Time // zero: none asked for
	lastAudit      time.Time
	nextRetry      time.Time
	stats          Stats
}

// Stats counts since the start, apart from the first four, which are as of now.
type Stats struct {
	Installed int // our routes in the kernel
	NextHops  int // our next hop objects in the kernel
	Stale     int // of those, found by Load and not wanted yet
	Problems  int // wanted routes that could not be written
	Messages  uint64
	Audits    uint64
	Repairs   uint64 // routes found missing or changed by someone else
}

// New opens the socket in the network namespace of the calling thread. Nothing
// is read or written before Load, Sync or Run.
func New(c Config) (*Syncer, error) {
	conn, err := rtnl.Dial()
	if err != nil {
		return nil, err
	}
	s := &Syncer{
		protocol: c.Protocol, table: c.Table, log: c.Log, every: c.Audit, now: c.Now,
		conn:    conn,
		batch:   batchBytes,
		kick:    make(chan struct{}, 1),
		entries: make(map[netip.Prefix]*entry),
		hops:    make(map[Hop]*hop),
		ways:    make(map[string]*way),
		objects: make(map[uint32]*object),
		stuck:   make(map[*hop]struct{}),
		inline:  c.Inline,
		failing: make(map[*entry]struct{}),
		links:   make(map[int]linkState),
	}
	if s.protocol == 0 {
		s.protocol = Protocol
	}
	if s.table == 0 {
		s.table = unix.RT_TABLE_MAIN
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.every == 0 {
		s.every = 5 * time.Minute
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s, nil
}

// Close closes the socket and leaves the kernel's routes as they are.
func (s *Syncer) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.conn.Close()
}

// PortID identifies this Syncer's own writes in notifications, for whoever
// subscribes to them to ignore.
func (s *Syncer) PortID() uint32 { return s.conn.PortID() }

// SetBlocks says which blocks the node owns, all of them: each gets a
// blackhole, and the blackhole of a block set before and no longer is removed.
func (s *Syncer) SetBlocks(blocks []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make(map[netip.Prefix]struct{}, len(blocks))
	for _, p := range blocks {
		p = p.Masked()
		if !p.IsValid() {
			continue
		}
		next[p] = struct{}{}
		e := s.entry(p)
		e.block, e.stale = true, false
		s.markDirty(e)
	}
	for p := range s.blocks {
		if _, kept := next[p]; !kept {
			e := s.entry(p)
			e.block, e.stale = false, false
			s.markDirty(e)
		}
	}
	s.blocks = next
	s.wake()
}

// Update says where the given prefixes are reached now; it says nothing of
// others. A prefix that is one of our own blocks keeps its blackhole.
func (s *Syncer) Update(learned []Learned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range learned {
		p := learned[i].Prefix.Masked()
		if !p.IsValid() {
			continue
		}
		e := s.entry(p)
		s.goBy(e, s.way(learned[i].Hops))
		s.adopt(e)
		e.stale = false
		s.markDirty(e)
	}
	s.wake()
}

// Blocks returns the prefixes that had a blackhole of ours when Load read the
// kernel, in order: the node's blocks as the agent before this one knew them.
func (s *Syncer) Blocks() []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.loaded)
}

// Problem is a wanted route that is not in the kernel as it should be.
type Problem struct {
	Prefix netip.Prefix
	// Err wraps ErrConflict or the kernel's error number.
	Err   error
	Since time.Time
}

func (p Problem) String() string { return fmt.Sprintf("route to %s: %v", p.Prefix, p.Err) }

// Problems returns the routes that could not be written, in order of prefix.
// They are tried again by Run, with pauses of 1 s to 30 s, and at once when
// links, addresses or the route in the way change.
func (s *Syncer) Problems() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	problems := make([]Problem, 0, len(s.failing))
	for e := range s.failing {
		problems = append(problems, Problem{Prefix: e.prefix, Err: e.failure.err, Since: e.failure.since})
	}
	problems = slices.AppendSeq(problems, s.waiting())
	slices.SortFunc(problems, func(a, b Problem) int { return a.Prefix.Compare(b.Prefix) })
	return problems
}

// Stats returns counts for metrics.
func (s *Syncer) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Problems = len(s.failing)
	for range s.waiting() {
		stats.Problems++
	}
	for _, o := range s.objects {
		if o.holder == us {
			stats.NextHops++
		}
	}
	for _, e := range s.entries {
		if e.have.ours() {
			stats.Installed++
			if e.stale {
				stats.Stale++
			}
		}
	}
	return stats
}

func (s *Syncer) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}
