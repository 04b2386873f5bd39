package controllers

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// recordPod puts into the status what the Pod tells of its course. A Pod that has not started and is young changes nothing: most start within
// moments, and a write for each moment would cost more than it tells.
func (s *scope) recordPod() {
	if s.pod == nil {
		return
	}
	started := mainStarted(s.pod)
	if started == nil && !podTerminal(s.pod) && s.now.Sub(s.pod.CreationTimestamp.Time) < explainAfter {
		return
	}
	status := &s.build.Status
	status.PodName, status.NodeName = s.pod.Name, s.pod.Spec.NodeName
	status.PodCreationTime = s.pod.CreationTimestamp.DeepCopy()
	if c := podCondition(s.pod, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionTrue {
		status.ScheduledTime = c.LastTransitionTime.DeepCopy()
		s.condition(v1alpha1.ConditionPodScheduled, metav1.ConditionTrue, "Scheduled", "node "+s.pod.Spec.NodeName)
	}
	if started != nil {
		status.Phase, status.Reason, status.Message = v1alpha1.PhaseRunning, ReasonRunning, ""
		status.StartTime = &metav1.Time{Time: *started}
		s.condition(v1alpha1.ConditionStarted, metav1.ConditionTrue, "Started", "")
	} else {
		s.explain(waiting(s.pod))
	}
}

// noteGates remembers when the scheduling gates of the Pod went, in the time of a condition: Unknown while there are some, False from when they have
// gone. A Pod that loses them while it is young is not worth the writes.
func (s *scope) noteGates() {
	noted := meta.FindStatusCondition(s.build.Status.Conditions, v1alpha1.ConditionPodScheduled)
	switch {
	case gated(s.pod) && s.now.Sub(s.pod.CreationTimestamp.Time) >= explainAfter:
		s.condition(v1alpha1.ConditionPodScheduled, metav1.ConditionUnknown, ReasonSchedulingGated, "the Pod is held back by scheduling gates")
	case !gated(s.pod) && noted != nil && noted.Reason == ReasonSchedulingGated:
		s.condition(v1alpha1.ConditionPodScheduled, metav1.ConditionFalse, ReasonScheduling, "the scheduling gates of the Pod have gone")
	}
}

// facts are what a verdict on the Pod rests on.
func (s *scope) facts() facts {
	f := facts{pod: s.pod, limits: timeoutsOf(s.job, s.class), now: s.now}
	if c := meta.FindStatusCondition(s.build.Status.Conditions, v1alpha1.ConditionPodScheduled); c != nil && c.Reason == ReasonScheduling {
		f.ungated = c.LastTransitionTime.Time
	}
	return f
}

// maxMessage is what is kept of a message, in bytes: an API server quotes what it refuses, however long that is, and takes no condition of over 32 KiB.
const maxMessage = 4096

// short is a message as far as it is kept, in valid UTF-8.
func short(message string) string {
	const more = " …"
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-len(more)], "") + more
}

// explain says what a build that has not started waits for. A message that changes while the reason stays is not worth a write.
func (s *scope) explain(reason, message string) {
	if s.build.Status.Phase == v1alpha1.PhaseStarting && s.build.Status.Reason == reason {
		return
	}
	s.build.Status.Phase, s.build.Status.Reason, s.build.Status.Message = v1alpha1.PhaseStarting, reason, short(message)
}

// wait says what a build that may not have its Pod yet waits for: what it waited for first, for which of several limits it is changes often.
func (s *scope) wait(reason, message string) {
	if s.build.Status.Phase == v1alpha1.PhaseQueued && s.build.Status.Reason == reason {
		return
	}
	s.build.Status.Phase, s.build.Status.Reason, s.build.Status.Message = v1alpha1.PhaseQueued, reason, message
}

// explained: what kept the Pod from being made is over. Why it was refused the build says until there is something else to say, within
// explainAfter at most: that is not worth a write of its own.
func (s *scope) explained() {
	if s.build.Status.Phase == v1alpha1.PhaseStarting {
		s.build.Status.Phase, s.build.Status.Reason, s.build.Status.Message = v1alpha1.PhaseQueued, "", ""
		meta.RemoveStatusCondition(&s.build.Status.Conditions, v1alpha1.ConditionPodScheduled)
	}
}

// end gives the build its verdict.
func (s *scope) end(v *verdict) {
	v = withLostPods(v, s.build.Status.LostPods)
	v = withPolicy(v, s.job)
	v = limited(v, s.build, s.losses, maxAttemptsOf(s.job))
	status := &s.build.Status
	status.Phase, status.Result, status.Reason, status.Message = v.phase, v.result, v.reason, short(v.message)
	completed := metav1.NewTime(s.now.Truncate(time.Second))
	status.CompletionTime = &completed
	s.condition(v1alpha1.ConditionComplete, metav1.ConditionTrue, v.reason, v.message)
	s.after = shortestRequeue
}

func (s *scope) condition(kind string, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.build.Status.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: short(message),
		ObservedGeneration: s.build.Generation, LastTransitionTime: metav1.NewTime(s.now),
	})
}

// writeStatus writes what this round changed, and nothing where it changed nothing: one merge patch without a resource version, since nobody else
// writes these fields. The description is the bridge's: a patch of what changed leaves it alone. That a verdict is given once the API server sees to
// itself, so a round that started from an old view is refused here. A round that started from a view this process has written over since does not write:
// the next one, which the cache will ask for once it shows what was written, does, if there is anything left to say.
func (r *ZuulBuildReconciler) writeStatus(ctx context.Context, before *v1alpha1.ZuulBuild, s *scope) error {
	key := client.ObjectKeyFromObject(before)
	if version, _ := r.writtenOver.Load(key); version == before.ResourceVersion || equality.Semantic.DeepEqual(before.Status, s.build.Status) {
		return nil
	}
	s.build.Status.URL = r.BuildURL(s.build)
	completes := s.build.Complete() && !before.Complete()
	if completes {
		if err := r.cordon(ctx, s.build); err != nil {
			return err
		}
	}
	after := before.DeepCopy()
	after.Status = s.build.Status
	patch := client.MergeFrom(before)
	if len(before.Status.LostPods) != len(after.Status.LostPods) { // a list is written whole: an old view would drop what it does not know
		patch = client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	}
	switch err := r.Status().Patch(ctx, after, patch); {
	case apierrors.IsInvalid(err):
		return r.explainRefusal(ctx, s.build, err)
	case err != nil:
		return client.IgnoreNotFound(err)
	}
	if after.ResourceVersion != before.ResourceVersion {
		r.writtenOver.Store(key, before.ResourceVersion)
	}
	r.Metrics.written(before, s.build, s.job, s.pod)
	if completes {
		status := &s.build.Status
		ctrl.LoggerFrom(ctx).Info("Build complete", "phase", status.Phase, "result", status.Result, "reason", status.Reason, "node", status.NodeName)
		r.sendEvent(s)
	}
	return nil
}

// explainRefusal tells an old view, which needs nothing more, from a status the API server will never take.
func (r *ZuulBuildReconciler) explainRefusal(ctx context.Context, build *v1alpha1.ZuulBuild, refusal error) error {
	live := &v1alpha1.ZuulBuild{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(build), live); err != nil {
		return client.IgnoreNotFound(err)
	}
	if live.Complete() {
		ctrl.LoggerFrom(ctx).V(1).Info("Status not written: the build has its verdict already", "phase", live.Status.Phase)
		return nil
	}
	return refusal
}

// sendEvent tells the person who looks at the build how it ended, where that is not the normal course. A Pod's own life is in its own events.
func (r *ZuulBuildReconciler) sendEvent(s *scope) {
	if s.build.Status.Phase == v1alpha1.PhaseSucceeded || s.build.Status.Reason == ReasonExitCode {
		return
	}
	var related runtime.Object
	if s.pod != nil {
		related = s.pod
	}
	r.Recorder.Eventf(s.build, related, corev1.EventTypeWarning, s.build.Status.Reason, "Complete", "%s", s.build.Status.Message)
}
