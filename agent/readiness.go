package agent

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// healthPoll is how often the parts that keep trying by themselves are asked
// whether something is still undone.
const healthPoll = time.Second

// maxProblems is how many routes the readiness names; the rest it counts.
const maxProblems = 5

func (n *node) runHealth(ctx context.Context) error {
	ticker := time.NewTicker(healthPoll)
	defer ticker.Stop()
	for {
		n.health.Set("routes", n.routeProblems())
		n.health.Set("sysctls", n.sysctls.Err())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (n *node) routeProblems() error {
	problems := n.routes.Problems()
	var errs []error
	for i, p := range problems {
		if i == maxProblems {
			errs = append(errs, fmt.Errorf("and %d more", len(problems)-i))
			break
		}
		errs = append(errs, errors.New(p.String()))
	}
	return errors.Join(errs...)
}
