package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/test/lab"
)

// rounds are how often each figure of a mode is taken, for the product and for the floor by turns.
const rounds = 9

// One round: for so long data flows at full speed, and for so long questions are asked.
const (
	flowTime  = 500 * time.Millisecond
	askTime   = 300 * time.Millisecond
	warmRound = 200 * time.Millisecond
)

// measureModes compares each mode with the same kernel's same devices set up by
// hand: throughput of one connection between two pods, and the time of a round trip.
func (b *bench) measureModes(ctx context.Context) error {
	kernel, err := kernelName()
	if err != nil {
		return err
	}
	floor, err := b.startModeFloor(ctx)
	if err != nil {
		return err
	}
	for _, mode := range allModes {
		if !b.ours(mode) {
			continue
		}
		r, err := b.measureMode(ctx, mode, floor)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", mode, err), floor.close())
		}
		r.Kernel = kernel
		b.report.Modes = append(b.report.Modes, r)
		b.say("  %s: %.0f Mbit/s, %.3f of the floor; round trip %.1f µs, %.3f of the floor",
			mode, r.Mbit, r.ThroughputRatio, r.RoundTrip, r.LatencyRatio)
	}
	// Others measure what follows.
	if _, err := b.setMode(ctx, v1alpha1.ModeNative); err != nil {
		return errors.Join(err, floor.close())
	}
	return floor.close()
}

func (b *bench) measureMode(ctx context.Context, mode v1alpha1.PoolMode, floor *modeFloor) (ModeSpeed, error) {
	if _, err := b.setMode(ctx, mode); err != nil {
		return ModeSpeed{}, err
	}
	if err := floor.setMode(ctx, mode); err != nil {
		return ModeSpeed{}, fmt.Errorf("floor: %w", err)
	}
	// The mode's own pair: across subnets where that is what it is for.
	far := 1
	if lab.DeviceFor(mode, b.l.Nodes()[0], b.l.Nodes()[1]) == lab.Uplink && mode != v1alpha1.ModeNative {
		far = 2
	}
	pairs := [2]lab.Pair{{A: b.pods[0], B: b.pods[far]}, {A: floor.pods[0], B: floor.pods[far]}}
	var mbit, micros [2][]float64
	for round := range rounds + 1 {
		for turn := range 2 {
			which := (turn + round) % 2 // each is first as often
			flow, ask := flowTime, askTime
			if round == 0 {
				flow, ask = warmRound, warmRound // and does not count
			}
			bits, err := lab.Throughput(ctx, pairs[which].A, pairs[which].B, flow)
			if err != nil {
				return ModeSpeed{}, err
			}
			trip, err := lab.RoundTrip(ctx, pairs[which].A, pairs[which].B, ask)
			if err != nil {
				return ModeSpeed{}, err
			}
			if round > 0 {
				mbit[which] = append(mbit[which], bits/1e6)
				micros[which] = append(micros[which], float64(trip)/float64(time.Microsecond))
			}
		}
		if ctx.Err() != nil {
			return ModeSpeed{}, ctx.Err()
		}
	}
	r := ModeSpeed{
		Mode: string(mode), AcrossSubnets: far == 2,
		Mbit: round(middle(mbit[0]), 1), FloorMbit: round(middle(mbit[1]), 1),
		RoundTrip: round(middle(micros[0]), 2), FloorRoundTrip: round(middle(micros[1]), 2),
		MbitRuns: mbit[0], FloorMbitRuns: mbit[1], RoundTripRuns: micros[0], FloorRoundTripRuns: micros[1],
	}
	r.ThroughputRatio, r.LatencyRatio = middleRatio(mbit[0], mbit[1]), middleRatio(micros[0], micros[1])
	return r, nil
}

// middleRatio is the median of the rounds' ratios: what else the machine does
// in a round hits both sides of it, and the next round maybe not.
func middleRatio(ours, theirs []float64) float64 {
	var all []float64
	for i := range ours {
		all = append(all, ours[i]/theirs[i])
	}
	return round(middle(all), 3)
}
