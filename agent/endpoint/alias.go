package endpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// The host veth's alias is where the node remembers whose an address is. To a
// reader of "ip link" it says:
//
//	alias hoplite1 5f3c0c1d… eth0 10.244.0.5,fd00::5 default/web-0
//
// Fields are separated by one space: version, container ID, interface name,
// addresses, pod. A pod's name that does not fit is cut and ends in "~", which
// no Kubernetes name contains. While a veth waits for its deletion the version
// reads "hoplite1-dying".
const (
	version = "hoplite1"
	dying   = "hoplite1-dying"

	maxAlias = 255 // IFALIASZ - 1
	cut      = "~"

	// linkPrefix starts the name of every host veth.
	linkPrefix = "hop"
)

// HostIf is the name of the host's end of k's veth: found by a hash, it needs
// no list and no lookup table.
func HostIf(k Key) string {
	h := hash(k)
	return linkPrefix + hex.EncodeToString(h[:6])[:11]
}

// podMAC is the address of the pod's end: locally administered, unicast, and
// the same when the veth has to be made again.
func podMAC(k Key) net.HardwareAddr {
	h := hash(k)
	mac := net.HardwareAddr(h[8:14])
	mac[0] = mac[0]&^1 | 2
	return mac
}

func hash(k Key) [sha256.Size]byte {
	return sha256.Sum256([]byte(k.ContainerID + "\x00" + k.IfName))
}

// owner is what an alias says.
type owner struct {
	Key
	Addrs []netip.Addr
	Pod   Pod
	Dying bool
}

// alias renders o in at most maxAlias bytes. It reserves room for the dying
// mark, so that marking never cuts the name further.
func (o owner) alias() (string, error) {
	addrs := make([]string, len(o.Addrs))
	for i, a := range o.Addrs {
		addrs[i] = a.String()
	}
	pod := ""
	if o.Pod != (Pod{}) {
		pod = o.Pod.Namespace + "/" + o.Pod.Name
	}
	rest := " " + o.ContainerID + " " + o.IfName + " " + strings.Join(addrs, ",") + " "
	room := maxAlias - len(dying) - len(rest)
	if len(pod) > room {
		least := len(o.Pod.Namespace) + len("/") + len(cut)
		if room < least {
			return "", fmt.Errorf("container ID %q has %d bytes, %d too many to be noted on the veth with pod %s: "+
				"have the runtime use IDs of at most 64 bytes", o.ContainerID, len(o.ContainerID), least-room, pod)
		}
		pod = pod[:room-len(cut)] + cut
	}
	if o.Dying {
		return dying + rest + pod, nil
	}
	return version + rest + pod, nil
}

// parseAlias reads an alias. ok is false for any text that alias did not write.
func parseAlias(s string) (o owner, ok bool) {
	f := strings.Split(s, " ")
	if len(f) != 5 || (f[0] != version && f[0] != dying) {
		return owner{}, false
	}
	o.Dying = f[0] == dying
	o.Key = Key{ContainerID: f[1], IfName: f[2]}
	if o.Key.validate() != nil {
		return owner{}, false
	}
	for _, t := range strings.Split(f[3], ",") {
		a, err := netip.ParseAddr(t)
		if err != nil || a.Zone() != "" || a.Is4In6() || a.String() != t {
			return owner{}, false
		}
		o.Addrs = append(o.Addrs, a)
	}
	if f[4] != "" {
		var found bool
		o.Pod.Namespace, o.Pod.Name, found = strings.Cut(f[4], "/")
		if !found || o.Pod == (Pod{}) || o.Pod.validate() != nil {
			return owner{}, false
		}
	}
	return o, true
}

// validate refuses what CNI and the kernel do (CNI specification 1.1,
// "Parameters"; dev_valid_name).
func (k Key) validate() error {
	if k.ContainerID == "" {
		return fmt.Errorf("container ID is empty")
	}
	for i, c := range []byte(k.ContainerID) {
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", rune(c))) {
			return fmt.Errorf("container ID %q: must be letters, digits, '.', '_' and '-', and begin with a letter or digit", k.ContainerID)
		}
	}
	if n := len(k.IfName); n == 0 || n > 15 || k.IfName == "." || k.IfName == ".." || !graphic(k.IfName) || strings.ContainsAny(k.IfName, "/:%") {
		return fmt.Errorf("interface name %q: must be 1 to 15 characters without spaces, '/', ':' and '%%'", k.IfName)
	}
	return nil
}

func (p Pod) validate() error {
	if !graphic(p.Namespace) || !graphic(p.Name) || strings.Contains(p.Namespace, "/") {
		return fmt.Errorf("pod %q in namespace %q: not names that Kubernetes gives", p.Name, p.Namespace)
	}
	return nil
}

// graphic says whether s is printable ASCII without spaces.
func graphic(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}
