// Package api holds what every program of the project shares: its version. The
// resources are in v1alpha1, the agent's gRPC contract in agent/v1.
package api

// Version is the version of the build, from git describe. The linker sets it.
var Version = "devel"
