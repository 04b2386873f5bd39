package gearmanbridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// commandFunctions are what the management connection serves. Whatever replica is asked: the builds are the cluster's.
func (b *Bridge) commandFunctions() []string {
	return []string{stopFunction + b.Manager, describeFunction + b.Manager}
}

// commandOutcome is what became of a stop: (all but commandAccepted) or a set_description:; a label value.
type commandOutcome string

const (
	commandStopped      commandOutcome = "stopped"
	commandAlreadyEnded commandOutcome = "already_ended"
	commandAccepted     commandOutcome = "accepted"
	commandUnknown      commandOutcome = "unknown"
	commandMalformed    commandOutcome = "malformed"
	commandError        commandOutcome = "error"
)

const (
	stopFunction     = "stop:"
	describeFunction = "set_description:"
)

// command answers a job of the management connection: WORK_COMPLETE for a build that is known, running or finished, and WORK_FAIL for any other.
// Nothing is waited for that a person or a Pod does. It is called on the connection's own loop.
func (b *Bridge) command(ctx context.Context, running *sync.WaitGroup, s *session, job *gearman.Job) {
	if strings.HasPrefix(job.Function, stopFunction) {
		running.Go(func() { b.commandStop(ctx, s, job) })
		return
	}
	// Here rather than beside the loop: descriptions of a build stay in order, however many come there is one in memory, and the rest waits in the
	// server, where each stop: goes before them. It asks nobody but the cache.
	key, known := b.commandDescribe(ctx, s, job)
	if known {
		running.Go(func() { b.describer.notify(ctx, key) })
	}
}

func (b *Bridge) answer(ctx context.Context, job *gearman.Job, build buildReference, known bool) {
	send := job.Fail
	if known {
		send = func() error { return job.Complete(nil) }
	}
	if err := send(); err != nil {
		b.commandLogger(ctx, job, build).Info("A command could not be answered", "error", err)
		return
	}
	if known { // for a build that is not, another replica is given time to have told of it
		b.metrics.answered(job)
	}
}

// refuseCommand answers a job whose argument cannot be understood. Zuul sends no such thing, and whoever does shall not fill the log.
func (b *Bridge) refuseCommand(ctx context.Context, job *gearman.Job, reason error) {
	b.metrics.command(job, commandMalformed, nil)
	b.answer(ctx, job, buildReference{}, false)
	level := slog.LevelDebug
	b.refusals.Do(func() { level = slog.LevelInfo })
	b.Logger.Log(ctx, level, "Command refused; at most one a minute is told of at this level", "function", job.Function, "error", reason)
}

// unknownBuild answers a command for a build that is none of ours, or no more. Zuul asks again and again where a change ahead fails (protocol
// section 1.6).
func (b *Bridge) unknownBuild(ctx context.Context, job *gearman.Job, build buildReference) {
	b.answer(ctx, job, build, false)
	if b.Logger.Enabled(ctx, slog.LevelDebug) {
		b.commandLogger(ctx, job, build).Debug("Command for an unknown build")
	}
}

// commandLogger is for a line about a command. It says of the build what is known, by the cache or by a request on its way, or else what the command says.
func (b *Bridge) commandLogger(ctx context.Context, job *gearman.Job, reference buildReference) *slog.Logger {
	values, number := buildlog.Values(storable(reference.uuid), storable(reference.job), types.NamespacedName{}), reference.number
	if build, err := b.find(ctx, reference); err == nil && build != nil {
		values, number = buildlog.Of(build), build.Spec.Number
	} else if a := b.onItsWay(reference); a != nil {
		values = a.logValues()
	}
	return b.Logger.With(values...).With("number", number, "function", job.Function, "gearmanServer", reference.server)
}

// buildReference is how a command names a build, in either dialect (protocol section 3), and where it came from: a server has no say over the builds
// of another, although the numbers of a job are shared by all.
type buildReference struct {
	server string
	uuid   string // before Zuul 2.0.0: the unique
	job    string // from 2.0.0 on: job and number
	number int64
}

// numberedBuild reads name and number of a JSON object. A number may come as a number or as a string of one; a name is as it was registered, to the letter.
func numberedBuild(name *string, number json.RawMessage) (buildReference, error) {
	value, err := strconv.ParseInt(strings.Trim(string(number), `"`), 10, 64)
	if name == nil || err != nil || value < 1 {
		return buildReference{}, errors.New("the argument needs a name and a number of at least 1")
	}
	return buildReference{job: *name, number: value}, nil
}

// onItsWay is the request that a unique names, which may not have its build yet.
func (b *Bridge) onItsWay(reference buildReference) *assignment {
	if reference.uuid == "" {
		return nil // Zuul learns name and number from a build that exists
	}
	for _, a := range b.assignments.all() {
		if a.unique == reference.uuid && a.server == reference.server {
			return a
		}
	}
	return nil
}

// find looks among the assignments too, because the cache may be late for a build that was just created, and show an older one that is named alike. The
// build may be the cache's own: it must not be changed.
func (b *Bridge) find(ctx context.Context, reference buildReference) (*v1alpha1.ZuulBuild, error) {
	matches := func(build *v1alpha1.ZuulBuild) bool {
		if reference.uuid != "" {
			return build.Spec.UUID == reference.uuid
		}
		return build.Spec.Job == reference.job && build.Spec.Number == reference.number
	}
	index := client.MatchingFields{indexUUID: reference.uuid}
	if reference.uuid == "" {
		index = client.MatchingFields{indexNumber: numberKey(reference.job, reference.number)}
	}
	builds := v1alpha1.ZuulBuildList{}
	err := b.Client.List(ctx, &builds, index, client.MatchingLabels{v1alpha1.LabelGearmanServer: reference.server}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, err
	}
	found := make([]*v1alpha1.ZuulBuild, len(builds.Items))
	for i := range builds.Items {
		found[i] = &builds.Items[i]
	}
	awaited := func(key types.NamespacedName) bool {
		return slices.ContainsFunc(b.assignments.of(key), func(a *assignment) bool { return a.server == reference.server })
	}
	build := meant(found, awaited)
	if build != nil && awaited(client.ObjectKeyFromObject(build)) {
		return build, nil
	}
	var assigned []*v1alpha1.ZuulBuild
	for _, a := range b.assignments.from(reference.server) {
		if build := a.existing(); build != nil && matches(build) {
			assigned = append(assigned, build)
		}
	}
	return cmp.Or(meant(assigned, awaited), build), nil
}

// meant is which of several builds a command means, nil of none: one that somebody here waits for, else one that is neither complete nor aborted, else
// the newest. There may be several of a job and number where builds were given one by hand, or by an operator before this one that numbered each namespace.
func meant(builds []*v1alpha1.ZuulBuild, awaited func(types.NamespacedName) bool) *v1alpha1.ZuulBuild {
	if len(builds) == 0 {
		return nil
	}
	rank := func(build *v1alpha1.ZuulBuild) int {
		switch {
		case awaited(client.ObjectKeyFromObject(build)):
			return 0
		case !build.Complete() && !build.Spec.Abort:
			return 1
		default:
			return 2
		}
	}
	return slices.MinFunc(builds, func(x, y *v1alpha1.ZuulBuild) int {
		return cmp.Or(cmp.Compare(rank(x), rank(y)), y.CreationTimestamp.Compare(x.CreationTimestamp.Time),
			cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
}
