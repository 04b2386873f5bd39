package gearmanbridge

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/description"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

func TestReadDescription(t *testing.T) {
	byName := buildReference{job: "unit", number: 5}
	byUnique := buildReference{uuid: "0123456789abcdef0123456789abcdef"}
	tests := map[string]struct {
		argument string
		want     describeRequest
	}{
		"Zuul 2":             {`{"name": "unit", "number": 5, "html_description": "<b>"}`, describeRequest{byName, "<b>"}},
		"number as a string": {`{"name": "unit", "number": "5", "html_description": ""}`, describeRequest{byName, ""}},
		"escapes":            {`{"name": "unit", "number": 5, "html_description": "\u00e9\ud83d\ude00\u0000\ud83d"}`, describeRequest{byName, "é😀\x00\uFFFD"}},
		"the branch":         {`{"unique_id": "0123456789abcdef0123456789abcdef", "html_description": "x"}`, describeRequest{byUnique, "x"}},
		"both": {
			`{"unique_id": "0123456789abcdef0123456789abcdef", "name": "unit", "number": 5, "html_description": "x"}`, describeRequest{byName, "x"},
		},
		"more than asked for": {`{"name": "unit", "number": 5, "html_description": "x", "result": [null]}`, describeRequest{byName, "x"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := readDescription([]byte(test.argument))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(describeRequest{}, buildReference{})); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadDescriptionRefuses(t *testing.T) {
	for name, argument := range malformedDescriptions() {
		t.Run(name, func(t *testing.T) {
			if got, err := readDescription([]byte(argument)); err == nil {
				t.Errorf("request %+v, an error was expected", got)
			}
		})
	}
}

// malformedDescriptions are arguments of set_description: that no build can be meant by, or that have no description.
func malformedDescriptions() map[string]string {
	arguments := map[string]string{
		"bare unique":             "0123456789abcdef0123456789abcdef",
		"no description":          `{"name": "unit", "number": 5}`,
		"null description":        `{"name": "unit", "number": 5, "html_description": null}`,
		"description a number":    `{"name": "unit", "number": 5, "html_description": 5}`,
		"description an array":    `{"name": "unit", "number": 5, "html_description": ["x"]}`,
		"description only":        `{"html_description": "x"}`,
		"empty unique":            `{"unique_id": "", "html_description": "x"}`,
		"null unique":             `{"unique_id": null, "html_description": "x"}`,
		"unique a number":         `{"unique_id": 5, "html_description": "x"}`,
		"no number beside unique": `{"unique_id": "0123456789abcdef0123456789abcdef", "name": "unit", "html_description": "x"}`,
		"too deep":                strings.Repeat("[", 1<<20),
		"too long":                `{"name": "unit", "number": 5, "html_description": "` + strings.Repeat("x", maxDescriptionArgument) + `"}`,
	}
	for name, argument := range malformedStops() {
		arguments[name] = strings.TrimSuffix(argument, "}")
		if strings.HasSuffix(argument, "}") {
			arguments[name] += `, "html_description": "x"}`
		}
	}
	delete(arguments, "1 MiB of JSON") // a long name is no malformed one
	return arguments
}

func FuzzReadDescription(f *testing.F) {
	for _, argument := range malformedDescriptions() {
		if len(argument) < 1000 {
			f.Add([]byte(argument))
		}
	}
	f.Fuzz(func(t *testing.T, argument []byte) {
		request, err := readDescription(argument)
		switch {
		case err != nil && request != (describeRequest{}):
			t.Errorf("request %+v beside error %v", request, err)
		case err == nil && (request.build.uuid == "") == (request.build.number < 1):
			t.Errorf("request %+v names no build, or two", request)
		}
	})
}

// describe sends a set_description: as Zuul does and returns what it is answered with.
func describe(t *testing.T, zuul *zuulclient.Client, argument string) gearman.PacketType {
	t.Helper()
	task, err := zuul.Gearman.Submit(testContext(t), gearman.PriorityLow, "set_description:"+testManager, zuulclient.NewUUID(), []byte(argument))
	must(t, err)
	answer, err := task.Wait(testContext(t))
	must(t, err)
	if len(answer.Data) > 0 {
		t.Errorf("set_description: answered with %v %q", answer.Type, answer.Data)
	}
	return answer.Type
}

func describeArgument(job string, number int64, html string) string {
	var argument bytes.Buffer
	encoder := json.NewEncoder(&argument)
	encoder.SetEscapeHTML(false) // nor does Zuul
	if err := encoder.Encode(map[string]any{"name": job, "number": number, "html_description": html}); err != nil {
		panic(err)
	}
	return argument.String()
}

func described(text string) func(*v1alpha1.ZuulBuild) bool {
	return func(build *v1alpha1.ZuulBuild) bool { return build.Status.Description == text }
}

// TestSetDescription: the description is stored while the build runs, while it is being stopped and when it has ended. Neither it nor the verdict disturbs
// the other.
func TestSetDescription(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, func(bridge *Bridge) { bridge.MaxBuilds = capacity.NewCeiling(1) })
		f.job("unit")
		for _, dialect := range []zuulclient.Dialect{zuulclient.Zuul2, zuulclient.Branch} {
			t.Run(dialect.String(), func(t *testing.T) {
				zuul := dialZuul(t, address, dialect)
				zuul.Settling = patiently
				must(t, zuul.AwaitRegistered(testContext(t), "set_description:"+testManager))
				request := submit(t, zuul, zuulclient.Request{Job: "unit"})
				awaitStart(t, request)
				build := f.build(request.State().UUID)
				send := func(html, stored string) {
					t.Helper()
					task, err := request.Describe(testContext(t), html)
					must(t, err)
					answer, err := task.Wait(testContext(t))
					must(t, err)
					if answer.Type != gearman.PacketWorkComplete || len(answer.Data) > 0 {
						t.Errorf("set_description: answered with %v %q", answer.Type, answer.Data)
					}
					build = f.awaitBuild(request.State().UUID, "described as "+stored, described(stored))
				}
				send("<b>queued</b>", "<b>queued</b>")
				f.runs(build)
				send("<b>running", "<b>running</b>")
				if build.Status.Phase != v1alpha1.PhaseRunning || build.Status.NodeName != "node-1" {
					t.Errorf("the description left the status as %+v", build.Status)
				}
				_, err := request.Cancel(testContext(t))
				must(t, err)
				f.awaitBuild(request.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
				send("aborting", "aborting")
				f.ends(build, v1alpha1.PhaseAborted, "ABORTED")
				awaitEnd(t, request)
				if build = f.build(request.State().UUID); build.Status.Description != "aborting" {
					t.Errorf("the verdict left the description as %q", build.Status.Description)
				}
				send("<i>ended</i>", "<i>ended</i>")
				if build.Status.Phase != v1alpha1.PhaseAborted || build.Status.Result != "ABORTED" {
					t.Errorf("the description left the verdict as %s %q", build.Status.Phase, build.Status.Result)
				}
				send("", "")
			})
		}
	})
}

// TestSetDescriptionOthers: every set_description: is answered, and describes the build it names and no other.
func TestSetDescriptionOthers(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		log := &levels{}
		f := startBridge(t, address, func(bridge *Bridge) { bridge.Logger = slog.New(log) })
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		running := submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, running)
		build := f.build(running.State().UUID)
		f.awaitSeen(build, "the build", func(*v1alpha1.ZuulBuild) bool { return true })

		refused := map[string]string{
			"wrong number":     describeArgument("unit", build.Spec.Number+1, "x"),
			"wrong name":       describeArgument("other", build.Spec.Number, "x"),
			"name in capitals": describeArgument("UNIT", build.Spec.Number, "x"),
			"unknown unique":   `{"unique_id": "` + zuulclient.NewUUID() + `", "html_description": "x"}`,
			"part of a unique": `{"unique_id": "` + build.Spec.UUID[:31] + `", "html_description": "x"}`,
			"1 MiB of a name":  describeArgument(strings.Repeat("a", 1<<20), build.Spec.Number, "x"),
		}
		maps.Copy(refused, malformedDescriptions())
		before := log.count(slog.LevelInfo, "Command")
		for name, argument := range refused {
			if answer := describe(t, zuul, argument); answer != gearman.PacketWorkFail {
				t.Errorf("%s: answered with %v", name, answer)
			}
		}
		gearmantest.Eventually(t, patience, "all but one to be told of at debug level", func() bool {
			return log.count(slog.LevelDebug, "Command") == len(refused)-1
		})
		if told := log.count(slog.LevelInfo, "Command") - before; told != 1 {
			t.Errorf("%d of %d refused commands were told of above debug level", told, len(refused))
		}
		for range 2 {
			argument := fmt.Sprintf(`{"name": "unit", "number": "%d", "html_description": "y"}`, build.Spec.Number)
			if answer := describe(t, zuul, argument); answer != gearman.PacketWorkComplete {
				t.Errorf("answered with %v", answer)
			}
		}
		f.awaitBuild(build.Spec.UUID, "described as y", described("y"))
		f.ends(f.build(build.Spec.UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		awaitEnd(t, running)
	})
}

// TestSetDescriptionHostile: whatever the description, it is answered soon, and what is stored is bounded and harmless.
func TestSetDescriptionHostile(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	f := startBridge(t, address, nil)
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	build := f.build(request.State().UUID)
	const size = 5 << 20
	for name, html := range map[string]string{
		"markup":  strings.Repeat(`<b>a<script>alert(1)</script><img src=x onerror=x()>`, size/52),
		"quotes":  strings.Repeat(`<"&>`, size/5),
		"NUL":     strings.Repeat("a\x00\u202e", size/12),
		"one tag": "a<a href=\"" + strings.Repeat("x", size),
	} {
		t.Run(name, func(t *testing.T) {
			begun := time.Now()
			if answer := describe(t, zuul, describeArgument("unit", build.Spec.Number, html)); answer != gearman.PacketWorkComplete {
				t.Errorf("answered with %v", answer)
			}
			t.Logf("answered after %v", time.Since(begun))
			want := description.Sanitize(html)
			got := f.awaitBuild(build.Spec.UUID, "described", described(want)).Status.Description
			if got == "" || len(got) > description.MaxLength {
				t.Errorf("%d bytes were stored", len(got))
			}
			for _, bad := range []string{"<script", "<img", "\x00", "\u202e"} {
				if strings.Contains(got, bad) {
					t.Errorf("%q was stored", bad)
				}
			}
		})
	}
}

// TestSetDescriptionBeforeBuild: a description that comes while the build is on its way waits for it.
func TestSetDescriptionBeforeBuild(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	open := make(chan struct{})
	f := startBridge(t, address, func(bridge *Bridge) { bridge.Numbers = gate{bridge.Numbers, open} })
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Branch)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	gearmantest.Eventually(t, patience, "the request", func() bool { return len(f.bridge.assignments.all()) == 1 })
	argument := `{"unique_id": "` + request.State().UUID + `", "html_description": "early"}`
	if answer := describe(t, zuul, argument); answer != gearman.PacketWorkComplete {
		t.Errorf("answered with %v", answer)
	}
	close(open)
	f.awaitBuild(request.State().UUID, "described as early", described("early"))
}

// TestSetDescriptionWrites: the answer does not wait for the API server, what that refuses for the moment is tried again, only the newest description is
// written, and none that is there already.
func TestSetDescriptionWrites(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	api := &gatedStatus{}
	f := startBridge(t, address, func(bridge *Bridge) {
		api.Client = bridge.Client
		bridge.Client = api
	})
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	build := f.build(request.State().UUID)
	send := func(text string) {
		t.Helper()
		if answer := describe(t, zuul, describeArgument("unit", build.Spec.Number, text)); answer != gearman.PacketWorkComplete {
			t.Errorf("answered with %v", answer)
		}
	}
	settled := func() bool {
		_, due := f.bridge.describer.dueFor(client.ObjectKeyFromObject(build))
		return !due
	}

	api.gate.Lock() // the API server hangs
	send("first")
	gearmantest.Eventually(t, patience, "a write", func() bool { return api.patches.Load() == 1 })
	for i := range 20 {
		send(fmt.Sprint("number ", i))
	}
	api.failures.Store(2)
	api.gate.Unlock()
	f.awaitBuild(build.Spec.UUID, "described by the last", described("number 19"))
	gearmantest.Eventually(t, patience, "the cache to show it", settled)
	if patches := api.patches.Load(); patches > 4 { // the first and its repetitions, and the last
		t.Errorf("%d writes of 21 descriptions that came at once", patches)
	}

	before := api.patches.Load()
	for range 3 {
		send("number 19")
		gearmantest.Eventually(t, patience, "it to be seen that nothing changes", settled)
	}
	if patches := api.patches.Load(); patches != before {
		t.Errorf("%d writes that change nothing", patches-before)
	}
	// A build that is gone takes with it what is due for it.
	api.failures.Store(1 << 30)
	send("never")
	must(t, f.api.Delete(t.Context(), build))
	gearmantest.Eventually(t, patience, "the description to be forgotten", settled)
}

// TestSetDescriptionLateCache: what counts is what was written, not what the cache shows of the time before.
func TestSetDescriptionLateCache(t *testing.T) {
	scheme := runtime.NewScheme()
	must(t, v1alpha1.AddToScheme(scheme))
	build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "b"}, Status: v1alpha1.ZuulBuildStatus{Description: "a"}}
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(build).WithObjects(build).Build()
	key := client.ObjectKeyFromObject(build)
	cache := &staleCache{gatedStatus: &gatedStatus{Client: api}}
	cache.catchUp(t, key)
	d := &describer{bridge: &Bridge{Client: cache}}
	for step, wanted := range []struct {
		text    string
		patches int64 // so far
	}{{"a", 0}, {"b", 1}, {"a", 2}, {"a", 2}, {"", 3}, {"b", 4}} {
		d.want(key, wanted.text)
		for range 2 {
			_, err := d.Reconcile(t.Context(), ctrl.Request{NamespacedName: key})
			must(t, err)
		}
		stored := &v1alpha1.ZuulBuild{}
		must(t, api.Get(t.Context(), key, stored))
		if patches := cache.patches.Load(); stored.Status.Description != wanted.text || patches != wanted.patches {
			t.Errorf("step %d: %q is stored after %d writes, want %q after %d", step, stored.Status.Description, patches, wanted.text, wanted.patches)
		}
	}
	cache.catchUp(t, key)
	_, err := d.Reconcile(t.Context(), ctrl.Request{NamespacedName: key})
	must(t, err)
	if due, ok := d.dueFor(key); ok {
		t.Errorf("%+v is due when the cache shows it", due)
	}
}

// staleCache shows a build as it was when it was last told to catch up.
type staleCache struct {
	*gatedStatus
	shown v1alpha1.ZuulBuild
}

func (l *staleCache) catchUp(t *testing.T, key client.ObjectKey) {
	t.Helper()
	must(t, l.Client.Get(t.Context(), key, &l.shown))
}

func (l *staleCache) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	l.shown.DeepCopyInto(object.(*v1alpha1.ZuulBuild))
	return nil
}

// gatedStatus lets writes of a status wait at a gate, and lets some of them fail.
type gatedStatus struct {
	client.Client
	gate     sync.Mutex
	failures atomic.Int64
	patches  atomic.Int64
}

func (g *gatedStatus) Status() client.SubResourceWriter { return gatedWriter{g.Client.Status(), g} }

type gatedWriter struct {
	client.SubResourceWriter
	*gatedStatus
}

func (w gatedWriter) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
	if _, build := object.(*v1alpha1.ZuulBuild); build {
		w.patches.Add(1)
		w.gate.Lock()
		defer w.gate.Unlock()
		if w.failures.Add(-1) >= 0 {
			return errors.New("the API server is not well")
		}
	}
	return w.SubResourceWriter.Patch(ctx, object, patch, options...)
}

// levels keeps what was logged, at any level.
type levels struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *levels) Enabled(context.Context, slog.Level) bool { return true }
func (l *levels) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *levels) WithGroup(string) slog.Handler            { return l }

func (l *levels) Handle(_ context.Context, record slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, "%s %s\n", record.Level, record.Message)
	return nil
}

// count the messages of a level that begin so.
func (l *levels) count(level slog.Level, beginning string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count("\n"+l.text.String(), "\n"+level.String()+" "+beginning)
}
