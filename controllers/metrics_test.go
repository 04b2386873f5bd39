package controllers

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/doctable"
)

// startedBuild is a build of class `arm` that had its Pod after 5, its node after 15 and its main container after 45 seconds, and that Pod.
func startedBuild() (*v1alpha1.ZuulBuild, *corev1.Pod) {
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: after(-5 * time.Second)},
		Spec:       v1alpha1.ZuulBuildSpec{Job: "job", Node: "arm"},
		Status: v1alpha1.ZuulBuildStatus{
			Phase: v1alpha1.PhaseRunning, Reason: ReasonRunning, ScheduledTime: ptr.To(after(10 * time.Second)), StartTime: ptr.To(after(40 * time.Second)),
		},
	}
	return build, newPod()
}

// ending is the build when it ended, ten minutes after its Pod was made.
func ending(build *v1alpha1.ZuulBuild, phase v1alpha1.BuildPhase, result, reason string) *v1alpha1.ZuulBuild {
	build = build.DeepCopy()
	build.Status.Phase, build.Status.Result, build.Status.Reason, build.Status.CompletionTime = phase, result, reason, ptr.To(after(10*time.Minute))
	return build
}

// everyMetric is a registry where each metric has a value.
func everyMetric(t *testing.T, byJob bool) *prometheus.Registry {
	t.Helper()
	build, pod := startedBuild()
	queued := build.DeepCopy()
	queued.Status.Phase, queued.Spec.Node, queued.Status.Reason = "", "", ReasonCapacityReached
	pulling := queued.DeepCopy()
	pulling.Status.Phase, pulling.Status.Reason = v1alpha1.PhaseStarting, "RegistryUnavailable"
	losing := build.DeepCopy()
	losing.Status.LostPods = []v1alpha1.LostPod{{Reason: ReasonRejected}}
	m := newMetrics(byJob, func(err error) { t.Error(err) })
	read := func() ([]v1alpha1.ZuulBuild, error) {
		return []v1alpha1.ZuulBuild{*build, *queued, *build, *pulling}, nil
	}
	job := &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{JobName: "job"}}
	m.written(&v1alpha1.ZuulBuild{}, build, job, pod)
	m.written(build, ending(build, v1alpha1.PhaseSucceeded, ResultSuccess, ReasonSucceeded), job, pod)
	m.written(build, losing, job, pod)
	m.written(losing, losing, job, pod)
	m.written(&v1alpha1.ZuulBuild{}, ending(&v1alpha1.ZuulBuild{}, v1alpha1.PhaseLost, "", ReasonQuotaExceeded), nil, nil)
	m.read.Store(&read)
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(m); err != nil {
		t.Fatal(err)
	}
	return registry
}

func TestMetricsOfBuilds(t *testing.T) {
	want := map[string]float64{
		"builds class=arm phase=Running": 2, "builds class= phase=Queued": 1, "builds class= phase=Starting": 1,
		"builds_waiting reason=CapacityReached": 1, "builds_waiting reason=other": 1, "pods_lost_total reason=Rejected": 1,
		"builds_completed_total reason=Succeeded result=SUCCESS":  1,
		"builds_completed_total reason=QuotaExceeded result=none": 1,
		"build_stage_duration_seconds class=arm stage=queued":     1, "build_stage_duration_seconds class=arm stage=unscheduled": 1,
		"build_stage_duration_seconds class=arm stage=starting": 1, "build_stage_duration_seconds class=arm stage=running": 1,
	}
	if diff := cmp.Diff(want, series(t, everyMetric(t, false))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	byJob := series(t, everyMetric(t, true))
	for _, name := range []string{
		"build_stage_duration_seconds class=arm stage=running zuul_job=job", "builds_completed_total reason=Succeeded result=SUCCESS zuul_job=job",
		"builds_completed_total reason=QuotaExceeded result=none zuul_job=", "builds class=arm phase=Running",
	} {
		if byJob[name] == 0 {
			t.Errorf("by job, there is no %s: %v", name, byJob)
		}
	}
}

// TestFirstVerdictIsAnIncrease: Prometheus sees no increase in a series that begins with 1, so each ending that docs/reasons.md has begins at 0.
func TestFirstVerdictIsAnIncrease(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newMetrics(false, nil))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string]bool{}, map[string]bool{}
	for _, row := range doctable.Rows(t, "reasons.md", "How builds end, and why") {
		want[strings.Replace(row[2], "nothing", resultNone, 1)+" "+row[0]] = true
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "zuulbuild_builds_completed_total" { // labels are in the order of their names
				got[metric.GetLabel()[1].GetValue()+" "+metric.GetLabel()[0].GetValue()] = true
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/reasons.md (-page +metrics):\n%s", diff)
	}
}

// TestMetricsNativeBuckets: beside the classic buckets there are native ones, for a Prometheus that asks for them.
func TestMetricsNativeBuckets(t *testing.T) {
	families, err := everyMetric(t, false).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if h := metric.GetHistogram(); h != nil && (len(h.GetBucket()) != len(stageBuckets) || len(h.GetPositiveDelta()) == 0) {
				t.Errorf("%s has %d classic and %d native buckets", family.GetName(), len(h.GetBucket()), len(h.GetPositiveDelta()))
			}
		}
	}
}

func TestStagesOver(t *testing.T) {
	started, pod := startedBuild()
	young := &v1alpha1.ZuulBuild{ObjectMeta: started.ObjectMeta}
	scheduled := started.DeepCopy()
	scheduled.Status.StartTime, scheduled.Status.Phase = nil, v1alpha1.PhaseStarting
	ahead := started.DeepCopy()
	ahead.CreationTimestamp = after(time.Second)
	untilStart := map[string]time.Duration{stageQueued: 5 * time.Second, stageUnscheduled: 10 * time.Second, stageStarting: 30 * time.Second}
	cases := []struct {
		name          string
		before, after *v1alpha1.ZuulBuild
		pod           *corev1.Pod
		want          map[string]time.Duration
	}{
		{"it waits", young, scheduled, pod, nil},
		{"it starts", young, started, pod, untilStart},
		{"it starts after its wait was explained", scheduled, started, pod, untilStart},
		{"it runs", started, started, pod, nil},
		{"it ends", started, ending(started, v1alpha1.PhaseFailed, ResultFailure, ReasonExitCode), pod, map[string]time.Duration{stageRunning: 560 * time.Second}},
		{
			"its start and end are seen together", young, ending(started, v1alpha1.PhaseFailed, ResultFailure, ReasonExitCode), pod,
			map[string]time.Duration{stageQueued: 5 * time.Second, stageUnscheduled: 10 * time.Second, stageStarting: 30 * time.Second, stageRunning: 560 * time.Second},
		},
		{"its Pod is gone", started, ending(started, v1alpha1.PhaseLost, "", ReasonPodDeleted), nil, map[string]time.Duration{stageRunning: 560 * time.Second}},
		{
			"it ends without a start", scheduled, ending(scheduled, v1alpha1.PhaseLost, "", ReasonStartTimeout), pod,
			map[string]time.Duration{stageQueued: 5 * time.Second, stageUnscheduled: 10 * time.Second},
		},
		{"it ends without a node", young, ending(young, v1alpha1.PhaseLost, "", ReasonUnschedulable), pod, map[string]time.Duration{stageQueued: 5 * time.Second}},
		{"it ends without a Pod", young, ending(young, v1alpha1.PhaseFailed, ResultFailure, ReasonJobNotFound), nil, nil},
		{"it has ended", ending(started, v1alpha1.PhaseLost, "", ReasonNodeLost), ending(started, v1alpha1.PhaseLost, "", ReasonNodeLost), pod, nil},
		{"clocks differ", young, ahead, pod, map[string]time.Duration{stageQueued: 0, stageUnscheduled: 10 * time.Second, stageStarting: 30 * time.Second}},
	}
	for _, c := range cases {
		if diff := cmp.Diff(c.want, stagesOver(c.before, c.after, c.pod), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestWaitLabel: what the kubelet may say is without end, and what builds wait for by docs/reasons.md has a series of its own.
func TestWaitLabel(t *testing.T) {
	for reason, want := range map[string]string{
		"": "new", ReasonCapacityReached: "CapacityReached", ReasonSchedulingGated: "SchedulingGated", "ImagePullBackOff": "ImagePullBackOff", "Whatever": "other",
	} {
		if got := waitLabel(reason); got != want {
			t.Errorf("%q is counted as %q", reason, got)
		}
	}
}

// TestClassesAreBounded: whoever may make builds by hand cannot make series without end.
func TestClassesAreBounded(t *testing.T) {
	m := newMetrics(false, nil)
	seen := map[string]bool{}
	for i := range 3 * maxClasses {
		seen[m.class(&v1alpha1.ZuulBuild{Spec: v1alpha1.ZuulBuildSpec{Node: fmt.Sprint(i % (2 * maxClasses))}})] = true
	}
	if len(seen) != maxClasses+1 || !seen["0"] || !seen[classOther] {
		t.Errorf("%d values", len(seen))
	}
}

// TestMetricsOfIdleReplica: a replica that does not work has no part in sums, and a scrape that cannot count still tells what was counted before.
func TestMetricsOfIdleReplica(t *testing.T) {
	var problem error
	m := newMetrics(false, func(err error) { problem = err })
	read := func() ([]v1alpha1.ZuulBuild, error) { return nil, errors.New("no cache") }
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	m.buildDeleted(expiredByTime)
	for _, working := range []bool{false, true} {
		if working {
			m.read.Store(&read)
		}
		if diff := cmp.Diff(map[string]float64{"retention_deleted_builds_total cause=time": 1}, series(t, registry)); diff != "" {
			t.Errorf("working %t (-want +got):\n%s", working, diff)
		}
		if (problem != nil) != working {
			t.Errorf("working %t, the problem is %v", working, problem)
		}
	}
}

// TestMetricsOfABuild: what is counted while a build comes and goes, with all parts at work.
func TestMetricsOfABuild(t *testing.T) {
	h := newHarness(t)
	h.ahead = neverSlow
	h.start()
	h.job("job")
	h.request("b", "job", numbered(1))
	await := func(want map[string]float64) {
		t.Helper()
		h.eventually(func() string { return cmp.Diff(want, series(t, h.registry)) })
	}
	await(map[string]float64{"builds class= phase=Queued": 1, "builds_waiting reason=new": 1})
	h.run("b")
	want := map[string]float64{
		"builds class= phase=Running":                      1,
		"build_stage_duration_seconds class= stage=queued": 1, "build_stage_duration_seconds class= stage=unscheduled": 1,
		"build_stage_duration_seconds class= stage=starting": 1,
	}
	await(want)
	h.report("b", withPhase(podFailed), ended("build", 1, "Error"))
	delete(want, "builds class= phase=Running")
	want["build_stage_duration_seconds class= stage=running"] = 1
	want["builds_completed_total reason=ExitCode result=FAILURE"] = 1
	await(want)
}

// TestMetricsConventions: names, types and help texts are what Prometheus asks for.
func TestMetricsConventions(t *testing.T) {
	problems, err := testutil.GatherAndLint(everyMetric(t, false))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

// TestMetricsAreDocumented: docs/metrics.md has each metric with its type, its labels and its help text, and an example that is about it.
func TestMetricsAreDocumented(t *testing.T) {
	families, err := everyMetric(t, false).Gather()
	if err != nil {
		t.Fatal(err)
	}
	free := []string{"class", "reason", "result"} // labels whose values the help need not list
	var want, got [][]string
	for _, family := range families {
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
		want = append(want, []string{family.GetName(), strings.ToLower(family.GetType().String()), strings.Join(labels, ", "), family.GetHelp()})
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if !slices.Contains(free, label.GetName()) && !strings.Contains(family.GetHelp(), label.GetValue()) {
					t.Errorf("the help of %s does not say what %s=%q is", family.GetName(), label.GetName(), label.GetValue())
				}
			}
		}
	}
	for _, row := range doctable.Rows(t, "metrics.md", "Metrics of the controllers") {
		name, _ := doctable.Code(row[0])
		got = append(got, []string{name, row[1], strings.ReplaceAll(row[2], "`", ""), strings.ReplaceAll(row[3], "`", "")})
		if example, ok := doctable.Code(row[4]); !ok || !strings.Contains(example, name) {
			t.Errorf("the example of %s is %s", name, row[4])
		}
	}
	if difference := cmp.Diff(want, got); difference != "" {
		t.Errorf("docs/metrics.md (-code +table):\n%s", difference)
	}
}
