package controllers

import (
	"bytes"
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// +kubebuilder:rbac:groups="",resources=configmaps,verbs=get;create;delete

// ensureFiles makes the ConfigMap with the parameters that are files, before the Pod that mounts it: a Pod made first would wait for it on its node,
// and for ever if the operator ended in between. What an earlier round made is taken over. done ends the round.
func (r *ZuulBuildReconciler) ensureFiles(ctx context.Context, s *scope, files *corev1.ConfigMap) (done bool, err error) {
	switch err := r.Create(ctx, files.DeepCopy()); {
	case err == nil:
		return false, nil
	case !apierrors.IsAlreadyExists(err):
		return s.notCreated("ConfigMap of long parameters", err)
	}
	existing := &corev1.ConfigMap{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(files), existing); err != nil {
		s.after = shortestRequeue
		return true, client.IgnoreNotFound(err)
	}
	switch {
	case ownedBy(existing, s.build) && ptr.Deref(existing.Immutable, false) && maps.EqualFunc(existing.BinaryData, files.BinaryData, bytes.Equal):
		return false, nil
	case existing.Labels[v1alpha1.LabelBuild] != s.build.Name:
		s.end(failed(ReasonInvalidPod, "a ConfigMap named %s that does not belong to the build is in the way of its long parameters", existing.Name))
		return true, nil
	}
	// It is an earlier build's of the same name, or this build's from before its job's template changed. A Pod that exists may be about to mount it.
	s.after = shortestRequeue
	switch err := r.Live.Get(ctx, client.ObjectKeyFromObject(s.build), &corev1.Pod{}); {
	case err == nil:
		return true, r.adopt(ctx, s)
	case !apierrors.IsNotFound(err):
		return false, err
	}
	return true, client.IgnoreNotFound(r.Delete(ctx, existing, client.Preconditions{UID: &existing.UID}))
}
