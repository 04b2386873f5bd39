package controllers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog/buildlogtest"
	"zuulbuild.dev/zuulbuild/buildnumber"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	apiserver.Main(m)
}

// patience is how long something that is bound to happen may take on a busy machine.
const patience = 2 * time.Minute

// neverSlow is how far the reconciler's clock is behind where the test is about what is written of a Pod that starts soon, which a busy machine may not let it.
const neverSlow = -time.Hour

// harness is a namespace of a real API server, in which the test is user, scheduler and kubelet.
type harness struct {
	*testing.T
	api       client.Client // the test's own, past every cache
	namespace string
	delays    []time.Duration        // before a retry; nil for the real ones
	maxBuilds int                    // 0 for more than any test has
	ceiling   *capacity.Ceiling      // of the reconciler that was started last
	podDelays []time.Duration        // before a Pod is made again; nil for the real ones
	ahead     time.Duration          // of the time, the reconciler's clock
	registry  *prometheus.Registry   // of the reconciler that was started last
	log       *buildlogtest.Log      // likewise
	fails     atomic.Pointer[string] // the next request of the reconciler that is written so, as in a writeLog, does not come through
	forbids   atomic.Pointer[string] // why the API server does not let any Pod of the reconciler's be; nil for as it does
}

// fastClock is ahead of the time.
type fastClock struct {
	clock.RealClock
	ahead time.Duration
}

func (c fastClock) Now() time.Time                  { return time.Now().Add(c.ahead) }
func (c fastClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

func newHarness(t *testing.T) *harness {
	t.Helper()
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: testScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	return &harness{T: t, api: api, namespace: apiserver.Namespace(t)}
}

func testScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

// start runs the reconciler on the harness's namespace until the test ends or stop is called; writes are the requests it made that change something.
func (h *harness) start() (stop func(), writes *writeLog) {
	h.Helper()
	access := apiserver.Config(h)
	writes = &writeLog{}
	access.Wrap(h.breakOnce)
	access.Wrap(h.forbidPods)
	access.Wrap(writes.watch)
	options := CacheOptions()
	options.DefaultNamespaces = map[string]cache.Config{h.namespace: {}}
	log := buildlogtest.New(io.Discard)
	h.log = log
	h.Cleanup(func() { log.Check(h, "zuulbuild") }) // when the manager has ended
	mgr, err := ctrl.NewManager(access, ctrl.Options{
		Logger: logr.FromSlogHandler(h.log.Handler()),
		Scheme: testScheme(h.T), Cache: options, Metrics: metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptr.To(true)}, // one for each test
	})
	if err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := buildnumber.SetupIndex(ctx, mgr.GetFieldIndexer()); err != nil {
		h.Fatal(err)
	}
	builds, err := capacity.Watch(ctx, mgr.GetCache())
	if err != nil {
		h.Fatal(err)
	}
	pods, err := WatchPods(ctx, mgr.GetCache())
	if err != nil {
		h.Fatal(err)
	}
	h.registry = prometheus.NewPedanticRegistry()
	metrics, err := NewMetrics(h.registry, false)
	if err != nil {
		h.Fatal(err)
	}
	h.ceiling = capacity.NewCeiling(cmp.Or(h.maxBuilds, 1000))
	reconciler := &ZuulBuildReconciler{
		Builds: builds, Pods: pods, MaxBuilds: h.ceiling,
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Numbers: &buildnumber.Sequence{Client: mgr.GetClient(), Live: mgr.GetAPIReader()},
		Recorder: mgr.GetEventRecorder("test"), Clock: fastClock{ahead: h.ahead}, Metrics: metrics,
		BuildURL:    func(build *v1alpha1.ZuulBuild) string { return "https://builds.example.org/" + build.Name },
		retryDelays: h.delays, podDelays: h.podDelays, gatherFor: 200 * time.Millisecond, explainWait: 1,
	}
	if err := SetupIndexes(ctx, mgr.GetFieldIndexer()); err != nil {
		h.Fatal(err)
	}
	if err := reconciler.SetupWithManager(mgr); err != nil {
		h.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.Errorf("the manager ended: %v", err)
		}
	})
	h.Cleanup(stop)
	if !mgr.GetCache().WaitForCacheSync(ctx) {
		h.Fatal("the caches did not fill")
	}
	return stop, writes
}

// writeLog remembers requests that change something, as "POST pods", "PATCH zuulbuilds/status".
type writeLog struct {
	mu     sync.Mutex
	writes []string
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

func (l *writeLog) watch(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		if request.Method != http.MethodGet {
			l.mu.Lock()
			l.writes = append(l.writes, written(request))
			l.mu.Unlock()
		}
		return next.RoundTrip(request)
	})
}

// written is a request as a writeLog remembers it.
func written(request *http.Request) string {
	// …/namespaces/NAMESPACE/RESOURCE[/NAME[/SUBRESOURCE]]
	_, rest, _ := strings.Cut(request.URL.Path, "/namespaces/")
	parts := append(strings.Split(rest, "/"), "", "", "")
	return strings.TrimSuffix(request.Method+" "+parts[1]+"/"+parts[3], "/")
}

// breakOnce has the request fail that the test wants to.
func (h *harness) breakOnce(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		if fails := h.fails.Load(); fails != nil && *fails == written(request) && h.fails.CompareAndSwap(fails, nil) {
			return nil, errors.New("the network is down")
		}
		return next.RoundTrip(request)
	})
}

// forbidPods answers for the API server where the test wants to.
func (h *harness) forbidPods(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		why := h.forbids.Load()
		if why == nil || written(request) != "POST pods" {
			return next.RoundTrip(request)
		}
		status := forbiddenPod(*why).Status()
		status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		answer, err := json.Marshal(status)
		return &http.Response{
			StatusCode: http.StatusForbidden, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(answer)),
		}, err
	})
}

func (l *writeLog) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.writes...)
}

func (h *harness) create(objects ...client.Object) {
	h.Helper()
	for _, object := range objects {
		if object.GetNamespace() == "" {
			object.SetNamespace(h.namespace)
		}
		if err := h.api.Create(h.Context(), object); err != nil {
			h.Fatal(err)
		}
	}
}

// job makes a ZuulJob of image and script.
func (h *harness) job(name string, change ...func(*v1alpha1.ZuulJobSpec)) {
	h.Helper()
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ZuulJobSpec{Image: "example.org/image", Script: "true"}}
	for _, f := range change {
		f(&job.Spec)
	}
	h.create(job)
}

// request makes a ZuulBuild of a job.
func (h *harness) request(name, job string, change ...func(*v1alpha1.ZuulBuildSpec)) {
	h.Helper()
	build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ZuulBuildSpec{Job: job}}
	for _, f := range change {
		f(&build.Spec)
	}
	h.create(build)
}

func (h *harness) patchBuild(name, patch string) {
	h.Helper()
	build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: h.namespace, Name: name}}
	if err := h.api.Patch(h.Context(), build, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		h.Fatal(err)
	}
}

// quota lets the namespace have so many Pods, and returns when the API server heeds it. Of one that nobody has counted for it does not know how many there are.
func (h *harness) quota(pods int64, counted bool) *corev1.ResourceQuota {
	h.Helper()
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "quota"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{corev1.ResourcePods: *resource.NewQuantity(pods, resource.DecimalSI)},
	}}
	h.create(quota)
	quota.Status.Hard = quota.Spec.Hard
	if counted {
		quota.Status.Used = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	}
	if err := h.api.Status().Update(h.Context(), quota); err != nil {
		h.Fatal(err)
	}
	h.eventually(func() string {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: h.namespace, Name: "refused"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "build", Image: "example.org/image"}}},
		}
		if err := h.api.Create(h.Context(), pod, client.DryRunAll); !apierrors.IsForbidden(err) {
			return fmt.Sprintf("the quota refuses no Pod: %v", err)
		}
		return ""
	})
	return quota
}

func (h *harness) stopBuild(name string) { h.Helper(); h.patchBuild(name, `{"spec":{"abort":true}}`) }

// eventually waits until check gives "", which otherwise says what is the matter.
func (h *harness) eventually(check func() string) {
	h.Helper()
	deadline := time.Now().Add(patience)
	for {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("after %s: %s", patience, complaint)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (h *harness) build(name string) *v1alpha1.ZuulBuild {
	h.Helper()
	build := &v1alpha1.ZuulBuild{}
	if err := h.api.Get(h.Context(), types.NamespacedName{Namespace: h.namespace, Name: name}, build); err != nil {
		h.Fatal(err)
	}
	return build
}

// awaitPhase waits for a phase and returns the build.
func (h *harness) awaitPhase(name string, phase v1alpha1.BuildPhase) *v1alpha1.ZuulBuild {
	h.Helper()
	var build *v1alpha1.ZuulBuild
	h.eventually(func() string {
		build = h.build(name)
		if build.Status.Phase == phase {
			return ""
		}
		if build.Complete() {
			h.Fatalf("build %s ended %s: %s: %s", name, build.Status.Phase, build.Status.Reason, build.Status.Message)
		}
		return "build " + name + " is " + string(build.Status.Phase) + ", not " + string(phase)
	})
	return build
}

// awaitVerdict waits for the end of a build and compares how.
func (h *harness) awaitVerdict(name string, phase v1alpha1.BuildPhase, result, reason string) *v1alpha1.ZuulBuild {
	h.Helper()
	build := h.awaitPhase(name, phase)
	complete := meta.FindStatusCondition(build.Status.Conditions, v1alpha1.ConditionComplete)
	if build.Status.Result != result || build.Status.Reason != reason || complete == nil || complete.Reason != reason || build.Status.CompletionTime == nil {
		h.Errorf("build %s ended with result %q, reason %q, condition %v at %v, want %q and %q", name, build.Status.Result, build.Status.Reason, complete, build.Status.CompletionTime, result, reason)
	}
	return build
}

// pod is nil where there is none.
func (h *harness) pod(name string) *corev1.Pod {
	h.Helper()
	pod := &corev1.Pod{}
	err := h.api.Get(h.Context(), types.NamespacedName{Namespace: h.namespace, Name: name}, pod)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		h.Fatal(err)
	}
	return pod
}

func (h *harness) awaitPod(name string) *corev1.Pod {
	h.Helper()
	var pod *corev1.Pod
	h.eventually(func() string {
		if pod = h.pod(name); pod == nil {
			return "Pod " + name + " does not exist"
		}
		return ""
	})
	return pod
}

func (h *harness) awaitNoPod(name string) {
	h.Helper()
	h.eventually(func() string {
		if h.pod(name) != nil {
			return "Pod " + name + " still exists"
		}
		return ""
	})
}

// schedule gives a Pod its node, as the scheduler does; node-1 if none is named.
func (h *harness) schedule(name string, node ...string) {
	h.Helper()
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: append(node, "node-1")[0]}}
	if err := h.api.SubResource("binding").Create(h.Context(), h.pod(name), binding); err != nil {
		h.Fatal(err)
	}
}

// report writes the status of a Pod, as the kubelet does.
func (h *harness) report(name string, options ...podOption) {
	h.Helper()
	pod := h.pod(name)
	before := pod.DeepCopy()
	pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses = nil, nil
	for _, option := range options {
		option(pod)
	}
	if err := h.api.Status().Patch(h.Context(), pod, client.MergeFrom(before)); err != nil {
		h.Fatal(err)
	}
}

// run brings a Pod to where its main container runs.
func (h *harness) run(name string) {
	h.Helper()
	h.awaitPod(name)
	h.schedule(name)
	h.report(name, withPhase(podRunning), runningNow("build"))
	h.awaitPhase(name, v1alpha1.PhaseRunning)
}

func runningNow(container string) podOption {
	return withState(container, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}})
}

func (h *harness) deletePod(name string, options ...client.DeleteOption) {
	h.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: h.namespace, Name: name}}
	if err := h.api.Delete(h.Context(), pod, options...); err != nil {
		h.Fatal(err)
	}
}
