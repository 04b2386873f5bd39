package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

const day = 24 * time.Hour

func TestKeepingOf(t *testing.T) {
	job := func(retention *v1alpha1.Retention) *v1alpha1.ZuulJob {
		return &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Retention: retention}}
	}
	changed := func(change func(*keeping)) keeping {
		keep := keeping{pod: time.Hour, successes: keepLimit{7 * day, 1000}, failures: keepLimit{30 * day, 1000}}
		change(&keep)
		return keep
	}
	defaults := changed(func(*keeping) {})
	cases := []struct {
		name string
		job  *v1alpha1.ZuulJob
		want keeping
	}{
		{"no job", nil, defaults},
		{"nothing given", job(nil), defaults},
		{"empty", job(&v1alpha1.Retention{}), defaults},
		{"empty limits", job(&v1alpha1.Retention{Successes: &v1alpha1.RetentionLimit{}, Failures: &v1alpha1.RetentionLimit{}}), defaults},
		{"pod", job(&v1alpha1.Retention{Pod: duration(0)}), changed(func(keep *keeping) { keep.pod = 0 })},
		{"failed Pods", job(&v1alpha1.Retention{KeepFailedPodFor: duration(day)}), changed(func(keep *keeping) { keep.failedPod = day })},
		{"build", job(&v1alpha1.Retention{Build: duration(day)}), changed(func(keep *keeping) { keep.successes.time, keep.failures.time = day, day })},
		{
			"build and failures", job(&v1alpha1.Retention{Build: duration(day), Failures: &v1alpha1.RetentionLimit{For: duration(2 * day)}}),
			changed(func(keep *keeping) { keep.successes.time, keep.failures.time = day, 2*day }),
		},
		{
			"counts", job(&v1alpha1.Retention{Successes: &v1alpha1.RetentionLimit{Count: ptr.To[int32](3)}, Failures: &v1alpha1.RetentionLimit{Count: ptr.To[int32](4)}}),
			changed(func(keep *keeping) { keep.successes.count, keep.failures.count = 3, 4 }),
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, keepingOf(c.job), cmp.AllowUnexported(keeping{}, keepLimit{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// finishedBuild is a build made by hand that ended so long after `created`.
func finishedBuild(name string, phase v1alpha1.BuildPhase, at time.Duration, change ...func(*v1alpha1.ZuulBuild)) v1alpha1.ZuulBuild {
	build := v1alpha1.ZuulBuild{Status: v1alpha1.ZuulBuildStatus{Phase: phase, CompletionTime: ptr.To(after(at))}}
	build.Name, build.UID, build.CreationTimestamp = name, types.UID(name), after(at-time.Minute)
	for _, f := range change {
		f(&build)
	}
	return build
}

func keepPod(wish string) func(*v1alpha1.ZuulBuild) {
	return func(build *v1alpha1.ZuulBuild) {
		build.Annotations = map[string]string{v1alpha1.AnnotationKeepPod: wish}
	}
}

// zuuls makes the build one that Zuul asked for, so that it counts for its retries.
func zuuls(build *v1alpha1.ZuulBuild) {
	build.Labels = map[string]string{v1alpha1.LabelGearmanServer: "main"}
}

func secondAttempt(build *v1alpha1.ZuulBuild) { build.Status.Attempts = 2 }

func TestExpired(t *testing.T) {
	const succeeded, failed, aborted, lost = v1alpha1.PhaseSucceeded, v1alpha1.PhaseFailed, v1alpha1.PhaseAborted, v1alpha1.PhaseLost
	limits := keeping{pod: time.Minute, successes: keepLimit{6 * time.Hour, 2}, failures: keepLimit{12 * time.Hour, 2}}
	held := limits
	held.failedPod = day
	cases := []struct {
		name   string
		keep   keeping
		builds []v1alpha1.ZuulBuild
		now    time.Duration
		gone   string
		next   time.Duration // 0: nothing goes
	}{
		{"nothing", limits, nil, 0, "", 0},
		{"young", limits, []v1alpha1.ZuulBuild{finishedBuild("a", succeeded, 0)}, time.Hour, "", 6 * time.Hour},
		{"a moment before its time", limits, []v1alpha1.ZuulBuild{finishedBuild("a", succeeded, 0)}, 6*time.Hour - 1, "", 6 * time.Hour},
		{"at its time", limits, []v1alpha1.ZuulBuild{finishedBuild("a", succeeded, 0)}, 6 * time.Hour, "a:time", 0},
		{"failures longer", limits, []v1alpha1.ZuulBuild{finishedBuild("a", failed, 0), finishedBuild("b", lost, 0)}, 6 * time.Hour, "", 12 * time.Hour},
		{"aborted as long as successes", limits, []v1alpha1.ZuulBuild{finishedBuild("a", aborted, 0)}, 6 * time.Hour, "a:time", 0},
		{
			"too many", limits,
			[]v1alpha1.ZuulBuild{finishedBuild("b", succeeded, 2*time.Minute), finishedBuild("a", succeeded, time.Minute), finishedBuild("c", succeeded, 3*time.Minute)},
			time.Hour, "a:count", 6*time.Hour + 2*time.Minute,
		},
		{
			"too many, but their results may be on their way", limits,
			[]v1alpha1.ZuulBuild{finishedBuild("a", succeeded, 0), finishedBuild("b", succeeded, 1), finishedBuild("c", succeeded, 2)},
			5 * time.Minute, "", 10 * time.Minute,
		},
		{
			"the oldest first", limits,
			[]v1alpha1.ZuulBuild{finishedBuild("c", succeeded, 3), finishedBuild("d", aborted, 2), finishedBuild("a", failed, 1), finishedBuild("b", succeeded, 2)},
			day, "a:time b:time d:time c:time", 0,
		},
		{
			"kinds are counted apart", limits,
			[]v1alpha1.ZuulBuild{
				finishedBuild("s1", succeeded, 1*time.Second), finishedBuild("s2", succeeded, 2*time.Second),
				finishedBuild("a1", aborted, 3*time.Second), finishedBuild("a2", aborted, 4*time.Second), finishedBuild("a3", aborted, 5*time.Second),
				finishedBuild("f1", failed, 6*time.Second), finishedBuild("l1", lost, 7*time.Second), finishedBuild("f2", failed, 8*time.Second),
			},
			time.Hour, "a1:count f1:count", 6*time.Hour + time.Second,
		},
		{
			"of the same second by their numbers", limits,
			[]v1alpha1.ZuulBuild{
				finishedBuild("a", succeeded, 0, func(b *v1alpha1.ZuulBuild) { b.Spec.Number = 3 }),
				finishedBuild("b", succeeded, 0, func(b *v1alpha1.ZuulBuild) { b.Spec.Number = 1 }),
				finishedBuild("c", succeeded, 0, func(b *v1alpha1.ZuulBuild) { b.Spec.Number = 2 }),
			},
			time.Hour, "b:count", 6 * time.Hour,
		},
		{"a loss that counts", limits, []v1alpha1.ZuulBuild{
			finishedBuild("a", lost, 0, zuuls), finishedBuild("b", lost, 1, zuuls), finishedBuild("c", lost, 2, zuuls), finishedBuild("d", lost, 3),
		}, time.Hour, "", 2 * time.Hour},
		{"losses that count no more", limits, []v1alpha1.ZuulBuild{
			finishedBuild("a", lost, 0, zuuls), finishedBuild("b", lost, 1*time.Second, zuuls), finishedBuild("c", lost, 2*time.Second, zuuls), finishedBuild("d", lost, 3*time.Second),
		}, 2 * time.Hour, "a:count", 2*time.Hour + time.Second},
		{"the end of a row of losses", limits, []v1alpha1.ZuulBuild{
			finishedBuild("a", succeeded, 0, zuuls, secondAttempt), finishedBuild("b", succeeded, 1), finishedBuild("c", succeeded, 2),
		}, time.Hour, "", 2 * time.Hour},
		{"a loss and a time that is shorter", keeping{}, []v1alpha1.ZuulBuild{finishedBuild("a", lost, 0, zuuls), finishedBuild("b", lost, 0)}, time.Hour, "b:time", 2 * time.Hour},
		{"failed Pods are held", held, []v1alpha1.ZuulBuild{finishedBuild("a", failed, 0), finishedBuild("b", lost, 1)}, 23 * time.Hour, "", day},
		{"held no more", held, []v1alpha1.ZuulBuild{finishedBuild("a", failed, 0), finishedBuild("b", lost, time.Second)}, day, "a:time", day + time.Second},
		{"too many to be held all", held, []v1alpha1.ZuulBuild{
			finishedBuild("a", failed, 0), finishedBuild("b", failed, 1*time.Second), finishedBuild("c", failed, 2*time.Second), finishedBuild("d", failed, 0, keepPod("1h")),
		}, 30 * time.Minute, "a:count", time.Hour},
		{"nothing of an aborted build is held", limits, []v1alpha1.ZuulBuild{finishedBuild("a", aborted, 0, keepPod("9h"))}, 6 * time.Hour, "a:time", 0},
		{"annotated", limits, []v1alpha1.ZuulBuild{
			finishedBuild("a", succeeded, 0, keepPod("9h")), finishedBuild("b", succeeded, 1), finishedBuild("c", succeeded, 2),
		}, 8 * time.Hour, "b:time c:time", 9 * time.Hour},
		{"annotated without a time", limits, []v1alpha1.ZuulBuild{
			finishedBuild("a", succeeded, 0, keepPod("true")), finishedBuild("b", succeeded, 1), finishedBuild("c", succeeded, 2),
		}, time.Hour, "", 6 * time.Hour},
		{"a status written by hand", limits, []v1alpha1.ZuulBuild{
			finishedBuild("a", succeeded, 0, func(b *v1alpha1.ZuulBuild) { b.Status.CompletionTime = nil }),
		}, 6 * time.Hour, "a:time", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			gone, next := c.keep.expired(c.builds, created.Add(c.now))
			var names []string
			for _, expiry := range gone {
				names = append(names, expiry.build.Name+":"+expiry.cause)
			}
			if got := strings.Join(names, " "); got != c.gone {
				t.Errorf("gone are %q, want %q", got, c.gone)
			}
			if left := next.Sub(created); next.IsZero() != (c.next == 0) || !next.IsZero() && left.Truncate(time.Second) != c.next {
				t.Errorf("the next goes at %s, want %s", left, c.next)
			}
		})
	}
}

func TestPodUntil(t *testing.T) {
	keep := keeping{pod: time.Hour, failedPod: 5 * time.Hour, successes: keepLimit{time: 7 * day}, failures: keepLimit{time: 30 * day}}
	cases := []struct {
		phase v1alpha1.BuildPhase
		wish  string
		ended bool
		want  time.Duration
	}{
		{v1alpha1.PhaseSucceeded, "", true, time.Hour},
		{v1alpha1.PhaseFailed, "", true, 5 * time.Hour},
		{v1alpha1.PhaseLost, "", true, 5 * time.Hour},
		{v1alpha1.PhaseAborted, "", true, 0},
		{v1alpha1.PhaseAborted, "true", true, 0},
		{v1alpha1.PhaseFailed, "", false, 0},
		{v1alpha1.PhaseFailed, "true", false, 0},
		{v1alpha1.PhaseSucceeded, "2h", true, 2 * time.Hour},
		{v1alpha1.PhaseSucceeded, "1m", true, time.Hour},
		{v1alpha1.PhaseSucceeded, "-2h", true, time.Hour},
		{v1alpha1.PhaseFailed, "2h", true, 5 * time.Hour},
		{v1alpha1.PhaseFailed, "9h", true, 9 * time.Hour},
		{v1alpha1.PhaseFailed, "false", true, 5 * time.Hour},
		{v1alpha1.PhaseSucceeded, "true", true, 7 * day},
		{v1alpha1.PhaseFailed, "true", true, 30 * day},
		{v1alpha1.PhaseFailed, "please", true, 30 * day},
	}
	for _, c := range cases {
		build := finishedBuild("a", c.phase, time.Minute, keepPod(c.wish))
		if got := keep.podUntil(&build, c.ended).Sub(created) - time.Minute; got != c.want {
			t.Errorf("the Pod of a build that is %s (Pod ended: %t), annotated %q, is kept for %s, want %s", c.phase, c.ended, c.wish, got, c.want)
		}
	}
}

// TestExpiredProperties: whatever the builds and the limits, none goes that must stay, all go that must, and the time of the next is right.
func TestExpiredProperties(t *testing.T) {
	phases := []v1alpha1.BuildPhase{v1alpha1.PhaseSucceeded, v1alpha1.PhaseFailed, v1alpha1.PhaseAborted, v1alpha1.PhaseLost}
	rapid.Check(t, func(t *rapid.T) {
		hours := func(name string) time.Duration {
			return time.Duration(rapid.IntRange(0, 20).Draw(t, name)) * time.Hour / 4
		}
		keep := keeping{
			failedPod: hours("failedPod"),
			successes: keepLimit{hours("successes"), rapid.IntRange(1, 4).Draw(t, "count of successes")},
			failures:  keepLimit{hours("failures"), rapid.IntRange(1, 4).Draw(t, "count of failures")},
		}
		var builds []v1alpha1.ZuulBuild
		for i := range rapid.IntRange(0, 30).Draw(t, "builds") {
			build := finishedBuild(fmt.Sprint(i), rapid.SampledFrom(phases).Draw(t, "phase"), hours("end"))
			if rapid.Bool().Draw(t, "Zuul's") {
				zuuls(&build)
				build.Status.Attempts = rapid.Int32Range(0, 2).Draw(t, "attempts")
			}
			keepPod(rapid.SampledFrom([]string{"", "", "", "true", "2h"}).Draw(t, "annotation"))(&build)
			builds = append(builds, build)
		}
		now := created.Add(hours("now"))
		gone, next := keep.expired(builds, now)
		kept := map[string]bool{}
		for i := range builds {
			kept[builds[i].Name] = true
		}
		for _, expiry := range gone {
			kept[expiry.build.Name] = false
			if now.Sub(completedAt(expiry.build)) < keep.asked(expiry.build) {
				t.Fatalf("%s goes although its annotation asks for its Pod", expiry.build.Name)
			}
			if remembered(expiry.build) && now.Sub(completedAt(expiry.build)) < retryWindow {
				t.Fatalf("%s goes although retries count it", expiry.build.Name)
			}
		}
		count := map[bool]int{}
		for i := range builds {
			build := &builds[i]
			age := now.Sub(completedAt(build))
			counts := remembered(build) && age < retryWindow
			if kept[build.Name] && age >= keep.asked(build) && !counts {
				if age >= max(keep.limit(build.Status.Phase).time, keep.held(build)) {
					t.Fatalf("%s stays although its time is over", build.Name)
				}
				if age >= countGrace {
					count[build.Status.Phase == v1alpha1.PhaseFailed || build.Status.Phase == v1alpha1.PhaseLost]++
				}
			}
		}
		if count[true] > keep.failures.count || count[false] > 2*keep.successes.count {
			t.Fatalf("kept are %v, limits %+v", count, keep)
		}
		var left []v1alpha1.ZuulBuild
		for i := range builds {
			if kept[builds[i].Name] {
				left = append(left, builds[i])
			}
		}
		if next.IsZero() != (len(left) == 0) {
			t.Fatalf("%d are left, the next goes at %s", len(left), next)
		}
		if next.IsZero() {
			return
		}
		if early, _ := keep.expired(left, next.Add(-1)); len(early) != 0 {
			t.Fatalf("%d go before the time that was told", len(early))
		}
		if due, _ := keep.expired(left, next); len(due) == 0 {
			t.Fatal("none goes at the time that was told")
		}
	})
}
