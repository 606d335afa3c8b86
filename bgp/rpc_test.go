package bgp

import (
	"context"
	"log/slog"
	"net/netip"
	"net/rpc"
	"os"
	"time"
)

// NodeConfig is Config as it can be sent.
type NodeConfig struct {
	ASN         uint32
	RouterID    netip.Addr
	Port        int
	Listen      []netip.Addr
	RestartTime time.Duration
	EORDeadline time.Duration
	Quiet       bool // log as a node in use does, without debug messages
}

// PathsArgs are SetPaths's.
type PathsArgs struct {
	Paths []Path
	Hops  NextHops
}

// Refused is what Speaker.Refused returns.
type Refused struct {
	First []Refusal
	More  int
}

// SpeakerRPC is the part of Speaker that tests drive from outside.
type SpeakerRPC struct{ s *Speaker }

type none = struct{}

func (r *SpeakerRPC) New(c NodeConfig, _ *none) error {
	level := slog.LevelDebug
	if c.Quiet {
		level = slog.LevelInfo
	}
	r.s = New(Config{
		ASN: c.ASN, RouterID: c.RouterID, ListenPort: c.Port, ListenAddresses: c.Listen, RestartTime: c.RestartTime,
		EORDeadline: c.EORDeadline,
		Log:         slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	})
	return nil
}
func (r *SpeakerRPC) Start(none, *none) error { return r.s.Start(context.Background()) }
func (r *SpeakerRPC) Stop(none, *none) error  { return r.s.Stop(context.Background()) }
func (r *SpeakerRPC) SetPaths(a PathsArgs, _ *none) error {
	return r.s.SetPaths(context.Background(), a.Paths, a.Hops)
}
func (r *SpeakerRPC) SetPeers(p []Peer, _ *none) error {
	return r.s.SetPeers(context.Background(), p)
}
func (r *SpeakerRPC) SetImport(im Import, _ *none) error { r.s.SetImport(im); return nil }
func (r *SpeakerRPC) Lookup(p netip.Prefix, out *Route) (err error) {
	*out, _, err = r.s.Lookup(p)
	return err
}
func (r *SpeakerRPC) Routes(_ none, out *[]Route) (err error)     { *out, err = r.s.Routes(); return err }
func (r *SpeakerRPC) Peers(_ none, out *[]PeerStatus) error       { *out = r.s.Peers(); return nil }
func (r *SpeakerRPC) TakeDirty(_ none, out *[]netip.Prefix) error { *out = r.s.TakeDirty(); return nil }
func (r *SpeakerRPC) Refused(_ none, out *Refused) error {
	out.First, out.More = r.s.Refused()
	return nil
}
func (r *SpeakerRPC) Synced(_ none, out *bool) error {
	select {
	case <-r.s.Synced():
		*out = true
	default:
	}
	return nil
}

type stdio struct{}

func (stdio) Read(p []byte) (int, error)  { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error) { return os.Stdout.Write(p) }
func (stdio) Close() error                { return nil }

func serveNode() {
	srv := rpc.NewServer()
	if err := srv.RegisterName("Node", &SpeakerRPC{}); err != nil {
		panic(err)
	}
	srv.ServeConn(stdio{})
}

// PasswordArgs are a peer and its password.
type PasswordArgs struct {
	Peer     Peer
	Password string
}

// SetPassword is SetPeers with one peer that has a password, which Peer itself does not carry over the wire.
func (r *SpeakerRPC) SetPassword(a PasswordArgs, _ *none) error {
	a.Peer.Password = Secret(a.Password)
	return r.s.SetPeers(context.Background(), []Peer{a.Peer})
}
