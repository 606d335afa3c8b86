package agent

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"k8s.io/client-go/rest"
)

// Config is what the agent is started with.
type Config struct {
	// NodeName is the name of the Node object this machine is.
	NodeName string
	// API is how to reach the Kubernetes API.
	API *rest.Config
	// Dir is the agent's directory, gone after a reboot: /run/hoplite.
	Dir string
	// MetricsAddress is where /metrics, /healthz and /readyz are served.
	MetricsAddress string
	// IPTablesMode is "auto", "nft" or "legacy".
	IPTablesMode string
	// VXLANChecksumOffload: the kernel may leave checksums of packets in VXLAN to the network card.
	VXLANChecksumOffload bool
	Log                  *slog.Logger
}

// DefaultDir is where the agent keeps its socket and what outlives a restart.
const DefaultDir = "/run/hoplite"

func (c Config) socket() string   { return filepath.Join(c.Dir, "agent.sock") }
func (c Config) delQueue() string { return filepath.Join(c.Dir, "del") }
func (c Config) freedDir() string { return filepath.Join(c.Dir, "freed") }

// sysctlRecord is where the host's settings are kept as they were before.
func (c Config) sysctlRecord() string { return filepath.Join(c.Dir, "sysctls.json") }

func (c Config) validate() error {
	if c.NodeName == "" {
		return fmt.Errorf("the agent does not know which node it is: set --node-name (in a pod, from spec.nodeName)")
	}
	return nil
}
