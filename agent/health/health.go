// Package health says whether the agent works: which of its components are not
// ready and why, over HTTP for the kubelet's probes and over gRPC for netctl.
//
// Readiness never depends on other nodes: a peer that is down is that peer's
// trouble, and restarting this agent would not mend it.
package health

import (
	"fmt"
	"net/http"
	"sort"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Problem is a component that is not ready.
type Problem struct {
	Component string
	Reason    string
}

func (p Problem) String() string { return p.Component + ": " + p.Reason }

// Registry holds the state of the agent's components. The zero value has none
// and is ready; it may be used from several goroutines.
type Registry struct {
	mu      sync.Mutex
	reasons map[string]string
}

// Set says why a component is not ready; nil says that it is.
func (r *Registry) Set(component string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.reasons, component)
		return
	}
	if r.reasons == nil {
		r.reasons = make(map[string]string)
	}
	r.reasons[component] = err.Error()
}

// Problems are the components that are not ready, by name.
func (r *Registry) Problems() []Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	problems := make([]Problem, 0, len(r.reasons))
	for component, reason := range r.reasons {
		problems = append(problems, Problem{component, reason})
	}
	sort.Slice(problems, func(i, j int) bool { return problems[i].Component < problems[j].Component })
	return problems
}

// Handler serves /healthz (the process answers), /readyz (503 and the reasons
// while a component is not ready) and /metrics.
func (r *Registry) Handler(metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		problems := r.Problems()
		if len(problems) == 0 {
			fmt.Fprintln(w, "ok")
			return
		}
		lines := make([]string, len(problems))
		for i, p := range problems {
			lines[i] = p.String()
		}
		http.Error(w, strings.Join(lines, "\n"), http.StatusServiceUnavailable)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return mux
}
