package tracing

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// minute is when the builds of the tests begin; what is told in seconds counts from there.
var minute = time.Date(2026, 5, 4, 3, 2, 0, 0, time.UTC)

func at(seconds float64) time.Time {
	return minute.Add(time.Duration(seconds * float64(time.Second)))
}

// stamp is a time as objects tell it.
func stamp(seconds int) *metav1.Time { return ptr.To(metav1.NewTime(at(float64(seconds)))) }

// newBuild is a build that came the whole way: 5 s without a Pod, 5 s without a node, 30 s until it ran, and 10 minutes in all.
func newBuild(change func(*v1alpha1.ZuulBuild)) *v1alpha1.ZuulBuild {
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "builds", Name: "b1", UID: "0f3b8a52-7c1d-4e5f-9a6b-1c2d3e4f5a6b", CreationTimestamp: *stamp(0),
			Labels: map[string]string{v1alpha1.LabelGearmanServer: "zuul"},
		},
		Spec: v1alpha1.ZuulBuildSpec{Job: "unit", UUID: "c0ffee", Number: 17},
		Status: v1alpha1.ZuulBuildStatus{
			Phase: v1alpha1.PhaseSucceeded, Result: "SUCCESS", Reason: "Succeeded",
			PodCreationTime: stamp(5), ScheduledTime: stamp(10), StartTime: stamp(40), CompletionTime: stamp(600),
		},
	}
	if change != nil {
		change(build)
	}
	return build
}

// inShort is a trace for people: each span with its start and end in seconds, and its events.
func inShort(spans []span) []string {
	var out []string
	for _, s := range spans {
		line := fmt.Sprintf("%s %v-%v", s.name, s.start.Sub(minute).Seconds(), s.end.Sub(minute).Seconds())
		for _, e := range s.events {
			line += fmt.Sprintf(", %s %v", e.name, e.at.Sub(minute).Seconds())
		}
		out = append(out, line)
	}
	return out
}

func TestSpans(t *testing.T) {
	first := Report{Assigned: at(0.25), Taken: at(0.5), Learned: at(600.5), Sent: at(600.75)}
	again := Report{Assigned: at(700), Taken: at(700.5), Adopted: true, Sent: at(701)}
	tests := map[string]struct {
		report Report
		change func(*v1alpha1.ZuulBuild)
		want   []string
	}{
		"the whole way": {report: first, want: []string{
			"build unit 0.25-600.75, verdict 600", "intake 0.25-0.5", "queued 0.5-5", "unscheduled 5-10", "starting 10-40", "running 40-600", "report 600.5-600.75",
		}},
		"all within a second": {
			report: Report{Assigned: at(0.25), Taken: at(0.5), Learned: at(0.75), Sent: at(0.875)},
			change: func(build *v1alpha1.ZuulBuild) {
				s := &build.Status
				s.PodCreationTime, s.ScheduledTime, s.StartTime, s.CompletionTime = stamp(0), stamp(0), stamp(0), stamp(0)
			},
			want: []string{
				"build unit 0.25-0.875, verdict 0.5", "intake 0.25-0.5", "queued 0.5-0.5", "unscheduled 0.5-0.5", "starting 0.5-0.5", "running 0.5-0.5", "report 0.75-0.875",
			},
		},
		"never a Pod": {report: first, change: func(build *v1alpha1.ZuulBuild) {
			build.Status.PodCreationTime, build.Status.ScheduledTime, build.Status.StartTime = nil, nil, nil
		}, want: []string{"build unit 0.25-600.75, verdict 600", "intake 0.25-0.5", "queued 0.5-600", "report 600.5-600.75"}},
		"never a node": {report: first, change: func(build *v1alpha1.ZuulBuild) {
			build.Status.ScheduledTime, build.Status.StartTime = nil, nil
		}, want: []string{"build unit 0.25-600.75, verdict 600", "intake 0.25-0.5", "queued 0.5-5", "unscheduled 5-600", "report 600.5-600.75"}},
		"never ran": {report: first, change: func(build *v1alpha1.ZuulBuild) { build.Status.StartTime = nil }, want: []string{
			"build unit 0.25-600.75, verdict 600", "intake 0.25-0.5", "queued 0.5-5", "unscheduled 5-10", "starting 10-600", "report 600.5-600.75",
		}},
		"a status without the time of the Pod": {report: first, change: func(build *v1alpha1.ZuulBuild) { build.Status.PodCreationTime = nil }, want: []string{
			"build unit 0.25-600.75, verdict 600", "intake 0.25-0.5", "queued 0.5-10", "starting 10-40", "running 40-600", "report 600.5-600.75",
		}},
		"deleted while it ran": {
			report: Report{Assigned: at(0.25), Taken: at(0.5), Sent: at(90)},
			change: func(build *v1alpha1.ZuulBuild) { build.Status.CompletionTime = nil },
			want: []string{
				"build unit 0.25-90, verdict 90", "intake 0.25-0.5", "queued 0.5-5", "unscheduled 5-10", "starting 10-40", "running 40-90", "report 90-90",
			},
		},
		"its second Pod": {report: first, change: func(build *v1alpha1.ZuulBuild) {
			build.Status.LostPods = []v1alpha1.LostPod{{UID: "u", NodeName: "n", Reason: "Rejected", CreationTime: *stamp(1), LostTime: *stamp(3)}}
		}, want: []string{
			"build unit 0.25-600.75, Pod lost 3, verdict 600", "intake 0.25-0.5", "queued 0.5-5", "unscheduled 5-10", "starting 10-40", "running 40-600", "report 600.5-600.75",
		}},
		"adopted while it ran": {
			report: Report{Assigned: at(100), Taken: at(100.5), Adopted: true, Learned: at(600.5), Sent: at(600.75)},
			want: []string{
				"build unit 0-600.75, job assigned again 100, verdict 600", "queued 0-5", "unscheduled 5-10", "starting 10-40", "running 40-600", "report 600.5-600.75",
			},
		},
		"asked for again after its end": {report: again, want: []string{
			"build unit 0-701, job assigned again 700, verdict 600", "queued 0-5", "unscheduled 5-10", "starting 10-40", "running 40-600", "report 700-701",
		}},
		"a node whose clock is an hour ahead": {report: first, change: func(build *v1alpha1.ZuulBuild) { build.Status.StartTime = stamp(3640) }, want: []string{
			"build unit 0.25-600.75, verdict 600.75", "intake 0.25-0.5", "queued 0.5-5", "unscheduled 5-10", "starting 10-600.75", "running 600.75-600.75", "report 600.75-600.75",
		}},
		"a node whose clock is an hour behind": {report: first, change: func(build *v1alpha1.ZuulBuild) { build.Status.StartTime = stamp(-3560) }, want: []string{
			"build unit 0.25-600.75, verdict 600", "intake 0.25-0.5", "queued 0.5-5", "unscheduled 5-10", "starting 10-10", "running 10-600", "report 600.5-600.75",
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.report.Build = newBuild(test.change)
			if diff := cmp.Diff(test.want, inShort(spansOf(test.report))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSpansOfAnyTimes: whatever the clocks say, every span lies within the root, none begins before the one before it, no two have one name, and no time
// between the beginning of the build and the verdict is in none.
func TestSpansOfAnyTimes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		second := rapid.IntRange(-100, 100)
		when := func(label string) *metav1.Time {
			return rapid.Ptr(rapid.Map(second, func(s int) metav1.Time { return *stamp(s) }), true).Draw(t, label)
		}
		moment := func(label string) time.Time { return at(rapid.Float64Range(-100, 100).Draw(t, label)) }
		build := newBuild(func(build *v1alpha1.ZuulBuild) {
			s := &build.Status
			s.PodCreationTime, s.ScheduledTime, s.StartTime, s.CompletionTime = when("Pod"), when("node"), when("start"), when("end")
		})
		r := Report{Build: build, Assigned: moment("assigned"), Learned: moment("learned"), Adopted: rapid.Bool().Draw(t, "adopted")}
		r.Taken = r.Assigned.Add(time.Second)
		r.Sent = later(r.Taken, build.CreationTimestamp.Time).Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "sent")) * time.Second)

		spans := spansOf(r)
		root, parts := spans[0], spans[1:]
		names := map[string]bool{root.name: true}
		for i, part := range parts {
			if part.start.Before(root.start) || part.end.After(root.end) || part.end.Before(part.start) || i > 0 && part.start.Before(parts[i-1].start) {
				t.Errorf("%q in %q", part.name, inShort(spans))
			}
			if i > 0 && part.name != "report" && !part.start.Equal(parts[i-1].end) {
				t.Errorf("nothing before %q in %q", part.name, inShort(spans))
			}
			if names[part.name] {
				t.Errorf("two of %q in %q", part.name, inShort(spans))
			}
			names[part.name] = true
		}
		if !parts[0].start.Equal(root.start) || !parts[len(parts)-1].end.Equal(root.end) {
			t.Errorf("%q", inShort(spans))
		}
	})
}

func texts(attributes []attribute.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attributes {
		out[string(a.Key)] = fmt.Sprint(a.Value.AsInterface())
	}
	return out
}

func TestAttributes(t *testing.T) {
	build := newBuild(func(build *v1alpha1.ZuulBuild) {
		build.Spec.Node = "arm"
		build.Spec.Parameters = map[string]string{"ZUUL_PROJECT": "tools/demo", "ZUUL_PIPELINE": "check", "ZUUL_CHANGE": "1234", "PASSWORD": "hunter2"}
		s := &build.Status
		s.PodName, s.NodeName, s.URL = "b1", "node-1", "https://builds.example.org/b1"
		s.Phase, s.Result, s.Reason, s.Message = v1alpha1.PhaseFailed, "FAILURE", "ExitCode", "exit code 1: hunter2"
		s.LostPods = []v1alpha1.LostPod{{UID: "u", NodeName: "node-2", Reason: "Rejected", Message: "hunter2"}}
	})
	root := spansOf(Report{Build: build, Assigned: at(0), Taken: at(0), Sent: at(600)})[0]
	want := map[string]string{
		"cicd.pipeline.name": "check", "cicd.pipeline.task.name": "unit", "cicd.pipeline.task.run.id": "c0ffee",
		"cicd.pipeline.task.run.url.full": "https://builds.example.org/b1", "cicd.pipeline.task.run.result": "failure",
		"vcs.repository.name": "tools/demo", "vcs.change.id": "1234",
		"k8s.namespace.name": "builds", "k8s.pod.name": "b1", "k8s.node.name": "node-1",
		"zuulbuild.build": "b1", "zuulbuild.number": "17", "zuulbuild.node_class": "arm", "zuulbuild.gearman_server": "zuul",
		"zuulbuild.result": "FAILURE", "zuulbuild.reason": "ExitCode",
	}
	if diff := cmp.Diff(want, texts(root.attributes)); diff != "" {
		t.Errorf("attributes (-want +got):\n%s", diff)
	}
	var events []map[string]string
	for _, e := range root.events {
		events = append(events, texts(e.attributes))
	}
	wantEvents := []map[string]string{
		{"k8s.pod.uid": "u", "k8s.node.name": "node-2", "zuulbuild.reason": "Rejected"},
		{"zuulbuild.result": "FAILURE", "zuulbuild.reason": "ExitCode"},
	}
	if diff := cmp.Diff(wantEvents, events); diff != "" {
		t.Errorf("attributes of events (-want +got):\n%s", diff)
	}
	if root.failure != "ExitCode" {
		t.Errorf("failure %q", root.failure)
	}
}

func TestNothingEmptyIsTold(t *testing.T) {
	build := &v1alpha1.ZuulBuild{Status: v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseLost, CompletionTime: stamp(0)}}
	root := spansOf(Report{Build: build, Sent: at(1)})[0]
	want := []string{"cicd.pipeline.task.run.result", "zuulbuild.number"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(texts(root.attributes)))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestResults(t *testing.T) {
	tests := []struct {
		phase          v1alpha1.BuildPhase
		result, reason string
		want, failure  string
	}{
		{v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded", "success", ""},
		{v1alpha1.PhaseFailed, "FAILURE", "ExitCode", "failure", "ExitCode"},
		{v1alpha1.PhaseFailed, "TIMED_OUT", "TimedOut", "timeout", "TimedOut"},
		{v1alpha1.PhaseFailed, "INVALID_REQUEST", "InvalidRequest", "failure", "InvalidRequest"},
		{v1alpha1.PhaseAborted, "ABORTED", "Aborted", "cancellation", ""},
		{v1alpha1.PhaseLost, "", "NodeLost", "error", "NodeLost"},
		{v1alpha1.PhaseLost, "NODE_FAILURE", "NodeLost", "error", "NodeLost"},
	}
	for _, test := range tests {
		status := &v1alpha1.ZuulBuildStatus{Phase: test.phase, Result: test.result, Reason: test.reason}
		if got := resultOf(status).Value.AsString(); got != test.want {
			t.Errorf("%s %q: result %q, want %q", test.phase, test.result, got, test.want)
		}
		if got := failureOf(status); got != test.failure {
			t.Errorf("%s %q: failure %q, want %q", test.phase, test.result, got, test.failure)
		}
	}
}

func TestTraceID(t *testing.T) {
	uid := newBuild(nil).UID
	if got := traceID(uid).String(); got != strings.ReplaceAll(string(uid), "-", "") {
		t.Errorf("trace id %s of UID %s", got, uid)
	}
	for _, uid := range []types.UID{"", "b1", "00000000-0000-0000-0000-000000000000"} {
		if id := traceID(uid); !id.IsValid() || id != traceID(uid) || id == traceID(uid+"x") {
			t.Errorf("trace id %s of UID %q", id, uid)
		}
	}
	if spanID(traceID(uid), "queued") == spanID(traceID(uid), "running") || spanID(traceID(uid), "queued") == spanID(traceID("other"), "queued") {
		t.Error("two spans with one id")
	}
}
