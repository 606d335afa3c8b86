package sysctl

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
	"github.com/hoplite-net/hoplite/agent/nstest"
)

func newHost(t *testing.T) *nstest.NS {
	nstest.Require(t)
	ns := nstest.New(t)
	ns.Do(t, func() {
		if out, err := exec.Command("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
	for name, value := range map[string]string{
		"net/ipv4/ip_forward": "0", "net/ipv4/conf/default/forwarding": "0", "net/ipv4/conf/up0/forwarding": "0",
		"net/ipv6/conf/all/forwarding": "0", "net/ipv6/conf/up0/accept_ra": "1", "net/ipv6/conf/far0/accept_ra": "1",
	} {
		ns.SetSysctl(t, name, value)
	}
	return ns
}

func newKeeper(t *testing.T) *Keeper {
	return New(Config{Log: slog.New(slog.DiscardHandler), Record: filepath.Join(t.TempDir(), "run", "sysctl.json")})
}

func expect(t *testing.T, ns *nstest.NS, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got := ns.Sysctl(t, name); got != value {
			t.Errorf("%s is %s, want %s", name, got, value)
		}
	}
}

func ensure(t *testing.T, ns *nstest.NS, k *Keeper) (written int) {
	t.Helper()
	var err error
	ns.Do(t, func() { written, err = k.Ensure() })
	if err != nil {
		t.Fatal(err)
	}
	return written
}

var kept = map[string]string{
	"net/ipv4/ip_forward": "1", "net/ipv4/conf/default/forwarding": "1", "net/ipv4/conf/up0/forwarding": "1",
	"net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/up0/accept_ra": "2", "net/ipv6/conf/far0/accept_ra": "1",
}

var both = Desired{IPv4: true, IPv6: true, Uplinks: []string{"up0", "gone0"}}

func TestEnsureSetsWhatDiffersAndNothingTwice(t *testing.T) {
	ns, k := newHost(t), newKeeper(t)
	k.Set(both)
	ensure(t, ns, k)
	expect(t, ns, kept)
	if n := ensure(t, ns, k); n != 0 {
		t.Errorf("a second Ensure wrote %d settings", n)
	}
	ns.SetSysctl(t, "net/ipv4/conf/up0/forwarding", "0")
	ns.SetSysctl(t, "net/ipv4/conf/default/forwarding", "0")
	ns.SetSysctl(t, "net/ipv6/conf/up0/accept_ra", "1")
	if n := ensure(t, ns, k); n != 3 {
		t.Errorf("Ensure wrote %d settings, want the 3 changed", n)
	}
	expect(t, ns, kept)
}

func TestFamiliesNotInUseAreLeftAlone(t *testing.T) {
	ns, k := newHost(t), newKeeper(t)
	k.Set(Desired{IPv4: true, Uplinks: []string{"up0"}})
	ensure(t, ns, k)
	expect(t, ns, map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "0", "net/ipv6/conf/up0/accept_ra": "1"})
}

func TestADecisionAgainstRouterAdvertisementsStays(t *testing.T) {
	ns, k := newHost(t), newKeeper(t)
	ns.SetSysctl(t, "net/ipv6/conf/up0/accept_ra", "0")
	k.Set(both)
	ensure(t, ns, k)
	expect(t, ns, map[string]string{"net/ipv6/conf/up0/accept_ra": "0"})
}

// TestDefaultRouteFromRouterAdvertisementSurvives: the kernel drops it when
// forwarding is turned on while accept_ra is 1.
func TestAcceptRAComesBeforeForwarding(t *testing.T) {
	k := newKeeper(t)
	k.Set(both)
	ra, forwarding := -1, -1
	for i, s := range k.settings {
		switch s.path {
		case "net/ipv6/conf/up0/accept_ra":
			ra = i
		case "net/ipv6/conf/all/forwarding":
			forwarding = i
		}
	}
	if ra < 0 || forwarding < ra {
		t.Errorf("accept_ra is set at step %d, forwarding at %d", ra, forwarding)
	}
}

func TestRestorePutsBackWhatTheFirstAgentFound(t *testing.T) {
	ns, k := newHost(t), newKeeper(t)
	// Forwarding on one device alone, which turning ip_forward off would undo.
	ns.SetSysctl(t, "net/ipv4/conf/up0/forwarding", "1")
	before := map[string]string{}
	for name := range kept {
		before[name] = ns.Sysctl(t, name)
	}
	k.Set(both)
	ensure(t, ns, k)
	// Another agent starts, and has something to repair.
	second := New(Config{Log: k.log, Record: k.record})
	second.Set(Desired{IPv4: true, IPv6: true, Uplinks: []string{"up0", "far0"}})
	ns.SetSysctl(t, "net/ipv4/conf/default/forwarding", "2")
	ensure(t, ns, second)
	third := New(Config{Log: k.log, Record: k.record})
	ns.Do(t, func() {
		if err := third.Restore(); err != nil {
			t.Fatal(err)
		}
		if err := third.Restore(); err != nil {
			t.Errorf("a second Restore: %v", err)
		}
	})
	expect(t, ns, before)
	if _, err := os.Stat(k.record); !os.IsNotExist(err) {
		t.Errorf("the record is still there (%v)", err)
	}
}

func TestReadOnlySettingsAreAClearErrorOnlyIfWrong(t *testing.T) {
	nstest.Require(t)
	root := readOnly(t, map[string]string{"net/ipv4/ip_forward": "0", "net/ipv4/conf/default/forwarding": "1"})
	k := New(Config{Log: slog.New(slog.DiscardHandler), Root: root})
	k.Set(Desired{IPv4: true})
	_, err := k.Ensure()
	if err == nil || !strings.Contains(err.Error(), "net.ipv4.ip_forward is 0, must be 1") || strings.Contains(err.Error(), "default") {
		t.Errorf("error %v", err)
	}
	if k.Err() == nil {
		t.Error("Err() knows nothing of it")
	}
	fine := readOnly(t, map[string]string{"net/ipv4/ip_forward": "1", "net/ipv4/conf/default/forwarding": "1"})
	k = New(Config{Root: fine})
	k.Set(Desired{IPv4: true})
	if _, err := k.Ensure(); err != nil {
		t.Errorf("settings that are right already: %v", err)
	}
}

// readOnly mounts a read-only tree with these files, as an unprivileged
// container has at /proc/sys.
func readOnly(t *testing.T, files map[string]string) string {
	root := t.TempDir()
	if err := unix.Mount("none", root, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	for name, value := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestRunRepairsWithinASecond(t *testing.T) {
	ns, k := newHost(t), newKeeper(t)
	k.Set(both)
	start(t, ns, k)
	eventually(t, ns)
	ns.SetSysctl(t, "net/ipv6/conf/up0/accept_ra", "1")
	eventually(t, ns)
}

func TestNotificationsAreActedOnWithoutWaiting(t *testing.T) {
	ns, k := newHost(t), newKeeper(t)
	k.every = time.Hour
	k.Set(both)
	start(t, ns, k)
	eventually(t, ns)
	ns.SetSysctl(t, "net/ipv4/ip_forward", "0")
	k.NetconfEvent(rtnl.NetconfEvent{Index: rtnl.NetconfAll})
	eventually(t, ns)
}

// start runs k in the namespace until the test ends.
func start(t *testing.T, ns *nstest.NS, k *Keeper) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		// /proc/sys/net shows the namespace of the thread that opens it.
		runtime.LockOSThread()
		enter(t, ns)
		_ = k.Run(ctx)
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

// eventually waits for all to be as kept, a little longer than promised, since
// the test machine may be busy.
func eventually(t *testing.T, ns *nstest.NS) {
	t.Helper()
	for end := time.Now().Add(2 * poll); ; time.Sleep(time.Millisecond) {
		wrong := ""
		for name, value := range kept {
			if ns.Sysctl(t, name) != value {
				wrong = name
			}
		}
		if wrong == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still wrong", wrong)
		}
	}
}

// enter moves the calling thread, for good.
func enter(t *testing.T, ns *nstest.NS) {
	f, err := os.Open(ns.Path)
	if err == nil {
		defer f.Close()
		err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
	}
	if err != nil {
		t.Error(err)
	}
}
