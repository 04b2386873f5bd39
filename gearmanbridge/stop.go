package gearmanbridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// maxStopArgument is more than any stop: needs.
const maxStopArgument = 64 * 1024

// readStop reads the argument of stop:, in either dialect: {"name", "number"}, or the bare unique. It does not know the server.
func readStop(argument []byte) (buildReference, error) {
	argument = bytes.TrimSpace(argument)
	if len(argument) == 0 || len(argument) > maxStopArgument {
		return buildReference{}, fmt.Errorf("the argument has %d bytes; {\"name\", \"number\"} or a unique was expected", len(argument))
	}
	if argument[0] != '{' {
		if !bareUnique.Match(argument) {
			return buildReference{}, errors.New("the argument is neither a JSON object with name and number nor a unique")
		}
		return buildReference{uuid: string(argument)}, nil
	}
	fields := struct {
		Name   *string         `json:"name"`
		Number json.RawMessage `json:"number"`
	}{}
	if err := json.Unmarshal(argument, &fields); err != nil {
		return buildReference{}, fmt.Errorf("the argument is not a JSON object with name and number: %w", err)
	}
	return numberedBuild(fields.Name, fields.Number)
}

// bareUnique keeps a stray JSON value from being taken for a unique.
var bareUnique = regexp.MustCompile(`^[^\s"\[\]{}]+$`)

const (
	// stopAnswerDelay is how long the answer to stop: waits for the stop to be written down. That rarely takes as long, unless the API server has a
	// lot to do; a person may have cancelled hundreds of builds then, and Zuul's next stop: should not have to wait for the API server's backlog.
	stopAnswerDelay = 10 * time.Millisecond
	// stopWriteTimeout is how long one write may take.
	stopWriteTimeout = 10 * time.Second
)

// commandStop answers stop:. The answer does not wait for the Pod to be gone, nor for the API server where that is slow.
//
// An answer that comes before the stop is written down is a promise that only this process knows of. It is kept over a SIGTERM, which waits for the
// write; a crash in between breaks it, because the server has no stop: any more to give to the next process. What then becomes of the build depends on
// the server. geard has failed its job with the connection, so it is abandoned and stopped. gearmand gives the job out again, with Zuul as its
// listener still, and so neither the sweep nor settle takes it for an orphan: it runs to its end, or to its run timeout. That costs a Pod, and no
// more: Zuul ignores the result of a build it has cancelled, and asks again where a change ahead fails (protocol section 1.6).
func (b *Bridge) commandStop(ctx context.Context, s *session, job *gearman.Job) {
	stop, err := readStop(job.Payload)
	if err != nil {
		b.refuseCommand(ctx, job, err)
		return
	}
	stop.server = s.server.Name
	outcome, build, err := b.toStopSoon(ctx, stop)
	if outcome == commandUnknown {
		b.unknownBuild(ctx, job, stop)
	} else {
		answer := sync.OnceFunc(func() { b.answer(ctx, job, stop, true) })
		if build != nil {
			timer := time.AfterFunc(stopAnswerDelay, answer)
			defer timer.Stop()
			write, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWriteTimeout)
			defer cancel()
			err = b.abort(write, build, v1alpha1.AbortStopped)
		}
		answer()
	}
	b.metrics.command(job, outcome, err)
	if err != nil {
		b.commandLogger(ctx, job, stop).Error("The build could not be marked to stop; trying again", "error", err)
		// Zuul has its answer, and will not ask again.
		b.insist(ctx, stop)
	}
}

// strangeBuilds is how long a build that another replica has just made may take to come into the cache.
const strangeBuilds = time.Second

// toStopSoon is toStop, which another replica may have to be waited for.
func (b *Bridge) toStopSoon(ctx context.Context, reference buildReference) (outcome commandOutcome, build *v1alpha1.ZuulBuild, err error) {
	look := func(ctx context.Context) (bool, error) {
		outcome, build, err = b.toStop(ctx, reference)
		return outcome != commandUnknown || b.Replicas == nil || !b.Replicas.Others(), err
	}
	_ = wait.PollUntilContextTimeout(ctx, strangeBuilds/20, strangeBuilds, true, look)
	return outcome, build, err
}

// insist tries a stop again until it is written down.
func (b *Bridge) insist(ctx context.Context, reference buildReference) {
	backoff := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 8, Cap: 10 * time.Second}
	for {
		timer := time.NewTimer(backoff.Step())
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			if err := b.stop(ctx, reference); err == nil {
				return
			}
		}
	}
}

// stop marks a build to be stopped.
func (b *Bridge) stop(ctx context.Context, reference buildReference) error {
	_, build, err := b.toStop(ctx, reference)
	if err != nil || build == nil {
		return err
	}
	return b.abort(ctx, build, v1alpha1.AbortStopped)
}

// toStop finds the build to be marked, nil if there is nothing to do. It is known if it exists, also when it has ended, and when it is about to exist.
// Nobody but the cache is asked.
func (b *Bridge) toStop(ctx context.Context, reference buildReference) (outcome commandOutcome, build *v1alpha1.ZuulBuild, err error) {
	build, err = b.find(ctx, reference)
	switch {
	case err != nil:
		return commandUnknown, nil, err
	case build == nil:
		return b.stopBeforeBuild(reference), nil, nil
	case build.Complete() || build.Spec.Abort:
		return commandAlreadyEnded, nil, nil
	default:
		return commandStopped, build, nil
	}
}

// stopBeforeBuild has a build come into being aborted, if its request is on its way through intake.
func (b *Bridge) stopBeforeBuild(reference buildReference) commandOutcome {
	if reference.uuid == "" {
		return commandUnknown // Zuul learns name and number from a build that exists
	}
	for _, a := range b.assignments.all() {
		if a.unique == reference.uuid && a.server == reference.server && a.stopOnArrival() {
			return commandStopped
		}
	}
	return commandUnknown
}

// abort sets spec.abort, which can only become true.
func (b *Bridge) abort(ctx context.Context, build *v1alpha1.ZuulBuild, reason v1alpha1.AbortReason, options ...client.MergeFromOption) error {
	marked := build.DeepCopy()
	marked.Spec.Abort, marked.Spec.AbortReason = true, reason
	return client.IgnoreNotFound(b.Client.Patch(ctx, marked, client.MergeFromWithOptions(build, options...)))
}
