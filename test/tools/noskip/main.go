// Noskip reads go test -json and prints it as go test does without -v: a line a
// package, and the output of what failed. Other than go test it fails when a
// test was skipped, and when none ran: what was not tested did not pass.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// event is one line of test2json; see go doc test2json.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64 // seconds
}

// worthALine is from how many seconds on a test is told of when it passes, so
// that one who waits sees something move.
const worthALine = 5

type key struct{ pkg, test string }

func main() {
	output := map[key][]string{}
	var passed, failed int
	var skipped []string
	broken := false
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Print(string(line)) // not of test2json: go's own complaint
				continue
			}
			k := key{e.Package, e.Test}
			switch {
			case e.Action == "build-output":
				fmt.Print(e.Output)
			case e.Action == "build-fail":
				broken = true
			case e.Action == "output" && e.Test == "" && isSummary(e.Output):
				fmt.Print(e.Output)
			case e.Action == "output":
				output[k] = append(output[k], e.Output)
			case e.Action == "fail":
				fmt.Print(strings.Join(output[k], ""))
				if e.Test == "" {
					broken = true
				} else {
					failed++
				}
			case e.Action == "skip" && e.Test != "":
				skipped = append(skipped, fmt.Sprintf("%s %s\n%s", e.Package, e.Test, strings.Join(output[k], "")))
			case e.Action == "pass" && e.Test != "":
				passed++
				if e.Elapsed >= worthALine && !strings.Contains(e.Test, "/") {
					fmt.Printf("  %s passed after %.0f s\n", e.Test, e.Elapsed)
				}
			}
			if e.Action == "pass" || e.Action == "skip" || e.Action == "fail" {
				delete(output, k)
			}
		}
		if err != nil {
			break
		}
	}
	for _, s := range skipped {
		fmt.Println("SKIPPED, and no test may be:", s)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, len(skipped))
	if broken || failed > 0 || len(skipped) > 0 || passed == 0 {
		os.Exit(1)
	}
}

// isSummary reports whether a package's output is its closing line.
func isSummary(s string) bool {
	for _, p := range []string{"ok  \t", "FAIL\t"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
