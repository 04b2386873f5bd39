package controllers

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

const (
	// sweepInterval is how often Pods without a build are looked for, beside the events of those that know their build.
	sweepInterval = 5 * time.Minute
	// orphanAge is how old a Pod must be to be one: the cache may be late for a build that is younger.
	orphanAge = time.Minute
)

// Why a Pod has no build.
const (
	orphanDeleted  = "build_deleted"
	orphanReplaced = "build_replaced"
)

// orphaned tells why a Pod of ours has no build, or "" where it has one, or may be somebody else's; build is the one its label names, nil where there
// is none.
func orphaned(pod *corev1.Pod, build *v1alpha1.ZuulBuild) string {
	owner := metav1.GetControllerOf(pod)
	switch {
	case owner != nil && (owner.Kind != "ZuulBuild" || owner.APIVersion != v1alpha1.GroupVersion.String()):
		return ""
	case build == nil:
		return orphanDeleted
	case owner != nil && owner.UID != build.UID:
		return orphanReplaced
	default:
		return ""
	}
}

// sweepRegularly deletes Pods that no event tells of: those whose build was deleted while nothing worked here, or that lost their owner reference, by
// `kubectl delete --cascade=orphan` or by way of a backup.
func (r *ZuulBuildReconciler) sweepRegularly(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
			r.logger.Error(err, "Pods without a build were not all found and deleted; trying again", "after", sweepInterval)
		}
	}, sweepInterval)
	return nil
}

func (r *ZuulBuildReconciler) sweep(ctx context.Context) error {
	pods := corev1.PodList{}
	if err := r.List(ctx, &pods, client.HasLabels{v1alpha1.LabelBuild}, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	var problems []error // one that cannot be deleted keeps no other
	for i := range pods.Items {
		problems = append(problems, r.sweepPod(ctx, &pods.Items[i]))
	}
	return errors.Join(problems...)
}

func (r *ZuulBuildReconciler) sweepPod(ctx context.Context, pod *corev1.Pod) error {
	if pod.DeletionTimestamp != nil || r.Clock.Since(pod.CreationTimestamp.Time) < orphanAge {
		return nil
	}
	if cause, err := r.orphanedIn(ctx, r, pod); err != nil || cause == "" {
		return err
	}
	// The cache may be late, the API server is not.
	cause, err := r.orphanedIn(ctx, r.Live, pod)
	if err != nil {
		return err
	}
	return r.deleteOrphan(ctx, pod, cause)
}

func (r *ZuulBuildReconciler) orphanedIn(ctx context.Context, reader client.Reader, pod *corev1.Pod) (string, error) {
	build := &v1alpha1.ZuulBuild{}
	err := reader.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: pod.Labels[v1alpha1.LabelBuild]}, build)
	if apierrors.IsNotFound(err) {
		return orphaned(pod, nil), nil
	}
	return orphaned(pod, build), err
}

// deleteOrphan deletes a Pod, and counts it, unless cause is "".
func (r *ZuulBuildReconciler) deleteOrphan(ctx context.Context, pod *corev1.Pod, cause string) error {
	if cause == "" {
		return nil
	}
	err := r.Delete(ctx, pod.DeepCopy(), client.Preconditions{UID: &pod.UID})
	if err == nil {
		r.Metrics.orphanDeleted(cause)
		r.logger.WithValues(logValues(pod)...).Info("Deleted a Pod without a build", "pod", pod.Name, "cause", cause)
	}
	return client.IgnoreNotFound(err)
}
