package bgp

import (
	"context"
	"log/slog"
	"net/netip"
)

// logHandler takes what GoBGP logs. It passes it on a level lower, since we log the sessions' ups and downs ourselves
// and GoBGP's Info is a running commentary; and it picks out why a session does not come up, which GoBGP tells nobody
// else. Those words are for people only: nothing is decided by them.
type logHandler struct {
	out     slog.Handler
	speaker *Speaker
	session *session // the one this logger was made for, or nil
	key     string   // the attribute Key, seen before or after Topic
	topic   string
}

// Enabled is called for every path, so it must be quick. Of a session that is not up everything is wanted: the
// reasons are at debug level.
func (h *logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	if h.speaker.stopping.Load() {
		return false
	}
	if h.session != nil && (level >= slog.LevelInfo || !h.session.up.Load()) {
		return true
	}
	return h.out.Enabled(ctx, lowered(level))
}

// lowered maps GoBGP's levels to ours.
func lowered(level slog.Level) slog.Level {
	switch {
	case level >= slog.LevelError:
		return level
	case level >= slog.LevelWarn:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// Handle implements slog.Handler.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	if h.session != nil {
		h.note(r)
	}
	level := lowered(r.Level)
	// Said each time a peer that is still in its idle time is connected to.
	if r.Message == "Closed an accepted connection" {
		level = slog.LevelDebug
	}
	if !h.out.Enabled(ctx, level) {
		return nil
	}
	out := slog.NewRecord(r.Time, level, "gobgp: "+r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		out.AddAttrs(a)
		return true
	})
	return h.out.Handle(ctx, out)
}

// note reads a record of a session for why it is not up.
func (h *logHandler) note(r slog.Record) {
	attrs := map[string]slog.Value{}
	read := func() {
		r.Attrs(func(a slog.Attr) bool {
			attrs[a.Key] = a.Value
			return true
		})
	}
	mu := &h.speaker.mu
	switch r.Message {
	case "failed to connect":
		read()
		mu.Lock()
		h.session.noteConnectError(attrs["Error"].String())
		mu.Unlock()
	case "outgoing connection IO error":
		mu.Lock()
		h.session.why = h.session.closedEarly()
		mu.Unlock()
	case "sent notification", "received notification":
		read()
		code, subcode := attrs["Code"], attrs["Subcode"]
		if code.Kind() != slog.KindInt64 || subcode.Kind() != slog.KindInt64 {
			return
		}
		mu.Lock()
		h.session.noteNotification(r.Message == "sent notification", uint8(code.Int64()), uint8(subcode.Int64()))
		mu.Unlock()
	}
}

// WithAttrs implements slog.Handler. GoBGP makes a logger for each peer, with the topic Peer and the address as key.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.out = h.out.WithAttrs(attrs)
	for _, a := range attrs {
		switch a.Key {
		case "Topic":
			next.topic = a.Value.String()
		case "Key":
			next.key = a.Value.String()
		}
	}
	if next.session == nil && next.topic == "Peer" {
		if addr, err := netip.ParseAddr(next.key); err == nil {
			h.speaker.mu.Lock()
			next.session = h.speaker.peers[addr]
			h.speaker.mu.Unlock()
		}
	}
	return &next
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.out = h.out.WithGroup(name)
	return &next
}
