package endpoint

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/hoplite-net/hoplite/agent/nstest"
)

func addrsOf(texts ...string) (as []netip.Addr) {
	for _, t := range texts {
		as = append(as, netip.MustParseAddr(t))
	}
	return as
}

func TestAliasSaysWhatItIsGiven(t *testing.T) {
	for _, o := range []owner{
		{Key: Key{"a", "eth0"}, Addrs: addrsOf("10.0.0.1")},
		{Key: Key{"a.B-c_9", "net1"}, Addrs: addrsOf("10.0.0.1", "fd00::1"), Pod: Pod{"default", "web-0"}},
		{Key: Key{strings.Repeat("f", 64), "fifteen-letters"}, Addrs: addrsOf("255.255.255.255", "fd00:1111:2222:3333:4444:5555:6666:7777"),
			Pod: Pod{"kube-system", "coredns"}, Dying: true},
	} {
		s, err := o.alias()
		if err != nil {
			t.Fatal(err)
		}
		back, ok := parseAlias(s)
		if !ok || fmt.Sprint(back) != fmt.Sprint(o) || back.Dying != o.Dying {
			t.Errorf("%q reads as %+v, %t; was %+v", s, back, ok, o)
		}
	}
}

// Only the pod's name is ever cut; all else comes back whole, from the kernel.
func TestVeryLongNamesAreCutAndLoseNothingElse(t *testing.T) {
	nstest.Require(t)
	node, pod := newNode(t), nstest.New(t)
	s := newSpec(pod, "255.255.255.254", "fd00:1111:2222:3333:4444:5555:6666:7777")
	s.Addrs[0] = netip.MustParseAddr("192.168.255.254")
	s.IfName = "fifteen-letters"
	s.Pod = Pod{strings.Repeat("n", 63), strings.Repeat("p", 253)}
	mustAdd(t, newPlumber(t, node), s)
	p := newPlumber(t, node)
	eps, err := p.List(t.Context())
	if err != nil || len(eps) != 1 {
		t.Fatalf("List: %v, %v", eps, err)
	}
	e := eps[0]
	if e.Key != s.Key || fmt.Sprint(e.Addrs) != fmt.Sprint(s.Addrs) || e.Pod.Namespace != s.Pod.Namespace {
		t.Errorf("back came %+v", e)
	}
	if name, ok := strings.CutSuffix(e.Pod.Name, cut); !ok || name == "" || !strings.HasPrefix(s.Pod.Name, name) {
		t.Errorf("pod name came back as %q", e.Pod.Name)
	}
	// Deleting marks the alias; that must fit, too.
	if freed := mustDel(t, p, s.Key); fmt.Sprint(freed) != fmt.Sprint(s.Addrs) {
		t.Errorf("freed %v", freed)
	}
}

func TestAliasOfAnOverlongContainerIDIsRefused(t *testing.T) {
	o := owner{Key: Key{"", "eth0"}, Addrs: addrsOf("10.0.0.1"), Pod: Pod{"default", "web-0"}}
	longest := 0
	for n := 1; n < 300; n++ {
		o.ContainerID = strings.Repeat("x", n)
		s, err := o.alias()
		if len(s) > maxAlias {
			t.Fatalf("alias of %d bytes", len(s))
		}
		if err == nil {
			longest = n
			if back, ok := parseAlias(s); !ok || back.Key != o.Key {
				t.Fatalf("%q does not come back", s)
			}
		}
	}
	if longest < 128 || longest > 220 {
		t.Errorf("longest container ID is %d", longest)
	}
}

func TestParseAliasRefusesWhatItDidNotWrite(t *testing.T) {
	for _, s := range []string{
		"", "mine", version, "hoplite2 a eth0 10.0.0.1 ", version + " a eth0 10.0.0.1", version + " a eth0  default/web",
		version + " a eth0 10.0.0.1,, default/web", version + " a eth0 10.0.0.01 x/y", version + " a eth0 fe80::1%eth0 x/y",
		version + " a/b eth0 10.0.0.1 x/y", version + " a eth0 10.0.0.1 x", version + "  a eth0 10.0.0.1 x/y",
		version + " a eth0 ::ffff:10.0.0.1 x/y", version + " a eth0 10.0.0.1 x/y z",
	} {
		if o, ok := parseAlias(s); ok {
			t.Errorf("%q reads as %+v", s, o)
		}
	}
}

func FuzzParseAlias(f *testing.F) {
	f.Add("hoplite1 5f3c eth0 10.244.0.5,fd00::5 default/web-0")
	f.Add("hoplite1-dying 5f3c eth0 10.244.0.5 default/web-0~")
	f.Add("hoplite1 a b 1.2.3.4 ")
	f.Add("hoplite1 0 0 :: /")
	f.Fuzz(func(t *testing.T, s string) {
		o, ok := parseAlias(s)
		if !ok {
			return
		}
		again, err := o.alias()
		if err != nil {
			return // longer than a kernel's alias
		}
		if back, ok := parseAlias(again); !ok || back.Key != o.Key || fmt.Sprint(back.Addrs) != fmt.Sprint(o.Addrs) || back.Dying != o.Dying {
			t.Errorf("%q was read as %+v, then as %+v", s, o, back)
		}
		if len(s) < maxAlias-len(dying) && again != s {
			t.Errorf("%q is written as %q", s, again)
		}
	})
}

func TestHostIfIsAValidNameOfItsOwn(t *testing.T) {
	seen := map[string]Key{}
	for i := range 1000 {
		for _, ifname := range []string{"eth0", "net1"} {
			k := Key{fmt.Sprint("c", i), ifname}
			name := HostIf(k)
			if len(name) != 14 || !strings.HasPrefix(name, "hop") {
				t.Fatalf("%s of %s", name, k)
			}
			if other, dup := seen[name]; dup {
				t.Errorf("%s and %s are both %s", k, other, name)
			}
			seen[name] = k
			if mac := podMAC(k); mac[0]&3 != 2 {
				t.Errorf("MAC %s of %s is not local and unicast", mac, k)
			}
		}
	}
	if HostIf(Key{"a", "b"}) == HostIf(Key{"ab", ""}) {
		t.Error("the boundary between the fields is lost")
	}
}
