package gearmanbridge

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// resultInvalidRequest is what Zuul is told of a request that cannot even become a ZuulBuild. A result rather than none: Zuul up to 2.5.1 asks again
// at once and for ever where it gets none (protocol section 2).
const resultInvalidRequest = "INVALID_REQUEST"

// noNumber is the number of a request that became no build. Zuul wants one, and no stop: with it can mean a build of ours.
const noNumber = -1

// countedWithin is how soon the cache shows a build that was created, if it ever does: what was deleted at once is never seen.
const countedWithin = 5 * time.Second

// maxUUID is the longest unique a ZuulBuild can tell.
const maxUUID = 4096

// joinByPayload is the unique of requests that gearmand joins where their payloads are the same. It names no build.
const joinByPayload = "-"

// refusal is a request that nothing can be made of.
type refusal struct{ error }

// unnumbered is why there is no number yet. Whatever the API server said, it was not about the request: so it is hidden from permanent.
type unnumbered struct{ error }

// assigned takes a job from the server. It runs on the connection's own loop, so it only notes who waits; the rest goes on beside it.
func (b *Bridge) assigned(ctx context.Context, running *sync.WaitGroup, s *session, p *pool, job *gearman.Job) {
	b.metrics.grabs.WithLabelValues(s.server.Name, grabAssigned).Inc()
	target, known := b.functions.lookup(job.Function)
	if !known {
		b.slots.release(p)
		a := &assignment{job: job, server: s.server.Name, unique: job.Unique}
		a.target.job = job.Function // as good a name as any
		job.LogValues = a.logValues()
		running.Go(func() {
			b.refuse(a, fmt.Errorf("function %q was never registered here", job.Function))
		})
		return
	}
	unique := job.Unique
	if unique == joinByPayload {
		unique = ""
	}
	name := buildName(unique)
	if unique == "" {
		// Nobody will ever ask for this build again, so any name does.
		name = "anonymous-" + strings.ToLower(rand.Text())
	}
	a := &assignment{job: job, server: s.server.Name, target: target, unique: unique, key: b.keyOf(ctx, s, target, unique, name)}
	job.LogValues = a.logValues()
	b.slots.assigned(p, func() { b.assignments.add(a) })
	running.Go(func() {
		b.intake(ctx, a)
		b.sweep(ctx, []*assignment{a}, nil) // geard 0.4 gives out jobs whose client is gone
		select {
		case <-job.Done():
		case <-ctx.Done():
		}
		b.awaitCounted(ctx, a)
		b.assignments.remove(a)
		b.notify(ctx, a.server, a.key)
		b.slots.wake()
	})
}

// keyOf is where the build of a request is, or is to be: beside its ZuulJob, unless it was made when the job was in another namespace.
func (b *Bridge) keyOf(ctx context.Context, s *session, t target, unique, name string) types.NamespacedName {
	beside := types.NamespacedName{Namespace: t.key.Namespace, Name: name}
	if unique == "" {
		return beside
	}
	builds := v1alpha1.ZuulBuildList{}
	err := b.Client.List(ctx, &builds, client.MatchingFields{indexUUID: storable(unique)},
		client.MatchingLabels{v1alpha1.LabelGearmanServer: s.server.Name}, client.UnsafeDisableDeepCopy)
	if err != nil { // the cache has ended
		return beside
	}
	key := beside
	for i := range builds.Items {
		build := &builds.Items[i]
		switch {
		case build.Name != name || build.Spec.Job != t.job || build.Spec.Node != t.class:
		case build.Namespace == beside.Namespace:
			return beside
		default:
			key.Namespace = build.Namespace
		}
	}
	return key
}

// awaitCounted waits until the cache shows the build of an assignment whose connection was lost just after it was created: in between nothing would
// count it.
func (b *Bridge) awaitCounted(ctx context.Context, a *assignment) {
	if a.existing() == nil || !errors.Is(a.job.Err(), gearman.ErrHandleLost) {
		return
	}
	within := cmp.Or(b.countedWithin, countedWithin)
	_ = wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, within, true, func(context.Context) (bool, error) {
		return b.Builds.Knows(a.key), nil
	})
}

// intake makes the request durable and tells Zuul that its build has begun, before anything else happens to it: until then Zuul can stop it only by
// luck (protocol section 1.3). What the API server cannot take now is tried again while the job is ours.
func (b *Bridge) intake(ctx context.Context, a *assignment) {
	log := b.Logger.With(a.logValues()...).With("gearmanServer", a.server)
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 8, Cap: 5 * time.Second}
	var forbidden time.Time
	for {
		build, how, err := b.accept(ctx, a)
		forbidden = forbiddenSince(forbidden, err, time.Now())
		var refused *refusal
		switch {
		case err == nil:
			stop := a.has(build)
			log.Info("Build taken", "request", how, "number", build.Spec.Number, "class", build.Spec.Node)
			if err := b.begin(ctx, a, build); err != nil {
				log.Info("The job was lost before its start could be reported", "error", err)
			}
			b.notify(ctx, a.server, a.key)
			b.claim(ctx, build)
			if stop {
				b.insist(ctx, buildReference{server: a.server, uuid: a.unique})
			}
			return
		case errors.As(err, &refused) || permanent(err, time.Since(forbidden), cmp.Or(b.forbiddenFor, forbiddenFor)):
			b.refuse(a, err)
			return
		}
		log.Error("Cannot create the ZuulBuild; trying again", "error", err)
		timer := time.NewTimer(backoff.Step())
		select {
		case <-timer.C:
		case <-a.job.Done():
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// accept finds the ZuulBuild of the request or creates it; how is which of both, as metrics tell it. The name comes from the unique, so a request seen
// twice, by whatever replica, is one build.
func (b *Bridge) accept(ctx context.Context, a *assignment) (_ *v1alpha1.ZuulBuild, how string, _ error) {
	existing := &v1alpha1.ZuulBuild{}
	err := b.Client.Get(ctx, a.key, existing)
	if apierrors.IsNotFound(err) {
		var build *v1alpha1.ZuulBuild
		if build, err = b.newBuild(ctx, a); err != nil {
			return nil, "", err
		}
		if err = b.Client.Create(ctx, build); err == nil {
			b.metrics.requests.WithLabelValues(requestCreated).Inc()
			return build, requestCreated, nil
		}
		if apierrors.IsAlreadyExists(err) {
			if err = b.Live.Get(ctx, a.key, existing); apierrors.IsNotFound(err) {
				err = fmt.Errorf("ZuulBuild %s was there a moment ago", a.key) // which says nothing about the request
			}
		}
	}
	if err != nil {
		return nil, "", err
	}
	if err := a.sameRequest(existing); err != nil {
		return nil, "", &refusal{err}
	}
	how = found(existing)
	b.metrics.requests.WithLabelValues(how).Inc()
	a.adopts()
	return existing, how, nil
}

// sameRequest returns an error unless the build of the unique is what is asked for now. A unique is meant to be one build in all the world, so a
// second Zuul that sends it again, or the same for something else, gets a definite answer and never the result of another's build.
func (a *assignment) sameRequest(build *v1alpha1.ZuulBuild) error {
	server, fromGearman := build.Labels[v1alpha1.LabelGearmanServer]
	switch {
	case !fromGearman:
		return fmt.Errorf("unique %q is the name of ZuulBuild %s, which was made by hand", a.unique, a.key)
	case server != a.server:
		return fmt.Errorf("unique %q was used before, from Gearman server %q rather than %q: ZuulBuild %s", a.unique, server, a.server, a.key)
	case build.Spec.Job != a.target.job || build.Spec.Node != a.target.class:
		return fmt.Errorf("unique %q was used before, for job %q on node %q: ZuulBuild %s", a.unique, build.Spec.Job, build.Spec.Node, a.key)
	}
	return nil
}

// newBuild is the ZuulBuild of a request. One that cannot be understood becomes a ZuulBuild too, so that its message has a place.
func (b *Bridge) newBuild(ctx context.Context, a *assignment) (*v1alpha1.ZuulBuild, error) {
	number, err := b.Numbers.Next(ctx, a.target.key, a.target.job)
	if err != nil {
		return nil, &unnumbered{err}
	}
	parameters, requestError := readParameters(a.job.Payload)
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: a.key.Namespace, Name: a.key.Name,
			Labels: map[string]string{v1alpha1.LabelGearmanServer: a.server},
		},
		Spec: v1alpha1.ZuulBuildSpec{
			Job: a.target.job, JobRef: &v1alpha1.JobReference{Name: a.target.key.Name}, Node: a.target.class,
			UUID: storable(a.unique), Number: number, Parameters: parameters,
		},
	}
	if b.Identity != "" {
		build.Labels[v1alpha1.LabelReplica] = b.Identity
	}
	if requestError != nil {
		build.Spec.RequestError = truncate(requestError.Error(), maxUUID)
	}
	return build, nil
}

// storable is a unique, or what else a Gearman server calls things by, as a ZuulBuild and the log can tell it. What tells builds apart is their name, which is made of the unique as it came.
func storable(unique string) string {
	return truncate(strings.ToValidUTF8(unique, "\uFFFD"), maxUUID)
}

// truncate to at most so many bytes of valid UTF-8.
func truncate(text string, bytes int) string {
	if len(text) <= bytes {
		return text
	}
	return strings.ToValidUTF8(text[:bytes], "")
}

// begin sends the first WORK_DATA, then WORK_STATUS. From here on the reporter may send.
func (b *Bridge) begin(ctx context.Context, a *assignment, build *v1alpha1.ZuulBuild) error {
	a.sending.Lock()
	defer a.sending.Unlock()
	start := b.describe(build)
	start.Result = "" // a result in the first WORK_DATA would make a lost build count as ended
	if err := a.job.Data(start.encode()); err != nil {
		return err
	}
	a.started = true
	return b.sendStatus(ctx, a, build)
}

// refuse gives a definite result to a request that has no ZuulBuild to put a message on: the log and Zuul's status.json tell it.
func (b *Bridge) refuse(a *assignment, reason error) {
	b.metrics.requests.WithLabelValues(requestRefused).Inc()
	log := b.Logger.With(a.logValues()...).With("gearmanServer", a.server)
	log.Error("Request refused", "error", reason)
	data := b.worker()
	data.Name, data.Number = a.target.job, noNumber
	data.WorkerExtra.Message = truncate(reason.Error(), maxUUID)
	if a.job.Data(data.encode()) != nil {
		return
	}
	data.Result = resultInvalidRequest
	if a.job.Data(data.encode()) != nil {
		return
	}
	if err := a.job.Complete(data.encode()); err != nil {
		log.Info("The refusal could not be sent", "error", err)
		return
	}
	b.metrics.reports.WithLabelValues(resultLabel(resultInvalidRequest)).Inc()
}
