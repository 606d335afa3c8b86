package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/bgp"
)

// unsupportedPause is how long the kernel's word that it has no devices of a type
// is taken for good. Asking makes it look for a module, which starts a process.
const unsupportedPause = 30 * time.Second

// ensureLink makes the device as s says and returns it, and whether that took a
// change. With an error, the link is what there is all the same.
func (d *Devices) ensureLink(s spec) (l link, changed bool, err error) {
	if l, err = d.ours(s.encap); err != nil {
		return link{}, false, err
	}
	before := l.index
	if l.index == 0 {
		err = d.removeRenamed(s)
	} else {
		l, err = d.changeInPlace(s, l)
	}
	if err == nil && l.index == 0 {
		l, err = d.create(s)
	}
	if err != nil || l.index == 0 {
		return l, true, err
	}
	l, changed, err = d.settle(s, l)
	return l, changed || l.index != before, err
}

// settle corrects all of a device but its options. It looks again after a change,
// since one may lead to another: when the MTU leaves IPv6 enough, IPv6 begins, with
// all its settings as they are by default.
func (d *Devices) settle(s spec, l link) (now link, changed bool, err error) {
	const rounds = 3
	for range rounds {
		did, err := d.correct(s, l)
		if !did {
			return l, changed, err
		}
		changed = true
		again, lookErr := d.ours(s.encap)
		if err = errors.Join(err, lookErr); err != nil {
			return again, changed, err
		}
		l = again
	}
	return l, changed, s.check(l)
}

// check finds what the kernel did not take, or someone changed at once.
func (s spec) check(l link) error {
	wrong, _ := s.wrong(l)
	_, more := s.attributes(l)
	wrong = append(wrong, more...)
	switch {
	case l.index == 0:
		wrong = []string{"existence"}
	case !l.up:
		wrong = append(wrong, "up")
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("device %s does not stay as it was made (%s): is something else managing it (systemd-networkd, NetworkManager)?",
		s.name, strings.Join(wrong, ", "))
}

// removeRenamed deletes the device that we had, if someone gave it another name:
// it would be in the way of the next.
func (d *Devices) removeRenamed(s spec) error {
	d.mu.Lock()
	index := d.devices[s.encap].Index
	d.mu.Unlock()
	if index == 0 {
		return nil
	}
	r := ask("look up device "+s.name+" by its index", unix.RTM_GETLINK, 0, ifinfo(index, 0)).u32(unix.IFLA_EXT_MASK, skipStats)
	if err := d.exchange(r.allow(unix.ENODEV)); err != nil || r.answer == nil {
		return err
	}
	l, err := parseLink(r.answer)
	if err != nil || l.kind != s.encap.String() {
		return err
	}
	d.log.Warn("a tunnel device was renamed; deleting it", "device", s.name, "name", l.name)
	return d.exchange(deleteLink(l.name, l.index))
}

// changeInPlace gives the device its options, or deletes it where the kernel
// cannot, and then returns no link.
func (d *Devices) changeInPlace(s spec, l link) (link, error) {
	wrong, fixed := s.wrong(l)
	if wrong == nil {
		return l, nil
	}
	if !fixed {
		err := d.exchange(s.change(l.index))
		if err == nil {
			l, err = d.ours(s.encap)
			if err != nil || l.index == 0 || s.fits(l) {
				d.log.Info("tunnel device changed", "device", s.name, "options", wrong)
				return l, err
			}
		}
	}
	d.log.Warn("a tunnel device is not as it should be and is made anew", "device", s.name, "options", wrong)
	return link{}, d.exchange(deleteLink(s.name, l.index))
}

// create makes the device, unless the kernel has said lately that it cannot.
func (d *Devices) create(s spec) (link, error) {
	d.mu.Lock()
	dev := d.devices[s.encap]
	again := dev.refused.IsZero() || d.now().Sub(dev.refused) >= unsupportedPause
	d.mu.Unlock()
	if !again {
		return link{}, unsupported(s.encap)
	}
	err := d.exchange(s.create())
	refused := time.Time{}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err, refused = unsupported(s.encap), d.now()
	}
	d.mu.Lock()
	dev.refused = refused
	d.mu.Unlock()
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w: another device does the same already: delete it (ip -d link show type %s)", err, s.encap)
	}
	if err != nil {
		return link{}, err
	}
	d.log.Info("tunnel device made", "device", s.name)
	return d.ours(s.encap)
}

func unsupported(kind bgp.Encapsulation) error {
	other := bgp.VXLAN
	if kind == bgp.VXLAN {
		other = bgp.IPIP
	}
	return fmt.Errorf("%w: type %s: load its module on the node (modprobe %s), or let pools use another mode (%s, Native)",
		ErrUnsupported, kind, kind, other)
}

// correct does what is found to be wrong, and sets the device up last, so that it
// makes itself no address and hears no router before that is forbidden.
func (d *Devices) correct(s spec, l link) (changed bool, err error) {
	var failures []error
	done := func(did bool, err error) {
		changed = changed || did
		failures = append(failures, err)
	}
	if r, wrong := s.attributes(l); wrong != nil {
		if l.up {
			d.log.Info("tunnel device changed", "device", s.name, "settings", wrong)
		}
		done(true, d.exchange(r))
	}
	done(d.settings6(s, l))
	if s.encap == bgp.VXLAN {
		done(d.setChecksumOffload(s.name, d.offload))
	}
	if !l.up {
		done(true, d.exchange(ask("set "+s.name+" up", unix.RTM_SETLINK, 0, ifinfo(l.index, unix.IFF_UP))))
	}
	return changed, errors.Join(failures...)
}

// attributes is the message that corrects what one can, and what that is.
func (s spec) attributes(l link) (r *request, wrong []string) {
	r = ask("configure device "+s.name, unix.RTM_SETLINK, 0, ifinfo(l.index, 0))
	if s.mtu > 0 && l.mtu != s.mtu {
		r.u32(unix.IFLA_MTU, uint32(s.mtu))
		wrong = append(wrong, "mtu")
	}
	if s.mac != (mac{}) && l.mac != s.mac {
		r.attr(unix.IFLA_ADDRESS, s.mac[:])
		wrong = append(wrong, "address")
	}
	inet := l.setting(confForwarding) != 1 || l.setting(confRPFilter) != s.rpFilter
	inet6 := l.hasIPv6() && l.genMode != genModeNone
	if inet || inet6 {
		r.nest(unix.IFLA_AF_SPEC, func() {
			if inet {
				r.nest(unix.AF_INET, func() {
					r.nest(unix.IFLA_INET_CONF, func() { r.u32(confForwarding, 1).u32(confRPFilter, s.rpFilter) })
				})
				wrong = append(wrong, "forwarding or rp_filter")
			}
			if inet6 {
				r.nest(unix.AF_INET6, func() { r.attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{genModeNone}) })
				wrong = append(wrong, "addrgenmode")
			}
		})
	}
	return r, wrong
}

// settings6 writes the settings that rtnetlink shows but does not set. Without
// an IPv6 address to carry, IPv6 is off, and with it all it sends by itself.
func (d *Devices) settings6(s spec, l link) (changed bool, err error) {
	if !l.hasIPv6() {
		return false, nil
	}
	disable := uint32(1)
	if s.ipv6 {
		disable = 0
	}
	for _, setting := range []struct {
		name       string
		have, want uint32
	}{
		// Who can send to the tunnel must not become the node's router.
		{"accept_ra", l.setting6(conf6AcceptRA), 0},
		{"disable_ipv6", l.setting6(conf6Disable), disable},
	} {
		if setting.have == setting.want {
			continue
		}
		path := filepath.Join("/proc/sys/net/ipv6/conf", s.name, setting.name)
		err := d.ns.Do(func() error { return os.WriteFile(path, []byte(strconv.Itoa(int(setting.want))), 0) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return changed, fmt.Errorf("set %s of %s: %w", setting.name, s.name, err)
		}
		changed = true
	}
	return changed, nil
}
