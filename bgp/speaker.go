package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"
)

// ErrNotRunning is returned by calls that need a speaker that has been started and not yet stopped. A caller must not
// take it for "no such route".
var ErrNotRunning = errors.New("the BGP speaker is not running")

// Config is what a Speaker is for its whole life.
type Config struct {
	// ASN is the node's autonomous system.
	ASN uint32
	// RouterID is the BGP identifier, an IPv4 address unique in the AS (RFC 6286).
	RouterID netip.Addr
	// ListenPort is the TCP port to listen on; 0 means 179, a negative one means do not listen.
	ListenPort int
	// ListenAddresses are the addresses to listen on; empty means all of both families.
	ListenAddresses []netip.Addr
	// RestartTime is how long peers keep our routes while we are away (RFC 4724 section 3); 0 means 120 s, the
	// largest is 4095 s.
	RestartTime time.Duration
	// EORDeadline is how long Synced waits for one peer's End-of-RIB, from when the peer was set; 0 means 10 s.
	EORDeadline time.Duration
	// Log is where the speaker and GoBGP log to; nil means nowhere.
	Log *slog.Logger
}

const (
	defaultListenPort  = 179
	defaultRestartTime = 120 * time.Second
	maxRestartTime     = 4095 * time.Second // 12 bits, RFC 4724 section 3
	defaultEORDeadline = 10 * time.Second
)

// Speaker is one node's BGP speaker. All methods may be called from any goroutine.
type Speaker struct {
	cfg Config
	log *slog.Logger
	srv *server.BgpServer

	// apply serialises the calls that change GoBGP. It may be held over calls into GoBGP; mu must not, because GoBGP
	// logs while it holds its own locks and our log handler takes mu.
	apply     sync.Mutex
	started   bool
	stopWatch context.CancelFunc
	running   atomic.Bool
	stopping  atomic.Bool

	dirty *dirtySet
	view  atomic.Pointer[view]

	mu       sync.Mutex
	own      map[netip.Prefix]ownPath // own prefixes, as GoBGP has them
	wantOwn  map[netip.Prefix]ownPath // as the caller wants them
	peers    map[netip.Addr]*session  // as GoBGP has them
	wantPeer map[netip.Addr]Peer
	peersSet bool // SetPeers has been called
	synced   chan struct{}
	isSynced bool
}

// New returns a speaker that does nothing yet. SetPaths, SetPeers and SetImport may be called before Start.
func New(cfg Config) *Speaker {
	if cfg.ListenPort == 0 {
		cfg.ListenPort = defaultListenPort
	}
	if cfg.RestartTime == 0 {
		cfg.RestartTime = defaultRestartTime
	}
	if cfg.EORDeadline == 0 {
		cfg.EORDeadline = defaultEORDeadline
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Speaker{
		cfg:    cfg,
		log:    cfg.Log,
		dirty:  newDirtySet(),
		own:    map[netip.Prefix]ownPath{},
		peers:  map[netip.Addr]*session{},
		synced: make(chan struct{}),
	}
	s.view.Store(&view{})
	s.srv = server.NewBgpServer(server.LoggerOption(slog.New(&logHandler{out: s.log.Handler(), speaker: s}), nil))
	return s
}

func (c Config) validate() error {
	switch {
	case c.ASN == 0:
		return errors.New("the AS number is 0; give one from 1 to 4294967295")
	case !c.RouterID.Is4():
		return fmt.Errorf("router ID %s is not an IPv4 address", c.RouterID)
	case c.ListenPort > 65535:
		return fmt.Errorf("listen port %d is above 65535", c.ListenPort)
	case c.RestartTime < time.Second || c.RestartTime > maxRestartTime:
		return fmt.Errorf("restart time %s is not between 1s and %s", c.RestartTime, maxRestartTime)
	case c.EORDeadline < 0:
		return fmt.Errorf("End-of-RIB deadline %s is negative", c.EORDeadline)
	}
	return nil
}

// Start begins to listen, puts the own paths set so far into the RIB and then adds the peers set so far. A speaker
// starts once; after an error or Stop, make a new one.
func (s *Speaker) Start(ctx context.Context) error {
	if err := s.cfg.validate(); err != nil {
		return fmt.Errorf("start BGP: %w", err)
	}
	s.apply.Lock()
	defer s.apply.Unlock()
	if s.started {
		return errors.New("start BGP: this speaker was started before")
	}
	s.started = true

	go s.srv.Serve()
	if err := s.startServer(ctx); err != nil {
		s.shutdown(false)
		return err
	}
	s.running.Store(true)
	if err := s.applyPaths(); err != nil {
		return fmt.Errorf("start BGP: %w", err)
	}
	if err := s.applyPeers(ctx); err != nil {
		return fmt.Errorf("start BGP: %w", err)
	}
	return nil
}

func (s *Speaker) startServer(ctx context.Context) error {
	listen := make([]string, len(s.cfg.ListenAddresses))
	for i, a := range s.cfg.ListenAddresses {
		listen[i] = a.String()
	}
	err := s.srv.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn:             s.cfg.ASN,
		RouterId:        s.cfg.RouterID.String(),
		ListenPort:      int32(s.cfg.ListenPort),
		ListenAddresses: listen,
		Families:        globalFamilies,
		// Equal paths are found when a route is looked up; GoBGP's own notion of them would cost memory and time
		// for every update.
		UseMultiplePaths: false,
	}})
	if err != nil {
		return fmt.Errorf("start BGP on port %d: %w", s.cfg.ListenPort, err)
	}
	watchCtx, cancel := context.WithCancel(context.Background())
	s.stopWatch = cancel
	if err := s.watch(watchCtx); err != nil {
		return fmt.Errorf("start BGP: watch the RIB: %w", err)
	}
	return nil
}

// Stop ends the speaker the way a restart needs it: connections close without a Cease, so that peers keep our routes
// as stale until we are back or the restart time has passed (RFC 4724 section 4.2). Peers that did not negotiate
// graceful restart get a Cease. Nothing is marked dirty from the moment Stop is called, so a caller that follows the
// keys leaves the kernel as it is.
func (s *Speaker) Stop(ctx context.Context) error {
	s.stopping.Store(true)
	s.apply.Lock()
	defer s.apply.Unlock()
	if !s.running.Swap(false) {
		return nil
	}
	s.dropTimers()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.shutdown(true)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop BGP: %w", ctx.Err())
	}
}

// shutdown closes everything GoBGP holds. Its second call is for the goroutine of GoBGP's BFD, which StopBgp leaves.
func (s *Speaker) shutdown(graceful bool) {
	s.stopping.Store(true)
	if s.stopWatch != nil {
		s.stopWatch()
	}
	if err := s.srv.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: graceful}); err != nil {
		s.log.Warn("stopping BGP", "err", err)
	}
	s.srv.Stop()
}
