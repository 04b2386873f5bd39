package controllers

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// offlineParameter is what a Zuul parameter function sets to have the node of a build used no more; Jenkins' Gearman plugin acted on it.
const offlineParameter = "OFFLINE_NODE_WHEN_COMPLETE"

// Events of cordoning, on the Node and on the build.
const (
	eventCordoned     = "NodeCordoned"
	eventCordonFailed = "NodeNotCordoned"
)

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;patch

// cordon takes the node of a build that ends now out of use, where the build and its node class ask for it. It comes before the verdict is written,
// so that an interrupted round is repeated; that this build has done it is remembered on the Node in the same write, so that the repetition leaves a
// node alone that a person has uncordoned since.
func (r *ZuulBuildReconciler) cordon(ctx context.Context, build *v1alpha1.ZuulBuild) error {
	if !asksForOffline(build) {
		return nil
	}
	class, err := r.nodeClass(ctx, build.Spec.Node)
	if err != nil || class == nil || !class.Spec.CordonWhenComplete {
		return err
	}
	node := &corev1.Node{}
	err = r.Live.Get(ctx, types.NamespacedName{Name: build.Status.NodeName}, node)
	if err == nil {
		by := fmt.Sprintf("%s/%s/%s", build.Namespace, build.Name, build.UID)
		if node.Spec.Unschedulable || node.Annotations[v1alpha1.AnnotationCordonedBy] == by {
			return nil
		}
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}},"spec":{"unschedulable":true}}`, v1alpha1.AnnotationCordonedBy, by)
		err = r.Patch(ctx, node, client.RawPatch(types.MergePatchType, []byte(patch)))
	}
	if r.cordonMayPass(client.ObjectKeyFromObject(build), err) {
		return err
	}
	switch {
	case apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || serverFault(err): // which no repetition would cure: the verdict must not wait for it
		r.Recorder.Eventf(build, nil, corev1.EventTypeWarning, eventCordonFailed, "Cordon", "Node %s should be cordoned and is not: %v",
			build.Status.NodeName, err)
		return nil
	case err != nil:
		return client.IgnoreNotFound(err)
	}
	r.Recorder.Eventf(node, build, corev1.EventTypeNormal, eventCordoned, "Cordon", "Cordoned after build %s/%s of job %s, whose parameter %s asks for it (ZuulNodeClass %s)",
		build.Namespace, build.Name, build.Spec.Job, offlineParameter, class.Name)
	r.Recorder.Eventf(build, node, corev1.EventTypeNormal, eventCordoned, "Cordon", "Node %s was cordoned, as the build's parameter %s asks for (ZuulNodeClass %s)",
		node.Name, offlineParameter, class.Name)
	return nil
}

// cordonMayPass tells a right that an API server that has just started may not know of yet, or a webhook that does not answer. The verdict waits for that,
// but not for long: where the operator is not meant to cordon nodes, it waits for nothing. Since when is kept in memory alone, for before the verdict nothing is written.
func (r *ZuulBuildReconciler) cordonMayPass(build types.NamespacedName, err error) bool {
	unknownRight := apierrors.IsForbidden(err) && strings.Contains(err.Error(), ` resource "nodes" in API group `)
	if !unknownRight && !serverFault(err) {
		r.cordonWaits.Delete(build)
		return false
	}
	since, _ := r.cordonWaits.LoadOrStore(build, r.Clock.Now())
	if r.Clock.Since(since.(time.Time)) < cordonGrace {
		return true
	}
	r.cordonWaits.Delete(build)
	return false
}

// asksForOffline tells a build that ran somewhere and wants nothing more to run there.
func asksForOffline(build *v1alpha1.ZuulBuild) bool {
	value := build.Spec.Parameters[offlineParameter]
	return (value == "1" || strings.EqualFold(value, "true")) && build.Status.StartTime != nil && build.Status.NodeName != ""
}
