package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// queue is the node's directory of DELs that wait for an agent.
const queue = "/run/hoplite/del/"

// DEL is queued and succeeds, and the next agent carries it out before it serves. All else says so, with its code and in its time.
func testAgentDown(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	before := nodeState(t, ctx, node)
	stays := newContainer(t, ctx, node, "down-stays")
	staysAddr := addrOf(stays.added(t, ctx))
	withOne := nodeState(t, ctx, node)
	goes, vanishes := newContainer(t, ctx, node, "down-goes"), newContainer(t, ctx, node, "down-vanishes")
	goesResult := goes.added(t, ctx)
	vanishes.added(t, ctx)
	if err := node.Agent.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []container{goes, goes, vanishes, {node, "down-never-was", ""}} {
		c.raw("DEL").must(t, ctx)
		if _, err := os.Stat(node.Path(queue + c.id + "@eth0")); err != nil {
			t.Errorf("the DEL of %s is not queued: %v", c.id, err)
		}
	}
	vanishes.removeNetns(t, ctx)
	if _, err := os.Stat(node.Path("/sys/class/net/" + goesResult.Interfaces[0].Name)); err != nil {
		t.Errorf("nobody was there to delete it, still: %v", err)
	}

	const wait = 500 * time.Millisecond
	add := newContainer(t, ctx, node, "down-comes").raw("ADD").with("waitForAgent", wait.String())
	inTime(t, wait, func() { add.fails(t, ctx, 11, "no agent answers") })
	inTime(t, 3*time.Second, func() { stays.raw("STATUS").fails(t, ctx, 50, "no agent answers") })
	check := stays.raw("CHECK").with("waitForAgent", "0s").with("prevResult", json.RawMessage(
		fmt.Sprintf(`{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": %q}], "ips": [{"address": "%s/32", "interface": 0}]}`, stays.netns, staysAddr)))
	check.fails(t, ctx, 11, "no agent answers")
	stays.raw("GC").with("waitForAgent", "0s").with("cni.dev/valid-attachments", []any{}).fails(t, ctx, 11, "no agent answers")

	// Not ours to understand, and no reason not to start.
	if err := node.WriteFile(queue+"README", []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := node.Agent.Start(); err != nil {
		t.Fatal(err)
	}
	add.with("waitForAgent", "30s").must(t, ctx) // it serves, so it has drained
	if left, err := os.ReadDir(node.Path(queue)); err != nil || len(left) != 1 || left[0].Name() != "README" {
		t.Errorf("still queued: %v, %v", left, err)
	}
	if err := os.Remove(node.Path(queue + "README")); err != nil {
		t.Error(err)
	}
	container{node, "down-comes", ""}.raw("DEL").must(t, ctx)
	unchanged(t, ctx, node, withOne)
	check.must(t, ctx)
	stays.raw("STATUS").must(t, ctx)
	stays.raw("DEL").must(t, ctx)
	unchanged(t, ctx, node, before)

	t.Run("an ADD after a DEL that is still queued", func(t *testing.T) {
		// The same container again, in a new namespace, before any agent has seen the DEL.
		c := newContainer(t, ctx, node, "down-again")
		c.added(t, ctx)
		node.Agent.Kill()
		c.raw("DEL").must(t, ctx)
		c.removeNetns(t, ctx)
		output(t, ctx, node, "sh", "-c", "touch "+c.netns+" && unshare --net="+c.netns+" true")
		if err := node.Agent.Start(); err != nil {
			t.Fatal(err)
		}
		checkResult(t, ctx, c, c.added(t, ctx))
	})
}

// inTime fails the test unless f takes about the time: no less, and not many seconds more.
func inTime(t *testing.T, want time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	// The last attempt is made before the time is over, by as much as the pause between two.
	if took := time.Since(start); took < want-200*time.Millisecond || took > want+5*time.Second {
		t.Errorf("it took %s, want %s", took, want)
	}
}

// However the agent ended, an ADD that finds none waits and gets its network from the next.
func testAddWaits(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	for name, end := range map[string]func() error{
		"stopped": func() error { return node.Agent.Stop(ctx) },
		"killed":  func() error { node.Agent.Kill(); return nil },
		"no socket": func() error {
			node.Agent.Kill()
			return os.Remove(node.Path(lab.AgentSocket))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContainer(t, ctx, node, "waits")
			if err := end(); err != nil {
				t.Fatal(err)
			}
			type outcome struct {
				stdout  []byte
				failure *types.Error
			}
			done := make(chan outcome, 1)
			go func() {
				stdout, failure := c.raw("ADD").with("waitForAgent", "30s").run(t, ctx)
				done <- outcome{stdout, failure}
			}()
			labtest.Eventually(t, time.Minute, "the plugin runs", func() error {
				return node.Command(ctx, "pgrep", "-x", "hoplite").Run()
			})
			if err := node.Agent.Start(); err != nil {
				t.Fatal(err)
			}
			got := <-done
			if got.failure != nil {
				t.Fatal(got.failure)
			}
			r := &current.Result{}
			if err := json.Unmarshal(got.stdout, r); err != nil {
				t.Fatal(err)
			}
			checkResult(t, ctx, c, r)
		})
	}
}

// A runtime that has waited too long kills the plugin, and makes a DEL. The
// agent, which stood still, may find the ADD before or after that.
func testPluginKilled(t *testing.T, ctx context.Context, _ *lab.Lab, node *lab.Node) {
	before := nodeState(t, ctx, node)
	c := newContainer(t, ctx, node, "killed")
	t.Cleanup(func() { node.Agent.Signal(unix.SIGCONT) })
	node.Agent.Signal(unix.SIGSTOP)
	labtest.Eventually(t, time.Minute, "the agent stands still", func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", node.Agent.PID()))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = fmt.Errorf("%s", stat)
		}
		return err
	})
	done := make(chan []byte, 1)
	go func() {
		cmd, _ := c.raw("ADD").command(ctx)
		out, _ := cmd.Output()
		done <- out
	}()
	labtest.Eventually(t, time.Minute, "the plugin has called", func() error {
		return node.Command(ctx, "sh", "-c", "ss -xlnH | awk '/agent.sock/ && $3 > 0 { called = 1 } END { exit !called }'").Run()
	})
	output(t, ctx, node, "pkill", "-KILL", "-x", "hoplite")
	if out := <-done; len(out) > 0 {
		t.Errorf("the plugin was to die without a word, and said %s", out)
	}
	node.Agent.Signal(unix.SIGCONT)
	c.raw("DEL").must(t, ctx)
	unchanged(t, ctx, node, before)
	checkResult(t, ctx, c, c.added(t, ctx))
}
