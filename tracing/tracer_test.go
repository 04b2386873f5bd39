package tracing

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/tracing/tracingtest"
)

func TestMain(m *testing.M) {
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "OTEL_") {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// log is what a tracer has logged.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *log) count(word string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), word)
}

func newTracer(t *testing.T, endpoint string) (*Tracer, *log) {
	t.Helper()
	l := &log{}
	tracer, err := New(t.Context(), endpoint, "1.2.3", slog.New(slog.NewJSONHandler(l, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if tracer != nil {
		tracer.flushTimeout = 30 * time.Second // on a busy machine
	}
	t.Cleanup(func() { tracer.Close(context.Background()) })
	return tracer, l
}

func reportOf(build *v1alpha1.ZuulBuild) Report {
	return Report{Build: build, Assigned: at(0.25), Taken: at(0.5), Learned: at(600.5), Sent: at(600.75)}
}

func TestTraceIsSent(t *testing.T) {
	collector := tracingtest.Start(t)
	tracer, l := newTracer(t, collector.URL)
	build := newBuild(func(build *v1alpha1.ZuulBuild) {
		build.Status.Phase, build.Status.Result, build.Status.Reason = v1alpha1.PhaseFailed, "FAILURE", "ExitCode"
		build.Spec.Parameters = map[string]string{"ZUUL_PROJECT": strings.Repeat("long", 1000)}
	})
	tracer.Reported(reportOf(build))
	tracer.Close(t.Context())

	spans := collector.Spans()
	var names []string
	for i, span := range spans {
		names = append(names, span.Name)
		if span.Trace != "0f3b8a527c1d4e5f9a6b1c2d3e4f5a6b" {
			t.Errorf("%s is of trace %s", span.Name, span.Trace)
		}
		if i > 0 && span.Parent != spans[0].ID || i == 0 && span.Parent != "" {
			t.Errorf("%s has parent %q", span.Name, span.Parent)
		}
	}
	if diff := cmp.Diff([]string{"build unit", "intake", "queued", "unscheduled", "starting", "running", "report"}, names); diff != "" {
		t.Fatalf("spans (-want +got):\n%s", diff)
	}
	root := spans[0]
	if !root.Start.Equal(at(0.25)) || !root.End.Equal(at(600.75)) || root.Failure != "ExitCode" || root.Attributes["zuulbuild.number"] != "17" {
		t.Errorf("root %+v", root)
	}
	if diff := cmp.Diff([]string{"verdict"}, root.Events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if project := root.Attributes["vcs.repository.name"]; len(project) != maxText {
		t.Errorf("a project of %d characters", len(project))
	}
	if running := spans[5]; !running.Start.Equal(at(40)) || !running.End.Equal(at(600)) || running.Failure != "" {
		t.Errorf("%+v", running)
	}
	if resource := collector.Resource(); resource["service.name"] != "zuulbuild" || resource["service.version"] != "1.2.3" {
		t.Errorf("resource %v", resource)
	}
	if l.count("\n") != 0 {
		t.Errorf("logged:\n%s", l.text.String())
	}
}

// TestSecondReportIsTheSameTrace: of a build that two replicas report there is one trace, though more is in it that was sent twice.
func TestSecondReportIsTheSameTrace(t *testing.T) {
	collector := tracingtest.Start(t)
	build := newBuild(nil)
	for _, report := range []Report{reportOf(build), {Build: build, Assigned: at(700), Taken: at(701), Adopted: true, Sent: at(702)}} {
		tracer, _ := newTracer(t, collector.URL)
		tracer.Reported(report)
		tracer.Close(t.Context())
	}
	ids, sent := map[string]string{}, map[string]int{}
	for _, span := range collector.Spans() {
		id := span.Trace + " " + span.ID + " " + span.Parent
		if known := ids[span.Name]; known != "" && known != id {
			t.Errorf("%s is %s and %s", span.Name, known, id)
		}
		ids[span.Name] = id
		sent[span.Name]++
	}
	want := map[string]int{"build unit": 2, "intake": 1, "queued": 2, "unscheduled": 2, "starting": 2, "running": 2, "report": 2}
	if diff := cmp.Diff(want, sent); diff != "" {
		t.Errorf("spans (-want +got):\n%s", diff)
	}
}

func TestOffByDefault(t *testing.T) {
	tracer, l := newTracer(t, "")
	if tracer != nil {
		t.Error("a tracer without a collector")
	}
	tracer.Reported(reportOf(newBuild(nil)))
	tracer.Close(t.Context())
	if l.count("\n") != 0 {
		t.Errorf("logged:\n%s", l.text.String())
	}
}

func TestEnvironment(t *testing.T) {
	tests := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "/v1/traces"}
	for variable, path := range tests {
		t.Run(variable, func(t *testing.T) {
			collector := tracingtest.Start(t)
			t.Setenv(variable, collector.URL+path)
			t.Setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
			t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
			t.Setenv("OTEL_SERVICE_NAME", "ci")
			t.Setenv("OTEL_TRACES_SAMPLER", "traceidratio") // not heeded
			t.Setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
			tracer, _ := newTracer(t, "")
			tracer.Reported(reportOf(newBuild(nil)))
			tracer.Close(t.Context())
			if spans := collector.Spans(); len(spans) != 7 {
				t.Errorf("%d spans", len(spans))
			}
			if name := collector.Resource()["service.name"]; name != "ci" {
				t.Errorf("service.name %q", name)
			}
			if header := collector.Header().Get("Authorization"); header != "Bearer abc" {
				t.Errorf("header %q", header)
			}
		})
	}
}

func TestWrongEndpoints(t *testing.T) {
	for _, endpoint := range []string{"collector:4318", "localhost", "grpc://collector:4317", "http://", "http://collector:port", "://"} {
		_, err := New(t.Context(), endpoint, "1", slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("--trace-endpoint: an address such as http://collector.example.org:4318 was expected, not %q", endpoint)) {
			t.Errorf("%q: error %v", endpoint, err)
		}
	}
}

// TestDeadCollector: whatever the collector does, reports wait for nothing, one line a minute tells, and the end of the process is not held up.
func TestDeadCollector(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
	t.Setenv("OTEL_BSP_EXPORT_TIMEOUT", "2000")
	listen := func() net.Listener {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		return listener
	}
	before := goleak.IgnoreCurrent()
	silent, gone := listen(), listen() // nobody accepts what the kernel does
	_ = gone.Close()
	for name, listener := range map[string]net.Listener{"that does not answer": silent, "that is not there": gone} {
		t.Run(name, func(t *testing.T) {
			tracer, l := newTracer(t, "http://"+listener.Addr().String())
			tracer.flushTimeout = 50 * time.Millisecond
			build := newBuild(nil)
			const builds, patience = 2000, 30 * time.Second
			begun := time.Now()
			for range builds { // seven spans each: far more than the queue holds
				tracer.Reported(reportOf(build))
			}
			if took := time.Since(begun); took > patience {
				t.Errorf("%d reports took %v", builds, took)
			}
			gearmantest.Eventually(t, patience, "a warning", func() bool { return l.count("Traces of builds are lost") > 0 })
			begun = time.Now()
			tracer.Close(t.Context())
			if took := time.Since(begun); took > patience/2 {
				t.Errorf("the end took %v", took)
			}
			if warnings := l.count("Traces of builds are lost"); warnings != 1 {
				t.Errorf("%d warnings", warnings)
			}
		})
	}
	// What fails to be sent is logged by whatever tracer is the newest, so it must not be that of another test.
	gearmantest.Eventually(t, time.Minute, "an end to the last sending", func() bool { return goleak.Find(before) == nil })
}
