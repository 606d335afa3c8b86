package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/hoplite-net/hoplite/test/lab"
)

func (d *demo) showRoutes(ctx context.Context) error {
	if err := d.l.WaitRoutes(ctx); err != nil {
		return err
	}
	d.say("Its own block as a blackhole, so that an address nobody has goes nowhere; a /32 for each of its pods; the\n" +
		"other nodes' blocks by way of these, learned over BGP:\n")
	n := d.l.Nodes()[0]
	out, err := d.run(n.Command(ctx, "ip", "route"), n.Name, "ip route")
	if err != nil {
		return err
	}
	d.expect(out, "ip route on "+n.Name, `(?m)^blackhole 10\.244\.\d+\.\d+/26 `)
	for _, p := range d.pods {
		if p.Node == n {
			d.expect(out, "ip route on "+n.Name, `(?m)^`+regexp.QuoteMeta(p.IP().String())+` dev `+p.Result.Interfaces[0].Name+` .*scope link`)
		}
	}
	for _, other := range d.l.Nodes()[1:] {
		d.expect(out, "ip route on "+n.Name, `(?m)^10\.244\.\d+\.\d+/26 nhid \d+ via `+regexp.QuoteMeta(other.IP().String())+` dev eth0 `)
	}
	d.say("In a pod, one way out, the same on every node:\n")
	p := d.pods[0]
	if out, err = d.run(p.Exec(ctx, "ip", "route"), p.Name, "ip route"); err != nil {
		return err
	}
	d.expect(out, "ip route in "+p.Name, `(?m)^default via 169\.254\.1\.1 dev eth0`)
	d.expect(out, "ip route in "+p.Name, `(?m)^169\.254\.1\.1 dev eth0 scope link`)
	return nil
}

func (d *demo) expect(out, of, pattern string) {
	d.check(regexp.MustCompile(pattern).MatchString(out), "%s has no line like %s", of, pattern)
}

// party is a pod or a node that takes part in the matrix.
type party struct {
	name string
	ip   netip.Addr
	get  func(ctx context.Context, url string) (string, error)
}

func (d *demo) showMatrix(ctx context.Context) error {
	var all []party
	for _, p := range d.pods {
		all = append(all, party{p.Name, p.IP(), p.Get})
	}
	for _, n := range d.l.Nodes() {
		if err := n.Serve(ctx); err != nil {
			return err
		}
		all = append(all, party{n.Name, n.IP(), n.Get})
	}
	d.say("Every pod and node asks the HTTP server of every other who it sees. ok: it answered, and saw the asker's own\n" +
		"address, so that nothing on the way translated it.\n")
	header := []string{"FROM \\ TO"}
	for _, to := range all {
		header = append(header, to.name)
	}
	rows := [][]string{header}
	var failures []string
	for _, from := range all {
		row := []string{from.name}
		for _, to := range all {
			cell, failure := ask(ctx, from, to)
			row = append(row, cell)
			if failure != "" {
				failures = append(failures, failure)
			}
		}
		rows = append(rows, row)
	}
	d.table(rows)
	d.say("")
	for _, f := range failures {
		d.check(false, "%s", f)
	}
	return nil
}

// ask returns a cell of the matrix, and what is wrong with it.
func ask(ctx context.Context, from, to party) (cell, wrong string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	seen, err := clientAddress(from.get(ctx, "http://"+to.ip.String()+"/clientip"))
	switch {
	case err != nil:
		return "no", fmt.Sprintf("%s does not reach %s: %v", from.name, to.name, err)
	case from.name == to.name: // its own address, or 127.0.0.1: nothing leaves
		return "ok", ""
	case seen != from.ip:
		return seen.String(), fmt.Sprintf("%s sees %s as %s, not as %s", to.name, from.name, seen, from.ip)
	}
	return "ok", ""
}

// clientAddress reads an answer of /clientip.
func clientAddress(body string, err error) (netip.Addr, error) {
	if err != nil {
		return netip.Addr{}, err
	}
	host, _, err := net.SplitHostPort(strings.TrimSpace(body))
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(host)
	return a.Unmap(), err
}

func (d *demo) showOutgoing(ctx context.Context) error {
	outside := d.l.Outside()
	if err := outside.Serve(ctx); err != nil {
		return err
	}
	address := outside.Addresses[0]
	rows := [][]string{{"POD", "ITS ADDRESS", "WHOM " + address.String() + " SEES", "WHICH IS"}}
	for _, p := range d.pods {
		seen, err := clientAddress(p.Get(ctx, "http://"+address.String()+"/clientip"))
		if err != nil {
			d.check(false, "%s does not reach %s: %v", p.Name, address, err)
			continue
		}
		which := "?"
		if seen == p.Node.IP() {
			which = p.Node.Name
		}
		rows = append(rows, []string{p.Name, p.IP().String(), seen.String(), which})
		d.check(seen == p.Node.IP(), "%s is seen outside as %s, not as its node %s", p.Name, seen, p.Node.IP())
	}
	d.table(rows)
	return nil
}

func (d *demo) showHostPort(ctx context.Context) error {
	p := d.exposed
	d.say("%s on %s was started with a port mapping: %d on the node to 80 in the pod (the portmap plugin's work).\n", p.Name, p.Node.Name, demoHostPort)
	url := fmt.Sprintf("http://%s:%d/", p.Node.IP(), demoHostPort)
	out, err := d.run(d.l.Outside().Command(ctx, "curl", "-sS", "--max-time", "5", url), "outside", "curl "+url)
	if err != nil {
		d.check(false, "from outside, %s: %v", url, err)
		return nil
	}
	want := fmt.Sprintf("%s on %s sees you as %s", p.Name, p.Node.Name, d.l.Outside().Addresses[0])
	d.check(strings.TrimSpace(out) == want, "the answer is not %q", want)
	return nil
}

func (d *demo) showRestart(ctx context.Context) error {
	a, b := d.pods[0], d.pods[demoPodsOnNode]
	d.say("While %s and %s send each other 1,000 packets a second, %s's agent is killed (kill -9) and started again.\n", a.Name, b.Name, a.Node.Name)
	meter, err := lab.StartMeter(ctx, a, b, 1000)
	if err != nil {
		return err
	}
	agent := a.Node.Agent
	agent.Kill()
	err = agent.Start()
	if err == nil {
		err = agent.WaitReady(ctx)
	}
	if err == nil {
		err = d.l.WaitMesh(ctx)
	}
	there, back := meter.Stop()
	if err != nil {
		return err
	}
	rows := [][]string{{"FROM", "TO", "SENT", "RECEIVED", "LOST"}}
	for _, l := range []lab.Loss{there, back} {
		rows = append(rows, []string{l.From, l.To, fmt.Sprint(l.Sent), fmt.Sprint(l.Received), fmt.Sprint(l.Lost)})
		d.check(l.Lost == 0, "%s", l)
	}
	d.table(rows)
	return nil
}
