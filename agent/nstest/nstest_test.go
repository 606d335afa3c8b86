package nstest

import (
	"net"
	"os"
	"testing"
)

func self(t *testing.T) string {
	t.Helper()
	id, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestDoRunsInTheNamespaceAndComesBack(t *testing.T) {
	Require(t)
	before := self(t)
	a, b := New(t), New(t)
	var inA, inB string
	a.Do(t, func() { inA = self(t); b.Do(t, func() { inB = self(t) }) })
	if inA == before || inB == before || inA == inB {
		t.Errorf("namespaces are not distinct: outside %s, a %s, b %s", before, inA, inB)
	}
	if after := self(t); after != before {
		t.Errorf("left in %s, came from %s", after, before)
	}
}

func TestNewHasLoUpAndNothingElse(t *testing.T) {
	Require(t)
	New(t).Do(t, func() {
		ifs, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		if len(ifs) != 1 || ifs[0].Name != "lo" || ifs[0].Flags&net.FlagUp == 0 {
			t.Errorf("interfaces of a new namespace: %+v", ifs)
		}
	})
}

func TestSysctlIsTheNamespaces(t *testing.T) {
	Require(t)
	a, b := New(t), New(t)
	a.SetSysctl(t, "net/ipv4/ip_forward", "1")
	if got := a.Sysctl(t, "net/ipv4/ip_forward"); got != "1" {
		t.Errorf("ip_forward of a = %s, set to 1", got)
	}
	if got := b.Sysctl(t, "net/ipv4/ip_forward"); got != "0" {
		t.Errorf("ip_forward of b = %s, never set", got)
	}
}

func TestRemoveTwice(t *testing.T) {
	Require(t)
	ns := New(t)
	ns.Remove(t)
	ns.Remove(t)
	if _, err := os.Stat(ns.Path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", ns.Path, err)
	}
}
