package endpoint

import (
	"context"
	"sync"
	"testing"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

// An attachment comes and goes while the kernel still deletes the veth of its
// life before: its name is free long before the deletion's answer comes. The
// new veth is deleted too, and the next Add not told that it exists.
func TestAgainWhileTheVethBeforeIsDeleted(t *testing.T) {
	nstest.Require(t)
	p := newPlumber(t, newNode(t))
	s := newSpec(nstest.New(t), "10.244.0.5")
	for i := range 20 {
		mustAdd(t, p, s)
		mustDel(t, p, s.Key)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := p.Flush(context.Background()); err != nil {
				t.Error(err)
			}
		})
		// Other addresses than before: for the same, Add waits for the deletion.
		s.Addrs[0] = s.Addrs[0].Next()
		for range 2 {
			if _, err := p.Add(context.Background(), s); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			mustDel(t, p, s.Key)
			s.Addrs[0] = s.Addrs[0].Next()
		}
		wg.Wait()
	}
}
