package endpoint

import (
	"testing"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

func TestAddPlumbsAndDelTakesAway(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.NewBare(t)
	p := newPlumber(t, node)
	s := newSpec(pod, "10.244.0.5", "fd00:10::5")
	t.Log(mustAdd(t, p, s))
	t.Log("node\n" + snapshot(t, node))
	t.Log("pod\n" + snapshot(t, pod))
	t.Log(p.Check(t.Context(), Expected{Key: s.Key, Netns: s.Netns, Addrs: s.Addrs}))
	t.Log(p.Repair(t.Context(), Endpoint{Key: s.Key}))
	t.Log(newPlumber(t, node).List(t.Context()))
	t.Log(mustDel(t, p, s.Key))
	t.Log("node\n" + snapshot(t, node))
	mustFlush(t, p)
	t.Log("node\n" + snapshot(t, node))
	t.Log("pod\n" + snapshot(t, pod))
}
