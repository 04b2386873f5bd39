package gearmanbridge

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog/buildlogtest"
	"zuulbuild.dev/zuulbuild/buildnumber"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// onEveryServer runs the test once for each kind of server, on a fresh one.
func onEveryServer(t *testing.T, test func(t *testing.T, address string)) {
	embedded := func(behaviour gearman.Behaviour) func(*testing.T) string {
		return func(t *testing.T) string {
			address, _ := gearmantest.StartServer(t, behaviour)
			return address
		}
	}
	t.Run("embedded gearmand", func(t *testing.T) { test(t, embedded(gearman.Gearmand)(t)) })
	t.Run("embedded geard", func(t *testing.T) { test(t, embedded(gearman.Geard)(t)) })
	t.Run("real gearmand", func(t *testing.T) { test(t, gearmantest.StartGearmand(t)) })
}

// fixture is a running bridge with a namespace of its own. The test plays the controllers: it alone writes the status of builds.
type fixture struct {
	t         *testing.T
	api       client.WithWatch
	namespace string
	bridge    *Bridge
	log       *buildlogtest.Log
	stop      func() // tells the bridge to end, as it is told with the end of the test
}

const testManager = "cluster"

// startBridge runs a bridge until the test ends. change may set fields before it runs.
func startBridge(t *testing.T, address string, change func(*Bridge)) *fixture {
	t.Helper()
	access := apiserver.Config(t)
	scheme := runtime.NewScheme()
	must(t, clientgoscheme.AddToScheme(scheme))
	must(t, v1alpha1.AddToScheme(scheme))
	api, err := client.NewWithWatch(access, client.Options{Scheme: scheme})
	must(t, err)
	f := &fixture{t: t, api: api, namespace: apiserver.Namespace(t)}

	f.log = buildlogtest.New(newTestWriter(t))
	t.Cleanup(func() { f.log.Check(t, "describe", "report", "report-zuul") }) // when the bridge has ended
	logger := f.log.Handler()
	mgr, err := ctrl.NewManager(access, ctrl.Options{
		Scheme:     scheme,
		Logger:     logr.FromSlogHandler(logger),
		Cache:      cache.Options{DefaultNamespaces: map[string]cache.Config{f.namespace: {}}},
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	must(t, buildnumber.SetupIndex(ctx, mgr.GetFieldIndexer()))
	builds, err := capacity.Watch(ctx, mgr.GetCache())
	must(t, err)
	f.bridge = &Bridge{
		Builds: builds,
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Manager: testManager, MaxBuilds: capacity.NewCeiling(10), GracePeriod: time.Minute,
		Numbers:  &buildnumber.Sequence{Client: mgr.GetClient(), Live: mgr.GetAPIReader()},
		Servers:  []Server{{Name: "zuul", Address: address}},
		BuildURL: func(build *v1alpha1.ZuulBuild) string { return "https://builds.example.org/" + build.Name },
		Worker:   WorkerInfo{Hostname: "host", FQDN: "host.example.org", Version: "test"},
		Logger:   slog.New(logger),
	}
	if change != nil {
		change(f.bridge)
	}
	must(t, f.bridge.SetupWithManager(ctx, mgr))
	f.bridge.Lead()
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	f.stop = cancel
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	return f
}

// patiently is how a Zuul waits that lets a busy machine take its time.
var patiently = zuulclient.Settling{Interval: 10 * time.Millisecond, Quiet: patience, Limit: patience}

// testWriter writes to the log of a test, until that has ended: a manager has a last word after its Start has returned.
type testWriter struct {
	mu    sync.Mutex
	t     testing.TB
	ended bool
}

func newTestWriter(t testing.TB) *testWriter {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = true
	})
	return w
}

func (w *testWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.t.Logf("%s", line)
	}
	return len(line), nil
}

// changeJob changes the specification of a job, whatever the registrar writes into its status meanwhile.
func (f *fixture) changeJob(job *v1alpha1.ZuulJob, change func(*v1alpha1.ZuulJob)) {
	f.t.Helper()
	changed := job.DeepCopy()
	change(changed)
	must(f.t, f.api.Patch(f.t.Context(), changed, client.MergeFrom(job)))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// job creates a ZuulJob. Requests for it may come at once: they wait in the server.
func (f *fixture) job(name string) *v1alpha1.ZuulJob {
	f.t.Helper()
	job := &v1alpha1.ZuulJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: name},
		Spec:       v1alpha1.ZuulJobSpec{Image: "image", Script: "true"},
	}
	must(f.t, f.api.Create(f.t.Context(), job))
	return job
}

// awaitRegistered waits for the condition Registered of a job to have the reason, and returns the job.
func (f *fixture) awaitRegistered(name, reason string) *v1alpha1.ZuulJob {
	f.t.Helper()
	job := &v1alpha1.ZuulJob{}
	gearmantest.Eventually(f.t, patience, fmt.Sprintf("ZuulJob %s with reason %s", name, reason), func() bool {
		must(f.t, f.api.Get(f.t.Context(), types.NamespacedName{Namespace: f.namespace, Name: name}, job))
		condition := meta.FindStatusCondition(job.Status.Conditions, v1alpha1.ConditionRegistered)
		return condition != nil && condition.Reason == reason
	})
	return job
}

// build waits for the ZuulBuild of a unique.
func (f *fixture) build(unique string) *v1alpha1.ZuulBuild {
	f.t.Helper()
	return f.awaitBuild(unique, "that exists", func(*v1alpha1.ZuulBuild) bool { return true })
}

func (f *fixture) awaitBuild(unique, what string, condition func(*v1alpha1.ZuulBuild) bool) *v1alpha1.ZuulBuild {
	f.t.Helper()
	var build *v1alpha1.ZuulBuild
	gearmantest.Eventually(f.t, patience, "a ZuulBuild "+what, func() bool {
		build = &v1alpha1.ZuulBuild{}
		err := f.api.Get(f.t.Context(), types.NamespacedName{Namespace: f.namespace, Name: buildName(unique)}, build)
		must(f.t, client.IgnoreNotFound(err))
		return err == nil && condition(build)
	})
	return build
}

func (f *fixture) builds() []v1alpha1.ZuulBuild {
	f.t.Helper()
	list := v1alpha1.ZuulBuildList{}
	must(f.t, f.api.List(f.t.Context(), &list, client.InNamespace(f.namespace)))
	return list.Items
}

// runs plays the controllers: the build's Pod runs.
func (f *fixture) runs(build *v1alpha1.ZuulBuild) {
	f.t.Helper()
	before := build.DeepCopy()
	build.Status.Phase, build.Status.PodName, build.Status.NodeName = v1alpha1.PhaseRunning, build.Name, "node-1"
	build.Status.StartTime = ptr.To(metav1.Now())
	must(f.t, f.api.Status().Patch(f.t.Context(), build, client.MergeFrom(before)))
}

// ends plays the controllers: the verdict on the build is given.
func (f *fixture) ends(build *v1alpha1.ZuulBuild, phase v1alpha1.BuildPhase, result string) {
	f.t.Helper()
	before := build.DeepCopy()
	build.Status.Phase, build.Status.Result, build.Status.Reason = phase, result, "Test"
	build.Status.CompletionTime = ptr.To(metav1.Now())
	must(f.t, f.api.Status().Patch(f.t.Context(), build, client.MergeFrom(before)))
}

// awaitSeen waits until the bridge itself has seen a condition of a build.
func (f *fixture) awaitSeen(build *v1alpha1.ZuulBuild, what string, condition func(*v1alpha1.ZuulBuild) bool) {
	f.t.Helper()
	gearmantest.Eventually(f.t, patience, what, func() bool {
		seen := &v1alpha1.ZuulBuild{}
		return f.bridge.Client.Get(f.t.Context(), client.ObjectKeyFromObject(build), seen) == nil && condition(seen)
	})
}

// awaitListener waits until the bridge has a job for the build that is not finished, other than those given, and has told Zuul of it.
func (f *fixture) awaitListener(build *v1alpha1.ZuulBuild, but ...*assignment) *assignment {
	f.t.Helper()
	var listener *assignment
	gearmantest.Eventually(f.t, patience, "a listener of "+build.Name, func() bool {
		for _, a := range f.bridge.assignments.of(client.ObjectKeyFromObject(build)) {
			known := len(but) > 0 && a == but[0]
			a.sending.Lock()
			started := a.started
			a.sending.Unlock()
			if started && !known && a.job.Err() == nil {
				listener = a
				return true
			}
		}
		return false
	})
	return listener
}

func dialZuul(t testing.TB, address string, dialect zuulclient.Dialect) *zuulclient.Client {
	t.Helper()
	zuul, err := zuulclient.Dial(testContext(t), address, nil, dialect)
	must(t, err)
	zuul.CancelPause = 10 * time.Millisecond
	t.Cleanup(func() { _ = zuul.Close() })
	return zuul
}

// submit asks for a build as Zuul does, except that it does not look whether the function is there yet.
func submit(t testing.TB, zuul *zuulclient.Client, request zuulclient.Request) *zuulclient.Build {
	t.Helper()
	request.Unchecked = true
	build, err := zuul.Submit(testContext(t), request)
	must(t, err)
	return build
}

// awaitStart waits until Zuul knows that the build has begun.
func awaitStart(t testing.TB, build *zuulclient.Build) zuulclient.State {
	t.Helper()
	state, err := build.Await(testContext(t), func(state zuulclient.State) bool { return len(state.Packets) >= 2 })
	must(t, err)
	return state
}

// awaitEnd waits for the end of the build, which must be without fault of the worker.
func awaitEnd(t testing.TB, build *zuulclient.Build) zuulclient.State {
	t.Helper()
	state, err := build.Wait(testContext(t))
	must(t, err)
	checkPackets(t, state)
	return state
}

// checkPackets looks for what no release of Zuul stands, and for more than one end.
func checkPackets(t testing.TB, state zuulclient.State) {
	t.Helper()
	for _, violation := range state.Violations {
		t.Errorf("packet %d breaks rule %s: %s", violation.Packet, violation.Rule, violation.Text)
	}
	finals := 0
	for _, packet := range state.Packets {
		if packet.Final() {
			finals++
		}
	}
	if finals > 1 {
		t.Errorf("%d finishing packets", finals)
	}
}

func packetTypes(state zuulclient.State) []gearman.PacketType {
	var types []gearman.PacketType
	for _, packet := range state.Packets {
		types = append(types, packet.Type)
	}
	return types
}
