package controllers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/censor"
)

// collect deletes the Pod of a completed build: one that still runs at once, one that ended when its time is over. The build itself is seen to
// together with the other finished builds of its job, in finished.go.
func (r *ZuulBuildReconciler) collect(ctx context.Context, s *scope) (bool, error) {
	if !s.build.Complete() {
		return false, nil
	}
	r.Pods.forget(s.build)
	if s.pod == nil || s.pod.DeletionTimestamp != nil {
		return true, nil
	}
	if !podTerminal(s.pod) { // as far as the cache knows: the log of one that has ended is kept
		if gone, err := r.readPodAnew(ctx, s); gone || err != nil {
			return true, err
		}
	}
	if left := keepingOf(s.job).podUntil(s.build, podTerminal(s.pod)).Sub(s.now); left > 0 {
		s.after = left
		return true, nil
	}
	return true, r.deletePod(ctx, s.pod)
}

// ensurePod makes the Pod of a build that has had none, or has lost those it had. Its name is the build's, so that there is one at a time whoever else tries.
func (r *ZuulBuildReconciler) ensurePod(ctx context.Context, s *scope) (bool, error) {
	if s.pod != nil {
		return false, nil
	}
	// Only the newest view of the build says for certain that it has no verdict yet, and which of its Pods were lost.
	if old, err := r.viewIsOld(ctx, s); old || err != nil {
		return old, err
	}
	if r.hadPod(s.build) {
		s.end(decide(facts{now: s.now}))
		return true, nil
	}
	pod, files, err := buildPod(s.build, s.job, s.class, r.BuildURL(s.build))
	if err != nil {
		s.end(unbuildable(err))
		return true, nil
	}
	if forbidden := forbiddenByClass(pod, s.class); forbidden != nil {
		s.end(forbidden)
		return true, nil
	}
	if err := censor.Note(ctx, r.Live, pod, s.job.Spec.Censor); err != nil {
		return false, err
	}
	if files != nil {
		if done, err := r.ensureFiles(ctx, s, files); done || err != nil {
			return done, err
		}
	}
	err = r.Create(ctx, pod)
	switch {
	case err == nil:
		r.Pods.remember(s.build, pod)
		ctrl.LoggerFrom(ctx).V(1).Info("Pod made", "pod", pod.Name, "class", s.build.Spec.Node)
		s.explained()
		s.after = explainAfter
		return true, nil
	case apierrors.IsAlreadyExists(err):
		return true, r.adopt(ctx, s)
	case serverFault(err): // which may have made it all the same
		switch err := r.Live.Get(ctx, client.ObjectKeyFromObject(pod), &corev1.Pod{}); {
		case err == nil:
			return true, r.adopt(ctx, s)
		case !apierrors.IsNotFound(err):
			return false, err
		}
	}
	return s.notCreated("Pod", err)
}

// notCreated is what becomes of a build where the API server does not take its Pod, or what the Pod needs.
func (s *scope) notCreated(what string, err error) (bool, error) {
	s.refused = apierrors.IsForbidden(err) || serverFault(err) && strings.Contains(err.Error(), "webhook") // other faults may have made it all the same
	switch {
	case serverFault(err) || policyNotReady(err):
		limit := timeoutsOf(s.job, s.class).unscheduled
		s.awaitLeave(ReasonFailedCreate, err, quotaRetry, limit, lost(ReasonFailedCreate, "the API server could not make the %s within %s: %v", what, limit, err))
		return true, nil
	case apierrors.IsForbidden(err):
		s.forbidden(what, err)
		return true, nil
	case apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || tooLarge(err):
		s.end(failed(ReasonInvalidPod, "the API server does not take the %s: %v", what, err))
		return true, nil
	default:
		return false, err
	}
}

// serverFault tells an answer that is about the API server, or about what it asks, such as a webhook that does not answer. Without a limit the build
// would wait for that without a word. No answer at all is not among them: who cannot reach the API server cannot write a verdict either.
func serverFault(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || tooLarge(err) {
		return false
	}
	code := status.Status().Code
	return code >= http.StatusInternalServerError || code == http.StatusTooManyRequests
}

// policyNotReady tells the words of an API server that has not read yet what a ValidatingAdmissionPolicy needs, as when it has just started.
func policyNotReady(err error) bool {
	return strings.Contains(err.Error(), "failed to configure policy") || strings.Contains(err.Error(), "failed to configure binding")
}

// tooLarge tells an object that is more than the API server reads, or than etcd stores: the API server passes on what etcd, or its own client of
// etcd, says of that as an error without a reason.
func tooLarge(err error) bool {
	return apierrors.IsRequestEntityTooLargeError(err) || strings.Contains(err.Error(), "etcdserver: request is too large") ||
		strings.Contains(err.Error(), "trying to send message larger than max")
}

// unbuildable is the verdict where no Pod could be made of the build's parameters or the job's template.
func unbuildable(err error) *verdict {
	var request *requestError
	if errors.As(err, &request) {
		return &verdict{v1alpha1.PhaseFailed, ResultInvalidRequest, ReasonInvalidRequest, err.Error()}
	}
	return failed(ReasonInvalidPod, "%v", err)
}

// adopt takes over a Pod of the build's name that exists although the cache did not know it.
func (r *ZuulBuildReconciler) adopt(ctx context.Context, s *scope) error {
	pod := &corev1.Pod{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(s.build), pod); err != nil {
		s.after = shortestRequeue
		return client.IgnoreNotFound(err)
	}
	switch {
	case ownedBy(pod, s.build) && listedAsLost(s.build, pod.UID):
		s.after = shortestRequeue // the lost one is not gone yet, though the cache thinks so
	case ownedBy(pod, s.build):
		r.Pods.remember(s.build, pod)
	case pod.Labels[v1alpha1.LabelBuild] == s.build.Name:
		// The Pod of an earlier build of the same name: it may still run, so the name is free only when it is gone.
		s.after = shortestRequeue
		if pod.DeletionTimestamp == nil {
			return r.deletePod(ctx, pod)
		}
		if s.now.Sub(pod.DeletionTimestamp.Time) >= unreachableGrace {
			s.end(lost(ReasonNodeLost, "the Pod of an earlier build of the same name is still there, because node %s does not answer", pod.Spec.NodeName))
		}
	default:
		s.end(failed(ReasonInvalidPod, "a Pod named %s that does not belong to the build is in the way", pod.Name))
	}
	return nil
}

// nodeClass finds the class Zuul calls by a name; nil where there is none.
func (r *ZuulBuildReconciler) nodeClass(ctx context.Context, name string) (*v1alpha1.ZuulNodeClass, error) {
	if name == "" {
		return nil, nil
	}
	classes := v1alpha1.ZuulNodeClassList{}
	if err := r.List(ctx, &classes); err != nil {
		return nil, err
	}
	return classes.Find(name), nil
}

// readClass finds the node class the build asks for.
func (r *ZuulBuildReconciler) readClass(ctx context.Context, s *scope) (_ bool, err error) {
	s.class, err = r.nodeClass(ctx, s.build.Spec.Node)
	return false, err
}

// expire has the kubelet end the Pod, by the one way that keeps it and its log: its deadline. Why is noted on the Pod, for the verdict.
func (r *ZuulBuildReconciler) expire(ctx context.Context, s *scope, why string) error {
	if toldToEnd(s.pod) != "" {
		return nil
	}
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q,%q:%q}},"spec":{"activeDeadlineSeconds":%d}}`,
		v1alpha1.AnnotationToldToEnd, why, v1alpha1.AnnotationToldToEndAt, s.now.UTC().Format(time.RFC3339), expiredDeadline)
	return client.IgnoreNotFound(r.Patch(ctx, s.pod.DeepCopy(), client.RawPatch(types.MergePatchType, patch)))
}

// deletePod deletes just this Pod, not one that has taken its name since.
func (r *ZuulBuildReconciler) deletePod(ctx context.Context, pod *corev1.Pod, options ...client.DeleteOption) error {
	err := r.Delete(ctx, pod, append(options, client.Preconditions{UID: &pod.UID})...)
	if apierrors.IsConflict(err) {
		return nil // it is gone, and another has its name
	}
	return client.IgnoreNotFound(err)
}

// forceDelete takes the Pod of a completed build out of the API where its node does not let it go, if the node class asks for that.
func (r *ZuulBuildReconciler) forceDelete(ctx context.Context, s *scope) (bool, error) {
	if !s.build.Complete() || s.pod == nil || s.pod.DeletionTimestamp == nil || s.class == nil || !s.class.Spec.ForceDeleteUnreachable {
		return false, nil
	}
	if s.after = s.unreachableIn(); s.after > 0 {
		return true, nil
	}
	if s.after = 0; ptr.Deref(s.pod.DeletionGracePeriodSeconds, 1) == 0 {
		return true, nil // it was, and somebody's finalizer holds it
	}
	s.after = shortestRequeue
	ctrl.LoggerFrom(ctx).Info("Pod deleted by force: its node does not answer", "pod", s.pod.Name, "node", s.pod.Spec.NodeName, "class", s.class.Name)
	return true, r.deletePod(ctx, s.pod, client.GracePeriodSeconds(0))
}

// deleteLeftBehind deletes the Pod of a build that was itself deleted. The garbage collector would, in its own time.
func (r *ZuulBuildReconciler) deleteLeftBehind(ctx context.Context, key types.NamespacedName) error {
	r.writtenOver.Delete(key)
	r.cordonWaits.Delete(key)
	pod := &corev1.Pod{}
	if err := r.Get(ctx, key, pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	if err := r.Live.Get(ctx, key, &v1alpha1.ZuulBuild{}); !apierrors.IsNotFound(err) {
		return err
	}
	if pod.DeletionTimestamp != nil || pod.Labels[v1alpha1.LabelBuild] != key.Name {
		return nil
	}
	return r.deleteOrphan(ctx, pod, orphanDeleted)
}

func ownedBy(object metav1.Object, build *v1alpha1.ZuulBuild) bool {
	owner := metav1.GetControllerOf(object)
	return owner != nil && owner.UID == build.UID
}
