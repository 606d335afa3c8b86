package agent

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/hoplite-net/hoplite/agent/cluster"
	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

func TestANodeSaysWhichTunnelsItLacksThatAreWanted(t *testing.T) {
	ipip, vxlan := bgp.EncapsulationsOf(bgp.IPIP), bgp.EncapsulationsOf(bgp.VXLAN)
	for _, c := range []struct {
		wanted, unsupported bgp.Encapsulations
		reason, says        string
	}{
		{0, 0, v1alpha1.ReasonSupported, ""},
		{0, bgp.Tunnels, v1alpha1.ReasonSupported, ""},
		{bgp.Tunnels, 0, v1alpha1.ReasonSupported, ""},
		{ipip, vxlan, v1alpha1.ReasonSupported, ""},
		{ipip, bgp.Tunnels, v1alpha1.ReasonIPIPUnsupported, "CONFIG_NET_IPIP"},
		{vxlan, bgp.Tunnels, v1alpha1.ReasonVXLANUnsupported, "CONFIG_VXLAN"},
		{bgp.Tunnels, vxlan, v1alpha1.ReasonVXLANUnsupported, "CONFIG_VXLAN"},
		{bgp.Tunnels, bgp.Tunnels, v1alpha1.ReasonTunnelsUnsupported, "CONFIG_NET_IPIP, CONFIG_VXLAN"},
	} {
		got := tunnelCondition(c.wanted, c.unsupported)
		ok := got.Status == corev1.ConditionTrue
		if got.Type != v1alpha1.NodeTunnels || got.Reason != c.reason || ok != (c.reason == v1alpha1.ReasonSupported) || !strings.Contains(got.Message, c.says) || got.Message == "" {
			t.Errorf("wanted %s, unsupported %s: %+v", c.wanted, c.unsupported, got)
		}
	}
}

func TestTheNodesConditionIsWrittenOnlyWhenThereIsNews(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var before *corev1.NodeCondition
	for _, step := range []struct {
		what                string
		wanted, unsupported bgp.Encapsulations
		write               bool
		since               int // the step whose time is the last transition's
	}{
		{"no trouble", bgp.Tunnels, 0, false, 0},
		{"what is lacking is not wanted", 0, bgp.Tunnels, false, 0},
		{"it is wanted", bgp.EncapsulationsOf(bgp.IPIP), bgp.Tunnels, true, 2},
		{"still", bgp.EncapsulationsOf(bgp.IPIP), bgp.Tunnels, false, 2},
		{"another, too", bgp.Tunnels, bgp.Tunnels, true, 2},
		{"over", 0, bgp.Tunnels, true, 5},
		{"still over", bgp.Tunnels, 0, false, 5},
	} {
		now = now.Add(time.Minute)
		after, write := nextCondition(before, step.wanted, step.unsupported, now)
		if write != step.write {
			t.Errorf("%s: written: %t, want %t: %+v", step.what, write, step.write, after)
		}
		if want := time.Date(2026, 1, 1, 0, step.since+1, 0, 0, time.UTC); write && !after.LastTransitionTime.Time.Equal(want) {
			t.Errorf("%s: last transition at %s, want %s", step.what, after.LastTransitionTime, want)
		}
		if write {
			before = &after
		}
	}
}

func TestNobodyElsesConditionIsTouched(t *testing.T) {
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	self.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}, {Type: v1alpha1.NodeTunnels, Reason: "Old"}}
	api := fake.NewClientBuilder().WithScheme(cluster.Scheme()).WithObjects(self).WithStatusSubresource(self).Build()
	if err := patchNodeCondition(t.Context(), api, "n", tunnelCondition(bgp.Tunnels, bgp.Tunnels)); err != nil {
		t.Fatal(err)
	}
	var got corev1.Node
	if err := api.Get(t.Context(), client.ObjectKey{Name: "n"}, &got); err != nil {
		t.Fatal(err)
	}
	reasons := map[corev1.NodeConditionType]string{}
	for _, c := range got.Status.Conditions {
		reasons[c.Type] = string(c.Status) + c.Reason
	}
	if len(got.Status.Conditions) != 2 || reasons[corev1.NodeReady] != "True" || reasons[v1alpha1.NodeTunnels] != "False"+v1alpha1.ReasonTunnelsUnsupported {
		t.Errorf("conditions: %+v", got.Status.Conditions)
	}
	if err := patchNodeCondition(t.Context(), api, "gone", tunnelCondition(0, 0)); err != nil {
		t.Errorf("a Node that was deleted meanwhile: %v", err)
	}
}
