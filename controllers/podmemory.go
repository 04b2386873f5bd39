package controllers

import (
	"context"
	"fmt"
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

// PodMemory is what this process knows of Pods beyond what their builds' status says. It only ever adds caution: without it, a Pod that vanished
// before its start was recorded would be made again, and the job run twice; and one that ended and vanished before its end was looked at, as by the
// cluster's terminated-pod-gc, would count as lost. A replica remembers before it leads, since the leader may be killed before it has recorded what both
// have seen.
//
// A build is forgotten when it has its verdict or is gone; if its Pod is still there, it is when that is gone, too.
type PodMemory struct {
	mu     sync.Mutex
	builds map[types.UID]*rememberedBuild
}

type rememberedBuild struct {
	unfinished bool        // the cache shows the build, without a verdict
	shown      types.UID   // the Pod that the cache shows
	pods       []types.UID // that were made, met or shown
	ended      *corev1.Pod // how its Pod was seen to end, before anybody deleted it
}

// WatchPods is a memory that follows a cache from now on.
func WatchPods(ctx context.Context, objects cache.Cache) (*PodMemory, error) {
	m := &PodMemory{}
	for _, kind := range []struct {
		object   client.Object
		handler  toolscache.ResourceEventHandler
		indexers toolscache.Indexers
	}{
		{&v1alpha1.ZuulBuild{}, remembering(m.setBuild, m.deleteBuild), nil},
		{&corev1.Pod{}, remembering(m.setPod, m.deletePod), toolscache.Indexers{"remembered": m.noteFirst}},
	} {
		informer, err := objects.GetInformer(ctx, kind.object, cache.BlockUntilSynced(false))
		if err == nil {
			err = informer.AddIndexers(kind.indexers)
		}
		if err == nil {
			_, err = informer.AddEventHandler(kind.handler)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot watch %T: %w", kind.object, err)
		}
	}
	return m, nil
}

// noteFirst notes what the cache is about to show of a Pod. It has the form of a function that finds what an object is indexed by, for those are called
// before anybody can read the object, while handlers of events are called at some time after: whoever reads that a Pod ended and is being deleted must
// find here that it ended first.
func (m *PodMemory) noteFirst(object any) ([]string, error) {
	m.note(object.(*corev1.Pod))
	return nil, nil
}

func remembering[T client.Object](set, remove func(T)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { set(object.(T)) },
		UpdateFunc: func(before, object any) {
			if before, after := before.(T), object.(T); before.GetUID() != after.GetUID() {
				remove(before) // nobody saw it go
			}
			set(object.(T))
		},
		DeleteFunc: func(object any) {
			if unseen, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
				object = unseen.Obj
			}
			if last, ok := object.(T); ok {
				remove(last)
			}
		},
	}
}

func (m *PodMemory) setBuild(build *v1alpha1.ZuulBuild) {
	if build.Complete() {
		m.deleteBuild(build)
		return
	}
	m.change(build.UID, func(b *rememberedBuild) { b.unfinished = true })
}

func (m *PodMemory) deleteBuild(build *v1alpha1.ZuulBuild) {
	m.change(build.UID, func(b *rememberedBuild) { b.unfinished, b.pods, b.ended = false, nil, nil })
	m.letGo(build.UID)
}

func (m *PodMemory) setPod(pod *corev1.Pod) {
	if build := buildOf(pod); build != "" {
		m.change(build, func(b *rememberedBuild) { b.shown = pod.UID })
	}
}

func (m *PodMemory) deletePod(pod *corev1.Pod) {
	build := buildOf(pod)
	if build == "" {
		return
	}
	m.change(build, func(b *rememberedBuild) {
		if b.shown == pod.UID {
			b.shown = ""
		}
	})
	m.letGo(build)
}

// buildOf is the build whose own Pod it is, "" for any other.
func buildOf(pod client.Object) types.UID {
	owner := metav1.GetControllerOf(pod)
	if owner == nil || owner.Kind != "ZuulBuild" || owner.Name != pod.GetName() {
		return ""
	}
	return owner.UID
}

func (m *PodMemory) change(build types.UID, change func(*rememberedBuild)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.builds == nil {
		m.builds = map[types.UID]*rememberedBuild{}
	}
	if m.builds[build] == nil {
		m.builds[build] = &rememberedBuild{}
	}
	change(m.builds[build])
}

// letGo drops a build that nothing more is to be known of.
func (m *PodMemory) letGo(build types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.builds[build]; b != nil && !b.unfinished && b.shown == "" {
		delete(m.builds, build)
	}
}

// note what a Pod tells: that it exists, and how it ended by itself.
func (m *PodMemory) note(pod *corev1.Pod) {
	build := buildOf(pod)
	if build == "" {
		return
	}
	m.change(build, func(b *rememberedBuild) {
		b.add(pod.UID)
		if podTerminal(pod) && pod.DeletionTimestamp == nil && !disruptedSince(b.ended, pod) {
			b.ended = pod
		}
	})
}

// disruptedSince tells a Pod that had ended before somebody wanted it gone: an eviction, as of a node that is drained, and the taint manager give that
// condition to one that has ended, too, before they delete it. A Pod that ended because of it has the condition before, or with its end.
func disruptedSince(ended, pod *corev1.Pod) bool {
	return ended != nil && ended.UID == pod.UID && podCondition(ended, corev1.DisruptionTarget) == nil && podCondition(pod, corev1.DisruptionTarget) != nil
}

func (b *rememberedBuild) add(pod types.UID) {
	if !slices.Contains(b.pods, pod) {
		b.pods = append(b.pods, pod)
	}
}

// remember a Pod that was made or met.
func (m *PodMemory) remember(build *v1alpha1.ZuulBuild, pod *corev1.Pod) {
	m.change(build.UID, func(b *rememberedBuild) { b.add(pod.UID) })
}

// knows tells whether the build has had a Pod besides those that its status lists as lost. The status may be an old one.
func (m *PodMemory) knows(build *v1alpha1.ZuulBuild) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.builds[build.UID]
	return b != nil && slices.ContainsFunc(b.pods, func(pod types.UID) bool { return !listedAsLost(build, pod) })
}

// endOf is the Pod of a build as it ended, or nil; not to be changed.
func (m *PodMemory) endOf(build *v1alpha1.ZuulBuild) *corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.builds[build.UID]; b != nil && b.ended != nil && !listedAsLost(build, b.ended.UID) {
		return b.ended
	}
	return nil
}

// forget a build that has its verdict.
func (m *PodMemory) forget(build *v1alpha1.ZuulBuild) { m.deleteBuild(build) }
