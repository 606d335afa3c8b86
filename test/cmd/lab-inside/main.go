// Command lab-inside is what the lab runs inside its namespaces: the process
// that holds a machine, the CNI runtime of a node, and the server in a pod. It
// is a program of its own, small and quick to start, so that a pod costs what
// the CNI plugins cost and not what the lab costs. Nobody starts it by hand.
package main

import (
	"fmt"
	"os"

	"github.com/hoplite-net/hoplite/test/lab/inside"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab-inside:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "init":
		return inside.Init(args[1])
	case len(args) == 1 && args[0] == "cni":
		return inside.CNI(os.Stdin, os.Stdout)
	case len(args) == 3 && args[0] == "serve":
		return inside.Serve(args[1], args[2])
	}
	return fmt.Errorf("usage: lab-inside init HOSTNAME | cni | serve POD NODE (the lab command runs it)")
}
