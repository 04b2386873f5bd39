package gearmanbridge

import (
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

func TestDescribe(t *testing.T) {
	bridge := &Bridge{
		Manager: "cluster", Worker: WorkerInfo{Hostname: "host", FQDN: "host.example.org", IPs: []string{"192.0.2.1"}, Version: "1.0"},
		BuildURL: func(build *v1alpha1.ZuulBuild) string { return "https://example.org/" + build.Name },
	}
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: "0a"},
		Spec:       v1alpha1.ZuulBuildSpec{Job: "täst😀", Node: "arm:big|x", Number: 7},
		Status:     v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseRunning, Result: "SUCCESS", NodeName: "node-1", PodName: "pod-1"},
	}
	want := map[string]any{
		"name": "täst😀", "number": 7.0, "manager": "cluster", "master": "cluster", "url": "https://example.org/0a", "full_url": "https://example.org/0a",
		"worker": "cluster", "worker_name": "cluster", "worker_hostname": "host", "worker_fqdn": "host.example.org",
		"worker_ips": []any{"192.0.2.1"}, "worker_program": "zuulbuild", "worker_version": "1.0",
		"worker_extra": map[string]any{"namespace": "ci", "build": "0a", "pod": "pod-1", "phase": "Running"},
		"node_labels":  []any{"arm_big_x"}, "node_name": "node-1",
	}
	if diff := cmp.Diff(want, decode(t, bridge.describe(build).encode())); diff != "" {
		t.Errorf("while it runs (-want +got):\n%s", diff)
	}

	build.Status.Phase, build.Status.Reason, build.Status.Message = v1alpha1.PhaseSucceeded, "Succeeded", "all is well"
	want["result"] = "SUCCESS"
	want["worker_extra"] = map[string]any{
		"namespace": "ci", "build": "0a", "pod": "pod-1", "phase": "Succeeded", "reason": "Succeeded", "message": "all is well",
	}
	if diff := cmp.Diff(want, decode(t, bridge.describe(build).encode())); diff != "" {
		t.Errorf("when it ended (-want +got):\n%s", diff)
	}
}

// TestEmptyWorkData: what is unknown is absent or an empty value of its type, never null, and an empty result is no result.
func TestEmptyWorkData(t *testing.T) {
	got := decode(t, (&Bridge{Manager: "m"}).worker().encode())
	if result, there := got["result"]; there {
		t.Errorf("result is %v", result)
	}
	for name, value := range got {
		if value == nil {
			t.Errorf("%s is null", name)
		}
	}
	for _, name := range []string{"node_labels", "worker_ips"} {
		if list, is := got[name].([]any); !is || len(list) != 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
}

// TestEncode: any text survives, in ASCII.
func TestEncode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"\x7f", "\u2028<&>", "\uFFFF", "𐀀", "\U0010FFFF", `\u00e9\`, "\"\x00"})).Draw(t, "text")
		got := decode(t, workData{Name: text, WorkerExtra: workerExtra{Message: text}}.encode())
		if got["name"] != text || utf8.RuneCountInString(text) > 0 && got["worker_extra"].(map[string]any)["message"] != text {
			t.Errorf("%q became %q", text, got["name"])
		}
	})
}

// decode reads a WORK_DATA, which is an object in printable ASCII.
func decode(t interface{ Fatalf(string, ...any) }, text []byte) map[string]any {
	for i, b := range text {
		if b < 0x20 || b > 0x7e {
			t.Fatalf("byte %#x at %d of %q", b, i, text)
		}
	}
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return object
}

func TestElapsed(t *testing.T) {
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(after time.Duration) *metav1.Time { moment := metav1.NewTime(start.Add(after)); return &moment }
	tests := map[string]struct {
		started, completed *metav1.Time
		want               int64
	}{
		"not started":                {nil, nil, 0},
		"never started":              {nil, at(time.Minute), 0},
		"runs":                       {at(0), nil, 90_000},
		"ended":                      {at(0), at(time.Second), 1000},
		"ended in the same second":   {at(0), at(0), 0},
		"started by a clock ahead":   {at(time.Hour), nil, 0},
		"ended before it had begun":  {at(time.Minute), at(0), 0},
		"ended later than it is now": {at(0), at(2 * time.Hour), 7_200_000},
		"started by a clock of 1970": {&metav1.Time{Time: time.Unix(0, 0)}, nil, maxEstimate},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			build := &v1alpha1.ZuulBuild{Status: v1alpha1.ZuulBuildStatus{StartTime: test.started, CompletionTime: test.completed}}
			if got := elapsed(build, start.Add(90*time.Second)); got != test.want {
				t.Errorf("elapsed = %d ms, want %d", got, test.want)
			}
		})
	}
}

func TestEstimated(t *testing.T) {
	job := func(all time.Duration) *v1alpha1.ZuulJob {
		return &v1alpha1.ZuulJob{Status: v1alpha1.ZuulJobStatus{
			EstimatedDuration: &metav1.Duration{Duration: all},
			BranchEstimates:   []v1alpha1.BranchEstimate{{Branch: "main", Duration: metav1.Duration{Duration: time.Minute}}},
		}}
	}
	tests := map[string]struct {
		job    *v1alpha1.ZuulJob
		branch string
		want   int64
	}{
		"no job":            {nil, "main", -1},
		"nothing known":     {&v1alpha1.ZuulJob{}, "main", -1},
		"no branch":         {job(time.Hour), "", 3_600_000},
		"its branch":        {job(time.Hour), "main", 60_000},
		"another branch":    {job(time.Hour), "stable", 3_600_000},
		"written by hand":   {job(-time.Hour), "", -1},
		"more than is safe": {job(10000 * time.Hour), "", 9_999_999_999},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			build := &v1alpha1.ZuulBuild{Spec: v1alpha1.ZuulBuildSpec{Parameters: map[string]string{"ZUUL_BRANCH": test.branch}}}
			if got := estimated(test.job, build); got != test.want {
				t.Errorf("estimated = %d ms, want %d", got, test.want)
			}
		})
	}
}

// TestZuulIsToldTheEstimate: with the start of a build, that of its branch.
func TestZuulIsToldTheEstimate(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Gearmand)
	f := startBridge(t, address, nil)
	job := f.job("unit")
	patch := `{"status":{"estimatedDuration":"1h0m0s","branchEstimates":[{"branch":"main","duration":"90s"}]}}`
	must(t, f.api.Status().Patch(t.Context(), job, client.RawPatch(types.MergePatchType, []byte(patch))))
	gearmantest.Eventually(t, patience, "the estimate in the cache", func() bool {
		seen := &v1alpha1.ZuulJob{}
		must(t, f.bridge.Client.Get(t.Context(), client.ObjectKeyFromObject(job), seen))
		return seen.Status.Estimate("") != 0
	})
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	for branch, want := range map[string]time.Duration{"main": 90 * time.Second, "stable": time.Hour} {
		build := submit(t, zuul, zuulclient.Request{Job: "unit", Parameters: map[string]any{"ZUUL_BRANCH": branch}})
		awaitStart(t, build)
		gearmantest.Eventually(t, patience, "the estimate for "+branch, func() bool { return build.State().Estimated == want })
	}
}
