package e2e

import (
	"fmt"
	"testing"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// Every pod and node reaches every pod and node, and is seen with its own address.
func TestMatrix(t *testing.T) {
	ctx, l := startLab(t)
	pods := onePodEach(t, ctx, l)
	for _, node := range l.Nodes() {
		pods = append(pods, labtest.AddPod(t, node, "second-on-"+node.Name, lab.PodOptions{}))
		if err := node.Serve(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range pods {
		for _, to := range pods {
			sees(t, ctx, fmt.Sprintf("pod %s to pod %s", from.Name, to.Name), from, to.URL("/clientip"), from.IP())
		}
		for _, node := range l.Nodes() {
			sees(t, ctx, fmt.Sprintf("pod %s to node %s", from.Name, node.Name), from, serverURL(node.IP()), from.IP())
		}
		sees(t, ctx, "pod to itself by loopback", from, "http://127.0.0.1/clientip", loopback)
	}
	for _, from := range l.Nodes() {
		for _, to := range pods {
			sees(t, ctx, fmt.Sprintf("node %s to pod %s", from.Name, to.Name), from, to.URL("/clientip"), from.IP())
		}
	}
}
