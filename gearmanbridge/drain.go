package gearmanbridge

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

const (
	// drainReport is how often a drain says in the log what it waits for.
	drainReport = 30 * time.Second
	// drainNamed is how many builds it names. At its end it names all.
	drainNamed = 5
	// drainCommands is how long the end of a drain waits for commands: the server may be mute.
	drainCommands = 5 * time.Second
)

// Drain grabs nothing any more and returns when every build that somebody waits for is reported, or ctx is done. stop: is served meanwhile, and in the end
// what is left of it stays with the server for the next replica.
func (b *Bridge) Drain(ctx context.Context) error {
	var workers []*gearman.Worker
	for _, s := range b.sessions {
		workers = append(workers, s.builds.drain()...)
	}
	deadline, _ := ctx.Deadline()
	b.Logger.Info("Draining: no more builds are taken; ending when those that run are reported", "until", deadline)
	tick := time.NewTicker(drainReport)
	defer tick.Stop()
	for len(workers) > 0 {
		select {
		case <-workers[0].Drained():
			workers = workers[1:]
		case <-tick.C:
			b.Logger.Info("Draining: some builds are still to be reported", "builds", b.unreported(ctx, drainNamed))
		case <-ctx.Done():
			return fmt.Errorf("builds not yet reported: %d: %w", b.unreported(context.WithoutCancel(ctx), math.MaxInt), ctx.Err())
		}
	}
	b.endCommands(ctx)
	return nil
}

// endCommands takes no more commands, and returns when those that are taken are answered. A server may have given one to the connection that is still on
// its way: if that closed now geard would fail it, and Zuul does not stop the build a second time.
func (b *Bridge) endCommands(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainCommands)
	defer cancel()
	for _, s := range b.sessions {
		s.management.Drain()
	}
	for _, s := range b.sessions {
		select {
		case <-s.management.Drained():
		case <-ctx.Done():
			b.Logger.Warn("Ending before the Gearman server said whether it has a command for this replica", "gearmanServer", s.server.Name)
		}
	}
}

// unreported counts the builds somebody waits for here, and says in the log how far some of them are.
func (b *Bridge) unreported(ctx context.Context, named int) int {
	all := b.assignments.all()
	slices.SortFunc(all, func(x, y *assignment) int { return strings.Compare(x.key.String(), y.key.String()) })
	for _, a := range all[:min(len(all), named)] {
		build := &v1alpha1.ZuulBuild{}
		_ = b.Client.Get(ctx, a.key, build) // without a phase it is one that the cache does not show
		b.Logger.With(a.logValues()...).Info("Not yet reported", "created", a.existing() != nil, "phase", build.Status.Phase, "reason", build.Status.Reason)
	}
	return len(all)
}
