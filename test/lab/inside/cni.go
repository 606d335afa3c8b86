package inside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where a node keeps what a container runtime looks for.
const (
	ConfDir   = "/etc/cni/net.d"
	PluginDir = "/opt/cni/bin"
	CacheDir  = "/var/lib/cni"
)

// Request is one thing to do through the CNI protocol.
type Request struct {
	// Command is ADD, DEL, CHECK, GC or STATUS.
	Command     string
	ContainerID string
	// Netns is a path in the node. With NewNetns, ADD makes it first and a DEL
	// that succeeds removes it afterwards, as a container runtime does.
	Netns    string
	NewNetns bool
	IfName   string
	// Args are CNI_ARGS, K8S_POD_NAME and the like.
	Args [][2]string
	// Capabilities are runtime arguments: portMappings, bandwidth, ...
	Capabilities map[string]any
	// Valid are the attachments that GC keeps.
	Valid []types.GCAttachment
	// Conf names a configuration file, by default the first in ConfDir.
	Conf string
}

// Reply is what came of a Request: a CNI result (ADD only) or an error.
type Reply struct {
	Result json.RawMessage `json:",omitempty"`
	// Error is the CNI error if a plugin or libcni gave one.
	Error *types.Error `json:",omitempty"`
	// Message is the whole error, with what was being done; empty is success.
	Message string `json:",omitempty"`
}

// CNI reads a Request, carries it out by libcni with the node's own
// configuration, and writes the Reply. Its error is only about reading and writing.
func CNI(in io.Reader, out io.Writer) error {
	var request Request
	if err := json.NewDecoder(in).Decode(&request); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	var reply Reply
	result, err := carryOut(context.Background(), request)
	if err != nil {
		reply.Message = err.Error()
		errors.As(err, &reply.Error)
	}
	if result != nil {
		if reply.Result, err = json.Marshal(result); err != nil {
			return err
		}
	}
	return json.NewEncoder(out).Encode(reply)
}

func carryOut(ctx context.Context, r Request) (types.Result, error) {
	conf, err := configuration(r.Conf)
	if err != nil {
		return nil, err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{PluginDir}, CacheDir, nil)
	rt := &libcni.RuntimeConf{
		ContainerID: r.ContainerID, NetNS: r.Netns, IfName: r.IfName, Args: r.Args, CapabilityArgs: r.Capabilities,
	}
	switch r.Command {
	case "ADD":
		if r.NewNetns {
			if err := newNetns(r.Netns); err != nil {
				return nil, err
			}
		}
		result, err := cni.AddNetworkList(ctx, conf, rt)
		if err != nil && r.NewNetns {
			// A runtime cleans up after a failed ADD with a DEL.
			err = errors.Join(err, cni.DelNetworkList(ctx, conf, rt), removeNetns(r.Netns))
		}
		return result, err
	case "DEL":
		if err := cni.DelNetworkList(ctx, conf, rt); err != nil {
			return nil, err
		}
		if r.NewNetns {
			return nil, removeNetns(r.Netns)
		}
		return nil, nil
	case "CHECK":
		return nil, cni.CheckNetworkList(ctx, conf, rt)
	case "GC":
		return nil, cni.GCNetworkList(ctx, conf, &libcni.GCArgs{ValidAttachments: r.Valid})
	case "STATUS":
		return nil, cni.GetStatusNetworkList(ctx, conf)
	}
	return nil, fmt.Errorf("command %q: want ADD, DEL, CHECK, GC or STATUS", r.Command)
}

// configuration reads the named list, or the first one in ConfDir.
func configuration(file string) (*libcni.NetworkConfigList, error) {
	if file == "" {
		files, err := libcni.ConfFiles(ConfDir, []string{".conflist"})
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("no CNI configuration in %s", ConfDir)
		}
		file = files[0]
	}
	return libcni.ConfListFromFile(file)
}

// newNetns makes a network namespace with lo up and binds it to path.
func newNetns(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, in the new namespace, ends with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return fmt.Errorf("find lo: %w", err)
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return fmt.Errorf("set lo up: %w", err)
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	if err := <-done; err != nil {
		os.Remove(path)
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	return nil
}

func removeNetns(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
