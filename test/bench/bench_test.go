package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[len(hundred)-1-i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		sample []time.Duration
		q      float64
		want   time.Duration
	}{
		{nil, 0.5, 0},
		{[]time.Duration{7}, 0.99, 7},
		{[]time.Duration{3, 1, 2}, 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
	} {
		if got := quantile(c.sample, c.q); got != c.want {
			t.Errorf("quantile %g of %d: %d, want %d", c.q, len(c.sample), got, c.want)
		}
	}
}

// Every prefix is in the messages once, no message is too long, and all but the last are full.
func TestUpdatesPackAllPrefixes(t *testing.T) {
	prefixes := append(remotePrefixes(2000), netip.MustParsePrefix("10.255.0.0/16"), netip.MustParsePrefix("10.254.1.1/32"))
	hop := netip.MustParseAddr("172.30.1.200")
	for name, c := range map[string]struct {
		messages []byte
		nlri     func(body []byte) []byte
	}{
		"announced": {announce(prefixes, hop), func(body []byte) []byte {
			return body[4+int(body[2])<<8+int(body[3]):]
		}},
		"withdrawn": {withdraw(prefixes), func(body []byte) []byte {
			return body[2 : 2+int(body[0])<<8+int(body[1])]
		}},
	} {
		var got []netip.Prefix
		var lengths []int
		in := bytes.NewReader(c.messages)
		for {
			kind, body, err := readMessage(in)
			if err == io.EOF {
				break
			}
			if err != nil || kind != msgUpdate {
				t.Fatalf("%s: type %d, %v", name, kind, err)
			}
			lengths = append(lengths, bgpHeader+len(body))
			for nlri := c.nlri(body); len(nlri) > 0; {
				bits := int(nlri[0])
				var a [4]byte
				n := copy(a[:], nlri[1:1+(bits+7)/8])
				got = append(got, netip.PrefixFrom(netip.AddrFrom4(a), bits))
				nlri = nlri[1+n:]
			}
		}
		if !slices.Equal(got, prefixes) {
			t.Errorf("%s: %d prefixes arrive otherwise than the %d sent", name, len(got), len(prefixes))
		}
		for i, l := range lengths[:len(lengths)-1] {
			if l < bgpLimit-5 {
				t.Errorf("%s: message %d of %d has %d bytes only", name, i, len(lengths), l)
			}
		}
	}
}

func TestNotificationIsAnError(t *testing.T) {
	_, _, err := readMessage(bytes.NewReader(message(msgNotification, []byte{6, 2})))
	if err == nil || !strings.Contains(err.Error(), "code 6, subcode 2") {
		t.Errorf("got %v", err)
	}
}

// The keys are read by other programs.
func TestReportKeys(t *testing.T) {
	r := &Report{
		CNI:         &CNIReport{Add: Command{P50: 3, FloorP50: 2, Ratio: 1.5, PerSecond: 351}},
		Routes:      map[string]*Speed{"1k": {Routes: 1000, Seconds: 1, BIRDSeconds: 2, RatioToBIRD: 0.5}, "10k": {Routes: 10_000}, "100k": {Routes: 100_000}},
		Restart:     &RestartReport{Interruption: Interruption{Lost: 1}},
		Agent:       &AgentReport{RSS: 50},
		Modes:       []ModeSpeed{{Mode: "VXLAN", ThroughputRatio: 0.99, LatencyRatio: 1.1}},
		ModeChanges: []ModeChange{{From: "Native", To: "VXLAN", Lost: 0, Seconds: 0.1}},
	}
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"cni.add.p50_ms", "cni.add.p99_ms", "cni.add.floor_p50_ms", "cni.add.ratio", "cni.add.per_second",
		"cni.del.p50_ms", "cni.ptp.add.p50_ms", "cni.ptp.del.p50_ms", "cni.api_requests",
		"routes.1k.seconds", "routes.1k.ratio_to_bird", "routes.10k.seconds", "routes.100k.ratio_to_bird",
		"restart.lost", "restart.route_events",
		"agent.rss_mib", "agent.rss_100_peers_mib", "agent.rss_100k_routes_mib",
	} {
		at := any(tree)
		for key := range strings.SplitSeq(path, ".") {
			node, _ := at.(map[string]any)
			at = node[key]
		}
		if _, ok := at.(float64); !ok {
			t.Errorf("report.json has no number at .%s", path)
		}
	}
	for list, keys := range map[string][]string{
		"modes":       {"mode", "throughput_ratio", "latency_ratio", "ours_mbit", "floor_mbit", "ours_us", "floor_us", "kernel"},
		"mode_change": {"from", "to", "lost", "broken", "seconds", "kernel"},
	} {
		items, _ := tree[list].([]any)
		for _, key := range keys {
			if item, ok := items[0].(map[string]any); !ok || item[key] == nil {
				t.Errorf("report.json has nothing at .%s[0].%s", list, key)
			}
		}
	}
	met := map[string]bool{}
	for _, a := range r.Aims {
		met[a.What] = a.Met
	}
	for what, want := range map[string]bool{
		"ADD, p50, to its floor":                      true, // 1.5 is met by 1.5
		"ADDs, 16 at a time":                          true,
		"1k routes into the kernel, to BIRD":          true,
		"packets lost across restarts":                false,
		"packets lost or doubled across mode changes": true,
		"VXLAN, throughput, to tunnels made by hand":  true,
		"VXLAN, round trip, to tunnels made by hand":  false,
	} {
		if met[what] != want {
			t.Errorf("aim %q met: %v, want %v", what, met[what], want)
		}
	}
}
