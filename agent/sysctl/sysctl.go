// Package sysctl keeps the host's settings that pod traffic depends on.
//
// What it sets, for the families in use:
//
//   - net.ipv4.ip_forward, and forwarding of `default` and of each uplink: IPv4
//     forwards what comes in on a device whose own setting is 1. Turning
//     ip_forward on sets all of them, but only at that moment; someone may have
//     turned one off since.
//   - net.ipv6.conf.all.forwarding: IPv6 looks at this one alone.
//   - net.ipv6.conf.<uplink>.accept_ra from 1 to 2, before the line above: with
//     forwarding on, 1 means "ignore router advertisements", and the kernel
//     drops the default route learned from them that very moment. Only the
//     uplinks named, never `all` or `default`: a host that accepts
//     advertisements from a pod's veth can be taken over by the pod
//     (CVE-2020-10749). Other values are someone's decision and stay.
//   - net.ipv4.conf.<uplink>.rp_filter from 1 (strict) to 2 (loose), while there
//     are tunnels: a node may send natively what another sends through a tunnel,
//     while they change from one to the other or because only one of them can,
//     and strict drops what would not be answered the way it came. What counts is
//     the higher of `all` and the uplink's; if that is 0 or 2, nothing is written.
//
// Without tunnels rp_filter is left alone. Pods work with each value: the source
// address of a packet from a veth is routed to that very veth. So whatever
// `default` says is fine for new veths. The tunnels themselves get 2 from
// agent/tunnel.
//
// Values found are recorded before they are first changed, so that Restore can
// put them back when Hoplite is removed.
package sysctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
)

// poll is how often Run compares the settings without being told to, since
// accept_ra has no notification. It costs a few microseconds a setting.
const poll = time.Second

// Config is what a Keeper is made from.
type Config struct {
	Log  *slog.Logger // nil: slog.Default
	Root string       // empty: /proc/sys
	// Record is the file in which the original values are kept; empty: nowhere.
	// It belongs below /run: a reboot restores the values, too.
	Record string
}

// Desired is what the host must be able to do.
type Desired struct {
	IPv4, IPv6 bool
	// Uplinks are the devices through which other nodes are reached.
	Uplinks []string
	// Asymmetric: what comes in through an uplink may be answered through a tunnel.
	Asymmetric bool
}

// Keeper keeps the settings. Its methods may be called from several goroutines.
type Keeper struct {
	log    *slog.Logger
	root   string
	record string
	every  time.Duration
	kick   chan struct{}

	mu       sync.Mutex
	settings []setting
	failed   error
}

// setting is a file and the value it must hold. If from is not empty, only that
// value is changed. If above is not empty, it is a file that counts instead if its
// value is higher.
type setting struct {
	path  string // below the root: net/ipv4/ip_forward
	want  string
	from  string
	above string
	// optional: the device may be gone, or not yet there.
	optional bool
}

// New makes a Keeper that keeps nothing yet.
func New(c Config) *Keeper {
	k := &Keeper{log: c.Log, root: c.Root, record: c.Record, every: poll, kick: make(chan struct{}, 1)}
	if k.log == nil {
		k.log = slog.Default()
	}
	if k.root == "" {
		k.root = "/proc/sys"
	}
	return k
}

// Set says what is needed from now on. Settings no longer needed stay as they
// are until Restore.
func (k *Keeper) Set(d Desired) {
	var settings []setting
	uplinks := slices.Sorted(slices.Values(d.Uplinks))
	if d.IPv4 {
		settings = append(settings,
			setting{path: "net/ipv4/ip_forward", want: "1"},
			setting{path: "net/ipv4/conf/default/forwarding", want: "1"})
		for _, uplink := range uplinks {
			settings = append(settings, setting{path: "net/ipv4/conf/" + uplink + "/forwarding", want: "1", optional: true})
			if d.Asymmetric {
				settings = append(settings, setting{path: "net/ipv4/conf/" + uplink + "/rp_filter", want: "2", from: "1",
					above: "net/ipv4/conf/all/rp_filter", optional: true})
			}
		}
	}
	if d.IPv6 {
		for _, uplink := range uplinks {
			settings = append(settings, setting{path: "net/ipv6/conf/" + uplink + "/accept_ra", want: "2", from: "1", optional: true})
		}
		settings = append(settings, setting{path: "net/ipv6/conf/all/forwarding", want: "1"})
	}
	k.mu.Lock()
	k.settings = settings
	k.mu.Unlock()
	k.wake()
}

// Ensure compares every setting and writes those that differ. It returns how
// many it wrote, and all failures joined. A second call writes nothing.
func (k *Keeper) Ensure() (written int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found := make(map[string]string)
	var wrong []setting
	var failures []error
	for _, s := range k.settings {
		have, err := k.read(s.path)
		counts := have
		if err == nil && s.above != "" {
			var above string
			above, err = k.read(s.above)
			counts = max(have, above) // of one digit each
		}
		switch {
		case errors.Is(err, fs.ErrNotExist) && s.optional:
		case err != nil:
			failures = append(failures, fmt.Errorf("read setting %s: %w", name(s.path), err))
		case s.from != "" && counts != s.from && have != s.want: // someone's decision
		default:
			found[s.path] = have
			if have != s.want {
				wrong = append(wrong, s)
			}
		}
	}
	if len(wrong) > 0 {
		// Those that are right as well: writing ip_forward changes others.
		// Without a record they could not be put back, but pods matter more.
		failures = append(failures, k.remember(found))
	}
	for _, s := range wrong {
		if err := k.write(s.path, s.want); err != nil {
			failures = append(failures, explain(s, found[s.path], err))
			continue
		}
		written++
		k.log.Info("host setting changed", "setting", name(s.path), "from", found[s.path], "to", s.want)
	}
	k.failed = errors.Join(failures...)
	return written, k.failed
}

// Err returns what the last Ensure returned, for readiness.
func (k *Keeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// NetconfEvent asks Run to look again, if the event can be about a setting kept
// here. It is meant to be given to the watcher.
func (k *Keeper) NetconfEvent(ev rtnl.NetconfEvent) {
	// Each new veth causes one; those of `all` and `default` matter, and an
	// uplink's can wait for the poll.
	if ev.Index == rtnl.NetconfAll || ev.Index == rtnl.NetconfDefault {
		k.wake()
	}
}

// Run keeps the settings until ctx ends, then returns nil. A setting is back
// within a second of its change, or at once when a notification tells.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(k.every)
	defer tick.Stop()
	said := ""
	for {
		if _, err := k.Ensure(); err != nil {
			if err.Error() != said {
				said = err.Error()
				k.log.Error("host settings could not be set, will try again", "error", err)
			}
		} else {
			said = ""
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-k.kick:
		}
	}
}

func (k *Keeper) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

func explain(s setting, have string, err error) error {
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("setting %s is %s, must be %s and cannot be written (%w): set it on the host, "+
			"or run the agent privileged so that /proc/sys is writable", name(s.path), have, s.want, err)
	}
	return fmt.Errorf("set %s from %s to %s: %w", name(s.path), have, s.want, err)
}

func (k *Keeper) read(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(k.root, path))
	return strings.TrimSpace(string(b)), err
}

func (k *Keeper) write(path, value string) error {
	f, err := os.OpenFile(filepath.Join(k.root, path), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value + "\n")
	return errors.Join(err, f.Close())
}

// name is the setting as sysctl(8) takes it; it, too, accepts slashes, which a
// device name with a dot needs.
func name(path string) string {
	if strings.Contains(path, ".") {
		return path
	}
	return strings.ReplaceAll(path, "/", ".")
}

// Restore puts back the values recorded, also where someone changed them since,
// removes the record, and keeps nothing from then on.
func (k *Keeper) Restore() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	originals, err := k.recorded()
	if err != nil {
		return err
	}
	k.settings = nil
	var failures []error
	for _, path := range slices.SortedFunc(maps.Keys(originals), widerFirst) {
		if err := k.write(path, originals[path]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failures = append(failures, fmt.Errorf("put setting %s back to %s: %w", name(path), originals[path], err))
		}
	}
	if len(failures) > 0 || k.record == "" {
		return errors.Join(failures...)
	}
	if err := os.Remove(k.record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of host settings: %w", err)
	}
	return nil
}

// widerFirst puts ip_forward and conf/all before single devices' settings,
// which writing those overwrites.
func widerFirst(a, b string) int {
	wide := func(path string) int {
		if strings.HasSuffix(path, "/ip_forward") || strings.Contains(path, "/conf/all/") {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(wide(a), wide(b)), cmp.Compare(a, b))
}
