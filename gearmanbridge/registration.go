package gearmanbridge

import (
	"context"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
)

// registrar keeps the functions on the Gearman servers what the jobs and classes say, and tells each job.
type registrar struct {
	bridge *Bridge
	// fromNodes are the classes that exist because a Node carries the label. A class stays when its last Node goes, because a function stays
	// registered while its job exists: a pool that reboots must not become NOT_REGISTERED, which is final for Zuul.
	fromNodes map[string]bool
	// inherited are the classes that the status of the jobs told of when this process began, and no object does: their Nodes may be away just now, as
	// while a pool is replaced node by node. Who makes an object of the name takes the class over; it goes with the object.
	inherited map[string]bool
}

// setup makes every change of a job, a class or a Node's labels one and the same request: the table is always made whole.
func (r *registrar) setup(mgr ctrl.Manager) error {
	all := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: "functions"}}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("registration").
		Watches(&v1alpha1.ZuulJob{}, all).
		Watches(&v1alpha1.ZuulNodeClass{}, all).
		Watches(&corev1.Node{}, all).
		WatchesRawSource(source.Channel(r.bridge.replan, all)).
		Complete(r)
}

// Reconcile makes the table of functions, gives it to every session, and writes the status of the jobs whose lot changed.
func (r *registrar) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	jobs := v1alpha1.ZuulJobList{}
	if err := r.bridge.Client.List(ctx, &jobs); err != nil {
		return ctrl.Result{}, err
	}
	classes := v1alpha1.ZuulNodeClassList{}
	if err := r.bridge.Client.List(ctx, &classes); err != nil {
		return ctrl.Result{}, err
	}
	names, err := r.classNames(ctx, jobs.Items, classes.Items)
	if err != nil {
		return ctrl.Result{}, err
	}
	functions, registrations := plan(jobs.Items, names)
	if err := r.bridge.setFunctions(functions, capacity.NewLimits(r.bridge.MaxBuilds.Builds(), jobs.Items, classes.Items)); err != nil {
		return ctrl.Result{}, err
	}
	if !r.bridge.leads.Load() {
		return ctrl.Result{}, nil // the leader writes
	}
	for i := range jobs.Items {
		job := &jobs.Items[i]
		if err := r.writeStatus(ctx, job, registrations[client.ObjectKeyFromObject(job)]); err != nil {
			return ctrl.Result{}, err
		}
	}
	return ctrl.Result{}, nil
}

// classNames are those of all node classes there are, with an object or only with Nodes, now or before, sorted.
func (r *registrar) classNames(ctx context.Context, jobs []v1alpha1.ZuulJob, objects []v1alpha1.ZuulNodeClass) ([]string, error) {
	nodes := corev1.NodeList{}
	if err := r.bridge.Client.List(ctx, &nodes, client.HasLabels{v1alpha1.LabelNode}); err != nil {
		return nil, err
	}
	if r.fromNodes == nil {
		r.fromNodes, r.inherited = map[string]bool{}, registeredClasses(jobs)
	}
	for i := range nodes.Items {
		if name := nodes.Items[i].Labels[v1alpha1.LabelNode]; name != "" {
			r.fromNodes[name] = true
		}
	}
	var names []string
	for i := range objects {
		names = append(names, objects[i].GearmanName())
		delete(r.inherited, objects[i].GearmanName())
	}
	names = slices.AppendSeq(names, maps.Keys(r.fromNodes))
	names = slices.AppendSeq(names, maps.Keys(r.inherited))
	slices.Sort(names)
	return slices.Compact(names), nil
}

// registeredClasses are those that the jobs' status tells of and that may have come from a Node's label. Only a job that lists no classes of its own is
// a witness, and only while its status is about what it is now.
func registeredClasses(jobs []v1alpha1.ZuulJob) map[string]bool {
	classes := map[string]bool{}
	for i := range jobs {
		job := &jobs[i]
		registered := meta.FindStatusCondition(job.Status.Conditions, v1alpha1.ConditionRegistered)
		if len(job.Spec.Nodes) > 0 || registered == nil || registered.ObservedGeneration != job.Generation {
			continue
		}
		for _, function := range job.Status.Functions {
			class, ok := strings.CutPrefix(function, target{job: job.GearmanName()}.function()+":")
			if ok && class != "" && len(validation.IsValidLabelValue(class)) == 0 {
				classes[class] = true
			}
		}
	}
	return classes
}

// writeStatus tells a job what became of it, where that changed.
func (r *registrar) writeStatus(ctx context.Context, job *v1alpha1.ZuulJob, registration registration) error {
	after := job.DeepCopy()
	after.Status.Functions = registration.functions
	status := metav1.ConditionFalse
	if registration.registered() {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&after.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionRegistered, Status: status, Reason: registration.reason, Message: truncate(registration.message, 32*1024),
		ObservedGeneration: job.Generation,
	})
	if equality.Semantic.DeepEqual(job.Status, after.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.bridge.Client.Status().Patch(ctx, after, client.MergeFrom(job)))
}
