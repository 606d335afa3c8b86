package cluster

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
)

func address(kind corev1.NodeAddressType, a string) corev1.NodeAddress {
	return corev1.NodeAddress{Type: kind, Address: a}
}

func TestANodesAddressIsItsFirstInternalIPOfEachFamily(t *testing.T) {
	for _, c := range []struct {
		what      string
		addresses []corev1.NodeAddress
		v4, v6    string
	}{
		{"none", nil, "", ""},
		{"external and names do not count", []corev1.NodeAddress{address(corev1.NodeExternalIP, "192.0.2.1"), address(corev1.NodeHostName, "a")}, "", ""},
		{"the first", []corev1.NodeAddress{address(corev1.NodeInternalIP, "192.0.2.1"), address(corev1.NodeInternalIP, "192.0.2.2")}, "192.0.2.1", ""},
		{"both families", []corev1.NodeAddress{address(corev1.NodeInternalIP, "2001:db8::1"), address(corev1.NodeInternalIP, "192.0.2.1")}, "192.0.2.1", "2001:db8::1"},
		{"nonsense is passed over", []corev1.NodeAddress{address(corev1.NodeInternalIP, "banana"), address(corev1.NodeInternalIP, "192.0.2.1")}, "192.0.2.1", ""},
	} {
		got := FromNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Addresses: c.addresses}})
		if text(got.IPv4) != c.v4 || text(got.IPv6) != c.v6 {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// Heartbeats and statuses, of which a large cluster has many a second, are no change.
func TestOnlyWhatIsReadCounts(t *testing.T) {
	node := &corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{address(corev1.NodeInternalIP, "192.0.2.1")}}}
	beat := node.DeepCopy()
	beat.ResourceVersion, beat.Annotations = "2", map[string]string{"a": "b"}
	beat.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}}
	moved := node.DeepCopy()
	moved.Status.Addresses[0].Address = "192.0.2.2"
	reborn := node.DeepCopy()
	reborn.UID = "other"
	pool := &v1alpha1.IPPool{Spec: v1alpha1.IPPoolSpec{CIDR: "10.0.0.0/8"}}
	counted := pool.DeepCopy()
	counted.Status.Blocks = 7
	disabled := pool.DeepCopy()
	disabled.Spec.Disabled = true
	deleting := pool.DeepCopy()
	deleting.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	for _, c := range []struct {
		what          string
		before, after any
		want          bool
	}{
		{"a heartbeat", node, beat, false},
		{"an address", node, moved, true},
		{"a node deleted and made again", node, reborn, true},
		{"a pool's block count", pool, counted, false},
		{"a pool disabled", pool, disabled, true},
		{"a pool being deleted", pool, deleting, true},
		{"no further from being deleted", deleting, deleting.DeepCopy(), false},
	} {
		if got := differs(c.before, c.after); got != c.want {
			t.Errorf("%s: change = %t, want %t", c.what, got, c.want)
		}
	}
}

func TestASlimNodeIsEnough(t *testing.T) {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a"}, Annotations: map[string]string{"long": "text"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{address(corev1.NodeInternalIP, "192.0.2.1")}, Images: make([]corev1.ContainerImage, 50)},
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}, {Type: v1alpha1.NodeTunnels}}
	for self, labels := range map[string]int{"n": 1, "other": 0} {
		out, err := slimNode(self)(node.DeepCopy())
		if err != nil {
			t.Fatal(err)
		}
		slim := out.(*corev1.Node)
		if FromNode(slim) != FromNode(node) || len(slim.Labels) != labels || len(slim.Status.Conditions) != labels || slim.Annotations != nil || slim.Status.Images != nil {
			t.Errorf("on node %s: %+v", self, slim)
		}
	}
}

func TestRememberedIsWhatWasSeen(t *testing.T) {
	dir := t.TempDir()
	if _, ok, err := Remembered(dir); ok || err != nil {
		t.Fatalf("after a reboot: %t, %v", ok, err)
	}
	mesh := true
	seen := State{
		Self: Node{Name: "n", IPv4: netip.MustParseAddr("192.0.2.1")}, SelfKnown: true, Labels: map[string]string{"zone": "a"},
		Peers:  []Node{{Name: "m", IPv4: netip.MustParseAddr("192.0.2.2"), IPv6: netip.MustParseAddr("2001:db8::2")}},
		Pools:  []v1alpha1.IPPool{{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.IPPoolSpec{CIDR: "10.0.0.0/8"}}},
		BGP:    v1alpha1.BGPConfigurationSpec{ASNumber: 65000, ListenPort: 179, NodeMesh: &mesh},
		Blocks: []v1alpha1.IPAMBlock{{Spec: v1alpha1.IPAMBlockSpec{CIDR: "10.0.0.0/26", Node: "n", Pool: "p"}}},
	}
	if err := Remember(dir, seen); err != nil {
		t.Fatal(err)
	}
	got, ok, err := Remembered(dir)
	if err != nil || !ok || !reflect.DeepEqual(got, seen) {
		t.Errorf("remembered %+v (%t, %v), seen %+v", got, ok, err, seen)
	}
	// A file cut short is an error, never half a cluster.
	path := filepath.Join(dir, rememberedFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := Remembered(dir); ok || err == nil {
		t.Errorf("half a file: %t, %v", ok, err)
	}
}
