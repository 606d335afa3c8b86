// Command trivial does nothing. What starting it costs, no program can do without.
package main

func main() {}
