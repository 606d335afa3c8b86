package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// outage is how long the API server is away.
const outage = 60 * time.Second

// The API server is away for a minute: 30 pods come and go as ever, and those
// there are lose no packet.
func TestAPIServerOutage(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	meters := startMeters(t, ctx, pods...)
	l.StopAPIServer()
	back := time.NewTimer(outage)
	node := l.Nodes()[0]
	var added []*lab.Pod
	for i := range 30 {
		pod := labtest.AddPod(t, node, fmt.Sprintf("outage-%d", i), lab.PodOptions{})
		sees(t, ctx, "a pod added without the API server", pod, pods[1].URL("/clientip"), pod.IP())
		if added = append(added, pod); len(added) > 10 {
			if err := added[0].Del(ctx); err != nil {
				t.Error(err)
			}
			added = added[1:]
		}
	}
	<-back.C
	if err := l.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	for _, pod := range added {
		if err := pod.Del(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := l.WaitMesh(ctx); err != nil {
		t.Error(err)
	}
	noneLost(t, meters)
	noLeak(t, ctx, l)
}
