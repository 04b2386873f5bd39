package controllers

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// TestPodMemoryEnds: whatever order the caches of builds and of Pods show things in, nothing is remembered in the end, and nothing forgotten before.
func TestPodMemoryEnds(t *testing.T) {
	build := zuulBuild("job")
	build.Name, build.UID = "b", "b"
	complete, again := build.DeepCopy(), build.DeepCopy()
	complete.Status.Phase, complete.Status.CompletionTime = v1alpha1.PhaseSucceeded, ptr.To(after(0))
	again.UID = "again"
	pod := newPod(func(pod *corev1.Pod) {
		pod.Name, pod.UID = "b", "1"
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ZuulBuild", Name: "b", UID: "b", Controller: ptr.To(true)}}
	})
	end := func(pod *corev1.Pod, options ...podOption) *corev1.Pod {
		pod = pod.DeepCopy()
		for _, option := range append(options, withPhase(podSucceeded)) {
			option(pod)
		}
		return pod
	}
	try := func(_ []string, err error) {
		if err != nil {
			t.Error(err)
		}
	}
	ended, going := end(pod), end(pod, deletedAt(0))
	type step func(*PodMemory, toolscache.ResourceEventHandler, toolscache.ResourceEventHandler)
	seeBuild := func(b *v1alpha1.ZuulBuild) step {
		return func(_ *PodMemory, builds, _ toolscache.ResourceEventHandler) { builds.OnUpdate(build, b) }
	}
	seePod := func(p *corev1.Pod) step {
		return func(m *PodMemory, _, pods toolscache.ResourceEventHandler) {
			try(m.noteFirst(p))
			pods.OnAdd(p, false)
		}
	}
	buildGone := step(func(_ *PodMemory, builds, _ toolscache.ResourceEventHandler) { builds.OnDelete(complete) })
	podGone := step(func(_ *PodMemory, _, pods toolscache.ResourceEventHandler) { pods.OnDelete(ended) })
	podMissed := step(func(_ *PodMemory, _, pods toolscache.ResourceEventHandler) {
		pods.OnDelete(toolscache.DeletedFinalStateUnknown{Key: "builds/b", Obj: pod})
	})
	cached := step(func(m *PodMemory, _, _ toolscache.ResourceEventHandler) { try(m.noteFirst(ended)) })
	cases := []struct {
		name         string
		steps        []step
		knows, ended bool
		left         int
	}{
		{"a Pod", []step{seeBuild(build), seePod(pod)}, true, false, 1},
		{"a Pod, seen before its build", []step{seePod(pod), seeBuild(build)}, true, false, 1},
		{"vanished", []step{seeBuild(build), seePod(pod), podMissed}, true, false, 1},
		{"ended", []step{seeBuild(build), seePod(ended)}, true, true, 1},
		{"ended and gone", []step{seeBuild(build), seePod(ended), seePod(going), podGone}, true, true, 1},
		{"ended while it was being deleted", []step{seeBuild(build), seePod(going), podGone}, true, false, 1},
		{"the cache shows it sooner than anybody is told", []step{seeBuild(build), cached}, true, true, 1},
		{"verdict, Pod kept", []step{seeBuild(build), seePod(ended), seeBuild(complete)}, false, false, 1},
		{"verdict, Pod gone", []step{seeBuild(build), seePod(ended), seeBuild(complete), seePod(going), podGone}, false, false, 0},
		{"Pod gone, verdict", []step{seeBuild(build), seePod(ended), podGone, seeBuild(complete)}, false, false, 0},
		{"verdict and all is gone", []step{seeBuild(build), seePod(ended), seeBuild(complete), buildGone, seePod(going), podGone}, false, false, 0},
		{"the build goes without a verdict", []step{seeBuild(build), seePod(pod), buildGone, podMissed}, false, false, 0},
		{"a Pod that nobody has", []step{seePod(ended), podGone}, false, false, 0},
		{"another build of the name, whose forerunner was not seen to go", []step{seeBuild(build), seePod(pod), podMissed, seeBuild(again)}, false, false, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := &PodMemory{}
			builds, pods := remembering(m.setBuild, m.deleteBuild), remembering(m.setPod, m.deletePod)
			for _, step := range c.steps {
				step(m, builds, pods)
			}
			if knows, ended := m.knows(build), m.endOf(build) != nil; knows != c.knows || ended != c.ended || len(m.builds) != c.left {
				t.Errorf("knows a Pod: %v, and its end: %v; %d builds; want %v, %v, %d", knows, ended, len(m.builds), c.knows, c.ended, c.left)
			}
		})
	}
	m := &PodMemory{}
	helper := pod.DeepCopy()
	helper.Name = "helper"
	try(m.noteFirst(helper))
	m.setPod(helper)
	if m.knows(build) {
		t.Error("another Pod that the build owns was taken for its own")
	}
}

// TestPodVanishesBetweenLeaders: the leader is killed before it has written that the Pod ran, and the Pod vanishes before another leads, which had seen
// it while it followed. The job does not run twice.
func TestPodVanishesBetweenLeaders(t *testing.T) {
	w := newWorld(&v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: "builds", Name: "job"}, Spec: v1alpha1.ZuulJobSpec{Image: "x", Script: "x"}})
	round := func() {
		t.Helper()
		w.catchUp()
		if _, err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	follower := &PodMemory{}
	follower.setBuild(w.build())
	round()
	w.schedule()
	w.start()
	pod := w.pod()
	follower.note(pod)
	follower.setPod(pod)
	w.removePod()
	follower.deletePod(pod)
	w.restart()
	w.operator.Pods = follower
	w.now = w.now.Add(time.Minute)
	round()
	round()
	if status := w.build().Status; w.made != 1 || status.Reason != ReasonPodDeleted {
		t.Errorf("%d Pods were made; the build is %s, %s", w.made, status.Phase, status.Reason)
	}
}

// cache is one as the operator has it, of the harness's namespace, that does not run yet.
func (h *harness) cache() cache.Cache {
	h.Helper()
	options := CacheOptions(h.namespace)
	options.Scheme = testScheme(h.T)
	objects, err := cache.New(apiserver.Config(h), options)
	if err != nil {
		h.Fatal(err)
	}
	return objects
}

// run has a cache follow the API server until the test ends.
func run(t *testing.T, objects cache.Cache) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- objects.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// podOf makes a build, and a Pod as it would have, without the operator.
func (h *harness) podOf(name string) *v1alpha1.ZuulBuild {
	h.Helper()
	h.request(name, "job", numbered(1))
	build := h.build(name)
	h.create(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.LabelBuild: name}, OwnerReferences: []metav1.OwnerReference{
			*metav1.NewControllerRef(build, v1alpha1.GroupVersion.WithKind("ZuulBuild")),
		}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "build", Image: "example.org/image"}}},
	})
	return build
}

// TestWatchPods: the memory follows a cache.
func TestWatchPods(t *testing.T) {
	h := newHarness(t)
	objects := h.cache()
	m, err := WatchPods(t.Context(), objects)
	if err != nil {
		t.Fatal(err)
	}
	run(t, objects)
	build := h.podOf("b")
	await := func(what string, condition func(*rememberedBuild) bool) {
		t.Helper()
		h.eventually(func() string {
			m.mu.Lock()
			defer m.mu.Unlock()
			if condition(m.builds[build.UID]) {
				return ""
			}
			return what
		})
	}
	pod := h.pod("b").UID
	await("the Pod is not seen", func(b *rememberedBuild) bool { return b != nil && b.unfinished && b.shown == pod })
	h.deletePod("b", client.GracePeriodSeconds(0))
	await("the Pod is not seen to go", func(b *rememberedBuild) bool { return b != nil && b.shown == "" })
	if !m.knows(build) {
		t.Error("the Pod was forgotten before the build has its verdict")
	}
	status := []byte(`{"status":{"phase":"Lost","completionTime":"2026-05-04T03:02:01Z"}}`)
	if err := h.api.Status().Patch(t.Context(), build, client.RawPatch(types.MergePatchType, status)); err != nil {
		t.Fatal(err)
	}
	await("the build is remembered although it has its verdict", func(b *rememberedBuild) bool { return b == nil })
}

// TestPodIsNotedFirst: whoever hears of a Pod from the cache finds it noted. Who hears first of several that listen is left to chance, so there are many.
func TestPodIsNotedFirst(t *testing.T) {
	h := newHarness(t)
	objects := h.cache()
	const count = 20
	var m *PodMemory
	noted := make(chan bool, count)
	informer, err := objects.GetInformer(t.Context(), &corev1.Pod{}, cache.BlockUntilSynced(false))
	if err != nil {
		t.Fatal(err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: func(object any) {
		build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{UID: buildOf(object.(*corev1.Pod))}}
		noted <- m.knows(build)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if m, err = WatchPods(t.Context(), objects); err != nil {
		t.Fatal(err)
	}
	run(t, objects)
	for n := range count {
		h.podOf(fmt.Sprintf("b-%d", n))
	}
	for range count {
		if !<-noted {
			t.Error("a Pod was told of that was not noted")
		}
	}
}
