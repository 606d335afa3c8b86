package cni

import (
	"strings"

	"github.com/hoplite-net/hoplite/cni/agentrpc"
)

// specVersion is the newest specification implemented.
const specVersion = "1.1.0"

// supportedVersions, oldest first.
var supportedVersions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// introduced says since when a command exists, where not all versions have it.
var introduced = map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

// older compares two supported versions; strings of this form sort as versions do.
func older(a, b string) bool { return a < b }

// Result is an ADD's, in the form of 1.1.0; the older versions' forms have fewer
// fields, and one more (IP.Version).
type Result struct {
	CNIVersion string      `json:"cniVersion"`
	Interfaces []Interface `json:"interfaces,omitempty"`
	IPs        []IP        `json:"ips,omitempty"`
	Routes     []Route     `json:"routes,omitempty"`
	DNS        *DNS        `json:"dns,omitempty"`
}

// Interface is a network device. Sandbox is the namespace's path, empty on the host.
type Interface struct {
	Name       string `json:"name"`
	Mac        string `json:"mac,omitempty"`
	Mtu        int    `json:"mtu,omitempty"`
	Sandbox    string `json:"sandbox,omitempty"`
	SocketPath string `json:"socketPath,omitempty"`
	PciID      string `json:"pciID,omitempty"`
}

// IP is an address with its prefix. Interface is an index into Result.Interfaces.
type IP struct {
	Version   string `json:"version,omitempty"`
	Address   string `json:"address"`
	Gateway   string `json:"gateway,omitempty"`
	Interface *int   `json:"interface,omitempty"`
}

// Route is one of the container's.
type Route struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	AdvMSS   int    `json:"advmss,omitempty"`
	Priority int    `json:"priority,omitempty"`
	Table    *int   `json:"table,omitempty"`
	Scope    *int   `json:"scope,omitempty"`
}

// DNS is what a resolver in the container should be told.
type DNS struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// extend returns prev (nil: nothing) with what the agent made added after it.
func extend(prev *Result, made agentrpc.AddResponse, dns *DNS) Result {
	var r Result
	if prev != nil {
		r = *prev
	}
	// ips[].interface counts from the start of the whole list.
	container := len(r.Interfaces) + 1
	r.Interfaces = append(r.Interfaces, deviceOf(made.Host), deviceOf(made.Container))
	for i, address := range made.Addresses {
		ip := IP{Address: address, Interface: &container}
		if i < len(made.Gateways) {
			ip.Gateway = made.Gateways[i]
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, route := range made.Routes {
		r.Routes = append(r.Routes, Route{Dst: route.Destination, GW: route.Gateway})
	}
	if r.DNS == nil || r.DNS.empty() {
		r.DNS = dns
	}
	return r
}

func deviceOf(i agentrpc.Interface) Interface {
	return Interface{Name: i.Name, Mac: i.MAC, Mtu: int(i.MTU), Sandbox: i.Sandbox}
}

func (d *DNS) empty() bool {
	return len(d.Nameservers) == 0 && d.Domain == "" && len(d.Search) == 0 && len(d.Options) == 0
}

// as puts the result into the form of a supported version.
func (r Result) as(version string) Result {
	r.CNIVersion = version
	if older(version, "1.1.0") {
		interfaces := make([]Interface, len(r.Interfaces))
		for i, d := range r.Interfaces {
			interfaces[i] = Interface{Name: d.Name, Mac: d.Mac, Sandbox: d.Sandbox}
		}
		routes := make([]Route, len(r.Routes))
		for i, route := range r.Routes {
			routes[i] = Route{Dst: route.Dst, GW: route.GW}
		}
		r.Interfaces, r.Routes = interfaces, routes
	}
	ips := make([]IP, len(r.IPs))
	for i, ip := range r.IPs {
		ip.Version = ""
		if older(version, "1.0.0") {
			ip.Version = family(ip.Address)
		}
		ips[i] = ip
	}
	r.IPs = ips
	return r
}

func family(address string) string {
	if strings.Contains(address, ":") {
		return "6"
	}
	return "4"
}
