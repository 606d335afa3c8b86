package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

type versions struct {
	Netctl string `json:"netctl"`
	// Agent is empty when no agent answers; AgentError says why.
	Agent      string `json:"agent"`
	AgentError string `json:"agentError,omitempty"`
}

// newVersion makes "netctl version". That no agent answers is no failure: the
// question is often asked where there is none.
func newVersion(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Versions of netctl and of this node's agent",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Netctl: version}
			answer, err := ask(cmd.Context(), o, func(ctx context.Context, c agentv1.NodeClient) (*agentv1.NodeStatus, error) {
				return c.GetStatus(ctx, &agentv1.GetStatusRequest{})
			})
			if err != nil {
				v.AgentError = err.Error()
			} else {
				v.Agent = answer.GetVersion()
			}
			return o.print(cmd.OutOrStdout(), v)
		},
	}
}

func (v versions) table(w io.Writer, _ bool) error {
	agent := v.Agent
	if v.AgentError != "" {
		agent = "unknown: " + v.AgentError
	}
	_, err := fmt.Fprintf(w, "netctl  %s\nagent   %s\n", v.Netctl, orDash(agent))
	return err
}
