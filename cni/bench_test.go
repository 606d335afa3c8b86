package cni

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// trivial is what any plugin costs: a static Go program that exits at once.
const trivial = "package main\n\nimport \"os\"\n\nfunc main() { os.Exit(0) }\n"

// BenchmarkExec measures a whole ADD but for the agent's work, which a server in
// this process answers at once, beside the start of a trivial program, turn about.
//
//	go test -run '^$' -bench Exec -benchtime 300x ./cni
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	(&agent{}).start(b, bind(b, n.socket))
	conf, err := json.Marshal(n.conf)
	if err != nil {
		b.Fatal(err)
	}
	var env []string
	for k, v := range n.env {
		env = append(env, k+"="+v)
	}
	ours, floor := release(b, n.dir, "github.com/hoplite-net/hoplite/cmd/hoplite-cni"), release(b, n.dir, source(b, n.dir))
	times := map[string][]time.Duration{}
	for b.Loop() {
		for name, command := range map[string]string{"VERSION": "VERSION", "ADD": "ADD", "DEL": "DEL", "floor": ""} {
			cmd := exec.Command(ours)
			if command == "" {
				cmd = exec.Command(floor)
			}
			cmd.Env = append(env, "CNI_COMMAND="+command)
			cmd.Stdin = strings.NewReader(string(conf))
			start := time.Now()
			if out, err := cmd.Output(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			times[name] = append(times[name], time.Since(start))
		}
	}
	for name, t := range times {
		slices.Sort(t)
		b.ReportMetric(float64(t[len(t)/10].Microseconds()), name+"-p10-µs")
		b.ReportMetric(float64(t[len(t)/2].Microseconds()), name+"-p50-µs")
	}
	b.ReportMetric(0, "ns/op")
}

func source(b *testing.B, dir string) string {
	path := filepath.Join(dir, "trivial.go")
	if err := os.WriteFile(path, []byte(trivial), 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

// release builds as the product is built.
func release(b *testing.B, dir, what string) string {
	path := filepath.Join(dir, strings.TrimSuffix(filepath.Base(what), ".go"))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, what)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build %s: %v: %s", what, err, out)
	}
	return path
}
