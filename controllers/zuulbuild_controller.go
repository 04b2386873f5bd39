// Package controllers runs ZuulBuilds: objects become Pods, Pods become verdicts. What is decided is decided by pure functions in files of their own
// (pod.go, verdict.go, clocks.go, retention.go); the reconciler only reads, asks them, and writes.
package controllers

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
	"zuulbuild.dev/zuulbuild/capacity"
)

// Numbers gives out build numbers; see package buildnumber.
type Numbers interface {
	Next(ctx context.Context, job types.NamespacedName, name string) (int64, error)
}

// ZuulBuildReconciler makes one Pod for each ZuulBuild, gives one verdict on it and clears both away when their time is over.
type ZuulBuildReconciler struct {
	// Client reads from a cache that holds only Pods with the label zuulbuild.dev/build.
	client.Client
	// Live reads past the cache, for what a stale answer would make wrong.
	Live    client.Reader
	Numbers Numbers
	Builds  Builds
	// Pods is what this process knows of Pods, one memory for all terms in which it leads.
	Pods     *PodMemory
	Recorder events.EventRecorder
	// MaxBuilds is how many builds may have a Pod at once. Node classes and jobs may have limits of their own.
	MaxBuilds *capacity.Ceiling
	// BuildURL is the address of the page of a build.
	BuildURL func(*v1alpha1.ZuulBuild) string
	Clock    clock.PassiveClock
	Metrics  *Metrics // nil for none

	logger      logr.Logger // of the manager; for what happens in no round
	cordonWaits sync.Map    // by NamespacedName of a build: since when its node may not be cordoned
	writtenOver sync.Map    // by NamespacedName of a build: the resource version its status was last written from
	admission   admission
	retryDelays []time.Duration // nil: defaultRetryDelays, for which tests cannot wait
	podDelays   []time.Duration // nil: defaultPodDelays, likewise
	gatherFor   time.Duration   // 0: the constant, likewise
	explainWait time.Duration   // 0: the constant, likewise
}

// indexJobName finds the ZuulJob that goes by a Gearman name.
const indexJobName = "gearmanName"

// SetupIndexes registers what the controllers find objects by in the cache, once for all managers that share it.
func SetupIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	byName := func(object client.Object) []string { return []string{object.(*v1alpha1.ZuulJob).GearmanName()} }
	return errors.Join(
		indexer.IndexField(ctx, &v1alpha1.ZuulJob{}, indexJobName, byName),
		indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, indexRetryKey, indexRetries),
		indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, indexFinished, indexFinishedOf),
		indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, indexUnfinished, indexUnfinishedOf),
	)
}

// SetupWithManager registers the controllers. The cache must have the indexes of SetupIndexes.
func (r *ZuulBuildReconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.logger = mgr.GetLogger()
	if err := mgr.Add(manager.RunnableFunc(r.sweepRegularly)); err != nil {
		return err
	}
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error { r.Metrics.work(ctx, r.unfinished); return nil })); err != nil {
		return err
	}
	if err := (&finishedReconciler{r}).setup(mgr); err != nil {
		return err
	}
	controller := ctrl.NewControllerManagedBy(mgr).
		Named("zuulbuild").
		For(&v1alpha1.ZuulBuild{}).
		Owns(&corev1.Pod{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: 8}).
		WithLogConstructor(buildlog.Constructor(mgr, "zuulbuild", r.logValuesOf))
	r.setupAdmission(controller)
	return controller.Complete(r)
}

// logValuesOf a build that the cache does not show: its Pod may be there still.
func (r *ZuulBuildReconciler) logValuesOf(key types.NamespacedName) []any {
	pod := &corev1.Pod{}
	if err := r.Get(context.Background(), key, pod, client.UnsafeDisableDeepCopy); err != nil || pod.Labels[v1alpha1.LabelBuild] != key.Name {
		return buildlog.Values("", "", key)
	}
	return logValues(pod)
}

// logValues are for lines about the build that a Pod is of, or was.
func logValues(pod *corev1.Pod) []any {
	return buildlog.Values(pod.Annotations[v1alpha1.AnnotationUUID], pod.Annotations[v1alpha1.AnnotationJob],
		types.NamespacedName{Namespace: pod.Namespace, Name: pod.Labels[v1alpha1.LabelBuild]})
}

// +kubebuilder:rbac:groups=zuulbuild.dev,resources=zuulbuilds,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=zuulbuild.dev,resources=zuulbuilds/status,verbs=patch
// +kubebuilder:rbac:groups=zuulbuild.dev,resources=zuulbuilds/finalizers,verbs=update
// +kubebuilder:rbac:groups=zuulbuild.dev,resources=zuuljobs,verbs=get;list;watch
// +kubebuilder:rbac:groups=zuulbuild.dev,resources=zuulnodeclasses,verbs=list;watch
// +kubebuilder:rbac:groups=zuulbuild.dev,resources=zuuljobs/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch;create;delete;patch
// +kubebuilder:rbac:groups="",resources=nodes,verbs=list;watch
// +kubebuilder:rbac:groups="",resources=pods/log,verbs=get
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,verbs=get;list;create;update;patch;delete,namespace=zuulbuild-system
// +kubebuilder:rbac:groups="",resources=events,verbs=create,namespace=zuulbuild-system
// +kubebuilder:rbac:groups=apps,resources=deployments,resourceNames=zuulbuild,verbs=get,namespace=zuulbuild-system
// Who asks for metrics, and whether they may, with --metrics-secure:
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create

// Reconcile brings one build a step further: the steps are asked in order, and the first that has something to do or to wait for ends the round. The
// status is written once, at the end, and events are sent only if that write succeeded.
func (r *ZuulBuildReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	s := &scope{now: r.Clock.Now()}
	defer func() { r.endRound(request.NamespacedName, s) }()
	build := &v1alpha1.ZuulBuild{}
	if err := r.Get(ctx, request.NamespacedName, build); apierrors.IsNotFound(err) {
		return ctrl.Result{}, r.deleteLeftBehind(ctx, request.NamespacedName)
	} else if err != nil {
		return ctrl.Result{}, err
	}
	if build.DeletionTimestamp != nil {
		return ctrl.Result{}, nil
	}
	s.build = build.DeepCopy()
	for _, step := range []step{
		r.readJob, r.readClass, r.readPod, r.forceDelete, r.collect, r.readLosses, r.refuse, r.number, r.abort, r.delay, r.replacePod, r.admit,
		r.ensurePod, r.observe,
	} {
		done, err := step(ctx, s)
		if err != nil {
			return ctrl.Result{}, err
		}
		if done {
			break
		}
	}
	return ctrl.Result{RequeueAfter: s.after}, r.writeStatus(ctx, build, s)
}

// scope is what one round knows.
type scope struct {
	build  *v1alpha1.ZuulBuild     // a copy; its status is what will be written
	job    *v1alpha1.ZuulJob       // nil: there is none
	class  *v1alpha1.ZuulNodeClass // nil: there is none
	pod    *corev1.Pod             // nil: there is none
	losses []v1alpha1.ZuulBuild    // the attempts lost before this one, the newest first; not to be changed
	now    time.Time
	after  time.Duration // look again after

	waits   bool // for a slot
	refused bool // the API server did not take the Pod
}

// step does its part and tells whether the round ends with it.
type step func(context.Context, *scope) (done bool, err error)

// readJob finds the ZuulJob: by jobRef, or by the name Zuul calls it (the oldest, where two claim it).
func (r *ZuulBuildReconciler) readJob(ctx context.Context, s *scope) (bool, error) {
	if ref := s.build.Spec.JobRef; ref != nil {
		job := &v1alpha1.ZuulJob{}
		err := r.Get(ctx, types.NamespacedName{Namespace: s.build.Namespace, Name: ref.Name}, job)
		if err == nil {
			s.job = job
		}
		return false, client.IgnoreNotFound(err)
	}
	jobs := v1alpha1.ZuulJobList{}
	err := r.List(ctx, &jobs, client.InNamespace(s.build.Namespace), client.MatchingFields{indexJobName: s.build.Spec.Job})
	for i := range jobs.Items {
		job := &jobs.Items[i]
		if s.job == nil || cmp.Or(job.CreationTimestamp.Compare(s.job.CreationTimestamp.Time), cmp.Compare(job.Name, s.job.Name)) < 0 {
			s.job = job
		}
	}
	return false, err
}

// jobExists asks the API server for the ZuulJob of a build: the cache may not know one that was created together with the build yet.
func (r *ZuulBuildReconciler) jobExists(ctx context.Context, build *v1alpha1.ZuulBuild) (bool, error) {
	jobs := v1alpha1.ZuulJobList{}
	err := r.Live.List(ctx, &jobs, client.InNamespace(build.Namespace))
	return slices.ContainsFunc(jobs.Items, func(job v1alpha1.ZuulJob) bool {
		if build.Spec.JobRef != nil {
			return job.Name == build.Spec.JobRef.Name
		}
		return job.GearmanName() == build.Spec.Job
	}), err
}

// readPod finds the Pod of the build. Where the cache has none although there has been one, the API server is asked: a build must not be called
// lost, nor a second Pod be made, because a cache is late. A Pod that was seen to end by itself ended so, though it has been deleted since.
func (r *ZuulBuildReconciler) readPod(ctx context.Context, s *scope) (bool, error) {
	key := client.ObjectKeyFromObject(s.build)
	pod := &corev1.Pod{}
	err := r.Get(ctx, key, pod)
	if apierrors.IsNotFound(err) && r.hadPod(s.build) && !s.build.Complete() {
		err = r.Live.Get(ctx, key, pod)
	}
	if err == nil && ownedBy(pod, s.build) {
		s.pod = pod
		if !s.build.Complete() {
			r.Pods.remember(s.build, pod)
		}
	}
	if ended := r.Pods.endOf(s.build); ended != nil && !s.build.Complete() && (s.pod == nil || s.pod.DeletionTimestamp != nil || disruptedSince(ended, s.pod)) {
		s.pod = ended.DeepCopy()
	}
	return false, client.IgnoreNotFound(err)
}

// hadPod tells whether a Pod of the build has existed, besides those that were lost and are made again.
func (r *ZuulBuildReconciler) hadPod(build *v1alpha1.ZuulBuild) bool {
	return build.Status.PodName != "" || r.Pods.knows(build)
}

// number fills in the number of a build made by hand.
func (r *ZuulBuildReconciler) number(ctx context.Context, s *scope) (bool, error) {
	if s.build.Spec.Number != 0 || s.job == nil {
		return false, nil
	}
	number, err := r.Numbers.Next(ctx, client.ObjectKeyFromObject(s.job), s.build.Spec.Job)
	if err != nil {
		return false, err
	}
	before := s.build.DeepCopy()
	s.build.Spec.Number = number
	return true, r.Patch(ctx, s.build, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// refuse ends a build that can have no Pod.
func (r *ZuulBuildReconciler) refuse(ctx context.Context, s *scope) (bool, error) {
	switch {
	case s.pod != nil || s.build.Spec.Abort:
		return false, nil
	case s.build.Spec.RequestError != "":
		s.end(&verdict{v1alpha1.PhaseFailed, ResultInvalidRequest, ReasonInvalidRequest, s.build.Spec.RequestError})
	case s.job == nil && !r.hadPod(s.build):
		if exists, err := r.jobExists(ctx, s.build); err != nil || exists {
			s.after = shortestRequeue
			return true, err
		}
		if old, err := r.viewIsOld(ctx, s); old || err != nil { // it may have had its Pod
			return old, err
		}
		s.end(failed(ReasonJobNotFound, "no ZuulJob in namespace %s goes by the name %q", s.build.Namespace, s.build.Spec.Job))
	default:
		return false, nil
	}
	return true, nil
}

// abort deletes the Pod of a build that is to stop, and ends the build when the Pod is gone.
func (r *ZuulBuildReconciler) abort(ctx context.Context, s *scope) (bool, error) {
	if !s.build.Spec.Abort {
		return false, nil
	}
	if s.pod == nil && !r.hadPod(s.build) {
		// The cache may not know a Pod that an operator before this one made.
		pod := &corev1.Pod{}
		if err := r.Live.Get(ctx, client.ObjectKeyFromObject(s.build), pod); err == nil {
			r.Pods.remember(s.build, pod)
			s.after = shortestRequeue
			return true, nil
		} else if !apierrors.IsNotFound(err) {
			return false, err
		}
	}
	if s.pod == nil || podTerminal(s.pod) || s.unreachableIn() <= 0 {
		s.recordPod()
		s.end(abortVerdict(&s.build.Spec))
		return true, nil
	}
	if s.pod.DeletionTimestamp == nil {
		s.after = shortestRequeue
		return true, r.deletePod(ctx, s.pod)
	}
	// Most Pods go within moments, and a write in between would cost more than it tells.
	if s.after = askedToGo(s.pod).Add(abortingAfter).Sub(s.now); s.after > 0 {
		return true, nil
	}
	s.after = nextDeadline(s.facts())
	s.build.Status.Phase = v1alpha1.PhaseAborting
	return true, nil
}

func abortVerdict(spec *v1alpha1.ZuulBuildSpec) *verdict {
	if spec.AbortReason == v1alpha1.AbortAbandoned {
		return lost(ReasonAbandoned, "the Gearman job behind the build is gone, so nobody waits for it")
	}
	return &verdict{v1alpha1.PhaseAborted, ResultAborted, ReasonAborted, "the build was stopped"}
}

// observe puts what the Pod tells into the status: that it started, what it waits for, or how it ended.
func (r *ZuulBuildReconciler) observe(ctx context.Context, s *scope) (bool, error) {
	s.noteGates()
	if runsOut(s.facts()) {
		if gone, err := r.readPodAnew(ctx, s); gone || err != nil {
			return true, err
		}
	}
	f := s.facts()
	if v := decide(f); v != nil && s.replaceable(v) {
		s.losePod(v)
		return true, nil
	} else if v != nil {
		s.recordPod()
		s.end(v)
		return true, nil
	}
	if why := mustEnd(f); why != "" {
		if err := r.expire(ctx, s, why); err != nil {
			return false, err
		}
	}
	s.recordPod()
	s.after = nextDeadline(f)
	return true, nil
}

// readPodAnew asks the API server for the Pod, as it is now. Where it is gone, the cache has yet to show so, and the round is to come again.
func (r *ZuulBuildReconciler) readPodAnew(ctx context.Context, s *scope) (gone bool, err error) {
	pod := &corev1.Pod{}
	if err := r.Live.Get(ctx, client.ObjectKeyFromObject(s.build), pod); client.IgnoreNotFound(err) != nil {
		return false, err
	}
	if pod.UID != s.pod.UID {
		s.after = shortestRequeue
		return true, nil
	}
	s.pod = pod
	return false, nil
}
