package controllers

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Defaults of the clocks; docs/jobs.md tells them to users.
const (
	defaultUnscheduled = 15 * time.Minute
	defaultPending     = 15 * time.Minute
	defaultRun         = 3 * time.Hour
	defaultAbort       = 30 * time.Second
	imageGrace         = 2 * time.Minute  // an image that cannot be pulled: registries stumble, ImagePullBackOff retries meanwhile
	configurationGrace = 30 * time.Second // a missing Secret or ConfigMap may be on its way
	explainAfter       = 10 * time.Second // a Pod that has not started by then gets a status that says why
	unreachableGrace   = 5 * time.Minute  // a Pod that should be gone but whose node does not answer
	settledGrace       = 10 * time.Second // containers that do not matter, when those that do have ended
	quotaRetry         = 15 * time.Second // a Pod that the namespace's quota has no room for; what is refused otherwise is not tried less often
	accountGrace       = time.Minute      // the service account of a new namespace may be on its way
	cordonGrace        = 10 * time.Second // a node that the operator may not cordon, because the API server has just started
	abortingAfter      = 2 * time.Second  // a Pod that was told to go and has not gone by then gets a status that says so
	shortestRequeue    = time.Second
)

// expiredDeadline, in seconds, is the deadline the operator gives a Pod that the kubelet is to end: the least there is.
const expiredDeadline = 1

// timeouts are the four clocks of a build.
type timeouts struct{ unscheduled, pending, run, abort time.Duration }

// timeoutsOf gives the clocks of a build: the job's, else the node class's, else the defaults. Both may be nil.
func timeoutsOf(job *v1alpha1.ZuulJob, class *v1alpha1.ZuulNodeClass) timeouts {
	limits := timeouts{defaultUnscheduled, defaultPending, defaultRun, defaultAbort}
	if class != nil {
		limits.set(class.Spec.Timeouts)
	}
	if job != nil {
		limits.set(job.Spec.Timeouts)
	}
	return limits
}

// set takes what is given; nothing below a second, which Pods do not know.
func (t *timeouts) set(given *v1alpha1.Timeouts) {
	if given == nil {
		return
	}
	for to, from := range map[*time.Duration]*metav1.Duration{&t.unscheduled: given.Unscheduled, &t.pending: given.Pending, &t.run: given.Run, &t.abort: given.Abort} {
		if from != nil && from.Duration >= time.Second {
			*to = from.Duration
		}
	}
}

// nextDeadline is how long until the clock that is running now would end the build, so that the build is looked at again just then. Zero means
// that no clock is running.
func nextDeadline(f facts) time.Duration {
	pod, limits, now := f.pod, f.limits, f.now
	scheduled := podCondition(pod, corev1.PodScheduled)
	explain := pod.CreationTimestamp.Add(explainAfter)
	var due time.Time
	switch {
	case podTerminal(pod):
		return 0
	case gated(pod):
		return max(explain.Sub(now), 0)
	case pod.DeletionTimestamp != nil:
		due = pod.DeletionTimestamp.Add(unreachableGrace)
	case toldToEnd(pod) != "":
		due = toldToEndAt(pod).Add(limits.abort + unreachableGrace)
	case settledAt(pod) != nil:
		due = settledAt(pod).Add(settledGrace)
	case mainStarted(pod) != nil:
		due = mainStarted(pod).Add(limits.run)
	case scheduled != nil && scheduled.Status == corev1.ConditionTrue:
		progress := lastProgress(pod)
		due = earliest(scheduled.LastTransitionTime.Add(limits.pending), now, progress.Add(configurationGrace), progress.Add(imageGrace))
	default:
		due = f.unscheduledSince().Add(limits.unscheduled)
	}
	if mainStarted(pod) == nil && explain.After(now) && explain.Before(due) {
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

// lastProgress is when the kubelet last got on with a Pod that has a node: when it had that, its sandbox and volumes, when an init container ended or
// another container started. What a container waits for now it has waited for at most since then, since containers are prepared one after the other. A
// container that was started again tells nothing: it may crash for ever beside the one that waits. Zero where the Pod has no node.
func lastProgress(pod *corev1.Pod) time.Time {
	last := time.Time{}
	reached := func(at metav1.Time) {
		if at.After(last) {
			last = at.Time
		}
	}
	if c := podCondition(pod, corev1.PodScheduled); c == nil || c.Status != corev1.ConditionTrue {
		return last
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodReadyToStartContainers, corev1.PodInitialized} {
		if c := podCondition(pod, kind); c != nil && c.Status == corev1.ConditionTrue {
			reached(c.LastTransitionTime)
		}
	}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		switch {
		case status.RestartCount > 0:
		case status.State.Running != nil:
			reached(status.State.Running.StartedAt)
		case status.State.Terminated != nil:
			reached(status.State.Terminated.StartedAt)
		}
	}
	for _, status := range pod.Status.InitContainerStatuses {
		if t := status.State.Terminated; t != nil && status.RestartCount == 0 {
			reached(t.FinishedAt)
		}
	}
	return last
}

// settledAt is when the result of a Pod that runs on was certain but for disruptions, or nil: all containers that decide have ended, or the main one
// has failed.
func settledAt(pod *corev1.Pod) *time.Time {
	if podTerminal(pod) {
		return nil
	}
	var last *time.Time
	for i, name := range v1alpha1.RequiredContainers(pod) {
		t := terminated(pod, name)
		if t == nil {
			return nil
		}
		if last == nil || t.FinishedAt.After(*last) {
			last = &t.FinishedAt.Time
		}
		if i == 0 && t.ExitCode != 0 {
			break
		}
	}
	return last
}

// terminated is how an ordinary container of the Pod ended, or nil.
func terminated(pod *corev1.Pod, name string) *corev1.ContainerStateTerminated {
	for i := range pod.Status.ContainerStatuses {
		if status := &pod.Status.ContainerStatuses[i]; status.Name == name {
			return status.State.Terminated
		}
	}
	return nil
}

// mustEnd says why the operator is to have the kubelet end the Pod, "" for not at all.
func mustEnd(f facts) string {
	settled, started := settledAt(f.pod), mainStarted(f.pod)
	switch {
	case f.pod.DeletionTimestamp != nil:
		return ""
	case settled != nil && f.now.Sub(*settled) >= settledGrace:
		return v1alpha1.ToldSettled
	case settled == nil && started != nil && f.now.Sub(*started) >= f.limits.run:
		return v1alpha1.ToldTimedOut
	default:
		return ""
	}
}

// runsOut tells whether a clock, or what a container waits for, is to end a Pod that has not ended. Nothing is decided by that before the API server was
// asked: a cache may be a minute behind, as after an outage, and the Pod may have come on, or ended, since.
func runsOut(f facts) bool {
	return !podTerminal(f.pod) && (decide(f) != nil || mustEnd(f) != "" && toldToEnd(f.pod) == "")
}

// toldToEnd is why the operator had the kubelet end the Pod, "" where it has not.
func toldToEnd(pod *corev1.Pod) string { return pod.Annotations[v1alpha1.AnnotationToldToEnd] }

// toldToEndAt is when that was.
func toldToEndAt(pod *corev1.Pod) time.Time {
	at, err := time.Parse(time.RFC3339, pod.Annotations[v1alpha1.AnnotationToldToEndAt])
	if err != nil {
		return pod.CreationTimestamp.Time // somebody wrote it who should not
	}
	return at
}

// mainStarted is when the main container started, or nil.
func mainStarted(pod *corev1.Pod) *time.Time {
	required := v1alpha1.RequiredContainers(pod)
	for _, status := range pod.Status.ContainerStatuses {
		if len(required) == 0 || status.Name != required[0] {
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
