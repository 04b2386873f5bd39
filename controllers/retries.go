package controllers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// A build that ends without a result is run again by Zuul: up to 2.5.1 at once, for ever and each time under a new unique (protocol section 2). So what
// the infrastructure loses is held back and counted here, over all builds of the same change, and in the end gets a result (protocol section 5, item 9).
// All of it is read from the ZuulBuilds that exist: each attempt carries its count on, so the one before it is all that must still be there.
const (
	// defaultMaxAttempts is how many builds in a row may be lost until Zuul is told RETRY_LIMIT.
	defaultMaxAttempts = 5
	// retryWindow is how long after a loss a build of the same change counts as another attempt rather than as a new beginning. Zuul asks again within
	// moments, but the request may wait long for a slot. Beyond it are the next day's timer build and a person's "recheck" after an outage.
	retryWindow = 2 * time.Hour
	// clockTolerance is how far the clocks of the operator, which says when a build ended, and of the API server, which says when one was made, may differ.
	clockTolerance = 10 * time.Second
)

// defaultRetryDelays are how long after the loss before it the second, the third … attempt gets its Pod; any further one waits as long as the last.
// A build that is held back keeps its slot, so they are short: all together are less than the time one Pod may wait for a node.
var defaultRetryDelays = []time.Duration{0, 15 * time.Second, time.Minute, 5 * time.Minute}

// indexRetryKey finds what is remembered of earlier attempts by their retryKey.
const indexRetryKey = "retryKey"

func indexRetries(object client.Object) []string {
	build := object.(*v1alpha1.ZuulBuild)
	if !remembered(build) {
		return nil
	}
	return []string{retryKey(build)}
}

// retryKey is the same for two builds of a namespace where one may be Zuul's retry of the other, and "" for a build made by hand, which nobody retries.
// It is a hash, because parameters may be long. The node class is not part of it: a job is in a build set once, whatever node it asks for.
func retryKey(build *v1alpha1.ZuulBuild) string {
	server, parameters := build.Labels[v1alpha1.LabelGearmanServer], build.Spec.Parameters
	if server == "" {
		return ""
	}
	// ZUUL_REF and ZUUL_COMMIT of a change are new whenever its queue is reset; of anything else they are all that tells one item from another. A
	// timer's item has not even those, so there only retryWindow keeps one day's builds from another's.
	item := []string{"ZUUL_REF", "ZUUL_COMMIT", "ZUUL_NEWREV"}
	if parameters["ZUUL_CHANGE"] != "" {
		item = []string{"ZUUL_CHANGE", "ZUUL_PATCHSET"}
	}
	parts := []string{server, build.Spec.Job, parameters["ZUUL_PROJECT"], parameters["ZUUL_PIPELINE"]}
	for _, name := range item {
		parts = append(parts, name, parameters[name])
	}
	return fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%q", parts)))
}

// lostToInfrastructure: lost, and not for want of a listener, as when a Gearman server restarts.
func lostToInfrastructure(phase v1alpha1.BuildPhase, reason string) bool {
	return phase == v1alpha1.PhaseLost && reason != ReasonAbandoned
}

// remembered tells whether later attempts must know of a build: it was lost, or it ended a row of losses with a result. One that was stopped or
// abandoned says nothing about the infrastructure, so it does neither.
func remembered(build *v1alpha1.ZuulBuild) bool {
	decided := build.Status.Phase == v1alpha1.PhaseSucceeded || build.Status.Phase == v1alpha1.PhaseFailed
	return retryKey(build) != "" && build.Status.CompletionTime != nil &&
		(lostToInfrastructure(build.Status.Phase, build.Status.Reason) || decided && build.Status.Attempts > 1)
}

// lossesBefore are the builds that were lost one after the other right before this one was asked for, the newest first; others are the remembered
// builds of the same key. What ended later than the build was made is no attempt before it, but ran beside it.
func lossesBefore(build *v1alpha1.ZuulBuild, others []v1alpha1.ZuulBuild) []v1alpha1.ZuulBuild {
	earlier := slices.DeleteFunc(slices.Clone(others), func(other v1alpha1.ZuulBuild) bool {
		gap := build.CreationTimestamp.Sub(other.Status.CompletionTime.Time)
		return other.UID == build.UID || gap < -clockTolerance
	})
	slices.SortFunc(earlier, func(a, b v1alpha1.ZuulBuild) int {
		return cmp.Or(b.Status.CompletionTime.Compare(a.Status.CompletionTime.Time), cmp.Compare(b.Spec.Number, a.Spec.Number))
	})
	next := build.CreationTimestamp.Time
	for i := range earlier {
		if earlier[i].Status.Phase != v1alpha1.PhaseLost || next.Sub(earlier[i].Status.CompletionTime.Time) > retryWindow {
			return earlier[:i]
		}
		next = earlier[i].CreationTimestamp.Time
	}
	return earlier
}

// attemptsOf is which attempt a build is, from 1.
func attemptsOf(build *v1alpha1.ZuulBuild) int32 { return max(build.Status.Attempts, 1) }

// maxAttemptsOf gives the limit of a job; job may be nil.
func maxAttemptsOf(job *v1alpha1.ZuulJob) int32 {
	if job == nil || job.Spec.MaxAttempts == 0 {
		return defaultMaxAttempts
	}
	return job.Spec.MaxAttempts
}

// retryDelay is how long after the loss before it an attempt, from 2, gets its Pod.
func retryDelay(attempt int32, delays []time.Duration) time.Duration {
	if delays == nil {
		delays = defaultRetryDelays
	}
	return delays[min(int(attempt)-2, len(delays)-1)]
}

// limited is the verdict on a build, with a result where it would be one loss too many.
func limited(v *verdict, build *v1alpha1.ZuulBuild, losses []v1alpha1.ZuulBuild, maxAttempts int32) *verdict {
	attempt := attemptsOf(build)
	if !lostToInfrastructure(v.phase, v.reason) || retryKey(build) == "" || attempt < maxAttempts {
		return v
	}
	message := fmt.Sprintf("attempt %d of %d was lost to the infrastructure, so it is not tried again; %s: %s", attempt, maxAttempts, v.reason, v.message)
	if len(losses) > 0 {
		message += "; lost before it: " + listLosses(losses)
	}
	return &verdict{v1alpha1.PhaseFailed, ResultRetryLimit, ReasonRetryLimit, message}
}

// listLosses names builds and why they were lost.
func listLosses(losses []v1alpha1.ZuulBuild) string {
	names := make([]string, len(losses))
	for i := range losses {
		names[i] = fmt.Sprintf("number %d (ZuulBuild %s, %s)", losses[i].Spec.Number, losses[i].Name, losses[i].Status.Reason)
	}
	return strings.Join(names, ", ")
}

// readLosses finds the attempts before this one, and notes which it is: by the time it ends they may have been deleted.
func (r *ZuulBuildReconciler) readLosses(ctx context.Context, s *scope) (bool, error) {
	key := retryKey(s.build)
	if key == "" {
		return false, nil
	}
	builds := v1alpha1.ZuulBuildList{}
	err := r.List(ctx, &builds, client.InNamespace(s.build.Namespace), client.MatchingFields{indexRetryKey: key}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return false, err
	}
	s.losses = lossesBefore(s.build, builds.Items)
	if s.build.Status.Attempts == 0 && len(s.losses) > 0 {
		s.build.Status.Attempts = attemptsOf(&s.losses[0]) + 1
	}
	return false, nil
}

// delay holds back the Pod of an attempt that comes too soon after the loss before it.
func (r *ZuulBuildReconciler) delay(_ context.Context, s *scope) (bool, error) {
	if s.pod != nil || r.hadPod(s.build) || len(s.losses) == 0 {
		return false, nil
	}
	attempt := attemptsOf(s.build)
	due := s.losses[0].Status.CompletionTime.Add(retryDelay(attempt, r.retryDelays))
	if !due.After(s.now) {
		return false, nil
	}
	s.explain(ReasonRetryDelayed, fmt.Sprintf("attempt %d of %d: the Pod will be made at %s, because the infrastructure lost the builds before it: %s",
		attempt, maxAttemptsOf(s.job), due.UTC().Format(time.RFC3339), listLosses(s.losses)))
	s.after = due.Sub(s.now)
	return true, nil
}
