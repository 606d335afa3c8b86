package health

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(body)
}

func TestReadyzSaysWhichPartIsNotReadyAndWhy(t *testing.T) {
	var r Registry
	h := r.Handler(prometheus.NewRegistry())
	if code, body := get(t, h, "/readyz"); code != http.StatusOK {
		t.Errorf("ready: %d %q", code, body)
	}
	r.Set("routes", errors.New("10.244.1.0/26: network is unreachable"))
	r.Set("bgp", errors.New("port 179 is taken"))
	code, body := get(t, h, "/readyz")
	if want := "bgp: port 179 is taken\nroutes: 10.244.1.0/26: network is unreachable"; code != http.StatusServiceUnavailable || strings.TrimSpace(body) != want {
		t.Errorf("not ready: %d %q, want 503 %q", code, body, want)
	}
	if code, _ := get(t, h, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz follows readiness: %d; a restart mends neither", code)
	}
	r.Set("routes", nil)
	r.Set("bgp", nil)
	if code, body := get(t, h, "/readyz"); code != http.StatusOK {
		t.Errorf("ready again: %d %q", code, body)
	}
}

func TestMetricsAreServed(t *testing.T) {
	registry := prometheus.NewRegistry()
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "hoplite_test", Help: "x"})
	registry.MustRegister(g)
	if code, body := get(t, (&Registry{}).Handler(registry), "/metrics"); code != http.StatusOK || !strings.Contains(body, "hoplite_test 0") {
		t.Errorf("metrics: %d %q", code, body)
	}
}
