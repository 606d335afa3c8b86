// Without the following, Go's runtime reads the mount table at the start, which
// is long on a node with many pods: something that a program can do without.
//
//go:debug containermaxprocs=0

// Command trivial does nothing. What starting it costs, no program can do without.
package main

func main() {}
