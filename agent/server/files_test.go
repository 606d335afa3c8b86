package server

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestFreedAddressesOutliveTheAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "freed")
	log, err := NewFreedLog(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1_700_000_000, 0)
	v4, v6, taken := netip.MustParseAddr("10.244.0.5"), netip.MustParseAddr("fd00:10:244::5"), netip.MustParseAddr("10.244.0.6")
	for i, a := range []netip.Addr{v4, v6, taken} {
		log.Freed(a, at.Add(time.Duration(i)*time.Second))
	}
	log.Forget(taken)
	log.Forget(taken)
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := NewFreedLog(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Load()
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]time.Time{v4: at, v6: at.Add(time.Second)}
	if !maps.EqualFunc(got, want, time.Time.Equal) {
		t.Errorf("after a restart: %v, want %v", got, want)
	}
}

func TestOnlyOneAgentANode(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a second agent got the lock: %v", err)
	}
	unlock()
	unlock, err = Lock(dir)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	unlock()
}

func TestSocketIsRootsAndReplacesADeadAgents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	log := slog.New(slog.DiscardHandler)
	first, err := Listen(path, log)
	if err != nil {
		t.Fatal(err)
	}
	_ = first.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket's file went with the agent: %v", err)
	}
	second, err := Listen(path, log)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %o, want 600", info.Mode().Perm())
	}
	accepted := make(chan error, 1)
	go func() {
		conn, err := second.Accept()
		if err == nil {
			_ = conn.Close()
		}
		accepted <- err
	}()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if os.Geteuid() == 0 {
		if err := <-accepted; err != nil {
			t.Errorf("root was refused: %v", err)
		}
		return
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a caller that is not root was not hung up on: %v", err)
	}
}

func TestCallsForOneAttachmentWaitForEachOther(t *testing.T) {
	var locks keyLock[string]
	counts := map[string]*int{"a": new(int), "b": new(int)}
	var wg sync.WaitGroup
	for i := range 100 {
		key := []string{"a", "b"}[i%2]
		wg.Go(func() {
			defer locks.Lock(key)()
			*counts[key]++ // the race detector is the judge
		})
	}
	wg.Wait()
	if *counts["a"] != 50 || *counts["b"] != 50 {
		t.Errorf("counted %d and %d, want 50 each", *counts["a"], *counts["b"])
	}
	if len(locks.locks) != 0 {
		t.Errorf("%d locks are kept with nobody waiting", len(locks.locks))
	}
}
