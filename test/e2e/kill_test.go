package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// The agent is killed, again and again, in the middle of 200 ADDs and DELs, as
// a runtime makes them: what fails is tried again, and an ADD that failed is followed by a DEL.
// No address is given twice or lost, and the pods that are there lose no packet.
func TestKilledAtRandom(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	node := l.Nodes()[0]
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	meters := startMeters(t, ctx, pods...)

	stop, killed := make(chan struct{}), make(chan int)
	go func() { killed <- killAgain(ctx, t, node, rand.New(rand.NewPCG(seed, 1)), stop) }()
	const workers, rounds = 4, 25 // each an ADD and a DEL: 200 in all
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				comeAndGo(ctx, t, node, fmt.Sprintf("kill-%d-%d", w, i))
			}
		})
	}
	wg.Wait()
	close(stop)
	t.Logf("the agent was killed %d times", <-killed)
	if err := node.Agent.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
	noneLost(t, meters)
	noLeak(t, ctx, l)
}

// killAgain kills and starts the agent at random moments until stop is closed.
func killAgain(ctx context.Context, t *testing.T, node *lab.Node, rng *rand.Rand, stop chan struct{}) (times int) {
	for {
		select {
		case <-stop:
			return times
		case <-time.After(time.Duration(rng.IntN(1500)) * time.Millisecond):
		}
		node.Agent.Kill()
		times++
		if err := node.Agent.Start(); err != nil {
			t.Error(err)
			return times
		}
	}
}

// comeAndGo adds a pod and deletes it again, as often as it takes.
func comeAndGo(ctx context.Context, t *testing.T, node *lab.Node, name string) {
	var pod *lab.Pod
	labtest.Eventually(t, 2*time.Minute, "pod "+name+" is added", func() (err error) {
		pod, err = node.AddPod(ctx, name, lab.PodOptions{NoServer: true})
		return err
	})
	if pod == nil {
		return
	}
	labtest.Eventually(t, 2*time.Minute, "pod "+name+" is deleted", func() error { return pod.Del(ctx) })
}
