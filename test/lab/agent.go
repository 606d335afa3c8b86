package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// AgentSocket is where a node's agent listens, as the node sees it; Machine.Path gives the host's view.
const AgentSocket = "/run/hoplite/agent.sock"

// AgentPort serves an agent's /metrics, /healthz and /readyz, on the node's address.
const AgentPort = 9475

const (
	agentKubeconfig      = "/etc/hoplite/agent.kubeconfig"
	controllerKubeconfig = "/etc/hoplite/controller.kubeconfig"
	agents               = "hoplite-agents" // the group of all agents
	controllerUser       = "hoplite-controller"
)

// Agent is a node's hoplite-agent. Start, Stop (SIGTERM), Kill (SIGKILL) and
// Running are Process's.
type Agent struct {
	*Process
	node *Node
}

// agentArgs is how the lab starts an agent.
func agentArgs(n *Node) []string {
	return append([]string{"--node-name", n.Name, "--kubeconfig", agentKubeconfig}, n.lab.cfg.AgentArgs...)
}

// controllerArgs is how the lab starts the controller. There is only one, and it is never held up by a Lease.
func controllerArgs() []string {
	return []string{"--kubeconfig", controllerKubeconfig, "--leader-elect=false"}
}

// AgentUser is the API server's name for a node's agent: every agent has a
// certificate of its own, so that Requests can tell them apart.
func AgentUser(node string) string { return "hoplite-agent:" + node }

func (n *Node) prepareAgent() error {
	if err := n.giveKubeconfig(agentKubeconfig, AgentUser(n.Name), agents); err != nil {
		return err
	}
	argv := append([]string{n.lab.cfg.binary("hoplite-agent")}, agentArgs(n)...)
	n.Agent = &Agent{Process: n.newProcess("agent-"+n.Name, argv...), node: n}
	return nil
}

func (l *Lab) prepareController() error {
	if err := l.control.giveKubeconfig(controllerKubeconfig, controllerUser, controllerUser+"s"); err != nil {
		return err
	}
	argv := append([]string{l.cfg.binary("hoplite-controller")}, controllerArgs()...)
	l.Controller = l.control.newProcess("hoplite-controller", argv...)
	return nil
}

func (m *Machine) giveKubeconfig(file, user, group string) error {
	pair, err := m.lab.ca.client(user, group)
	if err != nil {
		return err
	}
	content, err := m.lab.kubeconfig(user, pair)
	if err != nil {
		return err
	}
	return m.WriteFile(file, content, 0o600)
}

// WaitReady waits until the agent says it is ready. It fails at once if the agent ends.
func (a *Agent) WaitReady(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: a.node.Dial, DisableKeepAlives: true}, Timeout: 5 * time.Second}
	url := fmt.Sprintf("http://%s/readyz", net.JoinHostPort(a.node.IP().String(), fmt.Sprint(AgentPort)))
	return a.waitFor(ctx, "ready", func() error { return checkHTTP(ctx, client, url) })
}

// Restart stops the agent by SIGTERM, starts it and waits until it is ready.
func (a *Agent) Restart(ctx context.Context) error {
	if err := a.Stop(ctx); err != nil {
		return err
	}
	if err := a.Start(); err != nil {
		return err
	}
	return a.WaitReady(ctx)
}

// permissions applies what deploy/rbac grants, and grants the same to the lab's
// agents and controller, which have certificates and not service accounts.
func (l *Lab) permissions(ctx context.Context) error {
	objects, err := l.applyFiles(ctx, "deploy/rbac/*.yaml")
	if err != nil {
		return err
	}
	for name, group := range map[string]string{"hoplite-agent": agents, "hoplite-controller": controllerUser + "s"} {
		role := "cluster-admin"
		for _, o := range objects {
			if o.GetObjectKind().GroupVersionKind().Kind == "ClusterRole" && o.GetName() == name {
				role = name
			}
		}
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "lab:" + name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
		}
		if err := l.client.Create(ctx, binding); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("grant %s to %s: %w", role, group, err)
		}
	}
	return nil
}
