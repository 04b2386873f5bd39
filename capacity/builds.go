package capacity

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Builds are the ZuulBuilds and their Pods as the manager's cache shows them, sorted by what may limit them, so that they need not be listed to be
// counted. A build is in each set of its once, whatever is seen how often: sets are measured, nothing is added up. The index of an informer could do
// the same only where the cache sees all namespaces.
type Builds struct {
	registrations []toolscache.ResourceEventHandlerRegistration

	mu       sync.Mutex
	records  map[types.NamespacedName]record
	claimed  sets
	occupied sets
	freed    listeners
}

// Watch follows the builds and the Pods of a cache. Nothing is to be counted before WaitForSync has returned.
func Watch(ctx context.Context, objects cache.Cache) (*Builds, error) {
	b := NewBuilds()
	for object, handler := range map[client.Object]toolscache.ResourceEventHandler{
		&v1alpha1.ZuulBuild{}: handlerOf(b.SetBuild, b.DeleteBuild),
		&corev1.Pod{}:         handlerOf(b.SetPod, b.DeletePod),
	} {
		informer, err := objects.GetInformer(ctx, object, cache.BlockUntilSynced(false))
		if err != nil {
			return nil, fmt.Errorf("cannot watch %T: %w", object, err)
		}
		registration, err := informer.AddEventHandler(handler)
		if err != nil {
			return nil, fmt.Errorf("cannot watch %T: %w", object, err)
		}
		b.registrations = append(b.registrations, registration)
	}
	return b, nil
}

func handlerOf[T client.Object](set func(T), remove func(types.NamespacedName)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { set(object.(T)) },
		UpdateFunc: func(_, object any) { set(object.(T)) },
		DeleteFunc: func(object any) {
			if name, err := toolscache.DeletionHandlingObjectToName(object); err == nil {
				remove(types.NamespacedName{Namespace: name.Namespace, Name: name.Name})
			}
		},
	}
}

// NewBuilds are none.
func NewBuilds() *Builds {
	return &Builds{records: map[types.NamespacedName]record{}, claimed: sets{}, occupied: sets{}}
}

// WaitForSync waits until all that was there at the start is counted, and tells whether it is: false if ctx was done before.
func (b *Builds) WaitForSync(ctx context.Context) bool {
	synced := make([]toolscache.InformerSynced, len(b.registrations))
	for i, registration := range b.registrations {
		synced[i] = registration.HasSynced
	}
	return toolscache.WaitForCacheSync(ctx.Done(), synced...)
}

// OnFreed has f called whenever there is less to count than before, or a build has ended, until stop is called. It must not take long.
func (b *Builds) OnFreed(f func()) (stop func()) { return b.freed.add(f) }

// Claimed counts the builds that have a slot from the view of the bridge: all unfinished ones that were grabbed, with or without a Pod, and those
// made by hand that have a Pod.
func (b *Builds) Claimed(l *Limits) *Usage { return b.usage(l, b.claimed) }

// Claimants are the namespaces and names of those that Claimed counts: of builds, and of Pods that outlive their deleted build.
func (b *Builds) Claimants() []types.NamespacedName {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.claimed[group{kind: everything}]))
}

// Occupied counts the builds that have a slot from the view of the controllers: the unfinished ones that have or had a Pod, and the Pods that outlive
// their deleted build.
func (b *Builds) Occupied(l *Limits) *Usage { return b.usage(l, b.occupied) }

func (b *Builds) usage(l *Limits, counted sets) *Usage {
	return &Usage{counted: func(s Scope) Counts {
		b.mu.Lock()
		defer b.mu.Unlock()
		counts := Counts{All: len(counted[group{kind: everything}])}
		if s.Class != "" {
			counts.Class = len(counted[group{kind: ofClass, name: s.Class}])
		}
		if s.Job.Name != "" {
			counts.Job = len(counted[group{ofJob, s.Job.Namespace, s.Job.Name}])
			if name, named := l.names[s.Job]; named {
				counts.Job += len(counted[group{ofName, name.Namespace, name.Name}])
			}
		}
		return counts
	}}
}

// Knows tells whether there is a build of the name, complete or not.
func (b *Builds) Knows(key types.NamespacedName) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records[key].build
}

// Settled tells whether all that is to be known of the Pod of a build is known: that it is there or was, or that the build is complete. known is
// whether there is the build: just this one, not another that has its name.
func (b *Builds) Settled(key types.NamespacedName, uid types.UID) (settled, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.records[key]
	known = r.build && r.uid == uid
	return r.pod && r.podOf == uid || known && (r.started || !r.unfinished), known
}

// Unfinished are the namespaces and names of the builds that are not complete.
func (b *Builds) Unfinished() []types.NamespacedName {
	b.mu.Lock()
	defer b.mu.Unlock()
	var unfinished []types.NamespacedName
	for key, r := range b.records {
		if r.unfinished {
			unfinished = append(unfinished, key)
		}
	}
	return unfinished
}

// SetBuild notes what a build is now. It is only read.
func (b *Builds) SetBuild(build *v1alpha1.ZuulBuild) {
	b.change(client.ObjectKeyFromObject(build), func(r *record) {
		r.build, r.uid, r.class = true, build.UID, build.Spec.Node
		r.job = group{ofName, build.Namespace, build.Spec.Job}
		if build.Spec.JobRef != nil {
			r.job = group{ofJob, build.Namespace, build.Spec.JobRef.Name}
		}
		r.unfinished, r.grabbed, r.started = !build.Complete(), build.Labels[v1alpha1.LabelGearmanServer] != "", build.Status.PodName != ""
	})
}

// DeleteBuild notes that a build is gone. What is known of it still tells what its Pod counts for.
func (b *Builds) DeleteBuild(key types.NamespacedName) {
	b.change(key, func(r *record) { r.build, r.uid, r.unfinished, r.started = false, "", false, false })
}

// SetPod notes what a Pod is now. It is only read; one that belongs to no build is left alone.
func (b *Builds) SetPod(pod *corev1.Pod) {
	if pod.Labels[v1alpha1.LabelBuild] != pod.Name {
		return
	}
	b.change(client.ObjectKeyFromObject(pod), func(r *record) {
		r.pod, r.podEnded = true, pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		r.podOf = ""
		if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
			r.podOf = owner.UID
		}
		if r.job == (group{}) { // its build was deleted before this process began
			r.class, r.job = pod.Annotations[v1alpha1.AnnotationNode], group{ofName, pod.Namespace, pod.Annotations[v1alpha1.AnnotationJob]}
		}
	})
}

// DeletePod notes that a Pod is gone.
func (b *Builds) DeletePod(key types.NamespacedName) {
	b.change(key, func(r *record) { r.pod, r.podOf, r.podEnded = false, "", false })
}

// change changes what is known of a build, and its place in the sets with it.
func (b *Builds) change(key types.NamespacedName, do func(*record)) {
	b.mu.Lock()
	before := b.records[key]
	after := before
	do(&after)
	if !after.build && !after.pod {
		after = record{}
		delete(b.records, key)
	} else {
		b.records[key] = after
	}
	less := b.claimed.move(key, before.groups(before.claims()), after.groups(after.claims()))
	less = b.occupied.move(key, before.groups(before.occupies()), after.groups(after.occupies())) || less
	less = before.unfinished && !after.unfinished || less // a build whose Pod was counted elsewhere, because it is not shown yet
	b.mu.Unlock()
	if less {
		b.freed.call()
	}
}

// record is what is known of a build and the Pod of its name.
type record struct {
	build      bool // there is one
	uid        types.UID
	class      string
	job        group // by its ZuulJob, or by its name if that is all the build tells
	unfinished bool
	grabbed    bool // from a Gearman server, not made by hand
	started    bool // its status tells of a Pod
	pod        bool
	podOf      types.UID // the build that it is of, which may be an earlier one
	podEnded   bool
}

func (r *record) claims() bool { return r.unfinished && r.grabbed || r.occupies() }

// occupies: a Pod of a complete build does not count, since it may be one that no node will ever end.
func (r *record) occupies() bool {
	if !r.build {
		return r.pod && !r.podEnded
	}
	return r.unfinished && (r.started || r.pod)
}

// groups that a build is in if it counts.
func (r *record) groups(counts bool) []group {
	if !counts {
		return nil
	}
	return []group{{kind: everything}, {kind: ofClass, name: r.class}, r.job}
}

// group is what may have a limit. That a build has no class is a group, too, which nobody asks for.
type group struct {
	kind            groupKind
	namespace, name string
}

type groupKind int8

const (
	everything groupKind = iota
	ofClass              // by name
	ofJob                // by namespace and name of the ZuulJob
	ofName               // by namespace and Gearman name of the job
)

// sets are the builds of each group.
type sets map[group]map[types.NamespacedName]struct{}

// move puts a build from some groups into others, and tells whether it left one.
func (s sets) move(key types.NamespacedName, from, to []group) (left bool) {
	if slices.Equal(from, to) {
		return false
	}
	for _, g := range from {
		delete(s[g], key)
		if len(s[g]) == 0 {
			delete(s, g)
		}
	}
	for _, g := range to {
		if s[g] == nil {
			s[g] = map[types.NamespacedName]struct{}{}
		}
		s[g][key] = struct{}{}
	}
	return slices.ContainsFunc(from, func(g group) bool { return !slices.Contains(to, g) })
}
