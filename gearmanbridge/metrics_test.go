package gearmanbridge

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/doctable"
)

// everyMetric is a registry where each metric has a value.
func everyMetric(t *testing.T) *prometheus.Registry {
	t.Helper()
	read := func() (snapshot, error) {
		used := &capacity.Usage{}
		for _, class := range []string{"", "arm", "arm", "arm"} {
			used.Add(capacity.Scope{Class: class})
		}
		planned := map[string]capacity.Scope{"build:unit": {}, "build:unit:arm": {Class: "arm"}, "build:other": {}, "build:other:arm": {Class: "arm"}}
		return snapshot{
			servers:  []serverSnapshot{{"zuul", connections{1, 2}, connections{0, 1}, 3, planned}},
			inFlight: map[string]int{"": 1, "arm": 4},
			used:     used,
			limits:   capacity.Limits{All: 10, Classes: map[string]int{"arm": 5, "idle": 2}},

			withoutBuild: 1,
		}, nil
	}
	m := newMetrics([]string{"zuul"}, func() bool { return true }, read, func(err error) { t.Error(err) })
	m.setQueues("zuul", []queue{{"build:unit", "", 0}, {"build:unit:arm", "arm", 2}, {"build:other:arm", "arm", 3}, {"build:gone:arm", "arm", 4}})
	registry := prometheus.NewPedanticRegistry()
	must(t, registry.Register(m))
	return registry
}

// series are the values by name and labels; a histogram tells how many it has seen.
func series(t *testing.T, registry prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	must(t, err)
	values := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := strings.TrimPrefix(family.GetName(), "zuulbuild_")
			for _, label := range metric.GetLabel() {
				name += fmt.Sprintf(" %s=%s", label.GetName(), label.GetValue())
			}
			values[name] = metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return values
}

// nonzero leaves out series whose value is 0.
func nonzero(values map[string]float64) map[string]float64 {
	left := map[string]float64{}
	for name, value := range values {
		if value != 0 {
			left[name] = value
		}
	}
	return left
}

// TestMetricsConventions: names, types and help texts are what Prometheus asks for.
func TestMetricsConventions(t *testing.T) {
	problems, err := testutil.GatherAndLint(everyMetric(t))
	must(t, err)
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

// TestMetricsAreDocumented: docs/metrics.md has each metric with its type, its labels and its help text, and an example that is about it.
func TestMetricsAreDocumented(t *testing.T) {
	families, err := everyMetric(t).Gather()
	must(t, err)
	var want, got [][]string
	for _, family := range families {
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
		row := []string{family.GetName(), strings.ToLower(family.GetType().String()), strings.Join(labels, ", "), family.GetHelp()}
		want = append(want, row)
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				switch label.GetName() {
				case "server", "class", "function":
				default:
					if !strings.Contains(family.GetHelp(), label.GetValue()) {
						t.Errorf("the help of %s does not say what %s=%q is", family.GetName(), label.GetName(), label.GetValue())
					}
				}
			}
		}
	}
	for _, row := range doctable.Rows(t, "metrics.md", "Metrics of the Gearman bridge") {
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

// TestMetricsComputed: what is computed at a scrape.
func TestMetricsComputed(t *testing.T) {
	want := map[string]float64{
		"gearman_connections kind=builds server=zuul": 1, "gearman_connections_expected kind=builds server=zuul": 2,
		"gearman_connections_expected kind=management server=zuul":          1,
		"gearman_functions_registered server=zuul":                          3,
		"gearman_functions_expected server=zuul":                            4,
		"gearman_startable_jobs server=zuul":                                5,
		"gearman_queued_jobs class=arm server=zuul":                         9,
		"gearman_function_queued_jobs function=build:gone:arm server=zuul":  4,
		"gearman_function_queued_jobs function=build:unit:arm server=zuul":  2,
		"gearman_function_queued_jobs function=build:other:arm server=zuul": 3,
		"builds_in_flight class=":                                           1, "builds_in_flight class=arm": 4, "slots_limit": 10, "slots_used": 4, "slots_without_build": 1,
		"class_slots_limit class=arm": 5, "class_slots_used class=arm": 3, "class_slots_limit class=idle": 2,
	}
	values := series(t, everyMetric(t))
	if difference := cmp.Diff(want, nonzero(values)); difference != "" {
		t.Errorf("(-want +got):\n%s", difference)
	}
	for _, name := range []string{
		"gearman_connections kind=management server=zuul", "gearman_queued_jobs class= server=zuul", "class_slots_used class=idle",
		"gearman_grabs_total outcome=assigned server=zuul", "orphans_total cause=cancelled", "reports_total result=none",
	} {
		if value, there := values[name]; !there || value != 0 {
			t.Errorf("%s is %v, %t; 0 was expected", name, value, there)
		}
	}
}

// TestMetricsOfIdleReplica: a replica that does not lead has no part in sums, and a scrape that cannot count still tells what was counted before.
func TestMetricsOfIdleReplica(t *testing.T) {
	var problem error
	leads := false
	m := newMetrics(nil, func() bool { return leads }, func() (snapshot, error) { return snapshot{}, errors.New("no cache") }, func(err error) { problem = err })
	registry := prometheus.NewPedanticRegistry()
	must(t, registry.Register(m))
	check := func() {
		t.Helper()
		values := series(t, registry)
		_, scraped := values["slots_limit"]
		if _, counted := values["orphans_total cause=no_unique"]; scraped || !counted {
			t.Errorf("series %v", values)
		}
	}
	check()
	if problem != nil {
		t.Errorf("an idle replica was asked: %v", problem)
	}
	leads = true
	check()
	if problem == nil {
		t.Error("nobody was told of the problem")
	}
	problem = nil
	leads = false
	check()
	if problem != nil {
		t.Error("a replica was asked after its lead")
	}
}

// TestStartableJobs: a job that waits could begin if its function is offered and none of its limits is reached.
func TestStartableJobs(t *testing.T) {
	limited := jobKey("limited")
	planned := map[string]capacity.Scope{"build:unit": {}, "build:unit:arm": {Class: "arm"}, "build:limited": {Job: limited}}
	queues := []queue{{"build:unit", "", 1}, {"build:unit:arm", "arm", 2}, {"build:limited", "", 4}, {"build:disabled", "", 8}, {"build:empty", "", 0}}
	tests := map[string]struct {
		used []capacity.Scope
		want int
	}{
		"nothing runs":               {want: 7},
		"the class is full":          {used: []capacity.Scope{{Class: "arm"}}, want: 5},
		"the job is full":            {used: []capacity.Scope{{Job: limited}}, want: 3},
		"all slots are used":         {used: []capacity.Scope{{}, {}, {}}, want: 0},
		"more than all, it was less": {used: []capacity.Scope{{}, {}, {}, {}}, want: 0},
	}
	for name, test := range tests {
		now := snapshot{used: &capacity.Usage{}, limits: capacity.Limits{All: 3, Classes: map[string]int{"arm": 1}, Jobs: map[types.NamespacedName]int{limited: 1}}}
		for _, scope := range test.used {
			now.used.Add(scope)
		}
		if got := now.startable(queues, planned); got != test.want {
			t.Errorf("%s: %d rather than %d", name, got, test.want)
		}
	}
}

// TestSlotsWithoutBuild: the Pod of a build that was deleted has a slot, and nothing else has one without a build.
func TestSlotsWithoutBuild(t *testing.T) {
	all, build := capacity.NewBuilds(), v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: "b"}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: "b", Labels: map[string]string{v1alpha1.LabelBuild: "b"}}}
	check := func(when string, unfinished []v1alpha1.ZuulBuild, want int) {
		t.Helper()
		if got := withoutBuild(all.Claimants(), unfinished); got != want {
			t.Errorf("%s: %d rather than %d", when, got, want)
		}
	}
	all.SetBuild(&build)
	check("made by hand, not begun", []v1alpha1.ZuulBuild{build}, 0)
	all.SetPod(pod)
	check("running", []v1alpha1.ZuulBuild{build}, 0)
	all.DeleteBuild(client.ObjectKeyFromObject(&build))
	check("deleted", nil, 1)
	all.DeletePod(client.ObjectKeyFromObject(pod))
	check("gone", nil, 0)
}

func TestLongestQueues(t *testing.T) {
	var queues []queue
	for i := range 2 * maxQueuedFunctions {
		queues = append(queues, queue{function: fmt.Sprintf("build:%03d", i), length: i / 2})
	}
	got := longest(queues)
	if len(got) != maxQueuedFunctions || got[0].function != "build:198" || got[1].function != "build:199" || got[99].length != 50 {
		t.Errorf("%d queues, %v … %v", len(got), got[:2], got[len(got)-1])
	}
	if got := longest(queues[:4]); len(got) != 2 {
		t.Errorf("queues %v; those that are empty are left out", got)
	}
	if byClass(queues)[""] != 99*100 {
		t.Errorf("sums %v", byClass(queues))
	}
}

func TestResultLabel(t *testing.T) {
	for result, want := range map[string]string{"": "none", "SUCCESS": "SUCCESS", "RETRY_LIMIT": "RETRY_LIMIT", "SOMETHING_ELSE": "other"} {
		if got := resultLabel(result); got != want {
			t.Errorf("%q is counted as %q", result, got)
		}
	}
}

// awaitSeries waits until the series are what they shall be, but for 0 and NO_JOB, which nobody can foretell.
func awaitSeries(t *testing.T, registry prometheus.Gatherer, want map[string]float64) {
	t.Helper()
	difference := ""
	defer func() {
		if difference != "" {
			t.Logf("(-want +got):\n%s", difference)
		}
	}()
	gearmantest.Eventually(t, patience, "the series", func() bool {
		got := nonzero(series(t, registry))
		delete(got, "gearman_grabs_total outcome=no_job server=zuul")
		difference = cmp.Diff(want, got)
		return difference == ""
	})
}

// TestMetricsOfBuilds: what is counted while builds come and go.
func TestMetricsOfBuilds(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	proxy := gearmantest.NewProxy(t, address)
	registry := prometheus.NewPedanticRegistry()
	f := startBridge(t, proxy.Address, func(bridge *Bridge) {
		often(bridge)
		bridge.Metrics = registry
	})
	f.class("metrics", 1)
	f.changeJob(f.job("unit"), func(job *v1alpha1.ZuulJob) { job.Spec.Nodes = []string{"metrics"} })
	want := map[string]float64{
		"gearman_connections kind=builds server=zuul": 2, "gearman_connections_expected kind=builds server=zuul": 2,
		"gearman_connections kind=management server=zuul": 1, "gearman_connections_expected kind=management server=zuul": 1,
		"gearman_functions_registered server=zuul": 2, "gearman_functions_expected server=zuul": 2, "slots_limit": 10, "class_slots_limit class=metrics": 1,
	}
	awaitSeries(t, registry, want)
	changes := func(changes map[string]float64) {
		t.Helper()
		for name, change := range changes {
			want[name] += change
		}
		want = nonzero(want)
		awaitSeries(t, registry, want)
	}
	zuul := dialZuul(t, address, zuulclient.Zuul2)

	single := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, single)
	build := f.build(single.State().UUID)
	listener := f.awaitListener(build)
	proxy.Cut()
	f.awaitListener(build, listener)
	running := submit(t, zuul, zuulclient.Request{Job: "unit", Node: "metrics"})
	awaitStart(t, running)
	waiting := submit(t, zuul, zuulclient.Request{Job: "unit", Node: "metrics"})
	changes(map[string]float64{
		"gearman_grabs_total outcome=assigned server=zuul": 3, "requests_total outcome=created": 2, "requests_total outcome=adopted": 1,
		"builds_in_flight class=": 1, "builds_in_flight class=metrics": 1, "slots_used": 2, "class_slots_used class=metrics": 1,
		"gearman_queued_jobs class=metrics server=zuul": 1, "gearman_function_queued_jobs function=build:unit:metrics server=zuul": 1,
	})
	if value, there := series(t, registry)["gearman_grabs_total outcome=no_job server=zuul"]; !there || value == 0 {
		t.Errorf("%v grabs without a job", value)
	}

	f.ends(f.build(single.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
	awaitEnd(t, single)
	changes(map[string]float64{"reports_total result=SUCCESS": 1, "report_duration_seconds": 1, "builds_in_flight class=": -1, "slots_used": -1})

	byHand := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: "by-hand"}, Spec: v1alpha1.ZuulBuildSpec{Job: "unit", Node: "metrics"},
	}
	must(t, f.api.Create(testContext(t), byHand))
	changes(map[string]float64{"builds_in_flight class=metrics": 1}) // it has no Pod, and none of the slots
	must(t, f.api.Delete(testContext(t), byHand))
	changes(map[string]float64{"builds_in_flight class=metrics": -1})

	build = f.build(running.State().UUID)
	named := fmt.Sprintf(`{"name": "unit", "number": %d, "html_description": "x"}`, build.Spec.Number)
	command := func(function, argument string) {
		t.Helper()
		task, err := zuul.Gearman.Submit(testContext(t), gearman.PriorityHigh, function+testManager, zuulclient.NewUUID(), []byte(argument))
		must(t, err)
		_, err = task.Wait(testContext(t))
		must(t, err)
	}
	command(stopFunction, named)
	f.awaitSeen(build, "the stop", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
	command(stopFunction, named)
	command(stopFunction, zuulclient.NewUUID())
	command(stopFunction, "[]")
	for _, argument := range []string{named, `{"name": "unit", "number": 99, "html_description": "x"}`, "null"} {
		command(describeFunction, argument)
	}
	changes(map[string]float64{
		"stop_requests_total outcome=stopped": 1, "stop_requests_total outcome=already_ended": 1, "stop_requests_total outcome=unknown": 1,
		"stop_requests_total outcome=malformed": 1, "stop_answer_duration_seconds": 2, "set_description_requests_total outcome=accepted": 1,
		"set_description_requests_total outcome=unknown": 1, "set_description_requests_total outcome=malformed": 1,
	})

	f.ends(f.build(running.State().UUID), v1alpha1.PhaseAborted, "ABORTED")
	awaitEnd(t, running)
	awaitStart(t, waiting)
	changes(map[string]float64{
		"reports_total result=ABORTED": 1, "report_duration_seconds": 1,
		"requests_total outcome=created": 1, "gearman_grabs_total outcome=assigned server=zuul": 1,
		"gearman_queued_jobs class=metrics server=zuul": -1, "gearman_function_queued_jobs function=build:unit:metrics server=zuul": -1,
	})

	proxy.Refuse(true)
	proxy.Cut()
	f.awaitAlone()
	build = f.build(waiting.State().UUID)
	f.ends(build, v1alpha1.PhaseLost, "")
	f.awaitSeen(build, "the end of the build", (*v1alpha1.ZuulBuild).Complete)
	gearmantest.Eventually(t, patience, "that nothing is known of queues", func() bool {
		_, known := series(t, registry)["gearman_queued_jobs class= server=zuul"]
		return !known
	})
	delete(want, "gearman_connections kind=builds server=zuul")
	delete(want, "gearman_connections kind=management server=zuul")
	delete(want, "gearman_functions_registered server=zuul")
	changes(map[string]float64{"builds_in_flight class=metrics": -1, "slots_used": -1, "class_slots_used class=metrics": -1})
	proxy.Refuse(false)
	awaitEnd(t, waiting)
	changes(map[string]float64{
		"requests_total outcome=replayed": 1, "reports_total result=none": 1, "gearman_grabs_total outcome=assigned server=zuul": 1,
		"gearman_connections kind=builds server=zuul": 2, "gearman_connections kind=management server=zuul": 1,
		"gearman_functions_registered server=zuul": 2,
	})

	refused := submit(t, zuul, zuulclient.Request{Job: "unit", Node: "metrics", UUID: single.State().UUID})
	awaitEnd(t, refused)
	changes(map[string]float64{
		"requests_total outcome=refused": 1, "reports_total result=INVALID_REQUEST": 1, "gearman_grabs_total outcome=assigned server=zuul": 1,
	})

	cancelled := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, cancelled)
	must(t, dialAdmin(t, address).CancelJob(testContext(t), cancelled.State().Handle))
	f.checkFailedOnce(proxy, f.awaitAbandoned(cancelled.State().UUID), cancelled.State().Handle)
	changes(map[string]float64{
		"orphans_total cause=cancelled": 1, "requests_total outcome=created": 1, "gearman_grabs_total outcome=assigned server=zuul": 1,
	})
}

// TestMetricsOfOrphans: why nobody waits for builds from geard, which forgets the jobs of a worker or a client that is gone.
func TestMetricsOfOrphans(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	proxy := gearmantest.NewProxy(t, address)
	registry := prometheus.NewPedanticRegistry()
	f := startBridge(t, proxy.Address, func(bridge *Bridge) {
		often(bridge)
		bridge.Metrics, bridge.GracePeriod = registry, 100*time.Millisecond
	})
	f.job("unit")
	orphans := func(cause orphanCause) {
		t.Helper()
		gearmantest.Eventually(t, patience, "the orphan", func() bool { return series(t, registry)["orphans_total cause="+string(cause)] == 1 })
	}

	leaves := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, leaves, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	must(t, leaves.Close())
	f.awaitAbandoned(request.State().UUID)
	orphans(orphanUnknown)

	stays := dialZuul(t, address, zuulclient.Zuul2)
	request = submit(t, stays, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	_, err := stays.Gearman.Submit(testContext(t), gearman.PriorityNormal, "build:unit", "", []byte("{}"))
	must(t, err)
	gearmantest.Eventually(t, patience, "the build without a unique", func() bool { return len(f.builds()) == 3 })
	proxy.Cut()
	orphans(orphanConnectionLost)
	orphans(orphanNoUnique)
	f.awaitAbandoned(request.State().UUID)
}
