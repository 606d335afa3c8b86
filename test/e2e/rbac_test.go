package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/hoplite-net/hoplite/test/lab"
	"github.com/hoplite-net/hoplite/test/lab/labtest"
)

// The groups that the lab's agents and controller are in, in place of service accounts.
const (
	agentGroup      = "hoplite-agents"
	controllerGroup = "hoplite-controllers"
)

// What an agent needs, each with what for. A right that is not here must not be granted.
var agentNeeds = map[string]string{
	"list nodes":                         "the mesh, the node's own addresses and labels",
	"watch nodes":                        "as they change",
	"patch nodes/status":                 "say that the kernel has no tunnels",
	"list ippools.hoplite.io":            "what there is to claim from",
	"watch ippools.hoplite.io":           "as they change",
	"patch ippools/status.hoplite.io":    "the Ready condition",
	"list bgpconfigurations.hoplite.io":  "the cluster's BGP set-up",
	"watch bgpconfigurations.hoplite.io": "as it changes",
	"create ipamblocks.hoplite.io":       "claim",
	"get ipamblocks.hoplite.io":          "see who has a block, before a release and after a claim that failed",
	"list ipamblocks.hoplite.io":         "the node's own, and which are free",
	"watch ipamblocks.hoplite.io":        "the node's own, as someone deletes them",
	"update ipamblocks.hoplite.io":       "mark a block that is being released, and take the mark off",
	"delete ipamblocks.hoplite.io":       "release",
}

// What the controller needs anywhere.
var controllerNeeds = map[string]string{
	"list nodes":                      "which of them have no tunnels, and which hold a pool back",
	"watch nodes":                     "as they change",
	"list ippools.hoplite.io":         "whose status there is to keep",
	"watch ippools.hoplite.io":        "as they change",
	"patch ippools.hoplite.io":        "the finalizer that keeps them while they are in use",
	"patch ippools/status.hoplite.io": "capacity, blocks, and its conditions",
	"list ipamblocks.hoplite.io":      "count them",
	"watch ipamblocks.hoplite.io":     "as they change",
}

// What the controller needs in its own namespace.
var leaderNeeds = map[string]string{
	"get leases.coordination.k8s.io":    "who leads",
	"create leases.coordination.k8s.io": "lead",
	"update leases.coordination.k8s.io": "go on leading",
	"create events":                     "say who leads",
	"patch events":                      "say it again",
	"create events.events.k8s.io":       "as above, by the newer API",
	"patch events.events.k8s.io":        "as above, by the newer API",
}

// What everybody may ask who has authenticated (Kubernetes' system:basic-user).
var everybody = map[string]string{
	"create selfsubjectaccessreviews.authorization.k8s.io": "may I",
	"create selfsubjectrulesreviews.authorization.k8s.io":  "what may I",
	"create selfsubjectreviews.authentication.k8s.io":      "who am I",
}

// Agents and controller may do what they need and nothing else.
func TestLeastPrivilege(t *testing.T) {
	ctx, l := startControlPlane(t)
	agent := as(t, l, lab.AgentUser("node1"), agentGroup)
	controller := as(t, l, "hoplite-controller", controllerGroup)
	bindLeaderRole(t, ctx, l)
	for _, namespace := range []string{"default", "kube-system", "hoplite-system"} {
		mayDoExactly(t, ctx, "an agent", agent, namespace, agentNeeds)
		needs := maps.Clone(controllerNeeds)
		if namespace == "hoplite-system" {
			maps.Copy(needs, leaderNeeds)
		}
		mayDoExactly(t, ctx, "the controller", controller, namespace, needs)
	}
	for who, c := range map[string]client.Client{"an agent": agent, "the controller": controller} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
		for what, try := range map[string]func() error{
			"list secrets":    func() error { return c.List(ctx, &corev1.SecretList{}) },
			"list pods":       func() error { return c.List(ctx, &corev1.PodList{}) },
			"list configmaps": func() error { return c.List(ctx, &corev1.ConfigMapList{}) },
			"create a node":   func() error { return c.Create(ctx, node.DeepCopy()) },
			"patch a node": func() error {
				return c.Patch(ctx, node.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`)))
			},
			"create a pool": func() error { return c.Create(ctx, object(t, "IPPool", "mine", "cidr: 10.244.0.0/16")) },
			"delete a pool": func() error { return c.Delete(ctx, object(t, "IPPool", "mine", "cidr: 10.244.0.0/16")) },
		} {
			if err := try(); !apierrors.IsForbidden(err) {
				t.Errorf("%s tries to %s: %v, want forbidden", who, what, err)
			}
		}
	}
	if err := agent.List(ctx, &corev1.NodeList{}); err != nil {
		t.Errorf("an agent lists nodes: %v", err)
	}
	status := client.RawPatch("application/strategic-merge-patch+json", []byte(`{"status":{"conditions":[{"type":"HopliteTunnels","status":"False"}]}}`))
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}}
	if err := controller.Status().Patch(ctx, self.DeepCopy(), status); !apierrors.IsForbidden(err) {
		t.Errorf("the controller tries to patch a node's status: %v, want forbidden", err)
	}
	if err := agent.Status().Patch(ctx, self.DeepCopy(), status); !apierrors.IsNotFound(err) {
		t.Errorf("an agent patches its node's status: %v, want it not to be there", err)
	}
}

// as is a client for another user.
func as(t *testing.T, l *lab.Lab, user string, groups ...string) client.Client {
	t.Helper()
	config, err := l.RESTConfigFor(user, groups...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: lab.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bindLeaderRole grants the role of deploy/rbac that the lab's only controller, which needs no Lease, goes without.
func bindLeaderRole(t *testing.T, ctx context.Context, l *lab.Lab) {
	t.Helper()
	err := l.Client().Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "leader", Namespace: "hoplite-system"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "hoplite-controller"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: controllerGroup}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// mayDoExactly fails the test unless the needs, and what everybody may, are all that c's user may do in the namespace.
func mayDoExactly(t *testing.T, ctx context.Context, who string, c client.Client, namespace string, needs map[string]string) {
	t.Helper()
	want := maps.Clone(needs)
	maps.Copy(want, everybody)
	labtest.Eventually(t, 10*time.Second, who+" may do in "+namespace+" what it needs", func() error {
		review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
		if err := c.Create(ctx, review); err != nil {
			return err
		}
		if review.Status.Incomplete {
			return fmt.Errorf("the API server does not tell all: %s", review.Status.EvaluationError)
		}
		granted := rights(review.Status.ResourceRules)
		var wrong []string
		for right := range granted {
			if _, ok := want[right]; !ok {
				wrong = append(wrong, "may "+right+", and need not")
			}
		}
		for right, why := range want {
			if !granted[right] {
				wrong = append(wrong, "may not "+right+", and needs to: "+why)
			}
		}
		if len(wrong) > 0 {
			slices.Sort(wrong)
			return fmt.Errorf("it %s", strings.Join(wrong, "; "))
		}
		return nil
	})
}

// rights are rules as "verb resource.group", one by one; * is left as it is.
func rights(rules []authorizationv1.ResourceRule) map[string]bool {
	all := map[string]bool{}
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					right := verb + " " + resource
					if group != "" {
						right += "." + group
					}
					if len(rule.ResourceNames) > 0 {
						right += fmt.Sprint(" named ", rule.ResourceNames)
					}
					all[right] = true
				}
			}
		}
	}
	return all
}

// ownIdentity fails the test unless all that agents and controller have asked
// the API server for so far they asked in their own names, and were allowed.
func ownIdentity(t *testing.T, l *lab.Lab) {
	t.Helper()
	requests, err := l.Requests()
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, r := range requests {
		program, _, _ := strings.Cut(r.UserAgent, "/")
		if program != "hoplite-agent" && program != "hoplite-controller" {
			continue
		}
		if !strings.HasPrefix(r.User, program) {
			t.Errorf("%s asked as %s: %s %s", program, r.User, r.Verb, r.URI)
		}
		count[r.User]++
	}
	for _, user := range append(agentUsers(l), "hoplite-controller") {
		if count[user] == 0 {
			t.Errorf("%s has asked for nothing, as far as its name tells: %v", user, count)
		}
	}
	processes := []*lab.Process{l.Controller}
	for _, node := range l.Nodes() {
		processes = append(processes, node.Agent.Process)
	}
	for _, p := range processes {
		for _, line := range logLines(t, p) {
			if strings.Contains(line, "forbidden") {
				t.Errorf("%s: %s", p.Name, line)
			}
		}
	}
}

func agentUsers(l *lab.Lab) (all []string) {
	for _, node := range l.Nodes() {
		all = append(all, lab.AgentUser(node.Name))
	}
	return all
}
