//go:build linux

package conformance

import (
	"context"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	toolswatch "k8s.io/client-go/tools/watch"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// podHistory follows every Pod of the builds of a namespace on the API server's watch, which leaves no Pod out however short its life, and complains
// of a build that has two at a time, or one more after one has ended with a verdict.
type podHistory struct {
	mu      sync.Mutex
	made    map[string]map[types.UID]bool // by build
	there   map[string]map[types.UID]bool // by build: Pods that are not deleted
	exited  map[string]bool               // builds with a Pod that ended by itself
	stopped map[types.UID]bool            // Pods that were told to go, or ended
}

// newPodHistory follows the Pods until the test ends.
func newPodHistory(t *testing.T, pods kubernetes.Interface, namespace string) *podHistory {
	t.Helper()
	h := &podHistory{
		made: map[string]map[types.UID]bool{}, there: map[string]map[types.UID]bool{}, exited: map[string]bool{}, stopped: map[types.UID]bool{},
	}
	options := metav1.ListOptions{LabelSelector: v1alpha1.LabelBuild}
	list, err := pods.CoreV1().Pods(namespace).List(t.Context(), options)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	watcher, err := toolswatch.NewRetryWatcherWithContext(ctx, list.ResourceVersion, cache.ToWatcherWithContext(&cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = v1alpha1.LabelBuild
			return pods.CoreV1().Pods(namespace).Watch(ctx, options)
		},
	}))
	must(t, err)
	var following sync.WaitGroup
	following.Go(func() {
		for event := range watcher.ResultChan() {
			pod, is := event.Object.(*corev1.Pod)
			if !is {
				t.Errorf("the watch of Pods broke: %v", event.Object)
				continue
			}
			h.saw(t, event.Type, pod)
		}
	})
	t.Cleanup(func() {
		cancel()
		watcher.Stop()
		following.Wait()
	})
	return h
}

func (h *podHistory) saw(t testing.TB, what watch.EventType, pod *corev1.Pod) {
	h.mu.Lock()
	defer h.mu.Unlock()
	build := pod.Labels[v1alpha1.LabelBuild]
	if h.made[build] == nil {
		h.made[build], h.there[build] = map[types.UID]bool{}, map[types.UID]bool{}
	}
	if !h.made[build][pod.UID] {
		h.made[build][pod.UID] = true
		if len(h.there[build]) > 0 {
			t.Errorf("Pod %s (%s) of build %s was made while there were %v", pod.Name, pod.UID, build, h.there[build])
		}
		if h.exited[build] {
			t.Errorf("Pod %s (%s) of build %s was made after one had ended with a verdict", pod.Name, pod.UID, build)
		}
		h.there[build][pod.UID] = true
	}
	if what == watch.Deleted {
		delete(h.there[build], pod.UID)
	}
	if ended(pod) && pod.DeletionTimestamp == nil && pod.Status.Reason != "Evicted" {
		h.exited[build] = true
	}
	if ended(pod) || pod.DeletionTimestamp != nil {
		h.stopped[pod.UID] = true
	}
}

// exits tells whether a Pod of the build has ended by itself.
func (h *podHistory) exits(build string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.exited[build]
}

// counts are how many Pods each build ever had.
func (h *podHistory) counts() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	counts := map[string]int{}
	for build, pods := range h.made {
		counts[build] = len(pods)
	}
	return counts
}

// running is how many Pods neither ended nor were told to go.
func (h *podHistory) running() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	running := 0
	for build := range h.there {
		for pod := range h.there[build] {
			if !h.stopped[pod] {
				running++
			}
		}
	}
	return running
}

// TestPodHistory shows that what must not be is found.
func TestPodHistory(t *testing.T) {
	pod := func(uid types.UID, phase corev1.PodPhase, reason string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "b", UID: uid, Labels: map[string]string{v1alpha1.LabelBuild: "b"}},
			Status:     corev1.PodStatus{Phase: phase, Reason: reason},
		}
	}
	type event struct {
		what watch.EventType
		pod  *corev1.Pod
	}
	first, again := event{watch.Added, pod("1", corev1.PodRunning, "")}, event{watch.Added, pod("2", corev1.PodPending, "")}
	for name, test := range map[string]struct {
		events []event
		bad    bool
	}{
		"one":                       {[]event{first, {watch.Modified, pod("1", corev1.PodSucceeded, "")}, {watch.Deleted, pod("1", corev1.PodSucceeded, "")}}, false},
		"another after an eviction": {[]event{first, {watch.Deleted, pod("1", corev1.PodFailed, "Evicted")}, again}, false},
		"two at a time":             {[]event{first, again}, true},
		"another after a verdict":   {[]event{first, {watch.Deleted, pod("1", corev1.PodFailed, "")}, again}, true},
	} {
		h := &podHistory{made: map[string]map[types.UID]bool{}, there: map[string]map[types.UID]bool{}, exited: map[string]bool{}, stopped: map[types.UID]bool{}}
		found := &complaints{TB: t}
		for _, event := range test.events {
			h.saw(found, event.what, event.pod)
		}
		if bad := found.count > 0; bad != test.bad {
			t.Errorf("%s: complained %v", name, bad)
		}
	}
}

// complaints counts errors instead of failing.
type complaints struct {
	testing.TB
	count int
}

func (c *complaints) Errorf(string, ...any) { c.count++ }

// percentile of durations that are sorted.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)]
}
