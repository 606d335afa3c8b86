package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/ipam"
	"github.com/hoplite-net/hoplite/ipam/ipamtest"
	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// Many nodes claim blocks of one small pool at once, as objects of the real API: no
// address is given out twice, none is lost. Nor when the API server dies and comes back in the middle.
func TestClaimantsOverTheAPI(t *testing.T) {
	ctx, l := startControlPlane(t)
	if err := l.Client().Create(ctx, object(t, "IPPool", "small", "cidr: 10.9.0.0/24, blockSize: 28")); err != nil {
		t.Fatal(err)
	}
	claimed := func() error { // not really: as soon as the policy knows the pool
		err := l.Client().Create(ctx, block(t, "10.9.0.0/28", "node1", "small"), client.DryRunAll)
		return client.IgnoreAlreadyExists(err)
	}
	labtest.Eventually(t, time.Minute, "a block of the pool can be claimed", claimed)
	seed := uint64(time.Now().UnixNano())
	c := ipamtest.Claimants{
		NewStore: func(node string) ipam.Store { return ipam.NewAPIStore(l.Client(), node) },
		Pool:     ipam.Pool{Name: "small", Prefix: netip.MustParsePrefix("10.9.0.0/24"), BlockBits: 28},
		Nodes:    8, Steps: 800, Seed: seed,
	}
	t.Run("at once", c.Run)
	t.Run("through an outage", func(t *testing.T) {
		o := &outageInTheMiddle{lab: l, over: make(chan struct{})}
		c.NewStore = func(node string) ipam.Store {
			return interrupted{ipam.NewAPIStore(l.Client(), node), o}
		}
		c.Faulty = true
		c.Mend = func() {
			o.end(ctx) // should nobody have called after the last failure
			labtest.Eventually(t, time.Minute, "blocks can be claimed again", claimed)
		}
		c.Run(t)
		if o.err != nil {
			t.Error(o.err)
		}
		t.Logf("%d calls, %d of them failed", o.calls.Load(), o.failed.Load())
		if o.failed.Load() < failures {
			t.Error("the outage was not noticed")
		}
	})
}

// The outage begins with this call and lasts until so many have failed.
const (
	firstCall = 200
	failures  = 24
)

// outageInTheMiddle kills the API server while the claimants are at work, and
// starts it again when they have felt it. Further calls wait for its return, for
// the claimants are to go on after it.
type outageInTheMiddle struct {
	lab           *lab.Lab
	calls, failed atomic.Int64
	ended         sync.Once
	over          chan struct{}
	err           error // of the start; read it after over
}

func (o *outageInTheMiddle) before(ctx context.Context) {
	if o.calls.Add(1) == firstCall {
		go o.lab.StopAPIServer()
	}
	if o.failed.Load() >= failures {
		o.end(ctx)
	}
}

func (o *outageInTheMiddle) after(err error) {
	if err != nil && !errors.Is(err, ipam.ErrClaimed) {
		o.failed.Add(1)
	}
}

// end starts the API server, once, and returns when it serves.
func (o *outageInTheMiddle) end(ctx context.Context) {
	o.ended.Do(func() {
		defer close(o.over)
		o.lab.StopAPIServer() // waits for its end
		o.err = o.lab.StartAPIServer(context.WithoutCancel(ctx))
	})
	<-o.over
}

// interrupted is a store whose API server has the outage.
type interrupted struct {
	ipam.Store
	outage *outageInTheMiddle
}

func (s interrupted) Claim(ctx context.Context, pool ipam.Pool, block netip.Prefix) error {
	s.outage.before(ctx)
	err := s.Store.Claim(ctx, pool, block)
	s.outage.after(err)
	return err
}

func (s interrupted) Release(ctx context.Context, block netip.Prefix) error {
	s.outage.before(ctx)
	err := s.Store.Release(ctx, block)
	s.outage.after(err)
	return err
}

func (s interrupted) Owned(ctx context.Context) ([]ipam.OwnedBlock, error) {
	s.outage.before(ctx)
	owned, err := s.Store.Owned(ctx)
	s.outage.after(err)
	return owned, err
}

func (s interrupted) Claimed(ctx context.Context, pool ipam.Pool) ([]netip.Prefix, error) {
	s.outage.before(ctx)
	claimed, err := s.Store.Claimed(ctx, pool)
	s.outage.after(err)
	return claimed, err
}

// Which pool a pod's address comes from, what pools say of themselves, and what
// becomes of blocks. Each part leaves the cluster as the next one wants it: the default pool alone.
func TestPools(t *testing.T) {
	ctx := labtest.Context(t, long)
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), Objects: []client.Object{lab.DefaultPool()}})
	for _, part := range []struct {
		name string
		test func(*testing.T, context.Context, *lab.Lab)
	}{
		{"one that overlaps is not used", testOverlappingPool},
		{"one of a mode this release cannot carry is not used", testUnsupportedPool},
		{"the more specific is used, unless disabled", testSpecificPool},
		{"one is for the nodes it selects", testSelectedPool},
		{"a deleted block is claimed again", testDeletedBlock},
		{"a full one says so", testFullPool},
		{"status counts blocks and addresses", testPoolStatus},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, ctx, l) })
	}
}

// createPool creates a pool that is deleted when the test ends.
func createPool(t *testing.T, ctx context.Context, l *lab.Lab, name, spec string) {
	t.Helper()
	pool := object(t, "IPPool", name, spec)
	if err := l.Client().Create(ctx, pool); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Client().Delete(ctx, pool); err != nil {
			t.Error(err)
		}
		for _, node := range l.Nodes() {
			labtest.Eventually(t, 30*time.Second, node.Name+" has heard that pool "+name+" is gone", func() error {
				if p, err := poolOn(ctx, node, name); err != nil || p.known {
					return fmt.Errorf("%v %v", p, err)
				}
				return nil
			})
		}
	})
}

// poolSays waits for the pool's Ready condition.
func poolSays(t *testing.T, ctx context.Context, l *lab.Lab, name, reason, message string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, "pool "+name+" says "+reason, func() error {
		var pool v1alpha1.IPPool
		if err := l.Client().Get(ctx, client.ObjectKey{Name: name}, &pool); err != nil {
			return err
		}
		ready := meta.FindStatusCondition(pool.Status.Conditions, v1alpha1.PoolReady)
		want := metav1.ConditionFalse
		if reason == v1alpha1.ReasonUsable {
			want = metav1.ConditionTrue
		}
		if ready == nil || ready.Status != want || ready.Reason != reason || ready.Message != message || ready.ObservedGeneration != pool.Generation {
			return fmt.Errorf("generation %d, conditions %+v", pool.Generation, pool.Status.Conditions)
		}
		return nil
	})
}

// onNode is a pool as a node's agent sees it.
type onNode struct {
	known    bool
	unusable string
	blocks   uint64
	used     uint64
}

func poolOn(ctx context.Context, node *lab.Node, name string) (onNode, error) {
	view, err := node.Agent.IPAM(ctx)
	for _, p := range view.GetPools() {
		if p.GetName() == name {
			return onNode{true, p.GetUnusable(), p.GetNodeBlocks(), p.GetNodeUsed()}, err
		}
	}
	return onNode{}, err
}

// heard waits until the agent uses the pool, or has a reason not to that begins as said.
func heard(t *testing.T, ctx context.Context, node *lab.Node, name, unusable string) {
	t.Helper()
	labtest.Eventually(t, 30*time.Second, fmt.Sprintf("%s has heard of pool %s (%s)", node.Name, name, unusable), func() error {
		p, err := poolOn(ctx, node, name)
		if err == nil && (!p.known || !strings.HasPrefix(p.unusable, unusable) || unusable == "" && p.unusable != "") {
			err = fmt.Errorf("%+v", p)
		}
		return err
	})
}

// takesFrom adds a pod and fails the test unless its address is of the range.
func takesFrom(t *testing.T, node *lab.Node, name, cidr string) *lab.Pod {
	t.Helper()
	pod := labtest.AddPod(t, node, name, lab.PodOptions{NoServer: true})
	if !netip.MustParsePrefix(cidr).Contains(pod.IP()) {
		t.Errorf("pod %s on %s has %s, which is not of %s", name, node.Name, pod.IP(), cidr)
	}
	return pod
}

func testOverlappingPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	poolSays(t, ctx, l, "default", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from 10.244.0.0/16")
	createPool(t, ctx, l, "later", "cidr: 10.244.128.0/17") // the more specific one: it would win
	const sentence = "spec.cidr 10.244.128.0/17 overlaps 10.244.0.0/16 of pool default, which came first: delete this pool and create one with a range of its own"
	poolSays(t, ctx, l, "later", v1alpha1.ReasonOverlapping, sentence)
	for _, node := range l.Nodes() {
		heard(t, ctx, node, "later", "Overlapping: "+sentence)
		takesFrom(t, node, "overlap-"+node.Name, "10.244.0.0/16")
		p, err := poolOn(ctx, node, "later")
		if err != nil || p.blocks != 0 || p.used != 0 {
			t.Errorf("%s has of the overlapping pool: %+v (error: %v)", node.Name, p, err)
		}
	}
	for _, b := range blocks(t, ctx, l) {
		if b.Spec.Pool != "default" {
			t.Errorf("%s took block %s from pool %s", b.Spec.Node, b.Spec.CIDR, b.Spec.Pool)
		}
	}
	poolSays(t, ctx, l, "default", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from 10.244.0.0/16")
}

func blocks(t *testing.T, ctx context.Context, l *lab.Lab) []v1alpha1.IPAMBlock {
	t.Helper()
	var all v1alpha1.IPAMBlockList
	if err := l.Client().List(ctx, &all); err != nil {
		t.Fatal(err)
	}
	return all.Items
}

func testUnsupportedPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	createPool(t, ctx, l, "tunnel", "cidr: 10.8.0.0/24, mode: VXLAN")
	poolSays(t, ctx, l, "tunnel", v1alpha1.ReasonUnsupportedMode, "this release cannot carry spec.mode VXLAN yet: write one of [Native]")
	for _, node := range l.Nodes() {
		heard(t, ctx, node, "tunnel", "UnsupportedMode: ")
		takesFrom(t, node, "tunnel-"+node.Name, "10.244.0.0/16")
	}
}

func testSpecificPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	const cidr = "10.9.0.0/24"
	node, other := l.Nodes()[0], l.Nodes()[1]
	createPool(t, ctx, l, "specific", "cidr: "+cidr+", disabled: true")
	poolSays(t, ctx, l, "specific", v1alpha1.ReasonDisabled, "spec.disabled is true: addresses in use stay in use, and no new ones are given out")
	heard(t, ctx, node, "specific", "Disabled: ")
	takesFrom(t, node, "before", "10.244.0.0/16")

	disable := func(disabled bool) {
		patch(t, ctx, l, "IPPool", "specific", fmt.Sprintf(`{"spec":{"disabled":%t}}`, disabled))
	}
	disable(false)
	poolSays(t, ctx, l, "specific", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from "+cidr)
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "specific", "")
	}
	inside := takesFrom(t, node, "inside", cidr)
	far := labtest.AddPod(t, other, "inside-too", lab.PodOptions{})
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}

	disable(true)
	heard(t, ctx, node, "specific", "Disabled: ")
	takesFrom(t, node, "after", "10.244.0.0/16")
	sees(t, ctx, "a pod of a pool disabled since", inside, far.URL("/clientip"), inside.IP())
	if p, err := poolOn(ctx, node, "specific"); err != nil || p.used != 1 {
		t.Errorf("%s has of the disabled pool: %+v (error: %v), want the one address still in use", node.Name, p, err)
	}
	// The pool is about to be deleted.
	for _, pod := range []*lab.Pod{inside, far} {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
}

// patch changes a cluster-scoped object by a merge patch.
func patch(t *testing.T, ctx context.Context, l *lab.Lab, kind, name, body string) {
	t.Helper()
	o := object(t, kind, name, "")
	if kind == "Node" {
		o.SetAPIVersion("v1")
	}
	if err := l.Client().Patch(ctx, o, client.RawPatch("application/merge-patch+json", []byte(body))); err != nil {
		t.Fatal(err)
	}
}

func testSelectedPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	const cidr = "10.10.0.0/24"
	node, other := l.Nodes()[0], l.Nodes()[1]
	createPool(t, ctx, l, "zone", "cidr: "+cidr+", nodeSelector: {matchLabels: {zone: a}}")
	// Which nodes it is for is not the pool's to say: it can be used.
	poolSays(t, ctx, l, "zone", v1alpha1.ReasonUsable, "nodes claim blocks of /26 from "+cidr)
	notSelected := `NotSelected: spec.nodeSelector "zone=a" does not match this node's labels`
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "zone", notSelected)
	}
	takesFrom(t, node, "unlabelled", "10.244.0.0/16")

	patch(t, ctx, l, "Node", node.Name, `{"metadata":{"labels":{"zone":"a"}}}`)
	heard(t, ctx, node, "zone", "")
	pod := takesFrom(t, node, "labelled", cidr)
	takesFrom(t, other, "elsewhere", "10.244.0.0/16")

	patch(t, ctx, l, "Node", node.Name, `{"metadata":{"labels":{"zone":"b"}}}`)
	heard(t, ctx, node, "zone", notSelected)
	takesFrom(t, node, "relabelled", "10.244.0.0/16")
	if err := pod.Check(ctx); err != nil {
		t.Errorf("the pod from the time the node was selected: %v", err)
	}
	if err := pod.Del(ctx); err != nil {
		t.Error(err)
	}
}

// Somebody deletes a block that pods have addresses of: the node claims it again, and nothing happens to the pods.
func testDeletedBlock(t *testing.T, ctx context.Context, l *lab.Lab) {
	near := labtest.AddPod(t, l.Nodes()[0], "near", lab.PodOptions{})
	far := labtest.AddPod(t, l.Nodes()[1], "far", lab.PodOptions{})
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	meters := startMeters(t, ctx, near, far)
	prefix, err := near.IP().Prefix(26)
	if err != nil {
		t.Fatal(err)
	}
	key := client.ObjectKey{Name: v1alpha1.BlockName(prefix)}
	var before v1alpha1.IPAMBlock
	if err := l.Client().Get(ctx, key, &before); err != nil {
		t.Fatal(err)
	}
	kubectl(t, ctx, l, "delete", "ipamblock", key.Name)
	labtest.Eventually(t, 30*time.Second, "the block is claimed again", func() error {
		var after v1alpha1.IPAMBlock
		if err := l.Client().Get(ctx, key, &after); err != nil {
			return err
		}
		if after.UID == before.UID || after.Spec != before.Spec {
			return fmt.Errorf("%s %+v", after.UID, after.Spec)
		}
		return nil
	})
	noneLost(t, meters)
	fresh := takesFrom(t, l.Nodes()[0], "fresh", "10.244.0.0/16")
	if fresh.IP() == near.IP() {
		t.Errorf("%s was given out twice", near.IP())
	}
}

// A node whose blocks are full claims the next; when there is none left, ADD
// and STATUS say what to do, and go on as soon as it is done.
func testFullPool(t *testing.T, ctx context.Context, l *lab.Lab) {
	const cidr = "10.11.0.0/29" // two blocks of four addresses
	node, other := l.Nodes()[0], l.Nodes()[1]
	patch(t, ctx, l, "IPPool", "default", `{"spec":{"disabled":true}}`)
	createPool(t, ctx, l, "tiny", "cidr: "+cidr+", blockSize: 30, nodeSelector: {matchLabels: {kubernetes.io/hostname: "+node.Name+"}}")
	heard(t, ctx, node, "tiny", "")
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "default", "Disabled: ")
	}
	var pods []*lab.Pod
	given := map[netip.Addr]bool{}
	for i := range 8 {
		pod := takesFrom(t, node, fmt.Sprintf("tiny-%d", i), cidr)
		pods, given[pod.IP()] = append(pods, pod), true
	}
	if len(given) != 8 {
		t.Errorf("8 pods have the addresses %v", given)
	}
	if p, err := poolOn(ctx, node, "tiny"); err != nil || p.blocks != 2 || p.used != 8 {
		t.Errorf("%s has of the full pool: %+v (error: %v)", node.Name, p, err)
	}

	const exhausted = "no free address: node node1 has none left in its IPv4 blocks, and every block of pool tiny (10.11.0.0/29) is claimed: delete pods, or create another IPPool"
	refusedAdd(t, ctx, node, exhausted)
	// A node that no pool is for says that, instead.
	refusedAdd(t, ctx, other, "no usable IPPool on this node: create one, or look at the conditions of those there are (kubectl get ippools)")

	// A pod that goes makes room for the next, one at a time.
	gone := pods[0].IP()
	if err := pods[0].Del(ctx); err != nil {
		t.Fatal(err)
	}
	again := takesFrom(t, node, "tiny-again", cidr)
	if again.IP() != gone {
		t.Errorf("the only free address was %s, the pod got %s", gone, again.IP())
	}
	refusedAdd(t, ctx, node, exhausted)

	createPool(t, ctx, l, "relief", "cidr: 10.12.0.0/24")
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "relief", "")
		pods = append(pods, takesFrom(t, n, "relieved-"+n.Name, "10.12.0.0/24"))
	}
	for _, pod := range append(pods[1:], again) {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
	patch(t, ctx, l, "IPPool", "default", `{"spec":{"disabled":false}}`)
	for _, n := range l.Nodes() {
		heard(t, ctx, n, "default", "")
	}
}

// refusedAdd fails the test unless an ADD on the node is refused, at once, with
// "try again later" and the sentence, and leaves nothing behind.
func refusedAdd(t *testing.T, ctx context.Context, node *lab.Node, sentence string) {
	t.Helper()
	started := time.Now()
	pod, err := node.AddPod(ctx, "refused", lab.PodOptions{NoServer: true})
	if err == nil {
		t.Errorf("%s: there is no address to be had, and a pod got %s", node.Name, pod.IP())
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
		return
	}
	var refusal *types.Error
	if !errors.As(err, &refusal) || refusal.Code != 11 || !strings.Contains(refusal.Msg, sentence) {
		t.Errorf("%s: ADD said\n  %v\nwant code 11 and\n  %s", node.Name, err, sentence)
	}
	if took := time.Since(started); took > 8*time.Second {
		t.Errorf("%s: ADD waited %s for an address that will not come", node.Name, took)
	}
	for _, p := range view(t, ctx, node) {
		if p == "default/refused" {
			t.Errorf("%s: the refused pod has an address", node.Name)
		}
	}
}

// view is the pods that the node's agent has addresses for.
func view(t *testing.T, ctx context.Context, node *lab.Node) (pods []string) {
	t.Helper()
	all, err := node.Agent.IPAM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all.GetBlocks() {
		for _, a := range b.GetAddresses() {
			pods = append(pods, a.GetPodNamespace()+"/"+a.GetPodName())
		}
	}
	return pods
}

// The controller keeps a pool's capacity and blocks, for pools of either family.
func testPoolStatus(t *testing.T, ctx context.Context, l *lab.Lab) {
	createPool(t, ctx, l, "single", "cidr: 10.13.0.7/32, blockSize: 32, disabled: true")
	createPool(t, ctx, l, "vast", "cidr: 'fd00:13::/32', disabled: true")
	for name, capacity := range map[string]int64{"default": 1 << 16, "single": 1, "vast": 1<<63 - 1} {
		labtest.Eventually(t, 30*time.Second, "the status of pool "+name+" is true", func() error {
			var pool v1alpha1.IPPool
			if err := l.Client().Get(ctx, client.ObjectKey{Name: name}, &pool); err != nil {
				return err
			}
			var count int64
			for _, b := range blocks(t, ctx, l) {
				if b.Spec.Pool == name {
					count++
				}
			}
			if pool.Status.Capacity != capacity || pool.Status.Blocks != count {
				return fmt.Errorf("capacity %d, want %d; blocks %d, want %d", pool.Status.Capacity, capacity, pool.Status.Blocks, count)
			}
			if name == "default" && count < 2 {
				return fmt.Errorf("two nodes have %d blocks", count)
			}
			return nil
		})
	}
}

// With a pool of each family, a pod has an address of each, and pods and nodes reach each other by both.
func TestDualStack(t *testing.T) {
	ctx := labtest.Context(t, long)
	six := lab.DefaultPool()
	six.Name, six.Spec.CIDR = "six", "fd00:10:244::/64"
	l := labtest.Start(t, lab.Config{Nodes: lab.Nodes(2), DualStack: true, Objects: []client.Object{lab.DefaultPool(), six}})
	if err := l.Outside().Serve(ctx); err != nil {
		t.Fatal(err)
	}
	var pods []*lab.Pod
	for _, node := range l.Nodes() {
		if err := node.Serve(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			pod := labtest.AddPod(t, node, fmt.Sprintf("dual-%d-%s", i, node.Name), lab.PodOptions{})
			if ips := pod.IPs(); len(ips) != 2 || !ips[0].Is4() || !ips[1].Is6() ||
				!netip.MustParsePrefix(six.Spec.CIDR).Contains(ips[1]) {
				t.Fatalf("pod %s has %v, want an IPv4 address and one of %s", pod.Name, pod.IPs(), six.Spec.CIDR)
			}
			pods = append(pods, pod)
		}
	}
	if err := l.WaitRoutes(ctx); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.Nodes() {
		for _, pod := range pods {
			if pod.Node != node {
				if err := node.WaitRoute(ctx, pod.IPs()[1], pod.Node.Addresses[1]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, from := range pods {
			for _, to := range pods {
				sees(t, ctx, fmt.Sprintf("%s: pod %s to pod %s", name, from.Name, to.Name), from, serverURL(to.IPs()[family]), from.IPs()[family])
			}
			for _, node := range l.Nodes() {
				sees(t, ctx, fmt.Sprintf("%s: pod %s to %s", name, from.Name, node.Name), from, serverURL(node.Addresses[family]), from.IPs()[family])
				sees(t, ctx, fmt.Sprintf("%s: %s to pod %s", name, node.Name, from.Name), node, serverURL(from.IPs()[family]), node.Addresses[family])
			}
			sees(t, ctx, fmt.Sprintf("%s: pod %s to the outside", name, from.Name), from, serverURL(l.Outside().Addresses[family]), from.Node.Addresses[family])
		}
	}
	restarted := l.Nodes()[0]
	if err := restarted.Agent.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	all, err := restarted.Agent.IPAM(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, b := range all.GetBlocks() {
		for _, a := range b.GetAddresses() {
			known = append(known, a.GetAddress())
		}
	}
	for _, pod := range restarted.Pods() {
		for _, a := range pod.IPs() {
			if !slices.Contains(known, a.String()) {
				t.Errorf("the restarted agent does not know %s of pod %s: %v", a, pod.Name, known)
			}
		}
		if err := pod.Check(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, pod := range pods {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, node := range l.Nodes() {
		labtest.Eventually(t, 30*time.Second, node.Name+" has no address in use", func() error {
			if used := view(t, ctx, node); len(used) > 0 {
				return fmt.Errorf("%v", used)
			}
			return nil
		})
	}
}
