package controllers

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
)

const (
	// gatherFor is how long the ends of a job's builds are gathered before they are looked at together. So thousands of finished builds that are kept
	// cost one look in this time, however many more end in it.
	gatherFor = 5 * time.Second
	// lookAgain is the longest time between two looks at a job that has finished builds.
	lookAgain = time.Hour
)

// finishedReconciler sees to the finished builds of a job together: which of them are still kept, and how long one takes. A request names a job by its namespace and by what
// Zuul calls it, so that builds whose ZuulJob is gone are seen to as well.
type finishedReconciler struct{ *ZuulBuildReconciler }

func (r *finishedReconciler) setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("finished").
		Watches(&v1alpha1.ZuulBuild{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, queue requests) { r.lookSoon(queue, e.Object) },
			DeleteFunc: func(_ context.Context, e event.DeleteEvent, queue requests) { r.lookSoon(queue, e.Object) },
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, queue requests) {
				before, after := e.ObjectOld.(*v1alpha1.ZuulBuild), e.ObjectNew.(*v1alpha1.ZuulBuild)
				wish := v1alpha1.AnnotationKeepPod
				if !before.Complete() || before.Annotations[wish] != after.Annotations[wish] {
					r.lookSoon(queue, after)
				}
			},
		}).
		Watches(&v1alpha1.ZuulJob{}, handler.Funcs{
			CreateFunc: func(_ context.Context, e event.CreateEvent, queue requests) { r.lookSoon(queue, e.Object) },
			UpdateFunc: func(_ context.Context, e event.UpdateEvent, queue requests) {
				if e.ObjectOld.GetGeneration() != e.ObjectNew.GetGeneration() {
					r.lookSoon(queue, e.ObjectNew)
				}
			},
		}).
		WithLogConstructor(func(request *reconcile.Request) logr.Logger {
			logger := mgr.GetLogger().WithValues("controller", "finished")
			if request != nil { // which names a job by what Zuul calls it
				logger = logger.WithValues("namespace", request.Namespace, buildlog.KeyJob, request.Name)
			}
			return logger
		}).
		Complete(r)
}

type requests = workqueue.TypedRateLimitingInterface[reconcile.Request]

// lookSoon asks for a look at the job of a build that is complete, or at a job. One that is asked for already is not put off.
func (r *finishedReconciler) lookSoon(queue requests, object client.Object) {
	name := ""
	switch object := object.(type) {
	case *v1alpha1.ZuulBuild:
		if object.Complete() {
			name = object.Spec.Job
		}
	case *v1alpha1.ZuulJob:
		name = object.GearmanName()
	}
	if name != "" {
		queue.AddAfter(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: object.GetNamespace(), Name: name}}, cmp.Or(r.gatherFor, gatherFor))
	}
}

// indexFinished finds the complete builds of a job by its Gearman name.
const indexFinished = "finishedJob"

func indexFinishedOf(object client.Object) []string {
	if build := object.(*v1alpha1.ZuulBuild); build.Complete() {
		return []string{build.Spec.Job}
	}
	return nil
}

// Reconcile looks at the finished builds of one job.
func (r *finishedReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	builds, err := r.finished(ctx, request.NamespacedName)
	if err != nil || len(builds) == 0 {
		return ctrl.Result{}, err
	}
	job, err := r.jobOf(ctx, builds)
	if err != nil {
		return ctrl.Result{}, err
	}
	now := r.Clock.Now()
	gone, next := keepingOf(job).expired(builds, now)
	changed, notDeleted := r.deleteBuilds(ctx, gone)
	left, notEstimated := r.estimate(ctx, job, builds, now)
	if err := errors.Join(notDeleted, notEstimated); err != nil {
		return ctrl.Result{}, err
	}
	after := lookAgain
	if changed {
		after = gatherFor
	}
	if left > 0 {
		after = min(after, left)
	}
	if !next.IsZero() {
		after = min(after, max(next.Sub(now), shortestRequeue))
	}
	return ctrl.Result{RequeueAfter: after}, nil
}

// finished are the complete builds of a job that nobody has deleted yet; not to be changed.
func (r *finishedReconciler) finished(ctx context.Context, job types.NamespacedName) ([]v1alpha1.ZuulBuild, error) {
	builds := v1alpha1.ZuulBuildList{}
	err := r.List(ctx, &builds, client.InNamespace(job.Namespace), client.MatchingFields{indexFinished: job.Name}, client.UnsafeDisableDeepCopy)
	return builds.Items, err
}

// jobOf finds the ZuulJob of builds that have a job name in common: the one that the newest of them refers to if it goes by that name, else the one that does. Who makes a
// build by hand may let it refer to any job, which has no say in what is kept of this one.
func (r *finishedReconciler) jobOf(ctx context.Context, builds []v1alpha1.ZuulBuild) (*v1alpha1.ZuulJob, error) {
	newest := &builds[0]
	for i := range builds {
		if newestFirst(&builds[i], newest) < 0 {
			newest = &builds[i]
		}
	}
	name := newest.Spec.Job
	s := &scope{build: newest}
	_, err := r.readJob(ctx, s)
	if err != nil || newest.Spec.JobRef == nil || s.job != nil && s.job.GearmanName() == name {
		return s.job, err
	}
	s = &scope{build: &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: newest.Namespace}, Spec: v1alpha1.ZuulBuildSpec{Job: name}}}
	_, err = r.readJob(ctx, s)
	return s.job, err
}

// deleteBuilds deletes builds as they were seen, and tells whether one has changed since: it may have been annotated, so it is to be looked at again
// first. Their Pods go with them. A build whose Pod has not ended stays until that is gone, as on a node that does not answer: without its build the Pod would count as one
// that runs.
func (r *finishedReconciler) deleteBuilds(ctx context.Context, gone []expiry) (changed bool, err error) {
	for _, expiry := range gone {
		build := expiry.build
		if build.DeletionTimestamp != nil {
			continue
		}
		if stays, problem := r.podStays(ctx, build); stays || problem != nil {
			err = errors.Join(err, problem)
			continue
		}
		named := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: build.Namespace, Name: build.Name}}
		switch problem := r.Delete(ctx, named, client.Preconditions{UID: &build.UID, ResourceVersion: &build.ResourceVersion}); {
		case problem == nil:
			r.Metrics.buildDeleted(expiry.cause)
		case apierrors.IsConflict(problem):
			changed = true
		case !apierrors.IsNotFound(problem):
			err = errors.Join(err, problem)
		}
	}
	return changed, err
}

// podStays tells whether the cache shows the Pod of a build, not ended.
func (r *finishedReconciler) podStays(ctx context.Context, build *v1alpha1.ZuulBuild) (bool, error) {
	pod := &corev1.Pod{}
	if err := r.Get(ctx, client.ObjectKeyFromObject(build), pod, client.UnsafeDisableDeepCopy); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return ownedBy(pod, build) && !podTerminal(pod), nil
}
