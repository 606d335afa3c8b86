package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/hoplite-net/hoplite/api/delqueue"
	"github.com/hoplite-net/hoplite/cni/agentrpc"
)

const (
	defaultSocket = "/run/hoplite/agent.sock"
	defaultWait   = 10 * time.Second
	maxWait       = time.Minute
	// minMTU is what IPv6 demands of a link (RFC 8200 section 5) and enough for IPv4.
	minMTU = 1280
	maxMTU = 65535
	// maxSocket is the length of a unix socket's path, sun_path without its final zero byte.
	maxSocket = 107
)

// config is the plugin's part of the network configuration.
type config struct {
	CNIVersion string
	Name       string
	// MTU in bytes; 0: the agent chooses.
	MTU uint32
	// Socket is the agent's. The queue of DELs lies beside it.
	Socket string
	// Wait is how long to wait for an agent that is restarting.
	Wait time.Duration
	// DNS is passed through.
	DNS *DNS
	// PrevResult is nil for the first plugin of a chain.
	PrevResult *Result
	// Valid is what GC is to leave alone; nil when the runtime gave no list.
	Valid []agentrpc.Attachment
}

// queue is the directory of DELs that wait for an agent.
func (c *config) queue() string { return filepath.Join(filepath.Dir(c.Socket), "del") }

// parse reads the configuration. When lenient, only what is needed to find the
// agent has to be right.
func (c *config) parse(stdin []byte, lenient bool) error {
	c.Socket, c.Wait = defaultSocket, defaultWait
	// A map, because struct decoding takes keys that differ in case for the same.
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &keys); err != nil {
		return fail(codeDecode, "the network configuration on stdin is not a JSON object: %v", err)
	}
	if err := c.version(keys["cniVersion"]); err != nil {
		return err
	}
	for key, value := range keys {
		if lenient && key != "socket" {
			continue
		}
		if err := c.set(key, value); err != nil {
			var e *Error
			if errors.As(err, &e) {
				return e
			}
			return fail(codeInvalidConfig, "network configuration: %s: %v", key, err)
		}
	}
	if c.Name == "" && !lenient {
		return fail(codeInvalidConfig, `network configuration: name is missing: write "name": "hoplite"`)
	}
	return nil
}

func (c *config) version(value json.RawMessage) error {
	version := "0.1.0" // what a configuration without one means
	if value != nil {
		if err := json.Unmarshal(value, &version); err != nil {
			return fail(codeDecode, "network configuration: cniVersion: %v", err)
		}
	}
	for _, v := range supportedVersions {
		if v == version {
			c.CNIVersion = version
			return nil
		}
	}
	return fail(codeIncompatibleVersion, "network configuration: cniVersion is %q: write one of %s",
		version, strings.Join(supportedVersions, ", "))
}

func (c *config) set(key string, value json.RawMessage) error {
	switch key {
	case "name":
		if err := str(value, &c.Name); err != nil {
			return err
		}
		// The specification's rule for names is that for container IDs.
		if delqueue.ValidateContainerID(c.Name) != nil {
			return fmt.Errorf("%q: write letters, digits, '_', '.' and '-' only, beginning with a letter or digit", c.Name)
		}
	case "mtu":
		return c.setMTU(value)
	case "socket":
		return c.setSocket(value)
	case "waitForAgent":
		return c.setWait(value)
	case "dns":
		return decode(key, value, &c.DNS)
	case "prevResult":
		return decode(key, value, &c.PrevResult)
	case "cni.dev/valid-attachments":
		return c.setValid(value)
	case "ipam":
		return errors.New(`Hoplite gives out addresses itself, from the cluster's IPPools: remove "ipam"`)
	case "ipMasq":
		return errors.New(`remove "ipMasq" and set natOutgoing on the IPPool`)
	case "cniVersion", "cniVersions", "type", "capabilities", "runtimeConfig", "args", "disableCheck", "disableGC":
		// the protocol's own; nothing in them is for us
	default:
		if !strings.HasPrefix(key, "cni.dev/") {
			return errors.New("unknown key; Hoplite knows mtu, socket, waitForAgent and dns")
		}
	}
	return nil
}

func (c *config) setMTU(value json.RawMessage) error {
	var mtu uint32
	if json.Unmarshal(value, &mtu) != nil || mtu != 0 && (mtu < minMTU || mtu > maxMTU) {
		return fmt.Errorf("%s is not an MTU: write a number from %d to %d, or leave it out and the agent chooses", value, minMTU, maxMTU)
	}
	c.MTU = mtu
	return nil
}

func (c *config) setSocket(value json.RawMessage) error {
	if err := str(value, &c.Socket); err != nil {
		return err
	}
	if !filepath.IsAbs(c.Socket) || len(c.Socket) > maxSocket || strings.Contains(c.Socket, "\x00") {
		return fmt.Errorf("%q: write the full path of the agent's socket, at most %d bytes, or leave it out for %s",
			c.Socket, maxSocket, defaultSocket)
	}
	return nil
}

func (c *config) setWait(value json.RawMessage) error {
	var text string
	err := str(value, &text)
	if err == nil {
		c.Wait, err = time.ParseDuration(text)
	}
	if err != nil || c.Wait < 0 || c.Wait > maxWait {
		return fmt.Errorf(`%s: write a time from "0s" to "%s", for example "10s"`, value, maxWait)
	}
	return nil
}

func (c *config) setValid(value json.RawMessage) error {
	var list []struct {
		ContainerID string `json:"containerID"`
		Ifname      string `json:"ifname"`
	}
	if err := decode("cni.dev/valid-attachments", value, &list); err != nil {
		return err
	}
	c.Valid = make([]agentrpc.Attachment, 0, len(list))
	for _, a := range list {
		// Taking a half-read list for the truth would cost living pods their network.
		if err := (delqueue.Attachment{ContainerID: a.ContainerID, Ifname: a.Ifname}).Validate(); err != nil {
			return err
		}
		c.Valid = append(c.Valid, agentrpc.Attachment{ContainerID: a.ContainerID, Ifname: a.Ifname})
	}
	return nil
}

func str(value json.RawMessage, to *string) error {
	if err := json.Unmarshal(value, to); err != nil || len(value) == 0 || value[0] != '"' {
		return fmt.Errorf("%s is not a string", value)
	}
	return nil
}

func decode(key string, value json.RawMessage, to any) error {
	if err := json.Unmarshal(value, to); err != nil {
		return fail(codeDecode, "network configuration: %s: %v", key, err)
	}
	return nil
}
