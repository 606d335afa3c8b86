package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// startControlPlane is a lab without nodes: etcd, the API server, Hoplite's resources, its permissions.
func startControlPlane(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	ctx := labtest.Context(t, long)
	return ctx, labtest.Start(t, lab.Config{Nodes: []lab.NodeConfig{}, NoAgents: true})
}

// object is a Hoplite object with its spec as someone would write it, in YAML's flow style.
func object(t *testing.T, kind, name, spec string) *unstructured.Unstructured {
	t.Helper()
	o := &unstructured.Unstructured{}
	text := fmt.Sprintf("{apiVersion: hoplite.io/v1alpha1, kind: %s, metadata: {name: %q}, spec: {%s}}", kind, name, spec)
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return o
}

// blockName is what the API server wants a block to be called, for ranges that are none, too.
func blockName(cidr string) string {
	return strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(cidr)
}

func block(t *testing.T, cidr, node, pool string) *unstructured.Unstructured {
	t.Helper()
	return object(t, "IPAMBlock", blockName(cidr), fmt.Sprintf("cidr: %q, node: %q, pool: %q", cidr, node, pool))
}

// judged fails the test unless err is nil, where refused is empty, or has the sentence that helps.
func judged(t *testing.T, what string, err error, refused string) {
	t.Helper()
	switch {
	case refused == "" && err != nil:
		t.Errorf("%s: should be accepted: %v", what, err)
	case refused != "" && err == nil:
		t.Errorf("%s: was accepted, should be refused with: %s", what, refused)
	case refused != "" && !strings.Contains(err.Error(), refused):
		t.Errorf("%s: refused with\n  %v\nwhich should have\n  %s", what, err, refused)
	}
}

// The API server accepts what docs/resources says it does, and refuses the rest
// with a sentence that says what to write.
func TestWhatTheAPIServerAccepts(t *testing.T) {
	ctx, l := startControlPlane(t)
	// Without any pool there is nothing to claim. This also waits for the policy, which the
	// API server takes up a moment after it was created.
	labtest.Eventually(t, time.Minute, "a block is refused where there is no pool", func() error {
		err := l.Client().Create(ctx, block(t, "10.244.3.64/26", "node1", "default"), client.DryRunAll)
		if err == nil {
			return fmt.Errorf("it was accepted")
		}
		return nil
	})
	t.Run("IPPool is created", func(t *testing.T) { testPoolCreation(t, ctx, l) })
	t.Run("IPPool is changed", func(t *testing.T) { testPoolChanges(t, ctx, l) })
	t.Run("IPAMBlock", func(t *testing.T) { testBlocks(t, ctx, l) })
	t.Run("IPPool is deleted", func(t *testing.T) { testDeletedPool(t, ctx, l) })
	t.Run("BGPConfiguration", func(t *testing.T) { testBGPConfiguration(t, ctx, l) })
	t.Run("kubectl get", func(t *testing.T) { testColumns(t, ctx, l) })
}

func testPoolCreation(t *testing.T, ctx context.Context, l *lab.Lab) {
	const (
		range4 = "is out of range: write a prefix length from 20 to 32 for an IPv4 pool (26 is the default)"
		range6 = "is out of range: write a prefix length from 116 to 128 for an IPv6 pool (122 is the default)"
		noCIDR = " is not an IP range: write a network address and prefix length, such as 10.244.0.0/16 or fd00:10:244::/48"
	)
	for _, c := range []struct{ spec, refused string }{
		{"cidr: 10.244.0.0/16", ""},
		{"cidr: 'fd00:10:244::/48'", ""},
		{"cidr: 10.244.0.0/16, natOutgoing: true, disabled: true, mode: Native, nodeSelector: {matchLabels: {zone: a}}", ""},
		{"cidr: 10.244.0.0/16, nodeSelector: {matchExpressions: [{key: zone, operator: In, values: [a, b]}]}", ""},
		{"cidr: 10.244.0.0/16, blockSize: 20", ""},
		{"cidr: 10.244.0.0/16, blockSize: 32", ""},
		{"cidr: 10.244.0.0/26", ""},
		{"cidr: 10.244.0.1/32, blockSize: 32", ""},
		{"cidr: 'fd00:10:244::/48', blockSize: 116", ""},
		{"cidr: 'fd00:10:244::/48', blockSize: 128", ""},
		{"cidr: 10.244.0.0/16, mode: IPIP", ""},
		{"cidr: 10.244.0.0/16, mode: IPIPCrossSubnet", ""},
		{"cidr: 10.244.0.0/16, mode: VXLAN", ""},
		{"cidr: 'fd00:10:244::/48', mode: VXLAN", ""},
		{"cidr: 'fd00:10:244::/48', mode: VXLANCrossSubnet", ""},

		{"natOutgoing: true", "spec.cidr: Required value"},
		{"cidr: 10.244.3.0/16", "spec.cidr 10.244.3.0/16 is not a network address (it has host bits set): write 10.244.0.0/16"},
		{"cidr: 'fd00:10:244::1/48'", "spec.cidr fd00:10:244::1/48 is not a network address (it has host bits set): write fd00:10:244::/48"},
		{"cidr: 10.244.0.0", "spec.cidr 10.244.0.0" + noCIDR},
		{"cidr: 10.244.0.0/33", "spec.cidr 10.244.0.0/33" + noCIDR},
		{"cidr: 10.244.0/16", "spec.cidr 10.244.0/16" + noCIDR},
		{"cidr: pods", "spec.cidr pods" + noCIDR},
		{"cidr: ''", "spec.cidr " + noCIDR},
		{"cidr: '::/48'", "spec.cidr begins with ::, a range that is reserved (RFC 4291 section 2.5): write one from your own address plan"},
		{"cidr: '::10.244.0.0/112'", "spec.cidr begins with ::, a range that is reserved"},
		{"cidr: '::ffff:10.244.0.0/112'", "spec.cidr ::ffff:10.244.0.0/112" + noCIDR},
		{"cidr: 10.244.0.0/16, blockSize: 19", "spec.blockSize 19 " + range4},
		{"cidr: 10.244.0.0/16, blockSize: 33", "spec.blockSize 33 " + range4},
		{"cidr: 10.244.0.0/16, blockSize: 0", "spec.blockSize 0 " + range4},
		{"cidr: 10.244.0.0/16, blockSize: 122", "spec.blockSize 122 " + range4},
		{"cidr: 'fd00:10:244::/48', blockSize: 115", "spec.blockSize 115 " + range6},
		{"cidr: 'fd00:10:244::/48', blockSize: 26", "spec.blockSize 26 " + range6},
		{"cidr: 'fd00:10:244::/48', blockSize: 129", "spec.blockSize in body should be less than or equal to 128"},
		{"cidr: 10.244.0.0/24, blockSize: 23", "a block of spec.blockSize /23 does not fit in spec.cidr 10.244.0.0/24: write a blockSize of at least 24, or a larger cidr"},
		{"cidr: 10.244.0.0/28", "a block of spec.blockSize /26 does not fit in spec.cidr 10.244.0.0/28: write a blockSize of at least 28, or a larger cidr"},
		{"cidr: 'fd00:10:244::/124'", "a block of spec.blockSize /122 does not fit in spec.cidr fd00:10:244::/124: write a blockSize of at least 124"},
		{"cidr: 10.244.0.0/16, mode: GRE", `Unsupported value: "GRE": supported values: "Native", "IPIP", "IPIPCrossSubnet", "VXLAN", "VXLANCrossSubnet"`},
		{"cidr: 10.244.0.0/16, mode: native", `Unsupported value: "native"`},
		{"cidr: 'fd00:10:244::/48', mode: IPIP", "spec.mode IPIP carries IPv4 only, and spec.cidr fd00:10:244::/48 is IPv6: write Native, VXLAN or VXLANCrossSubnet"},
		{"cidr: 'fd00:10:244::/48', mode: IPIPCrossSubnet", "spec.mode IPIPCrossSubnet carries IPv4 only"},
	} {
		judged(t, c.spec, l.Client().Create(ctx, object(t, "IPPool", "pool", c.spec), client.DryRunAll), c.refused)
	}
	plain := object(t, "IPPool", "pool", "cidr: 10.244.0.0/16")
	if err := l.Client().Create(ctx, plain, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if mode, _, _ := unstructured.NestedString(plain.Object, "spec", "mode"); mode != "Native" {
		t.Errorf("the default of spec.mode is %q", mode)
	}
}

func testPoolChanges(t *testing.T, ctx context.Context, l *lab.Lab) {
	const fixed = "spec.blockSize cannot be changed, since nodes hold blocks of that size: create another IPPool with the new blockSize, then set disabled: true on this one"
	for _, c := range []struct{ before, after, refused string }{
		{"cidr: 10.1.0.0/16", "cidr: 10.1.0.0/16, natOutgoing: true", ""},
		{"cidr: 10.1.0.0/16", "cidr: 10.1.0.0/16, disabled: true", ""},
		{"cidr: 10.1.0.0/16", "cidr: 10.1.0.0/16, mode: VXLAN", ""},
		{"cidr: 10.1.0.0/16", "cidr: 10.1.0.0/16, nodeSelector: {matchLabels: {zone: a}}", ""},
		{"cidr: 10.1.0.0/16", "cidr: 10.1.0.0/16, blockSize: 26", ""},
		{"cidr: 10.1.0.0/16, blockSize: 26", "cidr: 10.1.0.0/16", ""},
		{"cidr: 'fd01::/48'", "cidr: 'fd01::/48', blockSize: 122", ""},
		{"cidr: 'fd01::/48', blockSize: 122", "cidr: 'fd01::/48'", ""},

		{"cidr: 10.1.0.0/16", "cidr: 10.0.0.0/15", "spec.cidr cannot be changed from 10.1.0.0/16, since pods hold addresses of it: create another IPPool with the new cidr, then set disabled: true on this one"},
		{"cidr: 10.1.0.0/16", "cidr: 'fd01::/48'", "spec.cidr cannot be changed from 10.1.0.0/16"},
		{"cidr: 10.1.0.0/16", "cidr: 10.1.0.0/16, blockSize: 27", fixed},
		{"cidr: 10.1.0.0/16, blockSize: 27", "cidr: 10.1.0.0/16, blockSize: 28", fixed},
		{"cidr: 10.1.0.0/16, blockSize: 27", "cidr: 10.1.0.0/16", fixed},
		{"cidr: 'fd01::/48'", "cidr: 'fd01::/48', blockSize: 121", fixed},
		{"cidr: 'fd01::/48', blockSize: 120", "cidr: 'fd01::/48'", fixed},
		{"cidr: 'fd01::/48'", "cidr: 'fd01::/48', mode: IPIP", "spec.mode IPIP carries IPv4 only"},
	} {
		before := object(t, "IPPool", "changing", c.before)
		if err := l.Client().Create(ctx, before); err != nil {
			t.Fatal(err)
		}
		after := object(t, "IPPool", "changing", c.after)
		after.SetResourceVersion(before.GetResourceVersion())
		judged(t, c.before+" to "+c.after, l.Client().Update(ctx, after, client.DryRunAll), c.refused)
		if err := l.Client().Delete(ctx, before); err != nil {
			t.Fatal(err)
		}
	}
}

func testBlocks(t *testing.T, ctx context.Context, l *lab.Lab) {
	for _, pool := range []client.Object{
		object(t, "IPPool", "default", "cidr: 10.244.0.0/16"), object(t, "IPPool", "six", "cidr: 'fd00:10:244::/48'"),
		object(t, "IPPool", "small", "cidr: 10.9.0.0/24, blockSize: 28"),
	} {
		if err := l.Client().Create(ctx, pool); err != nil {
			t.Fatal(err)
		}
	}
	create := func(b *unstructured.Unstructured) error { return l.Client().Create(ctx, b, client.DryRunAll) }
	named := func(name string, b *unstructured.Unstructured) *unstructured.Unstructured {
		b.SetName(name)
		return b
	}
	const (
		name  = "a block is named after its range, since the name is what makes its owner the only one: write metadata.name "
		large = " is larger than a block can be: write a prefix length from 20 to 32 (IPv4) or 116 to 128 (IPv6), equal to the blockSize of its pool"
		noIP  = " is not an IP range: write a network address and prefix length, such as 10.244.0.64/26"
		form  = " is not a network address in its canonical form: write "
	)
	for _, c := range []struct {
		block   *unstructured.Unstructured
		refused string
	}{
		{block(t, "10.244.3.64/26", "node1", "default"), ""},
		{block(t, "fd00:10:244::40/122", "node1", "six"), ""},
		{block(t, "10.9.0.16/28", "node1", "small"), ""},

		{named("10-244-3-64", block(t, "10.244.3.64/26", "node1", "default")), name + "10-244-3-64-26"},
		{named("mine", block(t, "fd00:10:244::40/122", "node1", "six")), name + "fd00-10-244--40-122"},
		{block(t, "10.244.3.65/26", "node1", "default"), "spec.cidr 10.244.3.65/26" + form + "10.244.3.64/26"},
		{block(t, "fd00:10:244:0::40/122", "node1", "six"), "spec.cidr fd00:10:244:0::40/122" + form + "fd00:10:244::40/122"},
		{named("fd00-10-244--40-122", block(t, "FD00:10:244::40/122", "node1", "six")), "spec.cidr FD00:10:244::40/122" + form + "fd00:10:244::40/122"},
		{block(t, "fd00:10:244::41/122", "node1", "six"), "spec.cidr fd00:10:244::41/122" + form + "fd00:10:244::40/122"},
		{block(t, "10.244.3.64", "node1", "default"), "spec.cidr 10.244.3.64" + noIP},
		{block(t, "10.244.3.64/36", "node1", "default"), "spec.cidr 10.244.3.64/36" + noIP},
		{block(t, "10.244.0.0/19", "node1", "default"), "spec.cidr 10.244.0.0/19" + large},
		{block(t, "fd00:10:244::/115", "node1", "six"), "spec.cidr fd00:10:244::/115" + large},
		{block(t, "10.244.3.64/26", "", "default"), `spec.node: Invalid value: "": spec.node in body should be at least 1 chars long`},
		{block(t, "10.244.3.64/26", "node1", ""), `spec.pool: Invalid value: "": spec.pool in body should be at least 1 chars long`},
		{block(t, "10.245.3.64/26", "node1", "default"), "block 10.245.3.64/26 is not inside its pool default, which is 10.244.0.0/16: write a range inside it, or the pool that has this one"},
		{block(t, "10.244.3.64/26", "node1", "six"), "block 10.244.3.64/26 is not inside its pool six, which is fd00:10:244::/48"},
		{block(t, "10.244.3.64/27", "node1", "default"), "block 10.244.3.64/27 is not of the size of its pool default: write a prefix length of 26"},
		{block(t, "10.244.2.0/24", "node1", "default"), "block 10.244.2.0/24 is not of the size of its pool default: write a prefix length of 26"},
		{block(t, "10.9.0.0/26", "node1", "small"), "block 10.9.0.0/26 is not of the size of its pool small: write a prefix length of 28"},
		{block(t, "fd00:10:244::/120", "node1", "six"), "block fd00:10:244::/120 is not of the size of its pool six: write a prefix length of 122"},
	} {
		what := fmt.Sprint(c.block.GetName(), " ", c.block.Object["spec"])
		if strings.HasPrefix(c.refused, "block ") {
			// What the policy knows of the pools is a moment behind.
			labtest.Eventually(t, time.Minute, what+" is refused", func() error {
				if create(c.block.DeepCopy()) == nil {
					return fmt.Errorf("it is accepted; it should be refused with: %s", c.refused)
				}
				return nil
			})
		}
		judged(t, what, create(c.block), c.refused)
	}
	testBlockOwnership(t, ctx, l)
}

// Creating a block is taking the lock on its range: nobody else can, its owner cannot change, and its
// owner is found by it.
func testBlockOwnership(t *testing.T, ctx context.Context, l *lab.Lab) {
	for cidr, node := range map[string]string{"10.244.0.0/26": "node1", "10.244.0.64/26": "node2", "10.244.0.128/26": "node1"} {
		if err := l.Client().Create(ctx, block(t, cidr, node, "default")); err != nil {
			t.Fatal(err)
		}
	}
	judged(t, "node2 takes node1's", l.Client().Create(ctx, block(t, "10.244.0.0/26", "node2", "default")), `"10-244-0-0-26" already exists`)

	var mine v1alpha1.IPAMBlock
	if err := l.Client().Get(ctx, client.ObjectKey{Name: "10-244-0-0-26"}, &mine); err != nil {
		t.Fatal(err)
	}
	const fixed = "a block's spec cannot be changed: delete the block, when its node is gone for good, and its range can be claimed anew"
	for what, change := range map[string]func(*v1alpha1.IPAMBlock){
		"another node": func(b *v1alpha1.IPAMBlock) { b.Spec.Node = "node2" },
		"another pool": func(b *v1alpha1.IPAMBlock) { b.Spec.Pool = "small" },
	} {
		changed := mine.DeepCopy()
		change(changed)
		judged(t, what, l.Client().Update(ctx, changed), fixed)
	}
	marked := mine.DeepCopy()
	metav1.SetMetaDataAnnotation(&marked.ObjectMeta, "example.com/note", "fine")
	judged(t, "an annotation", l.Client().Update(ctx, marked), "")

	var owned v1alpha1.IPAMBlockList
	if err := l.Client().List(ctx, &owned, client.MatchingFields{"spec.node": "node1"}); err != nil {
		t.Fatal(err)
	}
	var cidrs []string
	for _, b := range owned.Items {
		cidrs = append(cidrs, b.Spec.CIDR)
	}
	if slices.Sort(cidrs); !slices.Equal(cidrs, []string{"10.244.0.0/26", "10.244.0.128/26"}) {
		t.Errorf("node1's blocks by field selector: %v", cidrs)
	}
	got := kubectl(t, ctx, l, "get", "ipamblocks", "--field-selector", "spec.node=node2", "-o", "name")
	if got != "ipamblock.hoplite.io/10-244-0-64-26\n" {
		t.Errorf("kubectl get ipamblocks --field-selector spec.node=node2:\n%s", got)
	}
	if err := l.Client().List(ctx, &owned, client.MatchingFields{"spec.pool": "default"}); err != nil || len(owned.Items) != 3 {
		t.Errorf("blocks of pool default by field selector: %v, %v", owned.Items, err)
	}
	if err := l.Client().List(ctx, &owned, client.MatchingFields{"spec.pool": "small", "spec.node": "node1"}); err != nil || len(owned.Items) != 0 {
		t.Errorf("blocks of pool small by field selector: %v, %v", owned.Items, err)
	}
}

// A pool that is being deleted gets no other block, and keeps those it has.
func testDeletedPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	pool := object(t, "IPPool", "going", "cidr: 10.6.0.0/24")
	pool.SetFinalizers([]string{v1alpha1.BlocksFinalizer}) // as the controller would
	mine := block(t, "10.6.0.0/26", "node1", "going")
	for _, o := range []client.Object{pool, mine} {
		// The policy may not know the pool yet, and then does not mind the block.
		if err := l.Client().Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Client().Delete(ctx, pool); err != nil {
		t.Fatal(err)
	}
	var err error
	labtest.Eventually(t, time.Minute, "a block of a pool being deleted is refused", func() error {
		if err = l.Client().Create(ctx, block(t, "10.6.0.64/26", "node1", "going"), client.DryRunAll); err == nil {
			return fmt.Errorf("it is accepted")
		}
		return nil
	})
	judged(t, "a block of a pool being deleted", err, "pool going is being deleted, so no block of it can be claimed any more: claim one of another pool, or create a pool with another range")
	if !apierrors.IsInvalid(err) { // what agents know it by
		t.Errorf("it is refused by an error of another kind: %v", err)
	}
	judged(t, "a block of another pool", l.Client().Create(ctx, block(t, "10.244.9.64/26", "node1", "default"), client.DryRunAll), "")
	mine.SetAnnotations(map[string]string{"hoplite.io/releasing": "true"})
	judged(t, "a block the pool has is marked", l.Client().Update(ctx, mine), "")
	judged(t, "and deleted", l.Client().Delete(ctx, mine), "")
	patch(t, ctx, l, "IPPool", "going", `{"metadata":{"finalizers":[]}}`)
	if err := l.Client().Get(ctx, client.ObjectKeyFromObject(pool), pool); !apierrors.IsNotFound(err) {
		t.Errorf("nothing holds the pool back, and it is there: %v", err)
	}
}

func testBGPConfiguration(t *testing.T, ctx context.Context, l *lab.Lab) {
	for _, c := range []struct{ name, spec, refused string }{
		{"default", "", ""},
		{"default", "asNumber: 1, listenPort: 1, nodeMesh: false", ""},
		{"default", "asNumber: 4294967294, listenPort: 65535, nodeMesh: true", ""},

		{"mine", "", "a cluster has one BGPConfiguration: write metadata.name default"},
		{"default", "asNumber: 0", "spec.asNumber in body should be greater than or equal to 1"},
		{"default", "asNumber: 4294967295", "spec.asNumber in body should be less than or equal to 4294967294"},
		{"default", "asNumber: -1", "spec.asNumber in body should be greater than or equal to 1"},
		{"default", "asNumber: '64512'", `spec.asNumber in body must be of type integer: "string"`},
		{"default", "listenPort: 0", "spec.listenPort in body should be greater than or equal to 1"},
		{"default", "listenPort: 65536", "spec.listenPort in body should be less than or equal to 65535"},
		{"default", "nodeMesh: 'no'", `spec.nodeMesh in body must be of type boolean: "string"`},
	} {
		judged(t, c.name+": "+c.spec, l.Client().Create(ctx, object(t, "BGPConfiguration", c.name, c.spec), client.DryRunAll), c.refused)
	}
	plain := object(t, "BGPConfiguration", "default", "")
	if err := l.Client().Create(ctx, plain, client.DryRunAll); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(plain.Object["spec"]); got != "map[asNumber:64512 listenPort:179 nodeMesh:true]" {
		t.Errorf("the defaults are %s", got)
	}
}

// kubectl is its output, without a cache that other labs at the same addresses could have filled.
func kubectl(t *testing.T, ctx context.Context, l *lab.Lab, args ...string) string {
	t.Helper()
	out, err := l.Kubectl(ctx, append([]string{"--cache-dir", t.TempDir()}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// kubectl get shows what one looks for. It runs after the others, with what they left.
func testColumns(t *testing.T, ctx context.Context, l *lab.Lab) {
	for _, o := range []client.Object{
		object(t, "BGPConfiguration", "default", "asNumber: 65001, nodeMesh: false"),
		object(t, "IPPool", "columns", "cidr: 10.7.0.0/16, mode: VXLAN, natOutgoing: true"),
	} {
		if err := l.Client().Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	var pool v1alpha1.IPPool
	if err := l.Client().Get(ctx, client.ObjectKey{Name: "columns"}, &pool); err != nil {
		t.Fatal(err)
	}
	pool.Status = v1alpha1.IPPoolStatus{Capacity: 65536, Blocks: 42, Conditions: []metav1.Condition{{
		Type: v1alpha1.PoolReady, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonUnsupportedMode, LastTransitionTime: metav1.Now(),
	}}}
	if err := l.Client().Status().Update(ctx, &pool); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ resource, headings, row string }{
		{"ippools", "NAME CIDR MODE NAT BLOCKS READY REASON AGE", "columns 10.7.0.0/16 VXLAN true 42 False UnsupportedMode"},
		{"ipamblocks", "NAME CIDR NODE POOL AGE", "10-244-0-64-26 10.244.0.64/26 node2 default"},
		{"bgpconfigurations", "NAME AS PORT MESH AGE", "default 65001 179 false"},
	} {
		lines := strings.Split(kubectl(t, ctx, l, "get", c.resource), "\n")
		if got := strings.Join(strings.Fields(lines[0]), " "); got != c.headings {
			t.Errorf("columns of kubectl get %s: %s, want %s", c.resource, got, c.headings)
		}
		if !slices.ContainsFunc(lines, func(line string) bool {
			return strings.HasPrefix(strings.Join(strings.Fields(line), " ")+" ", c.row+" ")
		}) {
			t.Errorf("kubectl get %s has no row %q:\n%s", c.resource, c.row, strings.Join(lines, "\n"))
		}
	}
}
