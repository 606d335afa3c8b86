package endpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// List reads all endpoints back from the kernel, in no order, and remembers
// them for Repair. Veths waiting for deletion are none, nor are links that only
// look like ours.
//
// It also looks for the paths of their namespaces; an endpoint whose namespace
// it does not find has an empty Netns.
func (p *Plumber) List(ctx context.Context) ([]Endpoint, error) {
	c, err := p.open(p.home)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	answers, err := c.dump(ctx, getVeths())
	if err != nil {
		return nil, err
	}
	var eps []Endpoint
	byNSID := map[int][]int{}
	for _, b := range answers {
		l, err := parseLink(b)
		if err != nil {
			return nil, err
		}
		o, ok := parseAlias(l.alias)
		if !ok || !strings.HasPrefix(l.name, linkPrefix) || o.Dying || l.group == Group {
			continue
		}
		if l.name != HostIf(o.Key) {
			p.log.Warn("link bears the alias of another host veth, ignored", "link", l.name, "alias", l.alias, "belongs_to", HostIf(o.Key))
			continue
		}
		byNSID[l.nsid] = append(byNSID[l.nsid], len(eps))
		eps = append(eps, Endpoint{Key: o.Key, Pod: o.Pod, Addrs: o.Addrs, HostIf: l.name, HostIndex: l.index,
			MTU: l.mtu, Pinned: l.group == Pinned})
	}
	delete(byNSID, -1)
	p.locate(c, eps, byNSID)
	for _, e := range eps {
		if err := p.remember(ctx, e); err != nil {
			return nil, err
		}
	}
	return eps, nil
}

// remember notes an endpoint found in the kernel. It looks again under the
// attachment's lock: what a Del has taken away since must not be repaired.
func (p *Plumber) remember(ctx context.Context, e Endpoint) error {
	unlock, err := p.lock(ctx, e.Key)
	if err != nil {
		return err
	}
	defer unlock()
	if _, known := p.table.get(e.Key); known {
		return nil
	}
	l, err := p.link(e.HostIf)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	if o, ok := parseAlias(l.alias); ok && o.Key == e.Key && !o.Dying && l.index == e.HostIndex {
		p.table.put(e)
		// The list may be from before a SetMTU that knew nothing of e.
		if _, err := p.followLocked(e); err != nil {
			p.log.Warn("a pod's MTU is not the node's", "error", err)
		}
	}
	return nil
}

// locate finds the namespaces of eps by asking the kernel which ID each
// namespace has that a runtime keeps, and then each that a process is in.
func (p *Plumber) locate(c *rtnl, eps []Endpoint, byNSID map[int][]int) {
	patterns := make([]string, 0, len(p.dirs)+1)
	for _, dir := range p.dirs {
		patterns = append(patterns, filepath.Join(dir, "*"))
	}
	patterns = append(patterns, "/proc/[0-9]*/ns/net")
	for _, pattern := range patterns {
		paths, _ := filepath.Glob(pattern) // the only error is a bad pattern
		for _, path := range paths {
			if len(byNSID) == 0 {
				return
			}
			ns, err := openNetns(path)
			if err != nil {
				continue // gone since, or no namespace
			}
			id := c.nsid(ns)
			for _, i := range byNSID[id] {
				eps[i].Netns, eps[i].ns = path, ns.id
			}
			delete(byNSID, id)
			_ = ns.Close()
		}
	}
}

// nsid is the ID that a namespace has in the socket's, or -1.
func (c *rtnl) nsid(ns *netns) int {
	const netnsaNSID, netnsaFD = 1, 3 // NETNSA_NSID, NETNSA_FD
	r := newRequest("look up ID of "+ns.path, unix.RTM_GETNSID, 0, make([]byte, 4)).
		u32(netnsaFD, uint32(ns.fd()))
	if err := c.exchange(r); err != nil || len(r.answers) == 0 || len(r.answers[0]) < 4 {
		return -1
	}
	if v := attrs(r.answers[0][4:])[netnsaNSID]; len(v) == 4 {
		return int(int32(order.Uint32(v)))
	}
	return -1
}

// alive says whether the namespace is still where it was.
func (e Endpoint) alive() (*netns, error) {
	if e.Netns == "" {
		return nil, ErrNetnsGone
	}
	ns, err := openNetns(e.Netns)
	if err != nil {
		return nil, err
	}
	if e.ns != (nsID{}) && e.ns != ns.id {
		_ = ns.Close()
		return nil, &os.PathError{Op: "open network namespace", Path: e.Netns, Err: ErrNetnsGone}
	}
	return ns, nil
}
