package ipam_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// ippool is a pool created that many seconds after the epoch.
func ippool(name, cidr string, second int, change ...func(*v1alpha1.IPPoolSpec)) v1alpha1.IPPool {
	p := v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(epoch.Add(time.Duration(second) * time.Second))},
		Spec:       v1alpha1.IPPoolSpec{CIDR: cidr, Mode: v1alpha1.ModeNative},
	}
	for _, c := range change {
		c(&p.Spec)
	}
	return p
}

func disabled(s *v1alpha1.IPPoolSpec) { s.Disabled = true }

func blockSize(bits int32) func(*v1alpha1.IPPoolSpec) {
	return func(s *v1alpha1.IPPoolSpec) { s.BlockSize = &bits }
}

func inRack(rack string) func(*v1alpha1.IPPoolSpec) {
	return func(s *v1alpha1.IPPoolSpec) {
		s.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"rack": rack}}
	}
}

func TestWhichPoolsANodeMayUse(t *testing.T) {
	vxlan := func(s *v1alpha1.IPPoolSpec) { s.Mode = v1alpha1.ModeVXLAN }
	badSelector := func(s *v1alpha1.IPPoolSpec) {
		s.NodeSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "rack", Operator: "Like"}}}
	}
	for name, c := range map[string]struct {
		pools   []v1alpha1.IPPool
		usable  string // in order
		reasons map[string]string
		says    string // part of some message
	}{
		"the more specific first, then by name": {
			pools:  []v1alpha1.IPPool{ippool("c", "10.1.0.0/16", 0), ippool("b", "10.2.0.0/16", 0), ippool("a", "10.0.0.0/16", 9), ippool("z", "10.3.0.0/24", 9), ippool("six", "fd00::/64", 0)},
			usable: "z a b c six",
		},
		"disabled": {
			pools:   []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 0, disabled)},
			reasons: map[string]string{"a": v1alpha1.ReasonDisabled},
		},
		"the later of two that overlap is refused, and told which it overlaps": {
			pools:   []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 1), ippool("b", "10.0.0.0/8", 0)},
			usable:  "b",
			reasons: map[string]string{"a": v1alpha1.ReasonOverlapping},
			says:    "spec.cidr 10.0.0.0/16 overlaps 10.0.0.0/8 of pool b",
		},
		"created in the same second, the name decides": {
			pools:   []v1alpha1.IPPool{ippool("b", "10.0.0.0/16", 0), ippool("a", "10.0.0.0/8", 0)},
			usable:  "a",
			reasons: map[string]string{"b": v1alpha1.ReasonOverlapping},
		},
		"a disabled pool still stands in the way": {
			pools:   []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 0, disabled), ippool("b", "10.0.0.0/16", 1)},
			reasons: map[string]string{"a": v1alpha1.ReasonDisabled, "b": v1alpha1.ReasonOverlapping},
		},
		"a refused pool still stands in the way, or deleting the first would turn the tables": {
			pools:   []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 0), ippool("b", "10.0.0.0/15", 1), ippool("c", "10.1.0.0/16", 2)},
			usable:  "a",
			reasons: map[string]string{"b": v1alpha1.ReasonOverlapping, "c": v1alpha1.ReasonOverlapping},
		},
		"the selector is this node's business": {
			pools:   []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 0, inRack("1")), ippool("b", "10.1.0.0/16", 0, inRack("2"))},
			usable:  "a",
			reasons: map[string]string{"b": ipam.ReasonNotSelected},
		},
		"what is wrong for all comes before the selector": {
			pools:   []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 0, inRack("2"), disabled)},
			reasons: map[string]string{"a": v1alpha1.ReasonDisabled},
		},
		"a selector that cannot be read":       {pools: []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 0, badSelector)}, reasons: map[string]string{"a": ipam.ReasonInvalid}},
		"a mode the data plane does not carry": {pools: []v1alpha1.IPPool{ippool("a", "10.0.0.0/16", 0, vxlan)}, reasons: map[string]string{"a": v1alpha1.ReasonUnsupportedMode}},
		"no range":                             {pools: []v1alpha1.IPPool{ippool("a", "ten", 0)}, reasons: map[string]string{"a": ipam.ReasonInvalid}},
		"host bits":                            {pools: []v1alpha1.IPPool{ippool("a", "10.0.0.1/16", 0)}, reasons: map[string]string{"a": ipam.ReasonInvalid}},
		"blocks larger than the pool":          {pools: []v1alpha1.IPPool{ippool("a", "10.0.0.0/27", 0)}, reasons: map[string]string{"a": ipam.ReasonInvalid}},
		"blocks too large":                     {pools: []v1alpha1.IPPool{ippool("a", "10.0.0.0/8", 0, blockSize(19))}, reasons: map[string]string{"a": ipam.ReasonInvalid}},
		"the range of pods' gateway":           {pools: []v1alpha1.IPPool{ippool("a", "169.254.0.0/16", 0)}, reasons: map[string]string{"a": ipam.ReasonInvalid}},
		"everything":                           {pools: []v1alpha1.IPPool{ippool("a", "0.0.0.0/0", 0)}, reasons: map[string]string{"a": ipam.ReasonInvalid}},
		"a range that makes no sense stands in nobody's way": {
			pools:  []v1alpha1.IPPool{ippool("a", "10.0.0.0/8", 0, blockSize(40)), ippool("b", "10.0.0.0/16", 1)},
			usable: "b", reasons: map[string]string{"a": ipam.ReasonInvalid},
		},
	} {
		t.Run(name, func(t *testing.T) {
			usable, verdicts := ipam.Usable(c.pools, map[string]string{"rack": "1"}, v1alpha1.ModeNative)
			var names, messages []string
			for _, p := range usable {
				names = append(names, p.Name)
			}
			if got := strings.Join(names, " "); got != c.usable {
				t.Errorf("usable: %q, want %q", got, c.usable)
			}
			for _, p := range c.pools {
				v := verdicts[p.Name]
				messages = append(messages, v.Message)
				want := c.reasons[p.Name]
				if want == "" {
					want = v1alpha1.ReasonUsable
				}
				if v.Reason != want || v.Message == "" || v.Usable() != slices.Contains(names, p.Name) {
					t.Errorf("verdict on %s: %+v, want reason %s", p.Name, v, want)
				}
			}
			if all := strings.Join(messages, "\n"); !strings.Contains(all, c.says) {
				t.Errorf("messages do not say %q:\n%s", c.says, all)
			}
			slices.Reverse(c.pools)
			again, _ := ipam.Usable(c.pools, map[string]string{"rack": "1"}, v1alpha1.ModeNative)
			if !slices.Equal(usable, again) {
				t.Errorf("the order in which pools are listed matters: %v, %v", usable, again)
			}
		})
	}
}

func TestEveryNodeComesToTheSameCondition(t *testing.T) {
	pools := []v1alpha1.IPPool{
		ippool("a", "10.0.0.0/16", 0, inRack("1")), ippool("b", "10.0.0.0/16", 1), ippool("c", "10.3.0.0/16", 1, disabled), ippool("d", "x", 1),
	}
	want := map[string]metav1.ConditionStatus{"a": metav1.ConditionTrue, "b": metav1.ConditionFalse, "c": metav1.ConditionFalse, "d": metav1.ConditionFalse}
	_, one := ipam.Usable(pools, map[string]string{"rack": "1"})
	_, two := ipam.Usable(pools, nil)
	for i := range pools {
		p := &pools[i]
		p.Generation = 3
		conditions, changed := ipam.Conditions(p, one[p.Name], epoch)
		if !changed || len(conditions) != 1 || conditions[0].Status != want[p.Name] || conditions[0].ObservedGeneration != 3 {
			t.Fatalf("%s: %v, changed: %t", p.Name, conditions, changed)
		}
		if len(p.Status.Conditions) != 0 {
			t.Fatalf("%s: the pool itself was changed", p.Name)
		}
		p.Status.Conditions = conditions
		again, changed := ipam.Conditions(p, two[p.Name], epoch.Add(time.Hour))
		if changed {
			t.Errorf("%s: a node with other labels would write another condition: %v, %v", p.Name, conditions, again)
		}
	}
	pools[0].Spec.Disabled = true
	_, verdicts := ipam.Usable(pools, nil)
	conditions, changed := ipam.Conditions(&pools[0], verdicts["a"], epoch.Add(time.Hour))
	if !changed || conditions[0].Reason != v1alpha1.ReasonDisabled || !conditions[0].LastTransitionTime.Time.Equal(epoch.Add(time.Hour)) {
		t.Errorf("a pool that was disabled has %v, changed: %t", conditions, changed)
	}
	if pools[0].Status.Conditions[0].Status != metav1.ConditionTrue {
		t.Error("the pool's own conditions were changed in place")
	}
}

func TestClosedPoolsAreThoseThatExistAndGiveNothing(t *testing.T) {
	_, verdicts := ipam.Usable([]v1alpha1.IPPool{
		ippool("off", "10.1.0.0/16", 0, disabled), ippool("elsewhere", "10.2.0.0/16", 0, inRack("7")),
		ippool("overlaps", "10.1.0.0/16", 1), ippool("broken", "x", 1), ippool("fine", "10.3.0.0/16", 0),
	}, nil)
	var names []string
	for _, p := range ipam.Closed(verdicts) {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, " "); got != "elsewhere off" {
		t.Errorf("closed: %s", got)
	}
}

func FuzzUsable(f *testing.F) {
	f.Add("10.0.0.0/8", int32(26), "10.0.0.0/16", int32(26))
	f.Add("fd00::/64", int32(122), "::ffff:10.0.0.0/104", int32(122))
	f.Add("10.0.0.0/33", int32(-1), "fe80::%eth0/64", int32(200))
	f.Fuzz(func(t *testing.T, cidrA string, bitsA int32, cidrB string, bitsB int32) {
		pools := []v1alpha1.IPPool{ippool("a", cidrA, 0, blockSize(bitsA)), ippool("b", cidrB, 0, blockSize(bitsB))}
		usable, verdicts := ipam.Usable(pools, nil)
		if len(verdicts) != 2 || len(usable) == 2 && usable[0].Prefix.Overlaps(usable[1].Prefix) {
			t.Fatalf("usable: %v, verdicts: %v", usable, verdicts)
		}
		for _, p := range usable {
			block := netip.PrefixFrom(p.Prefix.Addr(), p.BlockBits)
			if _, err := ipam.NewBlock(block); err != nil || !p.Prefix.Contains(block.Addr()) {
				t.Fatalf("pool %v is usable and its first block is not: %v", p, err)
			}
		}
	})
}
