package encap

import (
	"os"
	"strings"
	"testing"

	"github.com/hoplite-net/hoplite/api/v1alpha1"
	"github.com/hoplite-net/hoplite/bgp"
)

var (
	modes = []v1alpha1.PoolMode{
		v1alpha1.ModeNative, v1alpha1.ModeIPIP, v1alpha1.ModeIPIPCrossSubnet, v1alpha1.ModeVXLAN, v1alpha1.ModeVXLANCrossSubnet,
	}
	sets = []bgp.Encapsulations{
		0, bgp.EncapsulationsOf(bgp.IPIP), bgp.EncapsulationsOf(bgp.VXLAN), bgp.EncapsulationsOf(bgp.IPIP, bgp.VXLAN),
	}
	befores = []Before{{}, {true, bgp.Native}, {true, bgp.IPIP}, {true, bgp.VXLAN}}
)

// docsTable reads the rows under the heading that begins with the given words.
func docsTable(t *testing.T, heading string) [][]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/tunnels.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "\n| "+heading)
	if !ok {
		t.Fatalf("docs/tunnels.md has no table that begins with %q", heading)
	}
	var rows [][]string
	for _, line := range strings.Split(rest, "\n")[2:] {
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	return rows
}

func fits(cell, value string) bool { return cell == "any" || cell == value }

func fitsSet(cell string, set bgp.Encapsulations) bool {
	switch cell {
	case "ipip":
		return set.Has(bgp.IPIP)
	case "vxlan":
		return set.Has(bgp.VXLAN)
	}
	return cell == "any"
}

func fitsBefore(cell string, b Before) bool {
	return cell == "any" || b.Known && cell == b.Used.String()
}

func TestModesWantWhatTheDocsSay(t *testing.T) {
	rows := docsTable(t, "mode | owner on-link | wanted |")
	for _, mode := range modes {
		for onlink, word := range map[bool]string{true: "yes", false: "no"} {
			want := ""
			for _, row := range rows {
				if row[0] == string(mode) && fits(row[1], word) {
					want = row[2]
					break
				}
			}
			if got := Wanted(mode, onlink).String(); got != want {
				t.Errorf("%s, on-link %s: wanted is %s, the docs say %q", mode, word, got, want)
			}
		}
	}
}

// Every combination there is: mode, on-link, what the sender can, what the owner
// receives, what was before.
func TestTheChoiceIsWhatTheDocsSay(t *testing.T) {
	rows := docsTable(t, "wanted | sender can | owner receives | before | used |")
	used := make(map[int]bool)
	eachCase(func(c testCase) {
		for i, row := range rows {
			if !fits(row[0], c.wanted.String()) || !fitsSet(row[1], c.can) || !fitsSet(row[2], c.receives) || !fitsBefore(row[3], c.before) {
				continue
			}
			used[i] = true
			if got := c.choose().String(); got != row[4] {
				t.Errorf("%+v: chose %s, row %d of the docs says %s", c, got, i+1, row[4])
			}
			return
		}
		t.Errorf("%+v: no row of the docs fits", c)
	})
	for i := range rows {
		if !used[i] {
			t.Errorf("row %d of the docs never counts", i+1)
		}
	}
}

func TestTheChoiceIsSafeAndSettles(t *testing.T) {
	eachCase(func(c testCase) {
		used := c.choose()
		if used != bgp.Native && !(c.can.Has(used) && c.receives.Has(used)) {
			t.Errorf("%+v: chose %s, which not both ends can", c, used)
		}
		if (c.can & c.receives).Has(c.wanted) && used != c.wanted {
			t.Errorf("%+v: both ends can what is wanted, and it chose %s", c, used)
		}
		possible := c.can & c.receives
		stays := c.before.Known && (c.before.Used == bgp.Native || possible.Has(c.before.Used))
		if used != c.wanted && stays && used != c.before.Used {
			t.Errorf("%+v: chose %s, which is neither wanted nor was in use", c, used)
		}
		if used == bgp.Native && c.wanted != bgp.Native && possible != 0 && !stays {
			t.Errorf("%+v: chose plain packets, though a tunnel is possible", c)
		}
		again := c
		again.before = Before{true, used}
		if next := again.choose(); next != used {
			t.Errorf("%+v: chose %s, and then %s with nothing changed", c, used, next)
		}
		mode := c.mode
		if why := Why(mode, c.onlink, true, c.wanted, used, c.can, c.receives); why == "" ||
			(used != c.wanted) != strings.Contains(why, ", but ") {
			t.Errorf("%+v: chose %s because %q", c, used, why)
		}
	})
}

type testCase struct {
	mode          v1alpha1.PoolMode
	onlink        bool
	wanted        bgp.Encapsulation
	can, receives bgp.Encapsulations
	before        Before
}

func (c testCase) choose() bgp.Encapsulation { return Choose(c.wanted, c.can, c.receives, c.before) }

func eachCase(f func(testCase)) {
	for _, mode := range modes {
		for _, onlink := range []bool{false, true} {
			for _, can := range sets {
				for _, receives := range sets {
					for _, before := range befores {
						f(testCase{mode, onlink, Wanted(mode, onlink), can, receives, before})
					}
				}
			}
		}
	}
}
