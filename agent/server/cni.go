package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hoplite-net/hoplite/agent/endpoint"
	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
	"github.com/hoplite-net/hoplite/api/delqueue"
	"github.com/hoplite-net/hoplite/ipam"
)

// cniService serves the CNI plugin. An ADD takes an address out of a block in
// memory and plumbs it; nothing else happens on its way, and only calls for
// the same attachment wait for each other.
type cniService struct {
	agentv1.UnimplementedCNIServer
	*Server
}

func (s *cniService) Add(ctx context.Context, req *agentv1.AddRequest) (*agentv1.AddResponse, error) {
	defer s.timed("add")()
	key, err := attachmentKey(req.GetAttachment())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	defer s.locks.Lock(key)()

	families, err := s.families()
	if err != nil {
		return nil, assignError(err)
	}
	addrs, err := s.assign(ctx, families)
	if err != nil {
		return nil, assignError(err)
	}
	result, err := s.endpoints.Add(ctx, endpoint.Spec{
		Key:   key,
		Pod:   endpoint.Pod{Namespace: req.GetPodNamespace(), Name: req.GetPodName()},
		Netns: req.GetNetns(),
		Addrs: addrs,
		// 0: the node's. What the pod gets of what is asked for is decided there, too.
		MTU: int(req.GetMtu()), Pinned: req.GetMtu() != 0,
	})
	if err != nil {
		s.free(addrs)
		return nil, endpointError(err)
	}
	if err := ctx.Err(); err != nil {
		// Nobody hears the answer any more, so nobody will use the interface.
		return nil, errors.Join(status.FromContextError(err).Err(), s.delLocked(context.WithoutCancel(ctx), key))
	}
	return addResponse(req, addrs, result), nil
}

func addResponse(req *agentv1.AddRequest, addrs []netip.Addr, result endpoint.Result) *agentv1.AddResponse {
	resp := &agentv1.AddResponse{
		Host:      &agentv1.Interface{Name: result.HostName, Mac: result.HostMAC, Mtu: uint32(result.MTU)},
		Container: &agentv1.Interface{Name: req.GetAttachment().GetIfname(), Mac: result.ContainerMAC, Mtu: uint32(result.MTU), Sandbox: req.GetNetns()},
	}
	for i, a := range addrs {
		gateway := result.Gateways[i].WithZone("")
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Is6() {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		resp.Addresses = append(resp.Addresses, netip.PrefixFrom(a, a.BitLen()).String())
		resp.Gateways = append(resp.Gateways, gateway.String())
		resp.Routes = append(resp.Routes,
			&agentv1.Route{Destination: netip.PrefixFrom(gateway, gateway.BitLen()).String()},
			&agentv1.Route{Destination: everywhere.String(), Gateway: gateway.String()})
	}
	return resp
}

// assign takes one address of each family, or none.
func (s *Server) assign(ctx context.Context, families []ipam.Family) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, family := range families {
		a, err := s.addresses.Assign(ctx, family)
		if err != nil {
			s.free(addrs)
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

func (s *Server) free(addrs []netip.Addr) {
	for _, a := range addrs {
		s.addresses.Free(a)
	}
}

func (s *cniService) Del(ctx context.Context, req *agentv1.DelRequest) (*agentv1.DelResponse, error) {
	defer s.timed("del")()
	key, err := attachmentKey(req.GetAttachment())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := s.del(ctx, key); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &agentv1.DelResponse{}, nil
}

func (s *Server) del(ctx context.Context, key endpoint.Key) error {
	defer s.locks.Lock(key)()
	return s.delLocked(ctx, key)
}

func (s *Server) delLocked(ctx context.Context, key endpoint.Key) error {
	addrs, err := s.endpoints.Del(ctx, key)
	if err != nil {
		return fmt.Errorf("take away %s of container %s: %w", key.IfName, key.ContainerID, err)
	}
	s.free(addrs)
	return nil
}

func (s *cniService) Check(ctx context.Context, req *agentv1.CheckRequest) (*agentv1.CheckResponse, error) {
	defer s.timed("check")()
	key, err := attachmentKey(req.GetAttachment())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	defer s.locks.Lock(key)()
	var addrs []netip.Addr
	for _, text := range req.GetAddresses() {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "prevResult: address %q is not of the form 10.244.0.5/32", text)
		}
		addrs = append(addrs, prefix.Addr())
	}
	if err := s.endpoints.Check(ctx, endpoint.Expected{
		Key:          key,
		Netns:        req.GetNetns(),
		HostName:     req.GetHost().GetName(),
		HostMAC:      req.GetHost().GetMac(),
		ContainerMAC: req.GetContainer().GetMac(),
		Addrs:        addrs,
	}); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &agentv1.CheckResponse{}, nil
}

func (s *cniService) GC(ctx context.Context, req *agentv1.GCRequest) (*agentv1.GCResponse, error) {
	defer s.timed("gc")()
	valid := make(map[endpoint.Key]bool, len(req.GetValid()))
	for _, attachment := range req.GetValid() {
		key, err := attachmentKey(attachment)
		if err != nil {
			// A list we cannot read whole must not cost a living pod its network.
			return nil, status.Errorf(codes.InvalidArgument, "cni.dev/valid-attachments: %v", err)
		}
		valid[key] = true
	}
	if _, err := s.endpoints.List(ctx); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	resp := &agentv1.GCResponse{}
	// Not only what the kernel has: a veth goes with its namespace, the address does not.
	for _, e := range s.endpoints.Known() {
		if valid[e.Key] {
			continue
		}
		if err := s.del(ctx, e.Key); err != nil {
			resp.Errors = append(resp.Errors, err.Error())
			continue
		}
		s.log.Info("collected an attachment the runtime no longer has", "container", e.ContainerID, "ifname", e.IfName, "addresses", e.Addrs)
		resp.Removed = append(resp.Removed, &agentv1.Attachment{ContainerId: e.ContainerID, Ifname: e.IfName})
	}
	return resp, nil
}

func (s *cniService) Status(context.Context, *agentv1.StatusRequest) (*agentv1.StatusResponse, error) {
	resp := &agentv1.StatusResponse{}
	families, err := s.families()
	if errors.Is(err, ErrStarting) {
		// The plugin asks again: a node is not unready because its agent restarts.
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	if err != nil {
		resp.Problems = append(resp.Problems, err.Error())
	}
	for _, family := range families {
		if err := s.addresses.Available(family); err != nil {
			resp.Problems = append(resp.Problems, err.Error())
		}
	}
	return resp, nil
}

func attachmentKey(a *agentv1.Attachment) (endpoint.Key, error) {
	key := endpoint.Key{ContainerID: a.GetContainerId(), IfName: a.GetIfname()}
	if err := delqueue.ValidateContainerID(key.ContainerID); err != nil {
		return key, fmt.Errorf("CNI_CONTAINERID: %w", err)
	}
	if err := delqueue.ValidateIfname(key.IfName); err != nil {
		return key, fmt.Errorf("CNI_IFNAME: %w", err)
	}
	return key, nil
}

func assignError(err error) error {
	switch {
	case errors.Is(err, ipam.ErrExhausted), errors.Is(err, ipam.ErrNoPool):
		return status.Error(codes.ResourceExhausted, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}

func endpointError(err error) error {
	switch {
	case errors.Is(err, endpoint.ErrExists):
		return status.Error(codes.AlreadyExists, err.Error())
	case errors.Is(err, endpoint.ErrNetnsGone):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.Unavailable, err.Error())
	default:
		return status.Error(codes.Internal, err.Error())
	}
}
