package gearmanbridge

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/tracing"
	"zuulbuild.dev/zuulbuild/tracing/tracingtest"
)

// startTraced runs a bridge whose traces go to a collector.
func startTraced(t *testing.T, collector string) (f *fixture, zuul *zuulclient.Client) {
	t.Helper()
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	tracer, err := tracing.New(t.Context(), collector, "test", slog.New(slog.NewTextHandler(newTestWriter(t), nil)))
	must(t, err)
	t.Cleanup(func() { tracer.Close(context.Background()) })
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	f = startBridge(t, address, func(b *Bridge) { b.Tracer = tracer })
	f.job("unit")
	return f, dialZuul(t, address, zuulclient.Zuul2)
}

// hasPod plays the controllers: the build's Pod has a node.
func (f *fixture) hasPod(build *v1alpha1.ZuulBuild) {
	f.t.Helper()
	before := build.DeepCopy()
	build.Status.PodCreationTime, build.Status.ScheduledTime = ptr.To(metav1.Now()), ptr.To(metav1.Now())
	must(f.t, f.api.Status().Patch(f.t.Context(), build, client.MergeFrom(before)))
}

// TestTrace: a build is one trace from its assignment to its report, and stays one when it is reported again.
func TestTrace(t *testing.T) {
	collector := tracingtest.Start(t)
	f, zuul := startTraced(t, collector.URL)
	first := zuulclient.Request{Job: "unit", Parameters: map[string]any{
		"ZUUL_PROJECT": "tools/demo", "ZUUL_PIPELINE": "check", "ZUUL_CHANGE": "1234", "PASSWORD": "hunter2",
	}}
	request := submit(t, zuul, first)
	uuid := request.State().UUID
	build := f.build(uuid)
	f.hasPod(build)
	f.runs(build)
	f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
	awaitEnd(t, request)

	await := func(roots int) []tracingtest.Span { // the root is sent last
		t.Helper()
		gearmantest.Eventually(t, patience, fmt.Sprintf("%d roots", roots), func() bool {
			return roots == len(slices.DeleteFunc(collector.Spans(), func(span tracingtest.Span) bool { return span.Parent != "" }))
		})
		return collector.Spans()
	}
	spans := await(1)
	var names []string
	ids := map[string]string{}
	for i, span := range spans {
		names = append(names, span.Name)
		ids[span.Name] = span.ID
		if span.Trace != strings.ReplaceAll(string(build.UID), "-", "") {
			t.Errorf("%s is of trace %s, that of build %s", span.Name, span.Trace, build.UID)
		}
		if i > 0 && (span.Parent != spans[0].ID || span.End.After(spans[0].End) || span.Start.Before(spans[i-1].Start)) {
			t.Errorf("%+v under %+v", span, spans[0])
		}
		if strings.Contains(fmt.Sprint(span), "hunter2") {
			t.Errorf("a parameter is in %+v", span)
		}
	}
	if diff := cmp.Diff([]string{"build unit", "intake", "queued", "unscheduled", "starting", "running", "report"}, names); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
	for key, want := range map[string]string{
		"cicd.pipeline.task.run.id": uuid, "cicd.pipeline.name": "check", "vcs.repository.name": "tools/demo", "vcs.change.id": "1234",
		"zuulbuild.gearman_server": "zuul", "zuulbuild.result": "SUCCESS", "k8s.namespace.name": f.namespace, "k8s.node.name": "node-1",
	} {
		if got := spans[0].Attributes[key]; got != want {
			t.Errorf("%s is %q, not %q", key, got, want)
		}
	}

	first.UUID = uuid
	awaitEnd(t, submit(t, zuul, first))
	all := await(2)
	if len(all) != 13 { // without another intake
		t.Errorf("%d spans in all", len(all))
	}
	for _, span := range all {
		if known, ok := ids[span.Name]; span.Trace != spans[0].Trace || !ok || span.ID != known {
			t.Errorf("reported again, %s is %s of trace %s, before it was %s of %s", span.Name, span.ID, span.Trace, known, spans[0].Trace)
		}
	}
}

// TestTraceOfADeletedBuild: it ends with its report.
func TestTraceOfADeletedBuild(t *testing.T) {
	collector := tracingtest.Start(t)
	f, zuul := startTraced(t, collector.URL)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	must(t, f.api.Delete(t.Context(), f.build(request.State().UUID)))
	awaitEnd(t, request)
	gearmantest.Eventually(t, patience, "4 spans", func() bool { return len(collector.Spans()) == 4 })
	if root := collector.Spans()[0]; root.Name != "build unit" || root.Attributes["cicd.pipeline.task.run.result"] != "cancellation" {
		t.Errorf("%+v", root)
	}
}

// TestDeadCollectorHoldsUpNoBuild: it takes connections and never answers.
func TestDeadCollectorHoldsUpNoBuild(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
	f, zuul := startTraced(t, "http://"+listener.Addr().String())
	for range 5 {
		request := submit(t, zuul, zuulclient.Request{Job: "unit"})
		build := f.build(request.State().UUID)
		f.runs(build)
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, request); state.Result != "SUCCESS" {
			t.Errorf("result %q", state.Result)
		}
	}
}
