package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// before and after a change, for so long the load goes on: what it does late is to be seen, too.
const (
	before = 300 * time.Millisecond
	after  = time.Second
)

// startChanging is a lab on two subnets, in Native mode. So that natively, too,
// all pods reach each other, the network between the subnets knows their blocks.
// The nodes are strict about where packets come from, as some distributions have
// them: during a change packets come by one way and are answered by the other.
func startChanging(t *testing.T) (context.Context, *lab.Lab, []*lab.Pod) {
	t.Helper()
	ctx, l, pods := startOn(t, []int{1, 1, 2})
	if err := l.TeachFabric(ctx); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.Nodes() {
		for _, device := range []string{"all", lab.Uplink} {
			if err := node.Sysctl("ipv4/conf/"+device+"/rp_filter", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return ctx, l, pods
}

// A pool's mode is changed under full load on every pair of nodes: no packet is
// lost, none comes twice, no connection breaks, on one subnet and across two.
// Every change is made from where the one before has led; the sequences go over
// each pair of modes without IPIP, and over each of the modes with it, there and back.
func TestModeChange(t *testing.T) {
	ctx, l, pods := startChanging(t)
	lasting := startChats(t, ctx, pods)
	now := native
	for _, next := range byKernel(t,
		[]mode{vxlan, vxlanCross, native, vxlanCross, vxlan, native},
		[]mode{ipip, vxlan, ipipCross, native, ipipCross, ipip, vxlanCross, ipip, native},
	) {
		t.Run(fmt.Sprintf("%s to %s", now, next), func(t *testing.T) {
			underLoad(t, ctx, pods, func() {
				took := setMode(t, ctx, l, defaultPool, next)
				t.Logf("all nodes send so after %s", took.Round(time.Millisecond))
				waitMTU(t, lab.PodMTU(next), pods...)
			})
		})
		if t.Failed() {
			break // the next would only say the same
		}
		// One begun in each mode lives through all that follow.
		lasting = append(lasting, startChats(t, ctx, pods)...)
		now = next
	}
	for _, c := range lasting {
		if o := c.Stop(); o.Err != nil {
			t.Error(o)
		}
	}
	thenOnSecondKernel(t)
}

// underLoad fails the test unless f leaves a full load untouched.
func underLoad(t *testing.T, ctx context.Context, pods []*lab.Pod, f func()) {
	t.Helper()
	load, err := lab.StartLoad(ctx, lab.FullLoad(pods))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		o := load.Stop()
		if err := o.Clean(); err != nil {
			t.Error(err)
		} else {
			t.Logf("%d packets sent, %d lost, %d connections broken; %s", o.Sent(), o.Lost(), o.Broken(), o.Bulks[0])
		}
	}()
	time.Sleep(before) // time under measurement, not a wait
	f()
	time.Sleep(after) // time under measurement, not a wait
}

// startChats opens connections that last, between two pods and from a host to a pod.
func startChats(t *testing.T, ctx context.Context, pods []*lab.Pod) (chats []*lab.Chat) {
	t.Helper()
	for _, pair := range []lab.Pair{{A: pods[0], B: pods[1]}, {A: pods[1].Node, B: pods[2]}} {
		c, err := lab.StartChat(ctx, pair.A, pair.B)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Stop() })
		chats = append(chats, c)
	}
	return chats
}

// An agent that is stopped while the mode changes holds nobody up: the others
// change among themselves, go on with it as before, and it follows when it is back.
func TestModeChangeWithStoppedAgent(t *testing.T) {
	ctx, l, pods := startChanging(t)
	nodes := l.Nodes()
	absent := nodes[1]
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *lab.Node) bool { return n == absent })
	now := native
	for _, next := range []mode{vxlan, native} {
		t.Run(fmt.Sprintf("%s to %s", now, next), func(t *testing.T) {
			underLoad(t, ctx, pods, func() {
				if err := absent.Agent.Stop(ctx); err != nil {
					t.Fatal(err)
				}
				if err := l.SetMode(ctx, defaultPool, next); err != nil {
					t.Fatal(err)
				}
				waitMode(t, ctx, l, defaultPool, next, rest...)
				for _, other := range rest {
					// It still says that it receives what it did. Plain packets it takes in any case.
					sendsBy(t, other, pods[1], lab.DeviceFor(native, other, absent))
					sendsBy(t, absent, other.Pods()[0], lab.DeviceFor(now, absent, other))
				}
				if err := absent.Agent.Start(); err != nil {
					t.Fatal(err)
				}
				waitMode(t, ctx, l, defaultPool, next)
				if err := absent.Agent.WaitReady(ctx); err != nil {
					t.Error(err)
				}
				waitMTU(t, lab.PodMTU(next), pods...)
			})
		})
		now = next
	}
}

// sendsBy fails the test unless the node sends to the pod by the device.
func sendsBy(t *testing.T, node *lab.Node, pod *lab.Pod, device string) {
	t.Helper()
	way, err := node.Way(pod.IP())
	if err != nil || way.Device != device {
		t.Errorf("%s sends to %s by %s (%v), want %s", node.Name, pod.Name, way.Device, err, device)
	}
}

// An agent that is killed in the middle of a change goes on where it was.
func TestModeChangeWithKilledAgent(t *testing.T) {
	ctx, l, pods := startChanging(t)
	victim := l.Nodes()[0]
	now := native
	for _, next := range []mode{vxlan, native} {
		t.Run(fmt.Sprintf("%s to %s", now, next), func(t *testing.T) {
			underLoad(t, ctx, pods, func() {
				if err := l.SetMode(ctx, defaultPool, next); err != nil {
					t.Fatal(err)
				}
				// As soon as the first thing has changed in its kernel: a device that comes, a next hop that moves.
				labtest.Eventually(t, settles, "the change begins on "+victim.Name, func() error {
					has, err := victim.Has(lab.VXLANDevice)
					if err != nil {
						return err
					}
					way, err := victim.Way(pods[1].IP())
					if err == nil && has == (now != native) && way.Device == lab.DeviceFor(now, victim, pods[1].Node) {
						err = fmt.Errorf("nothing has changed: %v", way)
					}
					return err
				})
				victim.Agent.Kill()
				if err := victim.Agent.Start(); err != nil {
					t.Fatal(err)
				}
				waitMode(t, ctx, l, defaultPool, next)
				if err := victim.Agent.WaitReady(ctx); err != nil {
					t.Error(err)
				}
				waitMTU(t, lab.PodMTU(next), pods...)
			})
		})
		now = next
	}
}
