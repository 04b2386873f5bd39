package controllers

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
)

// A build gets its Pod only while each of its limits has room. What has a slot is counted from the objects: the unfinished builds that have or had a
// Pod. The others wait for their turn. Builds that were grabbed from a Gearman server come before those made by hand, because room was counted for
// them when they were grabbed; among each, the oldest comes first. That starves nobody: a build made by hand that waits does not keep the bridge from
// grabbing, and the bridge grabs nothing while a build that it has grabbed waits for the last slot. So where both want the slots that become free, one
// goes to the oldest build made by hand, which is there at once, and the next to the one that Zuul's server gives out meanwhile.

// Builds counts the builds there are; see capacity.Builds.
type Builds interface {
	Occupied(*capacity.Limits) *capacity.Usage
	Settled(key types.NamespacedName, uid types.UID) (settled, known bool)
	Unfinished() []types.NamespacedName
	OnFreed(func()) (stop func())
	WaitForSync(context.Context) bool
}

const (
	// headRequeue is how often the first build that waits asks again, whether it was called or not.
	headRequeue = time.Minute
	// explainWait is how long a build waits before its status says for what. Most get their turn sooner, and what a build costs the API server is
	// bounded: the page of the build and kubectl show it as Queued anyhow.
	explainWait = time.Minute
	// assumedUnknown is how long a Pod is assumed of which the cache shows neither it nor its build, whatever else has their name.
	assumedUnknown = time.Minute
)

// admission decides which build may have its Pod. Its lock makes the concurrent rounds take turns.
type admission struct {
	mu     sync.Mutex
	limits *capacity.Limits // nil: to be read anew
	// assumed are the builds that may have a Pod which the cache does not show yet. They only add caution: an entry goes when the cache has caught up.
	assumed map[types.UID]assumption
	waiting queue
	begun   bool
	call    func(reconcile.Request) // has a build looked at; nil before the controller has begun
}

type assumption struct {
	candidate
	since time.Time
}

// candidate is what admission keeps in mind of a build.
type candidate struct {
	*v1alpha1.ZuulBuild // without what it does not count by, which may be long
}

func newCandidate(build *v1alpha1.ZuulBuild) candidate {
	return candidate{&v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: build.Namespace, Name: build.Name, UID: build.UID, CreationTimestamp: build.CreationTimestamp,
			Labels: map[string]string{v1alpha1.LabelGearmanServer: build.Labels[v1alpha1.LabelGearmanServer]},
		},
		Spec: v1alpha1.ZuulBuildSpec{Job: build.Spec.Job, JobRef: build.Spec.JobRef, Node: build.Spec.Node},
	}}
}

func (c candidate) key() types.NamespacedName { return client.ObjectKeyFromObject(c.ZuulBuild) }

// rank is 0 for a build that was grabbed and 1 for one made by hand.
func (c candidate) rank() int {
	if c.Labels[v1alpha1.LabelGearmanServer] != "" {
		return 0
	}
	return 1
}

// compare is negative if the build comes before the other one.
func (c candidate) compare(other candidate) int {
	return cmp.Or(cmp.Compare(c.rank(), other.rank()), c.CreationTimestamp.Compare(other.CreationTimestamp.Time),
		cmp.Compare(c.Name, other.Name), cmp.Compare(c.Namespace, other.Namespace))
}

// queue is the builds that wait, in their order.
type queue struct {
	order []candidate
	byKey map[types.NamespacedName]candidate
}

func (q *queue) add(c candidate) {
	q.remove(c.key())
	if q.byKey == nil {
		q.byKey = map[types.NamespacedName]candidate{}
	}
	place, _ := q.place(c)
	q.order = slices.Insert(q.order, place, c)
	q.byKey[c.key()] = c
}

// remove takes a build out, and tells whether it was there.
func (q *queue) remove(key types.NamespacedName) bool {
	c, waits := q.byKey[key]
	if waits {
		place, _ := q.place(c)
		q.order = slices.Delete(q.order, place, place+1)
		delete(q.byKey, key)
	}
	return waits
}

// place is how many are before a build, and whether it is in the queue itself.
func (q *queue) place(c candidate) (int, bool) {
	return slices.BinarySearchFunc(q.order, c, candidate.compare)
}

// ask whether a build may have its Pod. If not it waits, and full tells the limit it waits for; first that no other is before it.
func (a *admission) ask(builds Builds, build *v1alpha1.ZuulBuild, now time.Time) (full string, first bool) {
	if _, assumed := a.assumed[build.UID]; assumed {
		return "", false
	}
	asking := newCandidate(build)
	if before, waits := a.waiting.byKey[asking.key()]; waits && before.UID != build.UID { // it is gone, and its place with it
		a.waiting.remove(asking.key())
		a.callNext(builds, now)
	}
	place, waits := a.waiting.place(asking)
	used := a.used(builds, now)
	for range a.withRoom(used, a.waiting.order[:place]) { // leaves room for those before
	}
	full = a.limits.Full(used, a.limits.ScopeOf(build))
	if full != "" {
		if !waits {
			a.waiting.add(asking)
		}
		if place == 0 { // what it has found to be free by now may be for others
			a.callWithRoom(used)
		}
		return full, place == 0
	}
	if a.assumed == nil {
		a.assumed = map[types.UID]assumption{}
	}
	a.assumed[build.UID] = assumption{asking, now}
	if a.waiting.remove(asking.key()) {
		a.callFirst()
	}
	return "", false
}

// used counts what has a slot, and forgets the assumptions that the cache shows.
func (a *admission) used(builds Builds, now time.Time) *capacity.Usage {
	used := builds.Occupied(a.limits)
	for uid, assumed := range a.assumed {
		settled, known := builds.Settled(assumed.key(), uid)
		if settled || !known && now.Sub(assumed.since) >= assumedUnknown {
			delete(a.assumed, uid)
		} else {
			used.Add(a.limits.ScopeOf(assumed.ZuulBuild))
		}
	}
	return used
}

// settle forgets what was assumed of a build if the cache shows it.
func (a *admission) settle(builds Builds, build types.UID) {
	if assumed, is := a.assumed[build]; is {
		if settled, _ := builds.Settled(assumed.key(), build); settled {
			delete(a.assumed, build)
		}
	}
}

// withRoom are the builds that could have their Pods now, one after the other. Each is added to those used.
func (a *admission) withRoom(used *capacity.Usage, candidates []candidate) iter.Seq[candidate] {
	return func(yield func(candidate) bool) {
		for _, c := range candidates {
			scope := a.limits.ScopeOf(c.ZuulBuild)
			switch {
			case !a.limits.Room(used, capacity.Scope{}):
				return // nor is there any for the others
			case a.limits.Room(used, scope):
				used.Add(scope)
				if !yield(c) {
					return
				}
			}
		}
	}
}

// callNext has the builds that may have room now looked at.
func (a *admission) callNext(builds Builds, now time.Time) {
	if a.call == nil || a.limits == nil || len(a.waiting.order) == 0 {
		return
	}
	a.callWithRoom(a.used(builds, now))
	a.callFirst()
}

func (a *admission) callWithRoom(used *capacity.Usage) {
	if a.call == nil {
		return
	}
	for c := range a.withRoom(used, a.waiting.order) {
		a.call(reconcile.Request{NamespacedName: c.key()})
	}
}

// callFirst has the first build that waits looked at, which then asks again from time to time.
func (a *admission) callFirst() {
	if a.call != nil && len(a.waiting.order) > 0 {
		a.call(reconcile.Request{NamespacedName: a.waiting.order[0].key()})
	}
}

// setupAdmission has the builds that wait called when there may be room for them.
func (r *ZuulBuildReconciler) setupAdmission(controller *builder.Builder) {
	freed := func() {
		r.admission.mu.Lock()
		defer r.admission.mu.Unlock()
		r.admission.callNext(r.Builds, r.Clock.Now())
	}
	limitsChanged := func(ctx context.Context) {
		r.admission.mu.Lock()
		defer r.admission.mu.Unlock()
		r.admission.limits = nil
		if err := r.readLimits(ctx); err != nil {
			ctrl.LoggerFrom(ctx).Error(err, "Changed limits are not read yet")
		}
		r.admission.callNext(r.Builds, r.Clock.Now())
	}
	changed := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		limitsChanged(ctx)
		return nil
	})
	specification := builder.WithPredicates(predicate.GenerationChangedPredicate{})
	controller.Watches(&v1alpha1.ZuulJob{}, changed, specification)
	controller.Watches(&v1alpha1.ZuulNodeClass{}, changed, specification)
	controller.WatchesRawSource(source.Func(func(ctx context.Context, requests workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		r.admission.mu.Lock()
		defer r.admission.mu.Unlock()
		r.admission.call = requests.Add
		context.AfterFunc(ctx, r.Builds.OnFreed(freed)) // the builds and the ceiling may outlive this controller
		context.AfterFunc(ctx, r.MaxBuilds.OnChange(func() { limitsChanged(ctx) }))
		return nil
	}))
}

// admit holds back the Pod of a build until there is room for it.
func (r *ZuulBuildReconciler) admit(ctx context.Context, s *scope) (bool, error) {
	if s.pod != nil || r.hadPod(s.build) {
		return false, nil
	}
	if !r.Builds.WaitForSync(ctx) {
		return false, context.Cause(ctx)
	}
	r.admission.mu.Lock()
	defer r.admission.mu.Unlock()
	if err := errors.Join(r.beginAdmission(ctx, s.now), r.readLimits(ctx)); err != nil {
		return false, err
	}
	if settled, _ := r.Builds.Settled(client.ObjectKeyFromObject(s.build), s.build.UID); settled {
		s.after = shortestRequeue // what counts the slots has not heard yet that its lost Pod is gone, and would take that one for the next
		return true, nil
	}
	full, first := r.admission.ask(r.Builds, s.build, s.now)
	if full == "" {
		return false, nil
	}
	s.waits = true
	if first {
		s.after = headRequeue
	}
	if left := s.build.CreationTimestamp.Add(cmp.Or(r.explainWait, explainWait)).Sub(s.now); left > 0 {
		s.after = left
	} else {
		s.wait(ReasonCapacityReached, "waits for a slot: "+full)
		meta.RemoveStatusCondition(&s.build.Status.Conditions, v1alpha1.ConditionPodScheduled) // the clock of what refused its Pod before begins anew
	}
	return true, nil
}

// endRound takes a build out of the queue that waits no more, and takes the slot back of one that turned out to get no Pod. What was assumed of a build
// is forgotten here, too, as soon as the cache shows it: while nobody asks for room the build may be deleted, and then nothing is left to be shown.
func (r *ZuulBuildReconciler) endRound(key types.NamespacedName, s *scope) {
	a := &r.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	left := !s.waits && a.waiting.remove(key)
	if s.refused {
		delete(a.assumed, s.build.UID)
		left = true
	} else if s.build != nil {
		a.settle(r.Builds, s.build.UID)
	}
	if left {
		a.callNext(r.Builds, s.now)
	}
}

// readLimits reads them unless it is known that they have not changed.
func (r *ZuulBuildReconciler) readLimits(ctx context.Context) error {
	if r.admission.limits != nil {
		return nil
	}
	jobs, classes := v1alpha1.ZuulJobList{}, v1alpha1.ZuulNodeClassList{}
	err := errors.Join(r.List(ctx, &jobs, client.UnsafeDisableDeepCopy), r.List(ctx, &classes, client.UnsafeDisableDeepCopy))
	if err == nil {
		limits := capacity.NewLimits(r.MaxBuilds.Builds(), jobs.Items, classes.Items)
		r.admission.limits = &limits
	}
	return err
}

// beginAdmission finds, once, what an operator before this one has decided and the cache does not tell: Pods made a moment ago, from the API server,
// and the order of the builds that may wait: those that have no Pod. The round that each gets takes out those that wait for something else.
func (r *ZuulBuildReconciler) beginAdmission(ctx context.Context, now time.Time) error {
	a := &r.admission
	if a.begun {
		return nil
	}
	unfinished := map[types.NamespacedName]*v1alpha1.ZuulBuild{}
	namespaces := map[string]bool{}
	for _, key := range r.Builds.Unfinished() {
		build := &v1alpha1.ZuulBuild{}
		if err := r.Get(ctx, key, build); client.IgnoreNotFound(err) != nil {
			return err
		} else if err == nil {
			unfinished[key], namespaces[key.Namespace] = build, true
		}
	}
	assumed := map[types.UID]assumption{}
	for namespace := range namespaces {
		pods := metav1.PartialObjectMetadataList{}
		pods.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
		if err := r.Live.List(ctx, &pods, client.InNamespace(namespace), client.HasLabels{v1alpha1.LabelBuild}); err != nil {
			return err
		}
		for i := range pods.Items {
			if build := unfinished[client.ObjectKeyFromObject(&pods.Items[i])]; build != nil {
				assumed[build.UID] = assumption{newCandidate(build), now}
			}
		}
	}
	for _, build := range unfinished {
		if _, has := assumed[build.UID]; !has && !r.hadPod(build) {
			a.waiting.add(newCandidate(build))
		}
	}
	a.assumed, a.begun = assumed, true
	return nil
}
