package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// A Pod that the infrastructure took before its job began is made again under the same build, so that Zuul hears nothing of it. It counts as not begun
// only where its containers were seen not to have started: a Pod that vanished may have run. Init containers do not count, because Kubernetes itself
// may run them again and asks them to stand that; any other container of the job may do what must not be done twice.
//
// status.lostPods is all the memory there is: the loss is written before the Pod is deleted, and the next Pod is made only when the API server knows
// the last no more, by a view of the build that it says is the newest (ensurePod). So whatever is interrupted goes on where it was.

const defaultMaxPods = 3

// defaultPodDelays are how long after the loss before it the second, the third … Pod of a build is made; any further one waits as long as the last.
var defaultPodDelays = []time.Duration{10 * time.Second, time.Minute}

// maxPodsOf gives the limit of a job; job may be nil.
func maxPodsOf(job *v1alpha1.ZuulJob) int {
	if job == nil || job.Spec.MaxPods == 0 {
		return defaultMaxPods
	}
	return int(job.Spec.MaxPods)
}

// replaceableReasons are those of the losses that take a Pod though nothing is wrong with it.
var replaceableReasons = []string{ReasonDisrupted, ReasonRejected, ReasonPodDeleted}

// replaceable tells whether the Pod of the verdict is to be made again instead.
func (s *scope) replaceable(v *verdict) bool {
	status := &s.build.Status
	return s.job != nil && len(status.LostPods)+1 < maxPodsOf(s.job) && status.StartTime == nil && v.phase == v1alpha1.PhaseLost &&
		slices.Contains(replaceableReasons, v.reason) && neverBegan(s.pod)
}

// neverBegan: the Pod has ended and none of its containers but those that prepare it started. What the garbage collector of Pods ended may run on, on
// a node that has lost touch; of a container that the kubelet has lost track of nobody knows.
func neverBegan(pod *corev1.Pod) bool {
	if pod == nil || !podTerminal(pod) {
		return false
	}
	if c := podCondition(pod, corev1.DisruptionTarget); c != nil && c.Reason == "DeletionByPodGC" {
		return false
	}
	own := slices.Concat(v1alpha1.RequiredContainers(pod), v1alpha1.ContainerNames(pod.Annotations[v1alpha1.AnnotationOptionalContainers]))
	return !slices.ContainsFunc(pod.Status.ContainerStatuses, func(status corev1.ContainerStatus) bool {
		return slices.Contains(own, status.Name) && (status.State.Running != nil || status.State.Terminated != nil || status.LastTerminationState.Terminated != nil)
	})
}

// losePod notes that the Pod is lost and that another is to be made.
func (s *scope) losePod(v *verdict) {
	status := &s.build.Status
	status.LostPods = append(status.LostPods, v1alpha1.LostPod{
		UID: s.pod.UID, NodeName: s.pod.Spec.NodeName, Reason: v.reason, Message: short(v.message),
		CreationTime: s.pod.CreationTimestamp, LostTime: metav1.NewTime(s.now.Truncate(time.Second)),
	})
	status.PodName, status.NodeName, status.PodCreationTime, status.ScheduledTime = "", "", nil, nil
	meta.RemoveStatusCondition(&status.Conditions, v1alpha1.ConditionPodScheduled)
	status.Phase = v1alpha1.PhaseQueued
	s.explain(ReasonReplacingPod, fmt.Sprintf("Pod %d of at most %d was lost before its main container ran, so it is made again; %s: %s",
		len(status.LostPods), maxPodsOf(s.job), v.reason, v.message))
	s.after = shortestRequeue
}

// replacePod clears a lost Pod away, and holds the next one back for a while.
func (r *ZuulBuildReconciler) replacePod(ctx context.Context, s *scope) (bool, error) {
	lostPods := s.build.Status.LostPods
	if s.pod != nil && listedAsLost(s.build, s.pod.UID) {
		switch left := s.unreachableIn(); {
		case s.pod.DeletionTimestamp == nil:
			s.after = shortestRequeue
			return true, r.deletePod(ctx, s.pod)
		case left <= 0:
			if gone, err := r.readPodAnew(ctx, s); gone || err != nil {
				return true, err
			}
			s.end(lost(ReasonNodeLost, "node %s does not answer, so the Pod cannot be made again", s.pod.Spec.NodeName))
		default:
			s.after = left
		}
		return true, nil
	}
	if s.pod != nil || len(lostPods) == 0 || r.hadPod(s.build) {
		return false, nil
	}
	delays := r.podDelays
	if delays == nil {
		delays = defaultPodDelays
	}
	due := lostPods[len(lostPods)-1].LostTime.Add(delays[min(len(lostPods), len(delays))-1])
	if s.after = due.Sub(s.now); s.after > 0 {
		return true, nil
	}
	s.after = 0
	return false, nil
}

func listedAsLost(build *v1alpha1.ZuulBuild, pod types.UID) bool {
	return slices.ContainsFunc(build.Status.LostPods, func(l v1alpha1.LostPod) bool { return l.UID == pod })
}

// unreachableIn is how long until the node of a Pod that is being deleted counts as unreachable.
func (s *scope) unreachableIn() time.Duration {
	if s.pod.DeletionTimestamp == nil {
		return unreachableGrace
	}
	return s.pod.DeletionTimestamp.Add(unreachableGrace).Sub(s.now)
}

// viewIsOld asks the API server whether the cache's view of the build is the newest, and has the round come again where it is not.
func (r *ZuulBuildReconciler) viewIsOld(ctx context.Context, s *scope) (bool, error) {
	live := &v1alpha1.ZuulBuild{}
	err := r.Live.Get(ctx, client.ObjectKeyFromObject(s.build), live)
	if err != nil && !apierrors.IsNotFound(err) {
		return false, err
	}
	if err == nil && live.UID == s.build.UID && live.ResourceVersion == s.build.ResourceVersion {
		return false, nil
	}
	s.after = shortestRequeue
	return true, nil
}

// withLostPods adds to a loss the Pods of the build that were lost before.
func withLostPods(v *verdict, lostPods []v1alpha1.LostPod) *verdict {
	if v.phase != v1alpha1.PhaseLost || v.reason == ReasonAbandoned || len(lostPods) == 0 {
		return v
	}
	each := make([]string, len(lostPods))
	for i, l := range lostPods {
		each[i] = l.Reason + ": " + l.Message
	}
	told := *v
	told.message += fmt.Sprintf("; %d of its Pods were lost before, ahead of their start (%s)", len(lostPods), strings.Join(each, "; "))
	return &told
}
