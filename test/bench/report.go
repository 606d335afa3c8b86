package main

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Report is report.json. Its keys are read by other programs: they may become
// more, and none may change its meaning. A part that was not measured is absent.
type Report struct {
	Machine Machine           `json:"machine"`
	Seconds float64           `json:"seconds"` // the whole run
	CNI     *CNIReport        `json:"cni,omitempty"`
	Routes  map[string]*Speed `json:"routes,omitempty"` // by number: 1k, 10k, 100k
	Restart *RestartReport    `json:"restart,omitempty"`
	Agent   *AgentReport      `json:"agent,omitempty"`
	Modes   []ModeSpeed       `json:"modes,omitempty"`
	// ModeChanges are all ordered pairs of modes.
	ModeChanges []ModeChange `json:"mode_change,omitempty"`
	Aims        []Aim        `json:"aims"`
}

// Machine is what the figures were taken on.
type Machine struct {
	Time    string     `json:"time"`
	Version string     `json:"version"` // Hoplite's
	CPU     string     `json:"cpu"`
	Cores   int        `json:"cores"`
	Kernel  string     `json:"kernel"`
	Go      string     `json:"go"`
	BIRD    string     `json:"bird"`
	Load    [3]float64 `json:"load_average"` // at the start: 1, 5 and 15 minutes
}

// CNIReport is the part cni.
type CNIReport struct {
	Add Command `json:"add"`
	Del Command `json:"del"`
	PTP struct {
		Add Command `json:"add"`
		Del Command `json:"del"`
	} `json:"ptp"`
	// APIRequests are those of the node's agent during all timed ADDs, but for
	// watches begun anew, which happens every few minutes whatever pods do.
	APIRequests    int      `json:"api_requests"`
	APIWatches     int      `json:"api_watches"`
	APIRequestURIs []string `json:"api_request_uris,omitempty"`
}

// Command is one CNI command by one plugin. Floors and ratio are given for Hoplite only.
type Command struct {
	// One after the other, in milliseconds.
	Samples  int     `json:"samples"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	FloorP50 float64 `json:"floor_p50_ms,omitempty"`
	FloorP99 float64 `json:"floor_p99_ms,omitempty"`
	Ratio    float64 `json:"ratio,omitempty"` // p50 to floor_p50
	// 16 at a time; the rate is the median of the rounds.
	PerSecond      float64 `json:"per_second"`
	FloorPerSecond float64 `json:"floor_per_second,omitempty"`
	ParallelP50    float64 `json:"parallel_p50_ms"`
	ParallelP99    float64 `json:"parallel_p99_ms"`
	// CPU is the processor time of one, of all processes together, when 16 run at a time.
	CPU      float64 `json:"cpu_ms"`
	FloorCPU float64 `json:"floor_cpu_ms,omitempty"`
}

// Speed is how long so many routes take into the kernel and out of it, as the
// medians of the runs.
type Speed struct {
	Routes              int       `json:"routes"`
	Seconds             float64   `json:"seconds"`
	BIRDSeconds         float64   `json:"bird_seconds"`
	FloorSeconds        float64   `json:"floor_seconds"` // the kernel alone, told as fast as it can be
	RatioToBIRD         float64   `json:"ratio_to_bird"`
	WithdrawSeconds     float64   `json:"withdraw_seconds"`
	BIRDWithdrawSeconds float64   `json:"bird_withdraw_seconds"`
	CPUSeconds          float64   `json:"cpu_seconds"` // of the agent, from first UPDATE to last route
	BIRDCPUSeconds      float64   `json:"bird_cpu_seconds"`
	Runs                []float64 `json:"runs"`
	BIRDRuns            []float64 `json:"bird_runs"`
}

// RestartReport is the part restart: sums over all restarts and each kind's own.
type RestartReport struct {
	Interruption
	SIGTERM Interruption `json:"sigterm"`
	SIGKILL Interruption `json:"sigkill"`
}

// Interruption is what became of traffic and routes while an agent went and came.
type Interruption struct {
	Restarts    int     `json:"restarts"`
	Sent        int     `json:"sent"` // packets, both ways
	Lost        int     `json:"lost"`
	LongestGap  float64 `json:"longest_gap_ms"` // between two packets; a busy machine makes gaps, too
	RouteEvents int     `json:"route_events"`   // in the kernels of all other nodes
}

// AgentReport is the part memory, in MiB.
type AgentReport struct {
	RSS           float64 `json:"rss_mib"` // idle, two peers
	RSSAnon       float64 `json:"rss_anon_mib"`
	RSS100        float64 `json:"rss_100_peers_mib"`
	RSS100k       float64 `json:"rss_100k_routes_mib"`
	Peak100k      float64 `json:"peak_100k_routes_mib"`
	Anon100k      float64 `json:"rss_anon_100k_routes_mib"`
	Anon100       float64 `json:"rss_anon_100_peers_mib"`
	SettleSeconds float64 `json:"settle_seconds"` // how long each was left alone before
}

// ModeSpeed is what one mode costs, next to the same made by hand. All are
// medians of the rounds; a round's ratio is the product's figure to the floor's.
type ModeSpeed struct {
	Mode string `json:"mode"`
	// AcrossSubnets: the two pods' nodes are on different subnets, a router between.
	AcrossSubnets      bool      `json:"across_subnets"`
	ThroughputRatio    float64   `json:"throughput_ratio"`
	LatencyRatio       float64   `json:"latency_ratio"`
	Mbit               float64   `json:"ours_mbit"`
	FloorMbit          float64   `json:"floor_mbit"`
	RoundTrip          float64   `json:"ours_us"`
	FloorRoundTrip     float64   `json:"floor_us"`
	Kernel             string    `json:"kernel"`
	MbitRuns           []float64 `json:"ours_mbit_runs"`
	FloorMbitRuns      []float64 `json:"floor_mbit_runs"`
	RoundTripRuns      []float64 `json:"ours_us_runs"`
	FloorRoundTripRuns []float64 `json:"floor_us_runs"`
}

// ModeChange is what became of a full load while a pool's mode was changed.
type ModeChange struct {
	From       string  `json:"from"`
	To         string  `json:"to"`
	Sent       int     `json:"sent"` // packets, on all pairs of nodes, both ways
	Lost       int     `json:"lost"`
	Duplicates int     `json:"duplicates"`
	Broken     int     `json:"broken"`  // connections
	Seconds    float64 `json:"seconds"` // until the last node sent the new way
	// Of a connection with full-size segments: those it had to send again, and the longest time without any.
	Resent     int     `json:"segments_resent"`
	LongestGap float64 `json:"longest_gap_ms"`
	Kernel     string  `json:"kernel"`
}

// Aim is a figure that the project set itself.
type Aim struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	// Aim is the most that Value should be, or the least with AtLeast.
	Aim     float64 `json:"aim"`
	AtLeast bool    `json:"at_least,omitempty"`
	Unit    string  `json:"unit,omitempty"`
	Met     bool    `json:"met"`
}

// sizes are the numbers of routes measured, with the names that reports have for them.
var sizes = []struct {
	name   string
	routes int
}{{"1k", 1_000}, {"10k", 10_000}, {"100k", 100_000}}

// judge fills in Aims from what was measured.
func (r *Report) judge() {
	r.Aims = []Aim{}
	most := func(what string, value, aim float64, unit string) {
		r.Aims = append(r.Aims, Aim{What: what, Value: value, Aim: aim, Unit: unit, Met: value <= aim})
	}
	if c := r.CNI; c != nil {
		most("ADD, p50, to its floor", c.Add.Ratio, 1.5, "×")
		r.Aims = append(r.Aims, Aim{What: "ADDs, 16 at a time", Value: c.Add.PerSecond, Aim: 350, AtLeast: true, Unit: "/s", Met: c.Add.PerSecond >= 350})
		most("DEL, p50", c.Del.P50, 5, "ms")
		most("requests to the API server during ADDs", float64(c.APIRequests), 0, "")
	}
	for _, s := range sizes {
		if speed := r.Routes[s.name]; speed != nil {
			most(s.name+" routes into the kernel, to BIRD", speed.RatioToBIRD, 1, "×")
		}
	}
	if s := r.Restart; s != nil {
		most("packets lost across restarts", float64(s.Lost), 0, "")
		most("route events at neighbours across restarts", float64(s.RouteEvents), 0, "")
	}
	r.judgeModes(most)
}

func (r *Report) judgeModes(most func(what string, value, aim float64, unit string)) {
	if len(r.ModeChanges) > 0 {
		lost, broken := 0, 0
		for _, c := range r.ModeChanges {
			lost, broken = lost+c.Lost+c.Duplicates, broken+c.Broken
		}
		most("packets lost or doubled across mode changes", float64(lost), 0, "")
		most("connections broken across mode changes", float64(broken), 0, "")
	}
	for _, m := range r.Modes {
		r.Aims = append(r.Aims, Aim{What: m.Mode + ", throughput, to tunnels made by hand", Value: m.ThroughputRatio, Aim: 0.98, AtLeast: true, Unit: "×", Met: m.ThroughputRatio >= 0.98})
		most(m.Mode+", round trip, to tunnels made by hand", m.LatencyRatio, 1.02, "×")
	}
}

// write writes report.json and report.md into the directory.
func (r *Report) write(dir string) error {
	r.judge()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for file, content := range map[string]string{"report.json": string(text) + "\n", "report.md": r.markdown()} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
