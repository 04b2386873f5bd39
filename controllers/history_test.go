package controllers

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
	toolswatch "k8s.io/client-go/tools/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// change is one event of a build or a Pod, in the API server's own order over both.
type change struct {
	version int
	key     string
	build   *v1alpha1.ZuulBuild // nil: it is of the Pod
	pod     *corev1.Pod
	deleted bool
}

// history is all that happens to the builds and Pods of a namespace. What lasts for a moment is looked for in it: a test on a busy machine may look too
// late at the objects themselves.
type history struct {
	mu      sync.Mutex
	changes []change
}

// follow has each event of a kind from now on handled, until ctx ends or the test does. An API server ends the watch of whoever falls behind; this one
// begins again where it was.
func (h *harness) follow(ctx context.Context, list client.ObjectList, handle func(watch.Event)) (wait func()) {
	h.Helper()
	api, err := client.NewWithWatch(apiserver.Config(h), client.Options{Scheme: testScheme(h.T)})
	if err != nil {
		h.Fatal(err)
	}
	if err := api.List(ctx, list, client.InNamespace(h.namespace)); err != nil {
		h.Fatal(err)
	}
	from := &toolscache.ListWatch{WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
		return api.Watch(ctx, list, client.InNamespace(h.namespace), &client.ListOptions{Raw: &options})
	}}
	ctx, cancel := context.WithCancel(ctx)
	watcher, err := toolswatch.NewRetryWatcherWithContext(ctx, list.GetResourceVersion(), from)
	if err != nil {
		h.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for event := range watcher.ResultChan() {
			if event.Type == watch.Error {
				h.Errorf("the watch of %T broke off: %v", list, event.Object)
			}
			handle(event)
		}
	})
	h.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return running.Wait
}

// record begins now. The function it returns ends it.
func (h *harness) record() (past *history, end func()) {
	h.Helper()
	past = &history{}
	ctx, cancel := context.WithCancel(context.Background())
	var waits []func()
	for _, list := range []client.ObjectList{&v1alpha1.ZuulBuildList{}, &corev1.PodList{}} {
		waits = append(waits, h.follow(ctx, list, past.add))
	}
	return past, func() {
		cancel()
		for _, wait := range waits {
			wait()
		}
	}
}

func (p *history) add(event watch.Event) {
	object, is := event.Object.(client.Object)
	if !is {
		return
	}
	version, _ := strconv.Atoi(object.GetResourceVersion())
	c := change{version: version, key: object.GetName(), deleted: event.Type == watch.Deleted}
	c.build, _ = object.(*v1alpha1.ZuulBuild)
	c.pod, _ = object.(*corev1.Pod)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changes = append(p.changes, c)
}

// builds are the versions of a build, the oldest first.
func (p *history) builds(name string) []*v1alpha1.ZuulBuild {
	p.mu.Lock()
	defer p.mu.Unlock()
	var versions []*v1alpha1.ZuulBuild
	for _, c := range p.changes {
		if c.build != nil && c.key == name {
			versions = append(versions, c.build)
		}
	}
	return versions
}

// awaitPast waits until a build was once as condition says, and returns it as it was then.
func (h *harness) awaitPast(past *history, name, what string, condition func(*v1alpha1.ZuulBuild) bool) *v1alpha1.ZuulBuild {
	h.Helper()
	var found *v1alpha1.ZuulBuild
	h.eventually(func() string {
		versions := past.builds(name)
		if i := slices.IndexFunc(versions, condition); i >= 0 {
			found = versions[i]
			return ""
		}
		return "build " + name + " was never " + what
	})
	return found
}

// awaitPastPod waits until a build has or had a Pod, and returns it as it was made.
func (h *harness) awaitPastPod(past *history, name string) *corev1.Pod {
	h.Helper()
	var found *corev1.Pod
	h.eventually(func() string {
		past.mu.Lock()
		defer past.mu.Unlock()
		i := slices.IndexFunc(past.changes, func(c change) bool { return c.pod != nil && c.key == name })
		if i < 0 {
			return "Pod " + name + " was never made"
		}
		found = past.changes[i].pod
		return ""
	})
	return found
}

// playKubelet has every Pod of the namespace succeed some moments after it was made, until the test ends.
func (h *harness) playKubelet() {
	h.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	wait := h.follow(ctx, &corev1.PodList{}, func(event watch.Event) {
		pod, is := event.Object.(*corev1.Pod)
		if !is || event.Type != watch.Added {
			return
		}
		running.Go(func() {
			select {
			case <-time.After(time.Duration(20+int(pod.UID[0])%7*10) * time.Millisecond):
			case <-ctx.Done():
				return
			}
			before := pod.DeepCopy()
			withPhase(podSucceeded)(pod)
			ended("build", 0, "Completed")(pod)
			if err := h.api.Status().Patch(ctx, pod, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil && ctx.Err() == nil {
				h.Errorf("Pod %s: %v", pod.Name, err)
			}
		})
	})
	h.Cleanup(func() {
		cancel()
		wait()
		running.Wait()
	})
}
