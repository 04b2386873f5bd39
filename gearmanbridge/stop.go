package gearmanbridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
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

// commandStop answers stop:. The answer does not wait for the Pod to be gone.
func (b *Bridge) commandStop(ctx context.Context, s *session, job *gearman.Job) {
	stop, err := readStop(job.Payload)
	if err != nil {
		b.refuseCommand(ctx, job, err)
		return
	}
	stop.server = s.server.Name
	outcome, err := b.stop(ctx, stop)
	b.metrics.command(job, outcome, err)
	if err != nil {
		b.Logger.Error("The build could not be marked to stop; trying again",
			"function", job.Function, "uuid", stop.uuid, "job", stop.job, "number", stop.number, "error", err)
	}
	if outcome == commandUnknown {
		b.unknownBuild(job, stop)
	} else {
		b.answer(job, true)
	}
	if err != nil {
		// Zuul has its answer, and will not ask again.
		b.insist(ctx, stop)
	}
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
			if _, err := b.stop(ctx, reference); err == nil {
				return
			}
		}
	}
}

// stop marks a build to be stopped. It is known if it exists, also when it has ended, and when it is about to exist.
func (b *Bridge) stop(ctx context.Context, reference buildReference) (outcome commandOutcome, err error) {
	build, err := b.find(ctx, reference)
	if err != nil {
		return commandUnknown, err
	}
	if build == nil {
		return b.stopBeforeBuild(reference), nil
	}
	if build.Complete() || build.Spec.Abort {
		return commandAlreadyEnded, nil
	}
	return commandStopped, b.abort(ctx, build, v1alpha1.AbortStopped)
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
func (b *Bridge) abort(ctx context.Context, build *v1alpha1.ZuulBuild, reason v1alpha1.AbortReason) error {
	marked := build.DeepCopy()
	marked.Spec.Abort, marked.Spec.AbortReason = true, reason
	return client.IgnoreNotFound(b.Client.Patch(ctx, marked, client.MergeFrom(build)))
}
