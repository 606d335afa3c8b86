package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

// Pool is a range that nodes claim blocks from.
type Pool struct {
	Name      string
	Prefix    netip.Prefix
	BlockBits int // the prefix length of its blocks
	// Deleting: the pool is going, and no address of it will be given out again.
	Deleting bool
}

// Family is the IP version of the pool's addresses.
func (p Pool) Family() Family {
	if p.Prefix.Addr().Is4() {
		return IPv4
	}
	return IPv6
}

// fits says whether the block is one of those the pool is cut into.
func (p Pool) fits(block netip.Prefix) bool {
	return block.Bits() == p.BlockBits && p.Prefix.Contains(block.Addr())
}

// Reasons that a Verdict has besides those of the API.
const (
	// ReasonInvalid: the pool's range or selector makes no sense.
	ReasonInvalid = "Invalid"
	// ReasonNotSelected: the pool's nodeSelector does not match this node.
	ReasonNotSelected = "NotSelected"
)

// Verdict says whether a node may take addresses from a pool and, when it may
// not, why and what to do about it.
type Verdict struct {
	Reason  string
	Message string
	// Pool is the zero Pool when the reason is ReasonInvalid.
	Pool Pool
}

// Usable is true when this node may take addresses from the pool.
func (v Verdict) Usable() bool { return v.Reason == v1alpha1.ReasonUsable }

// ClusterWide is true when every node comes to the same verdict, so that it
// belongs in the pool's condition; false when it is about this node's labels.
func (v Verdict) ClusterWide() bool { return v.Reason != ReasonNotSelected }

// Usable tells the pools that a node with these labels may take addresses from,
// the one to try first at the front: the more specific prefix, then the name.
// The verdicts hold every pool's, by name. modes are those the data plane can
// carry; when none are given, all that this release knows.
//
// A pool that overlaps one that came first (by creationTimestamp, then name) is
// refused even while that one is disabled or refused itself: whether a pool may
// be used must not change because another pool comes or goes, for pods have its addresses. So is one that
// overlaps a pool being deleted, until that has gone.
func Usable(pools []v1alpha1.IPPool, nodeLabels map[string]string, modes ...v1alpha1.PoolMode) (usable []Pool, verdicts map[string]Verdict) {
	byAge := make([]*v1alpha1.IPPool, len(pools))
	for i := range pools {
		byAge[i] = &pools[i]
	}
	slices.SortFunc(byAge, func(a, b *v1alpha1.IPPool) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	verdicts = make(map[string]Verdict, len(pools))
	var earlier []Pool
	for _, p := range byAge {
		pool, selector, err := parse(p)
		if err != nil {
			verdicts[p.Name] = Verdict{Reason: ReasonInvalid, Message: err.Error()}
			continue
		}
		v := judge(p, pool, earlier, modes)
		if v.Usable() && !selector.Matches(labels.Set(nodeLabels)) {
			v.Reason = ReasonNotSelected
			v.Message = fmt.Sprintf("spec.nodeSelector %q does not match this node's labels", selector)
		}
		verdicts[p.Name] = v
		earlier = append(earlier, pool)
		if v.Usable() {
			usable = append(usable, pool)
		}
	}
	sortPools(usable)
	return usable, verdicts
}

// Closed are the pools that exist but give this node no new addresses. Pods may
// have some of theirs from before; Allocator.SetPools wants to know them for that. Those being deleted come last.
func Closed(verdicts map[string]Verdict) []Pool {
	var closed []Pool
	for _, v := range verdicts {
		if !v.Usable() && v.Reason != ReasonInvalid && v.Reason != v1alpha1.ReasonOverlapping {
			closed = append(closed, v.Pool)
		}
	}
	sortPools(closed)
	slices.SortStableFunc(closed, func(a, b Pool) int {
		switch {
		case a.Deleting == b.Deleting:
			return 0
		case a.Deleting:
			return 1
		}
		return -1
	})
	return closed
}

func sortPools(pools []Pool) {
	slices.SortFunc(pools, func(a, b Pool) int {
		return cmp.Or(cmp.Compare(hostBits(a.Prefix), hostBits(b.Prefix)), strings.Compare(a.Name, b.Name))
	})
}

func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// judge is the part of a pool's verdict that all nodes agree on.
func judge(p *v1alpha1.IPPool, pool Pool, earlier []Pool, modes []v1alpha1.PoolMode) Verdict {
	if pool.Deleting {
		return Verdict{v1alpha1.ReasonDeleting, deletingMessage, pool}
	}
	for _, first := range earlier {
		if first.Prefix.Overlaps(pool.Prefix) {
			return Verdict{v1alpha1.ReasonOverlapping, overlapMessage(pool, first), pool}
		}
	}
	if p.Spec.Disabled {
		return Verdict{v1alpha1.ReasonDisabled, "spec.disabled is true: addresses in use stay in use, and no new ones are given out", pool}
	}
	mode := cmp.Or(p.Spec.Mode, v1alpha1.ModeNative)
	if len(modes) == 0 {
		modes = v1alpha1.PoolModes
	}
	if !slices.Contains(modes, mode) {
		return Verdict{v1alpha1.ReasonUnsupportedMode, fmt.Sprintf(
			"this release cannot carry spec.mode %s yet: write one of %v", mode, modes), pool}
	}
	return Verdict{v1alpha1.ReasonUsable, usableMessage(pool), pool}
}

// deletingMessage is what any node can say; who holds the pool back only the controller knows.
const deletingMessage = "the pool is being deleted: addresses in use stay in use, no new ones are given out, " +
	"and the pool goes with the last of them (condition InUse says which nodes have blocks of it)"

// overlapMessage is for a pool that overlaps one that came first.
func overlapMessage(pool, first Pool) string {
	remedy := "delete this pool and create one with a range of its own"
	if first.Deleting {
		remedy = "that one is being deleted, and when it has gone this one can be used"
	}
	return fmt.Sprintf("spec.cidr %s overlaps %s of pool %s, which came first: %s", pool.Prefix, first.Prefix, first.Name, remedy)
}

func usableMessage(pool Pool) string {
	return fmt.Sprintf("nodes claim blocks of /%d from %s", pool.BlockBits, pool.Prefix)
}

// special are ranges no pod can have an address of, with the reason.
var special = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "means this network (RFC 1122)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "is every host's loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "is link-local, and pods' gateway is in it"},
	{netip.MustParsePrefix("224.0.0.0/4"), "is multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "is broadcast"},
	{netip.MustParsePrefix("::/8"), "is reserved (RFC 4291 section 2.5)"},
	{netip.MustParsePrefix("fe80::/10"), "is link-local"},
	{netip.MustParsePrefix("ff00::/8"), "is multicast"},
}

// parse reads the pool's spec. The API server refuses most of what parse does;
// a pool may be older than the rule.
func parse(p *v1alpha1.IPPool) (Pool, labels.Selector, error) {
	prefix, err := p.Prefix()
	if err != nil {
		return Pool{}, nil, fmt.Errorf("spec.cidr %q is not an IP range: write a network address and prefix length, such as 10.244.0.0/16", p.Spec.CIDR)
	}
	if prefix != prefix.Masked() || prefix.Addr().Is4In6() {
		return Pool{}, nil, fmt.Errorf("spec.cidr %s is not a network address: write one such as 10.244.0.0/16 or fd00:10:244::/48", prefix)
	}
	for _, s := range special {
		if s.prefix.Overlaps(prefix) {
			return Pool{}, nil, fmt.Errorf("spec.cidr %s takes in %s, which %s: write a range from your own address plan", prefix, s.prefix, s.what)
		}
	}
	bits := p.BlockBits()
	if bits > prefix.Addr().BitLen() || bits < prefix.Addr().BitLen()-maxHostBits || bits < prefix.Bits() {
		return Pool{}, nil, fmt.Errorf("spec.blockSize %d does not go with spec.cidr %s: write a prefix length from %d to %d",
			bits, prefix, max(prefix.Bits(), prefix.Addr().BitLen()-maxHostBits), prefix.Addr().BitLen())
	}
	selector := labels.Everything()
	if p.Spec.NodeSelector != nil {
		if selector, err = metav1.LabelSelectorAsSelector(p.Spec.NodeSelector); err != nil {
			return Pool{}, nil, fmt.Errorf("spec.nodeSelector: %w", err)
		}
	}
	return Pool{Name: p.Name, Prefix: prefix, BlockBits: bits, Deleting: !p.DeletionTimestamp.IsZero()}, selector, nil
}

// Conditions are the pool's conditions with Ready as the verdict wants it;
// changed is false when the pool says so already, and nothing is to be written.
// The pool itself is left as it is.
func Conditions(pool *v1alpha1.IPPool, v Verdict, now time.Time) (conditions []metav1.Condition, changed bool) {
	ready := metav1.Condition{
		Type:               v1alpha1.PoolReady,
		Status:             metav1.ConditionFalse,
		Reason:             v.Reason,
		Message:            v.Message,
		ObservedGeneration: pool.Generation,
		LastTransitionTime: metav1.NewTime(now),
	}
	if !v.ClusterWide() { // other nodes may use it
		ready.Reason = v1alpha1.ReasonUsable
		ready.Message = usableMessage(v.Pool)
	}
	if ready.Reason == v1alpha1.ReasonUsable {
		ready.Status = metav1.ConditionTrue
	}
	conditions = slices.Clone(pool.Status.Conditions)
	changed = meta.SetStatusCondition(&conditions, ready)
	return conditions, changed
}
