package delqueue

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestWhatIsPutIsListedUntilRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "del")
	a := Attachment{"c1", "eth0"}
	b := Attachment{"c1", "eth1@if7"}
	for _, x := range []Attachment{b, a, a} {
		if err := Put(dir, x); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := List(dir); err != nil || !slices.Equal(got, []Attachment{a, b}) {
		t.Fatalf("listed %v, %v", got, err)
	}
	for range 2 { // removing what is gone is no error
		if err := Remove(dir, a); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := List(dir); err != nil || !slices.Equal(got, []Attachment{b}) {
		t.Fatalf("listed %v, %v", got, err)
	}
	hasA, errA := Has(dir, a)
	hasB, errB := Has(dir, b)
	if hasA || !hasB || errA != nil || errB != nil {
		t.Errorf("has %v %v, %v %v", hasA, hasB, errA, errB)
	}
}

func TestADirectoryThatIsNotThereIsEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if got, err := List(dir); err != nil || len(got) != 0 {
		t.Errorf("listed %v, %v", got, err)
	}
	if has, err := Has(dir, Attachment{"c", "e"}); err != nil || has {
		t.Errorf("has %v, %v", has, err)
	}
	if err := Remove(dir, Attachment{"c", "e"}); err != nil {
		t.Error(err)
	}
}

func TestOneBadNameHidesNoGoodOne(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"readme", "a@eth0", "b@", "@eth0", "z@eth0"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := List(dir)
	if !slices.Equal(got, []Attachment{{"a", "eth0"}, {"z", "eth0"}}) {
		t.Errorf("listed %v", got)
	}
	for _, name := range []string{`"readme"`, `"b@"`, `"@eth0"`} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
	}
}

func TestUnfinishedFilesAreNoOrdersAndAreClearedWhenOld(t *testing.T) {
	dir := t.TempDir()
	young, old := filepath.Join(dir, ".1"), filepath.Join(dir, ".2")
	for _, f := range []string{young, old} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * tempLife)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if got, err := List(dir); err != nil || len(got) != 0 {
		t.Errorf("listed %v, %v", got, err)
	}
	if _, err := os.Lstat(young); err != nil {
		t.Error("the file of a writer that may be alive is gone")
	}
	if _, err := os.Lstat(old); err == nil {
		t.Error("the file of a dead writer is still there")
	}
}

func TestTheDirectoryIsClosedToOthers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := Put(dir, Attachment{"c", "e"}); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v", info.Mode())
	}
	elsewhere := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := Put(elsewhere, Attachment{"c", "e"}); err == nil {
		t.Error("a symbolic link is followed")
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if err := Put(dir, Attachment{"c", "e"}); err == nil {
			t.Error("another user's directory is used")
		}
	}
}

func TestNamesThatAreNoFileNamesAreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, a := range []Attachment{{}, {"c", ""}, {"", "e"}, {"../c", "e"}, {".c", "e"}, {"c", "../e"}, {"c@d", "e"}, {"c", ".."}, {"c\x00", "e"}, {"c", "e\x00"}} {
		_, hasErr := Has(dir, a)
		if Put(dir, a) == nil || Remove(dir, a) == nil || hasErr == nil {
			t.Errorf("%+v is accepted", a)
		}
	}
	longest := Attachment{strings.Repeat("c", maxContainerID), strings.Repeat("e", maxIfname)}
	if err := Put(dir, longest); err != nil {
		t.Error(err)
	}
}

// Writers of the same and of other attachments at once: a reader sees whole files only.
func TestConcurrentUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "del")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			a := Attachment{"c" + string(rune('0'+i/2)), "eth0"}
			for range 50 {
				if err := Put(dir, a); err != nil {
					t.Error(err)
				}
				if _, err := List(dir); err != nil {
					t.Error(err)
				}
				var read Attachment
				b, err := os.ReadFile(filepath.Join(dir, a.Name()))
				if err == nil && (json.Unmarshal(b, &read) != nil || read != a) {
					t.Errorf("read %q of %v", b, a)
				}
				if err := Remove(dir, a); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"c@eth0", "a@b@c", "@", "..@..", "c@/", ".x@e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		a, err := ParseName(name)
		if err != nil {
			return
		}
		if a.Name() != name || filepath.Base(name) != name || len(name) > 255 || strings.HasPrefix(name, tempPrefix) || a.Validate() != nil {
			t.Errorf("accepted %q as %+v", name, a)
		}
	})
}
