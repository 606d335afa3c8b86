package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	agentv1 "github.com/hoplite-net/hoplite/api/agent/v1"
)

// view is an answer as it is printed: JSON and YAML by its fields, whose names
// are only ever added, or as a table for people.
type view interface {
	table(w io.Writer, wide bool) error
}

// question is a command that asks the agent once and prints the answer A.
type question[A any] struct {
	use, short string
	args       cobra.PositionalArgs // none, if it is nil
	ask        func(context.Context, agentv1.NodeClient) (A, error)
	view       func(answer A, args []string) (view, error)
}

func (q question[A]) command(o *options) *cobra.Command {
	if q.args == nil {
		q.args = cobra.NoArgs
	}
	return &cobra.Command{
		Use: q.use, Short: q.short, Args: q.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			answer, err := ask(cmd.Context(), o, q.ask)
			if err != nil {
				return err
			}
			v, err := q.view(answer, args)
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), v)
		},
	}
}
