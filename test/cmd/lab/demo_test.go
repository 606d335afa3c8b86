package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// The demonstration verifies all that it shows, so it is a test, too, and the first thing that a newcomer sees fail.
func TestTheDemonstrationShowsWhatItSays(t *testing.T) {
	labtest.Require(t)
	var out bytes.Buffer
	if err := demonstrate(labtest.Context(t, 5*time.Minute), "demotest", &out); err != nil {
		t.Errorf("%v; it said:\n%s", err, out.String())
	}
}
