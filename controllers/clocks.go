package controllers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Defaults of the clocks and of retention; docs/jobs.md tells them to users.
const (
	defaultUnscheduled  = 15 * time.Minute
	defaultPending      = 15 * time.Minute
	defaultRun          = 3 * time.Hour
	defaultAbort        = 30 * time.Second
	defaultPodRetention = time.Hour
	defaultKeepBuild    = 7 * 24 * time.Hour
	imageGrace          = 2 * time.Minute  // an image that cannot be pulled: registries stumble, ImagePullBackOff retries meanwhile
	configurationGrace  = 30 * time.Second // a missing Secret or ConfigMap may be on its way
	explainAfter        = 10 * time.Second // a Pod that has not started by then gets a status that says why
	unreachableGrace    = 5 * time.Minute  // a Pod that should be gone but whose node does not answer
	quotaRetry          = 15 * time.Second // a Pod that the namespace's quota has no room for
	shortestRequeue     = time.Second
)

// timeouts are the four clocks of a build.
type timeouts struct{ unscheduled, pending, run, abort time.Duration }

// timeoutsOf gives the clocks of a job; job may be nil.
func timeoutsOf(job *v1alpha1.ZuulJob) timeouts {
	limits := timeouts{defaultUnscheduled, defaultPending, defaultRun, defaultAbort}
	if job == nil || job.Spec.Timeouts == nil {
		return limits
	}
	set := func(to *time.Duration, from *metav1.Duration) {
		if from != nil && from.Duration >= time.Second {
			*to = from.Duration
		}
	}
	set(&limits.unscheduled, job.Spec.Timeouts.Unscheduled)
	set(&limits.pending, job.Spec.Timeouts.Pending)
	set(&limits.run, job.Spec.Timeouts.Run)
	set(&limits.abort, job.Spec.Timeouts.Abort)
	return limits
}

// retentionOf tells how long a completed build keeps its Pod and itself; job may be nil.
func retentionOf(job *v1alpha1.ZuulJob) (pod, build time.Duration) {
	pod, build = defaultPodRetention, defaultKeepBuild
	if job != nil && job.Spec.Retention != nil {
		if job.Spec.Retention.Pod != nil {
			pod = job.Spec.Retention.Pod.Duration
		}
		if job.Spec.Retention.Build != nil {
			build = job.Spec.Retention.Build.Duration
		}
	}
	return pod, build
}

// nextDeadline is how long until the clock that is running now would end the build, so that the build is looked at again just then. Zero means
// that no clock is running.
func nextDeadline(pod *corev1.Pod, limits timeouts, now time.Time) time.Duration {
	scheduled := podCondition(pod, corev1.PodScheduled)
	var due time.Time
	switch {
	case podTerminal(pod) || gated(pod):
		return 0
	case pod.DeletionTimestamp != nil:
		due = pod.DeletionTimestamp.Add(unreachableGrace)
	case mainStarted(pod) != nil:
		due = mainStarted(pod).Add(limits.run)
	case scheduled != nil && scheduled.Status == corev1.ConditionTrue:
		due = earliest(scheduled.LastTransitionTime.Add(limits.pending), now, scheduled.LastTransitionTime.Add(configurationGrace), scheduled.LastTransitionTime.Add(imageGrace))
	default:
		due = pod.CreationTimestamp.Add(limits.unscheduled)
	}
	if explain := pod.CreationTimestamp.Add(explainAfter); mainStarted(pod) == nil && explain.After(now) && explain.Before(due) {
		due = explain
	}
	return max(due.Sub(now), shortestRequeue)
}

// earliest of the last resort and those candidates that are still to come.
func earliest(last, now time.Time, candidates ...time.Time) time.Time {
	for _, candidate := range candidates {
		if candidate.After(now) && candidate.Before(last) {
			last = candidate
		}
	}
	return last
}

// podCondition finds a condition of the Pod, or nil.
func podCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

func podTerminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// gated: somebody else (Kueue, say) holds the Pod back on purpose, so no clock runs.
func gated(pod *corev1.Pod) bool { return len(pod.Spec.SchedulingGates) > 0 }

// mainStarted is when the main container started, or nil.
func mainStarted(pod *corev1.Pod) *time.Time {
	main := v1alpha1.MainContainer(&pod.Spec)
	if main == nil {
		return nil
	}
	for _, status := range pod.Status.ContainerStatuses {
		if status.Name != main.Name {
			continue
		}
		switch {
		case status.State.Running != nil:
			return &status.State.Running.StartedAt.Time
		case status.State.Terminated != nil && status.State.Terminated.StartedAt.Unix() > 0: // a container that could not start has the epoch
			return &status.State.Terminated.StartedAt.Time
		}
	}
	return nil
}
