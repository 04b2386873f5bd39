package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// ran makes it a build for a branch whose main container ran for so long.
func ran(branch string, duration time.Duration) func(*v1alpha1.ZuulBuild) {
	return func(build *v1alpha1.ZuulBuild) {
		build.Status.StartTime = ptr.To(metav1.NewTime(build.Status.CompletionTime.Add(-duration)))
		build.Spec.Parameters = map[string]string{"ZUUL_BRANCH": branch}
	}
}

// successes for a branch that ran for so many seconds each and ended one a minute, from the first minute on.
func successes(branch string, first int, seconds ...int) []v1alpha1.ZuulBuild {
	var builds []v1alpha1.ZuulBuild
	for i, s := range seconds {
		at := time.Duration(first+i) * time.Minute
		builds = append(builds, finishedBuild(fmt.Sprint(branch, i), v1alpha1.PhaseSucceeded, at, ran(branch, time.Duration(s)*time.Second)))
	}
	return builds
}

func TestEstimatesOf(t *testing.T) {
	other := func(phase v1alpha1.BuildPhase) v1alpha1.ZuulBuild {
		return finishedBuild(string(phase), phase, time.Minute, ran("", time.Hour))
	}
	var manyBranches []v1alpha1.ZuulBuild
	for i := range 25 {
		manyBranches = append(manyBranches, successes(fmt.Sprintf("branch-%02d", i), i, i+1, i+1, i+1)...)
	}
	var lastTwenty []string
	for i := 5; i < 25; i++ {
		lastTwenty = append(lastTwenty, fmt.Sprintf("branch-%02d %ds", i, i+1))
	}
	cases := []struct {
		name     string
		builds   []v1alpha1.ZuulBuild
		all      time.Duration
		branches string
	}{
		{"nothing", nil, 0, ""},
		{"no success", []v1alpha1.ZuulBuild{other(v1alpha1.PhaseFailed), other(v1alpha1.PhaseAborted), other(v1alpha1.PhaseLost)}, 0, ""},
		{"one success", append(successes("", 0, 7), other(v1alpha1.PhaseFailed)), 7 * time.Second, ""},
		{"a status written by hand", []v1alpha1.ZuulBuild{finishedBuild("a", v1alpha1.PhaseSucceeded, 0)}, 0, ""},
		{"an odd number, one far off", successes("", 0, 5, 9999, 6), 6 * time.Second, ""},
		{"an even number", successes("", 0, 4, 1, 8, 2), 3 * time.Second, ""},
		{"no time at all", successes("", 0, 0), time.Second, ""},
		{"clocks that differ", successes("", 0, -5), time.Second, ""},
		{"the last ten", successes("", 0, 90, 90, 90, 90, 90, 90, 90, 90, 90, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), 5500*time.Millisecond + 500*time.Millisecond, ""},
		{"too few of a branch", successes("main", 0, 4, 4), 4 * time.Second, ""},
		{"enough of a branch", successes("main", 0, 4, 5, 5), 5 * time.Second, "main 5s"},
		{"two branches", append(successes("stable", 0, 50, 51, 52), successes("main", 100, 4, 5, 5, 5)...), 5 * time.Second, "main 5s, stable 51s"},
		{"the last ten of a branch", append(successes("stable", 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), successes("main", 100, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7)...), 7 * time.Second, "main 7s, stable 1s"},
		{"a branch of a very long name", successes(strings.Repeat("x", 256), 0, 4, 4, 4), 4 * time.Second, ""},
		{"many branches", manyBranches, 24 * time.Second, strings.Join(lastTwenty, ", ")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for range 2 {
				all, branches := estimatesOf(c.builds)
				var texts []string
				for _, estimate := range branches {
					texts = append(texts, fmt.Sprintf("%s %s", estimate.Branch, estimate.Duration.Duration))
				}
				if got := strings.Join(texts, ", "); all != c.all || got != c.branches {
					t.Errorf("%s, by branch %q; want %s and %q", all, got, c.all, c.branches)
				}
				slices.Reverse(c.builds)
			}
		})
	}
}

func TestEstimateChanged(t *testing.T) {
	branches := func(estimates ...any) []v1alpha1.BranchEstimate {
		var list []v1alpha1.BranchEstimate
		for i := 0; i < len(estimates); i += 2 {
			list = append(list, v1alpha1.BranchEstimate{Branch: estimates[i].(string), Duration: metav1.Duration{Duration: estimates[i+1].(time.Duration)}})
		}
		return list
	}
	before := &v1alpha1.ZuulJobStatus{EstimatedDuration: duration(100 * time.Second), BranchEstimates: branches("main", 20*time.Second)}
	cases := []struct {
		name     string
		before   *v1alpha1.ZuulJobStatus
		all      time.Duration
		branches []v1alpha1.BranchEstimate
		want     bool
	}{
		{"the first", &v1alpha1.ZuulJobStatus{}, time.Second, nil, true},
		{"the same", before, 100 * time.Second, branches("main", 20*time.Second), false},
		{"5 % more", before, 105 * time.Second, branches("main", 21*time.Second), false},
		{"5 % less", before, 95 * time.Second, branches("main", 19*time.Second), false},
		{"6 % more", before, 106 * time.Second, branches("main", 20*time.Second), true},
		{"6 % less", before, 94 * time.Second, branches("main", 20*time.Second), true},
		{"more for a branch", before, 100 * time.Second, branches("main", 22*time.Second), true},
		{"another branch", before, 100 * time.Second, branches("main", 20*time.Second, "stable", time.Second), true},
		{"a branch less", before, 100 * time.Second, nil, true},
	}
	for _, c := range cases {
		if got := estimateChanged(c.before, c.all, c.branches); got != c.want {
			t.Errorf("%s: changed %t", c.name, got)
		}
	}
}

func (h *harness) jobStatus(name string) v1alpha1.ZuulJobStatus {
	h.Helper()
	job := &v1alpha1.ZuulJob{}
	if err := h.api.Get(h.Context(), types.NamespacedName{Namespace: h.namespace, Name: name}, job); err != nil {
		h.Fatal(err)
	}
	return job.Status
}

// TestEstimateIsWritten: with the first success, and then at most once a minute, whatever happens to the builds.
func TestEstimateIsWritten(t *testing.T) {
	h := newHarness(t)
	h.job("job")
	stop, writes := h.start()
	took := func(name string, duration time.Duration) {
		t.Helper()
		h.request(name, "job", numbered(1), func(spec *v1alpha1.ZuulBuildSpec) {
			spec.Parameters = map[string]string{"ZUUL_BRANCH": "main"}
		})
		h.run(name)
		h.report(name, withPhase(podSucceeded), ranUntilNow("build", duration))
		h.awaitPhase(name, v1alpha1.PhaseSucceeded)
	}
	estimated := func(want time.Duration) {
		t.Helper()
		h.eventually(func() string {
			status := h.jobStatus("job")
			if got := status.Estimate(""); got < want-time.Second || got > want+patience { // the end is when the operator saw it, in seconds
				return fmt.Sprintf("the estimate is %s, want about %s", got, want)
			}
			return ""
		})
	}
	took("a", time.Hour)
	estimated(time.Hour)
	written := h.jobStatus("job").EstimateTime
	for i := range 5 {
		took(fmt.Sprint("b", i), 2*time.Hour)
	}
	jobWrites := 0
	for _, write := range writes.all() {
		if write == "PATCH zuuljobs/status" {
			jobWrites++
		}
	}
	if jobWrites != 1 && time.Since(written.Time) < estimateInterval {
		t.Errorf("%d writes to the ZuulJob, want 1", jobWrites)
	}
	stop()
	h.ahead = time.Minute
	h.start()
	estimated(2 * time.Hour)
	status := h.jobStatus("job")
	if diff := cmp.Diff(status.Estimate(""), status.Estimate("main")); diff != "" || len(status.BranchEstimates) != 1 || status.Estimate("other") != status.Estimate("main") {
		t.Errorf("estimates %+v", status)
	}
}
