package main

import (
	"math"
	"slices"
	"time"
)

// quantile is the value that a share q of the sample is not above (nearest
// rank). Of nothing it is 0.
func quantile(sample []time.Duration, q float64) time.Duration {
	if len(sample) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(sample))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// middle is the median of numbers; of an even count, the lower one of the two.
func middle(numbers []float64) float64 {
	if len(numbers) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(numbers))[(len(numbers)-1)/2]
}

func median(sample []time.Duration) time.Duration { return quantile(sample, 0.5) }

// ms and seconds are for reports: three digits after the point.
func ms(d time.Duration) float64      { return round(float64(d)/float64(time.Millisecond), 3) }
func seconds(d time.Duration) float64 { return round(d.Seconds(), 4) }

func allSeconds(sample []time.Duration) []float64 {
	var all []float64
	for _, d := range sample {
		all = append(all, seconds(d))
	}
	return all
}

// ratio is ours to theirs; 0 when there is none.
func ratio(ours, theirs time.Duration) float64 {
	if theirs == 0 {
		return 0
	}
	return round(float64(ours)/float64(theirs), 3)
}

func round(v float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(v*scale) / scale
}
