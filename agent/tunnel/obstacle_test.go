package tunnel

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/agent/internal/rtnl"
	"github.com/hoplite-net/hoplite/bgp"
)

// TestWhatCannotBeChangedIsMadeAnew, of a device that someone made of our type.
func TestWhatCannotBeChangedIsMadeAnew(t *testing.T) {
	good := "link add hop.vxlan type vxlan id 4096 dstport 4789 local 192.0.2.1 nolearning"
	for _, c := range []struct {
		name, add string
		kept      bool
	}{
		{"fine as it is", good, true},
		{"another local", "link add hop.vxlan type vxlan id 4096 dstport 4789 local 192.0.2.9 nolearning", true},
		{"learning", "link add hop.vxlan type vxlan id 4096 dstport 4789 local 192.0.2.1", true},
		{"another VNI", "link add hop.vxlan type vxlan id 4097 dstport 4789 local 192.0.2.1 nolearning", false},
		{"another port", "link add hop.vxlan type vxlan id 4096 dstport 8472 local 192.0.2.1 nolearning", false},
		{"another family", "link add hop.vxlan type vxlan id 4096 dstport 4789 local 2001:db8::1 nolearning", false},
		{"a group", good + " group 239.1.1.1 dev up0", false},
		{"a default destination", good + " remote 192.0.2.9", false},
		{"bound to a device", good + " dev up0", false},
		{"no checksums", good + " noudpcsum", false},
		{"proxy", good + " proxy", false},
		{"GBP", good + " gbp", false},
		{"don't fragment", good + " df set", false},
		{"TTL", good + " ttl 3", false},
		{"room for two", good + " maxaddress 2", false},
		{"metadata", "link add hop.vxlan type vxlan external dstport 4789", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.ip(c.add, "link set hop.vxlan up")
			index := h.index("hop.vxlan")
			d := h.devices()
			must(t, d.Load(t.Context()))
			must(t, d.Sync(t.Context(), two()))
			clean := newHost(t)
			must(t, clean.devices().Sync(t.Context(), two()))
			// Its IPv6 settings may be of a device that was up before.
			if got, want := h.view(), clean.view(); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if kept := h.index("hop.vxlan") == index; kept != c.kept {
				t.Errorf("device kept: %v", kept)
			}
			if state := d.State(); len(state) != 1 || state[0].Index != h.index("hop.vxlan") {
				t.Errorf("state %v", state)
			}
		})
	}
}

func TestForeignDeviceIsLeftAloneAndReported(t *testing.T) {
	h := newHost(t)
	h.ip("link add hop.vxlan type bridge", "link set hop.vxlan mtu 1234 up")
	before := h.run("", "ip", "link", "show", "hop.vxlan")
	d := h.devices()
	must(t, d.Load(t.Context()))
	if len(d.State()) > 0 || d.Ready() != 0 {
		t.Errorf("after Load: %v, ready %v", d.State(), d.Ready())
	}
	err := d.Sync(t.Context(), two())
	if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), `"bridge"`) || !strings.Contains(err.Error(), "ip link delete hop.vxlan") {
		t.Errorf("Sync: %v", err)
	}
	state := d.State()
	if len(state) != 1 || !errors.Is(state[0].Err, ErrForeign) || state[0].Index != 0 || d.Ready() != 0 {
		t.Errorf("state %v, ready %v", state, d.Ready())
	}
	none := two()
	none.Kinds = 0
	if err := d.Sync(t.Context(), none); err != nil || len(d.State()) > 0 {
		t.Errorf("with no tunnels wanted: %v, state %v", err, d.State())
	}
	if after := h.run("", "ip", "link", "show", "hop.vxlan"); after != before {
		t.Errorf("the device was\n%s\nand is\n%s", before, after)
	}
}

// TestWhatADeviceLosesWhileDownIsBackWithTheNextSync, also when nobody heard of it:
// the kernel forgets IPv6 addresses and all neighbours.
func TestWhatADeviceLosesWhileDownIsBackWithTheNextSync(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	want := h.view()
	h.ip("link set hop.vxlan down")
	must(t, d.Sync(t.Context(), two()))
	if got := h.view(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestAnAddressWithAnotherPrefixLengthIsInTheWay of the right one, in IPv6.
func TestAnAddressWithAnotherPrefixLengthIsInTheWay(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	want := h.view()
	h.damage(d, "addr del fd00:1::1/128 dev hop.vxlan", "addr add fd00:1::1/64 dev hop.vxlan nodad", "addr add 10.244.0.1/24 dev hop.vxlan")
	must(t, d.Sync(t.Context(), two()))
	if got := h.view(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestAnotherDeviceWithTheSameVNIIsReported(t *testing.T) {
	h := newHost(t)
	h.ip("link add theirs type vxlan id 4096 dstport 4789 local 192.0.2.1 nolearning")
	d := h.devices()
	if err := d.Sync(t.Context(), two()); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "ip -d link show type vxlan") {
		t.Errorf("Sync: %v", err)
	}
	h.index("theirs")
	h.ip("link del theirs")
	must(t, d.Sync(t.Context(), two()))
}

func TestWithoutANodeAddressNothingIsTouched(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	want := two()
	want.Local = netip.Addr{}
	h.unchanged(func() {
		if err := d.Sync(t.Context(), want); err == nil {
			t.Error("no error")
		}
	})
	if state := d.State(); len(state) != 1 || state[0].Err == nil || state[0].Index == 0 || d.Ready() == 0 {
		t.Errorf("state %v, ready %v", state, d.Ready())
	}
}

// TestAnMTUTooSmallForIPv6 is no obstacle to IPv4: the kernel allows no IPv6 on a
// device of less than 1,280 bytes.
func TestAnMTUTooSmallForIPv6(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	want.UplinkMTU, want.Addrs = 1300, addrs("10.244.0.1")
	must(t, d.Sync(t.Context(), want))
	h.contains("mtu 1250", "inet 10.244.0.1/32", "192.0.2.2 lladdr", "dst 192.0.2.3 self permanent")
	h.lacks("2001:db8::2")
	h.unchanged(func() { must(t, d.Sync(t.Context(), want)) })
	must(t, d.Sync(t.Context(), two()))
	h.contains("mtu 1450", "inet6 fd00:1::1/128", "2001:db8::2 lladdr", "addrgenmode none", "accept_ra=0")
	h.lacks("fe80:")
}

func TestIPIPNeedsAnIPv4Address(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	want := two()
	want.Kinds = bgp.Tunnels
	want.Local = netip.MustParseAddr("2001:db8::1")
	if err := d.Sync(t.Context(), want); err == nil || !strings.Contains(err.Error(), "VXLAN or Native") {
		t.Errorf("Sync: %v", err)
	}
	if state := d.State(); len(state) != 2 || state[0].Err == nil || state[0].Index != 0 || state[1].Err != nil || d.Ready() != bgp.EncapsulationsOf(bgp.VXLAN) {
		t.Errorf("state %v, ready %v", state, d.Ready())
	}
}

// TestASilentKernelChangesNoMind: routes would be taken off a device that is there.
func TestASilentKernelChangesNoMind(t *testing.T) {
	h := newHost(t)
	d := h.devices()
	must(t, d.Sync(t.Context(), two()))
	before, addrs := d.State(), d.Addrs()
	conn := d.conn
	dead, err := rtnl.Dial()
	must(t, err)
	must(t, dead.Close())
	d.conn = dead
	err = d.Sync(t.Context(), two())
	d.conn = conn
	if !errors.Is(err, errNoAnswer) {
		t.Errorf("Sync: %v", err)
	}
	after := d.State()
	if len(after) != 1 || after[0].Index != before[0].Index || after[0].Err == nil || d.Ready() != vxlanOnly || len(d.Addrs()) != len(addrs) {
		t.Errorf("state was %v and is %v, ready %v, addresses %v", before, after, d.Ready(), d.Addrs())
	}
	must(t, d.Sync(t.Context(), two()))
	if after := d.State(); after[0].Err != nil {
		t.Errorf("state %v", after)
	}
}
