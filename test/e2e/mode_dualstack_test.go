package e2e

import (
	"fmt"
	"testing"

	"github.com/hoplite-net/hoplite/test/lab"
)

// With a pool of each family, either's mode is changed by itself, and no packet of either is lost.
func TestDualStackModeChange(t *testing.T) {
	six := lab.Pool(native)
	six.Name, six.Spec.CIDR = "six", "fd00:10:244::/48"
	ctx, l, pods := startOn(t, []int{1, 1, 2}, lab.DefaultPool(), six)
	if err := l.TeachFabric(ctx); err != nil {
		t.Fatal(err)
	}
	for _, change := range []struct {
		pool string
		mode mode
	}{{"six", vxlan}, {defaultPool, vxlan}, {"six", vxlanCross}, {"six", native}, {defaultPool, native}} {
		t.Run(fmt.Sprintf("%s to %s", change.pool, change.mode), func(t *testing.T) {
			load, err := lab.StartMesh(ctx, 1000, bothFamilies(pods)...)
			if err != nil {
				t.Fatal(err)
			}
			setMode(t, ctx, l, change.pool, change.mode)
			for _, loss := range load.Stop() {
				if err := loss.Clean(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// bothFamilies are the pairs of pods, once for each family, and one of a host and a pod in IPv6.
func bothFamilies(pods []*lab.Pod) (pairs []lab.Pair) {
	for i, a := range pods {
		for _, b := range pods[i+1:] {
			for family := range a.IPs() {
				pairs = append(pairs, lab.Pair{A: lab.At(a, a.IPs()[family]), B: lab.At(b, b.IPs()[family])})
			}
		}
	}
	first, last := pods[0], pods[len(pods)-1]
	return append(pairs, lab.Pair{A: first.Node, B: lab.At(last, last.IPs()[1])})
}
