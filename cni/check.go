package cni

import (
	"strings"

	"github.com/hoplite-net/hoplite/cni/agentrpc"
)

// hostPrefix is how the agent names the host's ends of veth pairs.
const hostPrefix = "hop"

func (r *invocation) check() error {
	req, err := r.checkRequest()
	if err != nil {
		return err
	}
	return r.patiently(r.conf.Wait, func() error { return r.agent.Check(req, r.callTimeout) })
}

// checkRequest picks our part out of prevResult. Plugins after us in the chain
// may have added interfaces and addresses, or changed a MAC; nothing that
// is not ours is looked at, but ours must be there.
func (r *invocation) checkRequest() (agentrpc.CheckRequest, error) {
	req := agentrpc.CheckRequest{Attachment: agentrpc.Attachment(r.attachment), Netns: r.netns}
	prev := r.conf.PrevResult
	if prev == nil {
		return req, fail(codeInvalidConfig, "CHECK without a prevResult: the runtime must pass the result of ADD")
	}
	container := -1
	for i, d := range prev.Interfaces {
		switch {
		case d.Sandbox != "" && d.Name == r.attachment.Ifname && container < 0:
			container = i
			req.Container = agentrpc.Interface{Name: d.Name, MAC: d.Mac, MTU: uint32(d.Mtu), Sandbox: d.Sandbox}
		case d.Sandbox == "" && strings.HasPrefix(d.Name, hostPrefix) && req.Host.Name == "":
			req.Host = agentrpc.Interface{Name: d.Name, MAC: d.Mac, MTU: uint32(d.Mtu)}
		}
	}
	if container < 0 {
		return req, fail(codeCheckFailed, "prevResult has no interface %s in a container: it is not this attachment's", r.attachment.Ifname)
	}
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface == container {
			req.Addresses = append(req.Addresses, ip.Address)
		}
	}
	if len(req.Addresses) == 0 {
		return req, fail(codeCheckFailed, "prevResult has no address for %s: it is not this attachment's", r.attachment.Ifname)
	}
	return req, nil
}
