// Command hoplite-cni is the CNI plugin, installed as /opt/cni/bin/hoplite.
package main

import (
	"os"

	"github.com/hoplite-net/hoplite/cni"
)

// version is set when linking.
var version = "dev"

func main() {
	os.Exit(cni.Plugin{
		Version: version,
		Getenv:  os.Getenv,
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
	}.Run())
}
