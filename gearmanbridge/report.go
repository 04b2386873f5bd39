package gearmanbridge

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
)

// reporter tells whoever waits for a build what its status says, and sees to builds that nobody waits for. Each Gearman server has one of its own: a
// server that does not read holds up whoever writes to it.
type reporter struct {
	bridge *Bridge
	server string // the builds are those that came from it; "" for those that came from none that is served
	// changed wakes it for a build whose assignments changed.
	changed chan event.GenericEvent
}

func (b *Bridge) newReporter(server string) *reporter {
	return &reporter{bridge: b, server: server, changed: make(chan event.GenericEvent)}
}

// reporterOf the builds that came from a server.
func (b *Bridge) reporterOf(server string) *reporter {
	if of := b.reporters[server]; of != nil {
		return of
	}
	return b.reporters[""]
}

func (r *reporter) setup(mgr ctrl.Manager) error {
	name := "report"
	if r.server != "" {
		name += "-" + r.server
	}
	its := predicate.NewPredicateFuncs(func(object client.Object) bool {
		return r.bridge.reporterOf(object.GetLabels()[v1alpha1.LabelGearmanServer]) == r
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named(name).
		For(&v1alpha1.ZuulBuild{}, builder.WithPredicates(its, r.bridge.noteCompletions())).
		WatchesRawSource(source.Channel(r.changed, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 8}).
		WithLogConstructor(buildlog.Constructor(mgr, name, r.bridge.logValuesOf)).
		Complete(r)
}

// notify has the reporter of a server look at a build that came from it.
func (b *Bridge) notify(ctx context.Context, server string, key types.NamespacedName) {
	build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	select {
	case b.reporterOf(server).changed <- event.GenericEvent{Object: build}:
	case <-ctx.Done():
	}
}

// Reconcile sends what is due for one build.
func (r *reporter) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	build := &v1alpha1.ZuulBuild{}
	err := r.bridge.Client.Get(ctx, request.NamespacedName, build)
	if apierrors.IsNotFound(err) {
		return r.missing(ctx, request.NamespacedName)
	} else if err != nil {
		return ctrl.Result{}, err
	}
	listeners := r.bridge.assignments.of(request.NamespacedName)
	for _, a := range listeners {
		if err := r.bridge.report(ctx, a, build); err != nil {
			r.bridge.Logger.With(a.logValues()...).Info("The job was lost before the build could be reported", "gearmanServer", a.server, "error", err)
		}
	}
	return r.abandon(ctx, build, len(listeners) > 0)
}

// report sends a build's progress to one listener: that it runs, once, and how it ended, once.
func (b *Bridge) report(ctx context.Context, a *assignment, build *v1alpha1.ZuulBuild) error {
	a.sending.Lock()
	defer a.sending.Unlock()
	if !a.started || a.job.Err() != nil {
		return nil
	}
	if begun := a.existing(); begun.UID != build.UID {
		return b.finishDeleted(a, begun)
	}
	data := b.describe(build)
	switch {
	case build.Complete():
		return b.finish(a, build, data)
	case build.Status.StartTime != nil && !a.running:
		if err := a.job.Data(data.encode()); err != nil {
			return err
		}
		a.running = true
		return b.sendStatus(ctx, a, build)
	}
	return nil
}

// finish sends the whole description with the result, then the one finishing packet. A build that ended without a result, by the infrastructure's
// fault, is a WORK_FAIL, at which Zuul runs the job again; so is one that was stopped, as the launcher document asks, though with its result.
func (b *Bridge) finish(a *assignment, build *v1alpha1.ZuulBuild, data workData) (err error) {
	defer func() { b.reported(a, build, data.Result, err) }()
	if err := a.job.Data(data.encode()); err != nil {
		return err
	}
	if data.Result == "" || build.Status.Phase == v1alpha1.PhaseAborted {
		return a.job.Fail()
	}
	return a.job.Complete(data.encode())
}

// reported counts, traces and logs the end of a build that was sent to a listener, unless err says that it was not.
func (b *Bridge) reported(a *assignment, build *v1alpha1.ZuulBuild, result string, err error) {
	if err != nil {
		return
	}
	b.metrics.reported(a, result)
	b.Tracer.Reported(a.reported(build))
	b.Logger.With(buildlog.Of(build)...).Info("Build reported", "gearmanServer", a.server, "phase", build.Status.Phase, "result", result)
}

// missing: somebody deleted the ZuulBuild, which stops the build.
func (r *reporter) missing(ctx context.Context, key types.NamespacedName) (ctrl.Result, error) {
	r.bridge.alone.set(key, false)
	listeners := r.bridge.assignments.of(key)
	if len(listeners) == 0 {
		return ctrl.Result{}, nil
	}
	// The cache may be late for a build that was just created.
	live := &v1alpha1.ZuulBuild{}
	if err := r.bridge.Live.Get(ctx, key, live); !apierrors.IsNotFound(err) {
		return ctrl.Result{}, err
	}
	for _, a := range listeners {
		a.sending.Lock()
		if a.started {
			if err := r.bridge.finishDeleted(a, a.existing()); err != nil {
				r.bridge.Logger.With(a.logValues()...).Info("The end of a deleted build could not be sent", "gearmanServer", a.server, "error", err)
			}
		}
		a.sending.Unlock()
	}
	return ctrl.Result{}, nil
}

// finishDeleted ends the job of a ZuulBuild that is no more. a.sending is held.
func (b *Bridge) finishDeleted(a *assignment, build *v1alpha1.ZuulBuild) error {
	deleted := build.DeepCopy()
	deleted.Status.Phase, deleted.Status.Result = v1alpha1.PhaseAborted, "ABORTED"
	deleted.Status.Reason, deleted.Status.Message = "Aborted", "the ZuulBuild was deleted"
	return b.finish(a, deleted, b.describe(deleted))
}

// strangerCheck is how often it is looked whether the replica that took a build is still there. For builds that their server is asked about, alone.go
// looks more often.
const strangerCheck = time.Minute

// unaskedCheck is how often it is looked whether a server that should have been asked long ago was.
const unaskedCheck = 200 * time.Millisecond

// abandon stops a build that came from Gearman and that nobody has waited for during the grace period: Zuul has started another in its place.
func (r *reporter) abandon(ctx context.Context, build *v1alpha1.ZuulBuild, listened bool) (ctrl.Result, error) {
	fromGearman := build.Labels[v1alpha1.LabelGearmanServer] != ""
	unheard := fromGearman && !listened && !build.Complete() && !build.Spec.Abort
	responsible := r.bridge.responsible(build)
	since := r.bridge.alone.set(client.ObjectKeyFromObject(build), unheard && responsible)
	switch {
	case unheard && !responsible:
		return ctrl.Result{RequeueAfter: strangerCheck}, nil
	case since.IsZero():
		return ctrl.Result{}, nil
	}
	if left := r.bridge.graceOf(build) - time.Since(since); left > 0 {
		return ctrl.Result{RequeueAfter: left}, nil
	}
	if r.bridge.unasked(build) {
		return ctrl.Result{RequeueAfter: unaskedCheck}, nil
	}
	if r.bridge.handsOver(build) {
		r.bridge.Logger.With(buildlog.Of(build)...).Info("The Gearman server cannot be asked about the lost job of the build; leaving that to the replica that leads", "gearmanServer", r.server)
		return ctrl.Result{}, r.bridge.handOver(ctx, build)
	}
	r.bridge.Logger.With(buildlog.Of(build)...).Info("Nobody waits for the build any more; stopping it", "gearmanServer", r.server)
	// From an old view it might be stopped, and counted, a second time. The new one is on its way to the cache then, and calls again.
	err := r.bridge.abort(ctx, build, v1alpha1.AbortAbandoned, client.MergeFromWithOptimisticLock{})
	r.bridge.metrics.abandoned(build, err)
	if apierrors.IsConflict(err) {
		err = nil
	}
	return ctrl.Result{}, err
}
