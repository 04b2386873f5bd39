package gearmanbridge

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildnumber"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// maxStopArgument is more than any stop: needs.
const maxStopArgument = 64 * 1024

// stopRequest is the argument of stop:, in either dialect (protocol section 3), and where it came from: a server has no say over the builds of
// another, although the numbers of a job are shared by all.
type stopRequest struct {
	server string
	uuid   string // before Zuul 2.0.0: the bare unique
	job    string // from 2.0.0 on: job and number
	number int64
}

// readStop reads the argument of stop:, all but the server. A number may come as a number or as a string of one.
func readStop(argument []byte) (stopRequest, error) {
	argument = bytes.TrimSpace(argument)
	if len(argument) == 0 || len(argument) > maxStopArgument {
		return stopRequest{}, fmt.Errorf("the argument has %d bytes; {\"name\", \"number\"} or a unique was expected", len(argument))
	}
	if argument[0] != '{' {
		if !bareUnique.Match(argument) {
			return stopRequest{}, fmt.Errorf("the argument is neither a JSON object with name and number nor a unique")
		}
		return stopRequest{uuid: string(argument)}, nil
	}
	fields := struct {
		Name   *string         `json:"name"`
		Number json.RawMessage `json:"number"`
	}{}
	if err := json.Unmarshal(argument, &fields); err != nil {
		return stopRequest{}, fmt.Errorf("the argument is not a JSON object with name and number: %w", err)
	}
	number, err := strconv.ParseInt(strings.Trim(string(fields.Number), `"`), 10, 64)
	if fields.Name == nil || err != nil || number < 1 {
		return stopRequest{}, fmt.Errorf("the argument needs a name and a number of at least 1")
	}
	return stopRequest{job: *fields.Name, number: number}, nil
}

// bareUnique keeps a stray JSON value from being taken for a unique.
var bareUnique = regexp.MustCompile(`^[^\s"\[\]{}]+$`)

// command answers a job of the management connection: WORK_COMPLETE for a build that is known, running or finished, and WORK_FAIL for any other.
// The answer does not wait for the Pod to be gone.
func (b *Bridge) command(ctx context.Context, s *session, job *gearman.Job) {
	log := b.Logger.With("function", job.Function, "gearmanServer", s.server.Name)
	stop, err := readStop(job.Payload)
	if err != nil {
		log.Info("stop: refused", "reason", err)
		b.answer(job, false)
		return
	}
	stop.server = s.server.Name
	found, err := b.stop(ctx, stop)
	if err != nil {
		log.Error("The build could not be marked to stop; trying again", "uuid", stop.uuid, "job", stop.job, "number", stop.number, "error", err)
	}
	b.answer(job, found)
	if err != nil {
		// Zuul has its answer, and will not ask again.
		b.insist(ctx, stop)
	}
}

func (b *Bridge) answer(job *gearman.Job, known bool) {
	send := job.Fail
	if known {
		send = func() error { return job.Complete(nil) }
	}
	if err := send(); err != nil {
		b.Logger.Info("stop: could not be answered", "reason", err)
	}
}

// insist tries a stop again until it is written down.
func (b *Bridge) insist(ctx context.Context, request stopRequest) {
	backoff := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 8, Cap: 10 * time.Second}
	for {
		timer := time.NewTimer(backoff.Step())
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			if _, err := b.stop(ctx, request); err == nil {
				return
			}
		}
	}
}

// stop marks the build of a request to be stopped. It is known if it exists, also when it has ended, and when it is about to exist.
func (b *Bridge) stop(ctx context.Context, request stopRequest) (known bool, err error) {
	build, err := b.find(ctx, request)
	if err != nil {
		return false, err
	}
	if build == nil {
		return b.stopBeforeBuild(request), nil
	}
	if build.Complete() || build.Spec.Abort {
		return true, nil
	}
	return true, b.abort(ctx, build, v1alpha1.AbortStopped)
}

// find looks among the assignments first, because the cache may be late for a build that was just created.
func (b *Bridge) find(ctx context.Context, request stopRequest) (*v1alpha1.ZuulBuild, error) {
	matches := func(build *v1alpha1.ZuulBuild) bool {
		if request.uuid != "" {
			return build.Spec.UUID == request.uuid
		}
		return build.Spec.Job == request.job && build.Spec.Number == request.number
	}
	index := client.MatchingFields{indexUUID: request.uuid}
	if request.uuid == "" {
		index = client.MatchingFields{buildnumber.IndexJob: request.job}
	}
	builds := v1alpha1.ZuulBuildList{}
	if err := b.Client.List(ctx, &builds, index, client.MatchingLabels{v1alpha1.LabelGearmanServer: request.server}); err != nil {
		return nil, err
	}
	for i := range builds.Items {
		if matches(&builds.Items[i]) {
			return &builds.Items[i], nil
		}
	}
	for _, a := range b.assignments.all() {
		if build := a.existing(); build != nil && a.server == request.server && matches(build) {
			return build, nil
		}
	}
	return nil, nil
}

// stopBeforeBuild has a build come into being aborted, if its request is on its way through intake.
func (b *Bridge) stopBeforeBuild(request stopRequest) bool {
	if request.uuid == "" {
		return false // Zuul learns name and number from a build that exists
	}
	for _, a := range b.assignments.all() {
		if a.unique == request.uuid && a.server == request.server && a.stopOnArrival() {
			return true
		}
	}
	return false
}

// abort sets spec.abort, which can only become true.
func (b *Bridge) abort(ctx context.Context, build *v1alpha1.ZuulBuild, reason v1alpha1.AbortReason) error {
	marked := build.DeepCopy()
	marked.Spec.Abort, marked.Spec.AbortReason = true, reason
	return client.IgnoreNotFound(b.Client.Patch(ctx, marked, client.MergeFrom(build)))
}
