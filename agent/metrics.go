package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/hoplite-net/hoplite/api"
	"github.com/hoplite-net/hoplite/bgp"
)

var (
	blocksDesc     = prometheus.NewDesc("hoplite_ipam_blocks", "Blocks this node holds.", []string{"pool", "state"}, nil)
	addressesDesc  = prometheus.NewDesc("hoplite_ipam_addresses", "Addresses of this node's blocks.", []string{"pool"}, nil)
	usedDesc       = prometheus.NewDesc("hoplite_ipam_addresses_used", "Addresses of this node's blocks that are in use: pods', and the tunnel devices' own.", []string{"pool"}, nil)
	podsDesc       = prometheus.NewDesc("hoplite_pods", "Pod interfaces plumbed on this node.", nil, nil)
	peerUpDesc     = prometheus.NewDesc("hoplite_bgp_peer_up", "1 while the session is Established.", []string{"peer", "type"}, nil)
	receivedDesc   = prometheus.NewDesc("hoplite_bgp_prefixes_received", "Prefixes the peer has sent.", []string{"peer", "type"}, nil)
	advertisedDesc = prometheus.NewDesc("hoplite_bgp_prefixes_advertised", "Prefixes sent to the peer.", []string{"peer", "type"}, nil)
	routesDesc     = prometheus.NewDesc("hoplite_routes", "Hoplite's routes in the kernel; problem: wanted and not written.", []string{"state"}, nil)
	repairsDesc    = prometheus.NewDesc("hoplite_route_repairs_total", "Routes found missing or changed by someone else.", nil, nil)
	tunnelDesc     = prometheus.NewDesc("hoplite_tunnel_ready", "1 while the tunnel device can send and receive.", []string{"kind"}, nil)
	mtuDesc        = prometheus.NewDesc("hoplite_pod_mtu_bytes", "The pods' MTU.", nil, nil)
	nextHopsDesc   = prometheus.NewDesc("hoplite_next_hops", "Next hops of learned blocks, by how packets travel to them.", []string{"encapsulation"}, nil)
	notReadyDesc   = prometheus.NewDesc("hoplite_not_ready", "1 for each component that is not ready.", []string{"component"}, nil)
)

func (n *node) registerMetrics() {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "hoplite_build_info", Help: "1, with the agent's version.", ConstLabels: prometheus.Labels{"version": api.Version},
	})
	build.Set(1)
	n.metrics.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), metrics{n})
}

// metrics reads the node's state when asked.
type metrics struct{ *node }

func (m metrics) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{blocksDesc, addressesDesc, usedDesc, podsDesc, peerUpDesc, receivedDesc, advertisedDesc, routesDesc, repairsDesc, tunnelDesc, mtuDesc, nextHopsDesc, notReadyDesc} {
		c <- d
	}
}

func (m metrics) Collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	m.collectIPAM(gauge)
	gauge(podsDesc, float64(len(m.endpoints.Known())))
	for _, p := range m.speaker.peers() {
		up := 0.0
		if p.State == "Established" {
			up = 1
		}
		gauge(peerUpDesc, up, p.Address.String(), string(p.Type))
		gauge(receivedDesc, float64(p.Received), p.Address.String(), string(p.Type))
		gauge(advertisedDesc, float64(p.Advertised), p.Address.String(), string(p.Type))
	}
	stats := m.routes.Stats()
	gauge(routesDesc, float64(stats.Installed), "installed")
	gauge(routesDesc, float64(stats.Stale), "stale")
	gauge(routesDesc, float64(stats.Problems), "problem")
	c <- prometheus.MustNewConstMetric(repairsDesc, prometheus.CounterValue, float64(stats.Repairs))
	m.collectModes(gauge)
	for _, p := range m.health.Problems() {
		gauge(notReadyDesc, 1, p.Component)
	}
}

func (m metrics) collectModes(gauge func(*prometheus.Desc, float64, ...string)) {
	gauge(mtuDesc, float64(m.mtu.Load()))
	ready := m.tunnels.Ready()
	for kind := range bgp.Tunnels.All() {
		up := 0.0
		if ready.Has(kind) {
			up = 1
		}
		gauge(tunnelDesc, up, kind.String())
	}
	for used, count := range m.table.Used() {
		gauge(nextHopsDesc, float64(count), used.String())
	}
}

func (m metrics) collectIPAM(gauge func(*prometheus.Desc, float64, ...string)) {
	type key struct{ pool, state string }
	blocks := make(map[key]int)
	size, used := make(map[string]int), make(map[string]int)
	for _, b := range m.allocator.Blocks() {
		blocks[key{b.Pool, string(b.State)}]++
		size[b.Pool] += b.Size
		used[b.Pool] += len(b.Used)
	}
	for k, count := range blocks {
		gauge(blocksDesc, float64(count), k.pool, k.state)
	}
	for pool := range size {
		gauge(addressesDesc, float64(size[pool]), pool)
		gauge(usedDesc, float64(used[pool]), pool)
	}
}
