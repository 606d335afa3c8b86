package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
)

// Before and after a change the load goes on for so long, for what comes late to be seen.
const (
	beforeChange = 500 * time.Millisecond
	afterChange  = time.Second
)

// measureModeChange changes the pool's mode under full load, once from each mode to each other one.
func (b *bench) measureModeChange(ctx context.Context) error {
	kernel, err := kernelName()
	if err != nil {
		return err
	}
	var pairs []change
	for _, from := range allModes {
		for _, to := range allModes {
			if from != to && b.ours(from, to) {
				pairs = append(pairs, change{from, to})
			}
		}
	}
	for _, c := range tour(pairs) {
		result, err := b.changeMode(ctx, c)
		if err != nil {
			return fmt.Errorf("from %s to %s: %w", c.from, c.to, err)
		}
		result.Kernel = kernel
		b.report.ModeChanges = append(b.report.ModeChanges, result)
		b.say("  %s to %s: %d of %d packets lost, %d connections broken, all nodes after %.3f s",
			c.from, c.to, result.Lost, result.Sent, result.Broken, result.Seconds)
	}
	return nil
}

func (b *bench) changeMode(ctx context.Context, c change) (ModeChange, error) {
	load, err := lab.StartLoad(ctx, lab.FullLoad(b.pods))
	if err != nil {
		return ModeChange{}, err
	}
	took, err := time.Duration(0), pause(ctx, beforeChange)
	if err == nil {
		took, err = b.setMode(ctx, c.to)
	}
	if err == nil {
		err = pause(ctx, afterChange)
	}
	o := load.Stop()
	r := ModeChange{From: string(c.from), To: string(c.to), Lost: o.Lost(), Broken: o.Broken(), Seconds: seconds(took), Sent: o.Sent()}
	for _, l := range o.Losses {
		r.Duplicates += l.Duplicates
	}
	for _, t := range o.Bulks {
		r.Resent += max(t.Retransmitted-t.Needless, 0)
		r.LongestGap = max(r.LongestGap, ms(t.LongestGap))
	}
	return r, err
}

// change is from one mode to another.
type change struct{ from, to v1alpha1.PoolMode }

// tour orders changes so that each begins where the one before has ended, the
// first in Native mode: a circuit of Euler's, which there is since from every mode as many
// changes lead away as lead to it.
func tour(changes []change) []change {
	away := map[v1alpha1.PoolMode][]v1alpha1.PoolMode{}
	for _, c := range changes {
		away[c.from] = append(away[c.from], c.to)
	}
	// Hierholzer's algorithm: walk until stuck, and note the modes on the way back.
	path, backwards := []v1alpha1.PoolMode{v1alpha1.ModeNative}, []v1alpha1.PoolMode{}
	for len(path) > 0 {
		at := path[len(path)-1]
		if next := away[at]; len(next) > 0 {
			away[at], path = next[1:], append(path, next[0])
			continue
		}
		path, backwards = path[:len(path)-1], append(backwards, at)
	}
	var ordered []change
	for i := len(backwards) - 1; i > 0; i-- {
		ordered = append(ordered, change{backwards[i], backwards[i-1]})
	}
	return ordered
}
