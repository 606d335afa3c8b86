package route_test

import (
	"fmt"
	"strings"

	"pgregory.net/rapid"
)

// ownEdit is someone's meddling with routes of our number.
func (m *model) ownEdit(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "prefix")
	if m.foreign[p] != "" {
		return // ip(8) would change the other's
	}
	verb := rapid.SampledFrom([]string{"del", "replace", "append", "blackhole"}).Draw(rt, "verb")
	hop := gateway(p, rapid.SampledFrom(hops).Draw(rt, "hop"))
	switch verb {
	case "del":
		m.try("route del " + p + " proto 104")
	case "blackhole":
		m.try("route replace blackhole " + p + " proto 104")
	default:
		m.try("route " + verb + " " + p + " via " + hop + " proto 104")
	}
}

func (m *model) foreignAdd(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "prefix")
	if m.foreign[p] != "" {
		return
	}
	if rapid.Bool().Draw(rt, "take over") {
		// Every one of ours goes first, or IPv6 might join the two.
		m.try("route del "+p+" proto 104", "route del "+p+" proto 104", "route del "+p+" proto 104")
	}
	m.try("route add " + p + " via " + gateway(p, "66") + " proto static")
	for _, line := range m.routes("proto", "static") {
		if strings.HasPrefix(line, p+" ") {
			m.foreign[p] = line
		}
	}
}

func (m *model) foreignDel(rt *rapid.T) {
	p := rapid.SampledFrom(keys).Draw(rt, "prefix")
	if m.foreign[p] != "" {
		delete(m.foreign, p)
		m.try("route del " + p + " proto static")
	}
}

// try runs commands that may fail.
func (m *model) try(commands ...string) {
	m.run("sh", "ip -force -batch - >/dev/null 2>&1 <<E || :\n"+strings.Join(commands, "\n")+"\nE\n")
}

// ownObject is someone's meddling with next hop objects of our number.
func (m *model) ownObject(rt *rapid.T) {
	id := m.anyObject(rt, "104")
	verb := rapid.SampledFrom([]string{"del", "change", "take over", "blackhole", "add"}).Draw(rt, "verb")
	if id == "" {
		verb = "add"
	}
	family := rapid.SampledFrom(keys).Draw(rt, "family")
	via := " via " + gateway(family, "66") + " dev up0 "
	switch verb {
	case "del":
		m.try("nexthop del id " + id)
	case "change":
		m.try("nexthop replace id " + id + via + "proto 104")
	case "take over":
		m.try("nexthop replace id " + id + via + "proto static")
	case "blackhole":
		m.try("nexthop replace id " + id + " blackhole proto 104")
	case "add":
		m.try("nexthop add id 9" + via + "proto 104")
	}
	m.objects = m.objectsOf("static")
}

// foreignObject is someone's work with objects of their own, with numbers that
// we would like to have.
func (m *model) foreignObject(rt *rapid.T) {
	via := " via " + gateway(rapid.SampledFrom(keys).Draw(rt, "family"), "66") + " dev up0 "
	if id := m.anyObject(rt, "static"); id != "" && rapid.Bool().Draw(rt, "del") {
		m.try("nexthop del id " + id)
	} else {
		m.try(fmt.Sprintf("nexthop add id %d%sproto static", 0x686f0000+rapid.IntRange(0, 9).Draw(rt, "number"), via))
	}
	m.objects = m.objectsOf("static")
}

// flap takes the tunnel's device or its carrier away, and objects with it.
func (m *model) flap(rt *rapid.T) {
	device := rapid.SampledFrom([]string{"hop.vxlan", "far1"}).Draw(rt, "device")
	m.ip("link set "+device+" down", "link set "+device+" up")
}

// anyObject is the number of an object of that protocol, "" if there is none.
func (m *model) anyObject(rt *rapid.T, protocol string) string {
	var ids []string
	for id := range m.objectsOf(protocol) {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return ""
	}
	return rapid.SampledFrom(sorted(ids)).Draw(rt, "object")
}
