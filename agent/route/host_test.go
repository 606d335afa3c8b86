package route_test

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/agent/nstest"
	"github.com/hoplite-net/hoplite/agent/route"
	"github.com/hoplite-net/hoplite/agent/watch"
)

// nhid is how ip(8) says that a route uses a next hop object. Mostly it says as
// well where that leads.
var nhid = regexp.MustCompile(` nhid (\d+)( via)?`)

// host is a network namespace with an uplink, 192.0.2.1/24 and 2001:db8::1/64.
type host struct {
	t  testing.TB
	ns *nstest.NS
	up int // the uplink's index
	// inline: its syncers write next hops into the routes.
	inline bool
	mu     sync.Mutex
	at     time.Time
}

func newHost(t testing.TB) *host {
	t.Helper()
	nstest.Require(t)
	h := &host{t: t, ns: nstest.New(t), at: time.Unix(1e9, 0)}
	h.ip("link add up0 type veth peer name far0",
		"link set far0 up", "link set up0 up",
		"addr add 192.0.2.1/24 dev up0", "addr add 2001:db8::1/64 dev up0 nodad")
	h.up = h.index("up0")
	return h
}

// bothWays runs a test with next hop objects, also where the kernel does not
// tell in a route's words where its object leads, and without objects.
func bothWays(t *testing.T, test func(*testing.T, *host)) {
	for _, name := range []string{"objects", "objects tersely", "inline"} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.inline = name == "inline"
			if name == "objects tersely" {
				h.ns.SetSysctl(t, "net/ipv4/nexthop_compat_mode", "0")
			}
			test(t, h)
		})
	}
}

// ip runs commands of ip(8) in the host, in one process.
func (h *host) ip(commands ...string) {
	h.t.Helper()
	h.run("ip", strings.Join(commands, "\n")+"\n", "-batch", "-")
}

// inWords has a route's line say where it leads, and not by which object.
func inWords(objects map[string][]string, line string) string {
	found := nhid.FindStringSubmatch(line)
	switch {
	case found == nil:
		return line
	case found[2] != "":
		return strings.Replace(line, found[0], " via", 1)
	}
	leads := objects[found[1]]
	if len(leads) < 6 || leads[2] != "via" {
		return line // a blackhole, a group, or gone meanwhile
	}
	if leads[len(leads)-1] == "onlink" {
		line += " onlink"
	}
	return strings.Replace(line, found[0], " "+strings.Join(leads[2:6], " "), 1)
}

func (h *host) index(device string) int {
	h.t.Helper()
	link, err := h.ns.Handle(h.t).LinkByName(device)
	must(h.t, err)
	return link.Attrs().Index
}

func (h *host) run(name, input string, args ...string) string {
	h.t.Helper()
	var out []byte
	var err error
	h.ns.Do(h.t, func() {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err = cmd.CombinedOutput()
	})
	if err != nil {
		h.t.Fatalf("%s %v %s: %v\n%s", name, args, input, err, out)
	}
	return string(out)
}

// routes lists the main tables as ip(8) words them, without the kernel's own.
func (h *host) routes(filter ...string) []string {
	h.t.Helper()
	var lines []string
	objects := make(map[string][]string)
	for line := range strings.Lines(h.run("ip", "", "nexthop", "show")) {
		objects[strings.Fields(line)[1]] = strings.Fields(line)
	}
	for _, family := range []string{"-4", "-6"} {
		out := h.run("ip", "", append([]string{"-o", family, "route", "show", "table", "main"}, filter...)...)
		for line := range strings.Lines(out) {
			if !strings.Contains(line, "proto kernel") {
				line = strings.NewReplacer("\\", " ", " pref medium", "", " weight 1", "", " scope global", "").Replace(line)
				lines = append(lines, inWords(objects, strings.Join(strings.Fields(line), " ")))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// objectsOf lists next hop objects of a protocol ("all": of any) by number, as
// ip(8) words them.
func (h *host) objectsOf(protocol string) map[string]string {
	h.t.Helper()
	objects := make(map[string]string)
	for line := range strings.Lines(h.run("ip", "", "nexthop", "show")) {
		words := strings.Fields(strings.Replace(line, "scope link ", "", 1))
		if i := slices.Index(words, "proto"); protocol == "all" || words[i+1] == protocol {
			objects[words[1]] = strings.Join(words[2:], " ")
		}
	}
	return objects
}

// objects lists all of them without numbers.
func (h *host) objects() []string {
	h.t.Helper()
	return slices.Sorted(maps.Values(h.objectsOf("all")))
}

// objectID is the number of the object by way of a gateway.
func (h *host) objectID(gateway string) string {
	h.t.Helper()
	for id, leads := range h.objectsOf("all") {
		if strings.HasPrefix(leads, "via "+gateway+" ") {
			return id
		}
	}
	h.t.Fatalf("no next hop object via %s", gateway)
	return ""
}

func (h *host) expectObjects(want ...string) {
	h.t.Helper()
	if got := h.objects(); !slices.Equal(got, sorted(want)) {
		h.t.Errorf("next hop objects:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func sorted(lines []string) []string { return slices.Sorted(slices.Values(lines)) }

func (h *host) syncer() *route.Syncer {
	h.t.Helper()
	return h.syncerWith(route.Config{Now: h.now})
}

func (h *host) syncerWith(c route.Config) *route.Syncer {
	h.t.Helper()
	c.Inline = h.inline
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	var s *route.Syncer
	var err error
	h.ns.Do(h.t, func() { s, err = route.New(c) })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = s.Close() })
	return s
}

// start runs s with a watcher, as the agent does.
func (h *host) start(s *route.Syncer) { h.startHearing(s, true) }

// heard counts what a watcher told: changes of the routes and next hops of our
// number, and whether of 198.51.100.0/24.
type heard struct {
	routes, objects atomic.Int64
	last            atomic.Bool
}

func (h *host) startHearing(s *route.Syncer, ignoreOwn bool) *heard {
	h.t.Helper()
	var c watch.Config
	if ignoreOwn {
		c.IgnorePorts = []uint32{s.PortID()}
	}
	var w *watch.Watcher
	var err error
	h.ns.Do(h.t, func() { w, err = watch.New(c) })
	if err != nil {
		h.t.Fatal(err)
	}
	heard := new(heard)
	w.Listen(watch.Listener{
		Route: func(r watch.Route) {
			if r.Protocol == route.Protocol {
				heard.routes.Add(1)
			} else if r.Prefix == prefix("198.51.100.0/24") && r.Deleted {
				heard.last.Store(true)
			}
		},
		Nexthop: func(watch.Nexthop) { heard.objects.Add(1) },
	})
	w.Listen(watch.Listener{Route: s.RouteEvent, Link: s.LinkEvent, Addr: s.AddrEvent, Nexthop: s.NexthopEvent, Overrun: s.RequestAudit})
	if err := s.Load(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = w.Run(ctx) })
	running.Go(func() { _ = s.Run(ctx) })
	h.t.Cleanup(func() { cancel(); running.Wait() })
	return heard
}

func (h *host) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

// later moves the syncer's clock.
func (h *host) later(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = h.at.Add(d)
}

func (h *host) expect(want ...string) {
	h.t.Helper()
	slices.Sort(want)
	if got := h.routes(); !slices.Equal(got, want) {
		h.t.Errorf("routes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// eventually waits until the routes are as wanted, and fails after the second
// within which repairs are promised.
func (h *host) eventually(want ...string) {
	h.t.Helper()
	slices.Sort(want)
	var got []string
	for end := time.Now().Add(time.Second); ; {
		if got = h.routes(); slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("a second later, routes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func prefixes(list ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range list {
		ps = append(ps, prefix(s))
	}
	return ps
}

// via is a learned prefix; hops is empty for a withdrawal.
func via(p string, hops ...string) route.Learned {
	l := route.Learned{Prefix: prefix(p)}
	for _, hop := range hops {
		l.Hops = append(l.Hops, hopOf(hop))
	}
	return l
}

func hopOf(a string) route.Hop { return route.Hop{Addr: netip.MustParseAddr(a)} }

// learn tells s of prefixes, and that each next hop is its own gateway out of the uplink.
func (h *host) learn(s *route.Syncer, learned ...route.Learned) {
	targets := make(map[route.Hop]route.Target)
	for _, l := range learned {
		for _, hop := range l.Hops {
			targets[hop] = route.Target{Device: h.up, Gateway: hop.Addr}
		}
	}
	s.SetTargets(targets)
	s.Update(learned)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
