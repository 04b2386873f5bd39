package gearmanbridge

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// DefaultSweepInterval is the SweepInterval of a Bridge that says nothing else.
const DefaultSweepInterval = 30 * time.Second

// sweepTimeout bounds the questions of a sweep. A server that does not answer within it tells nothing, and is asked again at the next.
const sweepTimeout = 10 * time.Second

// sweepQuestions is how many questions of a sweep are on their way at once, and how many go out at once at its begin.
const sweepQuestions = 16

// codeJobNotFound is gearmand's ERROR at a WORK_* for a handle that is dead, without saying which.
const codeJobNotFound = "JOB_NOT_FOUND"

// sweepRegularly finds the jobs of a server that are still ours and that nobody waits for: no server tells a worker that a job was cancelled or that
// its client is gone (protocol section 5).
func (b *Bridge) sweepRegularly(ctx context.Context, s *session) {
	timer := time.NewTimer(b.nextSweep())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.suspicion:
			b.sweep(ctx, b.assignments.from(s.server.Name), nil)
		case <-timer.C:
			// The jobs are noted before the server is asked which it ignores. So those whose connection still answers afterwards are from the very
			// server that was asked, and not from one that was started since and gives out the same handles again.
			if jobs := b.assignments.from(s.server.Name); len(jobs) > 0 {
				b.sweep(ctx, jobs, b.ignored(ctx, s.server))
			}
			timer.Reset(b.nextSweep())
		}
	}
}

// nextSweep is the time to the next sweep: between a half and five sixths of the interval. With the default, a Pod whose containers take the default
// grace period to end is gone within a minute of its cancellation.
func (b *Bridge) nextSweep() time.Duration {
	interval := b.sweepInterval()
	return interval/2 + rand.N(max(interval/3, 1))
}

// sweepSpread is the time over which the questions of a sweep are spread. Asked as fast as the server answers, thousands would have it do nothing else
// for some tenths of a second, and every stop: would wait that long.
func (b *Bridge) sweepSpread() time.Duration { return min(b.sweepInterval()/10, sweepTimeout/2) }

func (b *Bridge) sweepInterval() time.Duration {
	if b.SweepInterval <= 0 {
		return DefaultSweepInterval
	}
	return b.SweepInterval
}

// suspect has the jobs of the session's server asked for at once, without waiting for that.
func (s *session) suspect(code string) {
	if code == codeJobNotFound {
		token(s.suspicion)
	}
}

// token puts one into a channel for at most one.
func token(into chan<- struct{}) {
	select {
	case into <- struct{}{}:
	default:
	}
}

// ignored is the handles of the jobs that gearmand ignores: they were cancelled, or their clients are gone. That there is no client does not tell
// it, because a background job never had one. geard forgets such jobs instead.
func (b *Bridge) ignored(ctx context.Context, server Server) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	ignored, err := ignoredJobs(ctx, server)
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		b.Logger.Warn("The Gearman server does not tell which jobs nobody waits for; asking again later", "gearmanServer", server.Name, "error", err)
	}
	return ignored
}

// admin connects to the server to ask it about itself.
func (server Server) admin(ctx context.Context) (*gearman.Admin, error) {
	var config *tls.Config
	if server.TLS != nil {
		var err error
		if config, err = server.TLS(); err != nil {
			return nil, err
		}
	}
	return gearman.DialAdmin(ctx, server.Address, config)
}

func ignoredJobs(ctx context.Context, server Server) (map[string]bool, error) {
	admin, err := server.admin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = admin.Close() }()
	behaviour, err := admin.Behaviour(ctx)
	if err != nil || behaviour == gearman.Geard {
		return nil, err
	}
	jobs, err := admin.ShowJobs(ctx)
	if err != nil {
		return nil, err
	}
	ignored := map[string]bool{}
	for _, job := range jobs {
		if job.Ignored {
			ignored[job.Handle] = true
		}
	}
	return ignored, nil
}

// sweep stops the builds that nobody waits for behind some jobs, and ends those jobs. ignored may be nil for not known.
func (b *Bridge) sweep(ctx context.Context, jobs []*assignment, ignored map[string]bool) {
	questions, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	reasons := make([]orphanCause, len(jobs))
	pace := rate.NewLimiter(rate.Limit(float64(len(jobs))/b.sweepSpread().Seconds()), sweepQuestions)
	var asking errgroup.Group
	asking.SetLimit(sweepQuestions)
	for i, a := range jobs {
		if err := pace.Wait(questions); err != nil {
			break // what is not asked for is not known
		}
		asking.Go(func() error {
			reasons[i] = whyNobodyWaits(questions, a.job, ignored)
			return nil
		})
	}
	_ = asking.Wait()
	for i, a := range jobs {
		if reasons[i] != "" {
			b.endOrphan(ctx, a, reasons[i])
		}
	}
}

// orphanCause says how it was found that nobody waits for a build; a label value.
type orphanCause string

const (
	orphanConnectionLost orphanCause = "connection_lost"
	orphanNoUnique       orphanCause = "no_unique"
	orphanCancelled      orphanCause = "cancelled"
	orphanUnknown        orphanCause = "unknown_to_server"
)

// text is for people.
func (c orphanCause) text() string {
	switch c {
	case orphanCancelled:
		return "the job was cancelled or its client is gone"
	case orphanUnknown:
		return "the server knows the job no more"
	default:
		return string(c)
	}
}

// whyNobodyWaits asks the server on the job's own connection; "" where somebody waits, or where there is no telling: no answer is no reason.
func whyNobodyWaits(ctx context.Context, job *gearman.Job, ignored map[string]bool) orphanCause {
	status, err := job.Query(ctx)
	switch {
	case err != nil || job.Err() != nil: // it was finished meanwhile, or its connection was lost
		return ""
	case !status.Known:
		return orphanUnknown
	case ignored[job.Handle()]:
		return orphanCancelled
	default:
		return ""
	}
}

// endOrphan stops the build of a job nobody waits for, and then fails the job. That is done at once, while the build ends: whoever asks gearmand for
// the same unique meanwhile is joined to the job, and might never be answered if it went back to the queue.
func (b *Bridge) endOrphan(ctx context.Context, a *assignment, cause orphanCause) {
	log := b.Logger.With(a.logValues()...).With("gearmanServer", a.server, "handle", a.job.Handle(), "cause", cause.text())
	if a.existing() == nil {
		return // the build is on its way; the next sweep finds it
	}
	ended, err := b.abandon(ctx, a)
	switch {
	case err != nil:
		log.Error("Nobody waits for the build any more, but it could not be marked to stop; trying again", "error", err)
		return
	case ended:
		return // the reporter is about to finish the job
	}
	a.sending.Lock()
	defer a.sending.Unlock()
	if err := a.job.Fail(); err == nil {
		b.metrics.orphans.WithLabelValues(string(cause)).Inc()
		log.Info("Nobody waits for the build any more; stopping it")
	} else if !errors.Is(err, gearman.ErrFinished) {
		log.Info("The job of a build that nobody waits for was lost before it could be finished", "error", err)
	}
}

// abandon stops the build of an assignment, unless it is complete already or somebody else waits for it.
func (b *Bridge) abandon(ctx context.Context, a *assignment) (complete bool, err error) {
	others := func(other *assignment) bool { return other != a && other.job.Err() == nil }
	if slices.ContainsFunc(b.assignments.of(a.key), others) {
		return false, nil
	}
	build := &v1alpha1.ZuulBuild{}
	err = b.Client.Get(ctx, a.key, build)
	if apierrors.IsNotFound(err) {
		build, err = a.existing(), nil // the cache may be late; if the build was deleted, there is nothing to stop
	}
	if err != nil || build.UID != a.existing().UID || build.Complete() || build.Spec.Abort {
		return err == nil && build.Complete(), err
	}
	return false, b.abort(ctx, build, v1alpha1.AbortAbandoned)
}
