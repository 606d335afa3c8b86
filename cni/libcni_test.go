package cni

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// A runtime's own library, the built binary, a real gRPC server: the whole of
// the protocol but the kernel.
func TestARuntimesLibraryCanDriveThePlugin(t *testing.T) {
	for _, version := range supportedVersions {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			a := (&agent{gc: &agentv1.GCResponse{Errors: []string{"stuck"}}}).start(t, bind(t, n.socket))
			cni := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(plugin(t))}, filepath.Join(n.dir, "cache"), nil)
			list := conflist(t, n, version)
			rt := &libcni.RuntimeConf{ContainerID: "c0ffee", NetNS: n.env["CNI_NETNS"], IfName: "eth0",
				Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web-0"}}}
			ctx := context.Background()

			result, err := cni.AddNetworkList(ctx, list, rt)
			if err != nil {
				t.Fatal(err)
			}
			if result.Version() != version {
				t.Errorf("the result has version %s", result.Version())
			}
			want := []string{"Add"}
			if !older(version, "0.4.0") {
				if err := cni.CheckNetworkList(ctx, list, rt); err != nil {
					t.Error(err)
				}
				want = append(want, "Check")
			}
			if !older(version, "1.1.0") {
				if err := cni.GetStatusNetworkList(ctx, list); err != nil {
					t.Error(err)
				}
				valid := []types.GCAttachment{{ContainerID: "c0ffee", IfName: "eth0"}}
				if err := cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err == nil {
					t.Error("GC hides the agent's errors")
				}
				want = append(want, "Status", "GC")
			}
			if err := cni.DelNetworkList(ctx, list, rt); err != nil {
				t.Error(err)
			}
			if got := a.seen(); !slices.Equal(got, append(want, "Del")) {
				t.Errorf("the agent saw %v, want %v and Del", got, want)
			}
		})
	}
}

func conflist(t *testing.T, n *node, version string) *libcni.NetworkConfigList {
	b, err := json.Marshal(map[string]any{"cniVersion": version, "name": "hoplite",
		"plugins": []any{map[string]any{"type": "hoplite", "socket": n.socket}}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
