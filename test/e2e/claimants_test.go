package e2e

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

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
