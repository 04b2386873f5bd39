package gearmanbridge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

const (
	// drainReport is how often a drain says in the log what it waits for.
	drainReport = 30 * time.Second
	// drainNamed is how many builds it names.
	drainNamed = 5
)

// Drain grabs nothing any more and returns when every build that somebody waits for is reported, or ctx is done. stop: is served meanwhile.
func (b *Bridge) Drain(ctx context.Context) error {
	var workers []*gearman.Worker
	for _, s := range b.sessions {
		workers = append(workers, s.builds.drain()...)
	}
	tick := time.NewTicker(drainReport)
	defer tick.Stop()
	for len(workers) > 0 {
		select {
		case <-workers[0].Drained():
			workers = workers[1:]
		case <-tick.C:
			b.Logger.Info("Draining: some builds are still to be reported", "builds", b.unreported(ctx))
		case <-ctx.Done():
			return fmt.Errorf("not yet reported: %s: %w", cmp.Or(b.unreported(context.WithoutCancel(ctx)), "no build"), ctx.Err())
		}
	}
	return nil
}

// unreported tells which builds somebody waits for here, and how far they are.
func (b *Bridge) unreported(ctx context.Context) string {
	all := b.assignments.all()
	slices.SortFunc(all, func(x, y *assignment) int { return strings.Compare(x.key.String(), y.key.String()) })
	var named []string
	for _, a := range all[:min(len(all), drainNamed)] {
		build := &v1alpha1.ZuulBuild{}
		state := "not created yet"
		if a.existing() != nil {
			state = "not in the cache"
			if err := b.Client.Get(ctx, a.key, build); err == nil {
				state = strings.TrimSpace(string(build.Status.Phase) + " " + build.Status.Reason)
			}
		}
		named = append(named, fmt.Sprintf("%s (%s)", a.key, state))
	}
	if more := len(all) - len(named); more > 0 {
		named = append(named, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(named, ", ")
}
