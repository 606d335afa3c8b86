// Command trivial does nothing. What starting it costs, no program can do without.
package main

// Without this, the Go runtime reads the mount table at the start, which on a
// node with many pods is long: something that a program can do without.
//
//go:debug containermaxprocs=0

func main() {}
