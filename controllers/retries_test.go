package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// zuulBuild is a build that a Gearman server named main asked for, with parameters as "NAME=VALUE".
func zuulBuild(job string, parameters ...string) *v1alpha1.ZuulBuild {
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelGearmanServer: "main"}},
		Spec:       v1alpha1.ZuulBuildSpec{Job: job, Parameters: map[string]string{}},
	}
	for _, parameter := range parameters {
		name, value, _ := strings.Cut(parameter, "=")
		build.Spec.Parameters[name] = value
	}
	return build
}

func TestRetryKey(t *testing.T) {
	change := []string{"ZUUL_PROJECT=p", "ZUUL_PIPELINE=gate", "ZUUL_CHANGE=1", "ZUUL_PATCHSET=2", "ZUUL_REF=refs/zuul/master/Za", "ZUUL_COMMIT=a", "ZUUL_UUID=a"}
	push := []string{"ZUUL_PROJECT=p", "ZUUL_PIPELINE=post", "ZUUL_REF=refs/heads/master", "ZUUL_NEWREV=a", "ZUUL_COMMIT=a", "ZUUL_UUID=a"}
	timer := []string{"ZUUL_PROJECT=p", "ZUUL_PIPELINE=daily", "ZUUL_UUID=a"}
	key := func(item []string, more ...string) string {
		return retryKey(zuulBuild("job", append(item[:len(item):len(item)], more...)...))
	}
	onNode := zuulBuild("job", change...)
	onNode.Spec.Node = "big"
	otherServer := zuulBuild("job", change...)
	otherServer.Labels[v1alpha1.LabelGearmanServer] = "other"
	cases := []struct {
		name string
		a, b string
		same bool
	}{
		{"a change whose queue was reset", key(change), key(change, "ZUUL_REF=refs/zuul/master/Zb", "ZUUL_COMMIT=b", "ZUUL_UUID=b"), true},
		{"a change on another node", key(change), retryKey(onNode), true},
		{"another patch set", key(change), key(change, "ZUUL_PATCHSET=3"), false},
		{"another change", key(change), key(change, "ZUUL_CHANGE=3"), false},
		{"another pipeline", key(change), key(change, "ZUUL_PIPELINE=check"), false},
		{"another project", key(change), key(change, "ZUUL_PROJECT=q"), false},
		{"another job", key(change), retryKey(zuulBuild("other", change...)), false},
		{"another Gearman server", key(change), retryKey(otherServer), false},
		{"a push again", key(push), key(push, "ZUUL_UUID=b"), true},
		{"the next push", key(push), key(push, "ZUUL_NEWREV=b", "ZUUL_COMMIT=b"), false},
		{"a push to another branch", key(push), key(push, "ZUUL_REF=refs/heads/b"), false},
		{"a timer", key(timer), key(timer, "ZUUL_UUID=b"), true},
		{"values that only look alike put together", key(timer, "ZUUL_PROJECT=pd", "ZUUL_PIPELINE=aily"), key(timer), false},
	}
	for _, c := range cases {
		if c.a == "" || (c.a == c.b) != c.same {
			t.Errorf("%s: %q and %q, want same: %v", c.name, c.a, c.b, c.same)
		}
	}
	byHand := zuulBuild("job", change...)
	byHand.Labels = nil
	if key := retryKey(byHand); key != "" {
		t.Errorf("a build made by hand has key %q", key)
	}
}

// attempt is a build of the same change as every other, that took from and to, both counted from `created`.
func attempt(name string, from, to time.Duration, phase v1alpha1.BuildPhase, reason string, attempts int32) v1alpha1.ZuulBuild {
	build := zuulBuild("job", "ZUUL_CHANGE=1")
	build.Name, build.UID, build.CreationTimestamp = name, types.UID(name), after(from)
	build.Status = v1alpha1.ZuulBuildStatus{Phase: phase, Reason: reason, Attempts: attempts, CompletionTime: ptr.To(after(to))}
	return *build
}

func TestRemembered(t *testing.T) {
	byHand := attempt("", 0, 0, v1alpha1.PhaseLost, ReasonNodeLost, 1)
	byHand.Labels = nil
	cases := []struct {
		name  string
		build v1alpha1.ZuulBuild
		want  bool
	}{
		{"lost", attempt("", 0, 0, v1alpha1.PhaseLost, ReasonNodeLost, 0), true},
		{"lost again", attempt("", 0, 0, v1alpha1.PhaseLost, ReasonPodDeleted, 3), true},
		{"abandoned", attempt("", 0, 0, v1alpha1.PhaseLost, ReasonAbandoned, 3), false},
		{"stopped", attempt("", 0, 0, v1alpha1.PhaseAborted, ReasonAborted, 3), false},
		{"succeeded", attempt("", 0, 0, v1alpha1.PhaseSucceeded, ReasonSucceeded, 0), false},
		{"succeeded after a loss", attempt("", 0, 0, v1alpha1.PhaseSucceeded, ReasonSucceeded, 2), true},
		{"failed after a loss", attempt("", 0, 0, v1alpha1.PhaseFailed, ReasonExitCode, 2), true},
		{"at the limit", attempt("", 0, 0, v1alpha1.PhaseFailed, ReasonRetryLimit, 5), true},
		{"running", v1alpha1.ZuulBuild{ObjectMeta: attempt("", 0, 0, "", "", 0).ObjectMeta, Status: v1alpha1.ZuulBuildStatus{Phase: v1alpha1.PhaseRunning, Attempts: 2}}, false},
		{"made by hand", byHand, false},
	}
	for _, c := range cases {
		if got := remembered(&c.build); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestLossesBefore(t *testing.T) {
	const second, minute, hour = time.Second, time.Minute, time.Hour
	lostBuild := func(name string, from, to time.Duration, attempts int32) v1alpha1.ZuulBuild {
		return attempt(name, from, to, v1alpha1.PhaseLost, ReasonNodeLost, attempts)
	}
	ended := func(name string, from, to time.Duration, phase v1alpha1.BuildPhase) v1alpha1.ZuulBuild {
		return attempt(name, from, to, phase, "", 2)
	}
	cases := []struct {
		name  string
		at    time.Duration // when the build was asked for
		given []v1alpha1.ZuulBuild
		want  string
	}{
		{"nothing", 0, nil, ""},
		{"one", minute, []v1alpha1.ZuulBuild{lostBuild("a", 0, minute, 0)}, "a"},
		{"a row, in any order", 3 * minute, []v1alpha1.ZuulBuild{lostBuild("b", minute, 2*minute, 2), lostBuild("c", 2*minute, 3*minute, 3), lostBuild("a", 0, minute, 0)}, "c b a"},
		{"a success between", 3 * minute, []v1alpha1.ZuulBuild{lostBuild("a", 0, minute, 0), ended("b", minute, 2*minute, v1alpha1.PhaseSucceeded), lostBuild("c", 2*minute, 3*minute, 0)}, "c"},
		{"a failure last", 3 * minute, []v1alpha1.ZuulBuild{lostBuild("a", 0, minute, 0), ended("b", minute, 2*minute, v1alpha1.PhaseFailed)}, ""},
		{"just within the window", minute + retryWindow, []v1alpha1.ZuulBuild{lostBuild("a", 0, minute, 0)}, "a"},
		{"the next day's timer", 24 * hour, []v1alpha1.ZuulBuild{lostBuild("a", 0, minute, 0)}, ""},
		{"builds that are longer than the window, each asked for at once", 9 * hour, []v1alpha1.ZuulBuild{lostBuild("a", 0, 3*hour, 0), lostBuild("b", 3*hour, 6*hour, 2), lostBuild("c", 6*hour, 9*hour, 3)}, "c b a"},
		{"an older row", 10 * hour, []v1alpha1.ZuulBuild{lostBuild("a", 0, minute, 0), lostBuild("b", 9*hour, 10*hour, 0)}, "b"},
		{"one that ran beside it", minute, []v1alpha1.ZuulBuild{lostBuild("a", 0, 2*minute, 0)}, ""},
		{"clocks that differ", minute, []v1alpha1.ZuulBuild{lostBuild("a", 0, minute+5*second, 0)}, "a"},
		{"itself", minute, []v1alpha1.ZuulBuild{lostBuild("self", minute, minute, 0)}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			build := lostBuild("self", c.at, c.at, 0)
			var names []string
			for _, loss := range lossesBefore(&build, c.given) {
				names = append(names, loss.Name)
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestLossesOfTheSameSecond(t *testing.T) {
	limit, next := attempt("limit", 0, time.Second, v1alpha1.PhaseFailed, ReasonRetryLimit, 5), attempt("next", 0, time.Second, v1alpha1.PhaseLost, ReasonRejected, 0)
	limit.Spec.Number, next.Spec.Number = 9, 10
	build := attempt("self", time.Second, 0, v1alpha1.PhaseQueued, "", 0)
	if got := lossesBefore(&build, []v1alpha1.ZuulBuild{limit, next}); len(got) != 1 || got[0].Name != "next" {
		t.Errorf("got %d losses, want the one of the higher number", len(got))
	}
}

func TestRetryDelay(t *testing.T) {
	for attempt, want := range map[int32]time.Duration{2: 0, 3: 15 * time.Second, 4: time.Minute, 5: 5 * time.Minute, 6: 5 * time.Minute, 100: 5 * time.Minute} {
		if got := retryDelay(attempt, nil); got != want {
			t.Errorf("attempt %d: %s, want %s", attempt, got, want)
		}
	}
	var together time.Duration
	for attempt := int32(2); attempt <= defaultMaxAttempts; attempt++ {
		together += retryDelay(attempt, nil)
	}
	if together >= defaultUnscheduled {
		t.Errorf("the delays keep a slot for %s together", together)
	}
}

func TestLimited(t *testing.T) {
	job := func(maxAttempts int32) *v1alpha1.ZuulJob {
		return &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{MaxAttempts: maxAttempts}}
	}
	gone := lost(ReasonNodeLost, "node n does not answer")
	cases := []struct {
		name     string
		verdict  *verdict
		attempts int32
		job      *v1alpha1.ZuulJob
		limited  bool
	}{
		{"first", gone, 0, nil, false},
		{"fourth", gone, 4, job(0), false},
		{"fifth", gone, 5, job(0), true},
		{"fifth of a job that is gone", gone, 5, nil, true},
		{"beyond a limit that was lowered", gone, 5, job(2), true},
		{"fifth of six", gone, 5, job(6), false},
		{"never twice", gone, 0, job(1), true},
		{"abandoned", abortVerdict(&v1alpha1.ZuulBuildSpec{AbortReason: v1alpha1.AbortAbandoned}), 5, nil, false},
		{"stopped", abortVerdict(&v1alpha1.ZuulBuildSpec{}), 5, nil, false},
		{"succeeded", &verdict{v1alpha1.PhaseSucceeded, ResultSuccess, ReasonSucceeded, ""}, 5, nil, false},
		{"failed", failed(ReasonExitCode, "1"), 5, nil, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			build := zuulBuild("job")
			build.Status.Attempts = c.attempts
			before := attempt("before", 0, 0, v1alpha1.PhaseLost, ReasonRejected, c.attempts-1)
			before.Spec.Number = 41
			got, want := limited(c.verdict, build, []v1alpha1.ZuulBuild{before}, maxAttemptsOf(c.job)), c.verdict
			if c.limited {
				want = &verdict{v1alpha1.PhaseFailed, "RETRY_LIMIT", "RetryLimit", fmt.Sprintf("attempt %d of %d was lost to the infrastructure, so it is not tried again; "+
					"NodeLost: node n does not answer; lost before it: number 41 (ZuulBuild before, Rejected)", attemptsOf(build), maxAttemptsOf(c.job))}
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(verdict{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	t.Run("made by hand", func(t *testing.T) {
		build := &v1alpha1.ZuulBuild{Status: v1alpha1.ZuulBuildStatus{Attempts: 5}}
		if got := limited(gone, build, nil, 1); got != gone {
			t.Errorf("nobody would run it again, and yet: %+v", got)
		}
	})
}

// TestDelay: the time left counts from the loss, whoever looks and how often, so a restart changes nothing.
func TestDelay(t *testing.T) {
	cases := []struct {
		name     string
		attempts int32
		since    time.Duration // the last loss
		pod      bool
		want     time.Duration // 0: go on
	}{
		{"no loss", 0, 0, false, 0},
		{"second", 2, 0, false, 0},
		{"third", 3, 0, false, 15 * time.Second},
		{"third, a while later", 3, 14 * time.Second, false, time.Second},
		{"third, in time", 3, 15 * time.Second, false, 0},
		{"fifth", 5, time.Minute, false, 4 * time.Minute},
		{"asked for long after the loss", 5, time.Hour, false, 0},
		{"it has a Pod", 5, 0, true, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := &scope{build: zuulBuild("job"), now: created.Add(c.since)}
			s.build.UID = "self"
			s.build.Status.Attempts = c.attempts
			if c.attempts > 0 {
				s.losses = []v1alpha1.ZuulBuild{attempt("before", -time.Minute, 0, v1alpha1.PhaseLost, ReasonNodeLost, c.attempts-1)}
			}
			if c.pod {
				s.pod = newPod()
			}
			held, err := (&ZuulBuildReconciler{Pods: &PodMemory{}}).delay(t.Context(), s)
			if err != nil || held != (c.want > 0) || s.after != c.want {
				t.Fatalf("held %v for %s (%v), want %s", held, s.after, err, c.want)
			}
			if status := s.build.Status; held && (status.Phase != v1alpha1.PhaseStarting || status.Reason != "RetryDelayed" || status.Message == "") {
				t.Errorf("status %+v does not say so", status)
			}
		})
	}
	s := &scope{build: zuulBuild("job"), now: created, losses: []v1alpha1.ZuulBuild{attempt("before", -time.Minute, 0, v1alpha1.PhaseLost, ReasonNodeLost, 2)}}
	s.build.UID, s.build.Status.Attempts = "self", 3
	if _, err := (&ZuulBuildReconciler{Pods: &PodMemory{}}).delay(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	const want = "attempt 3 of 5: the Pod will be made at 2026-05-04T03:02:16Z, because the infrastructure lost the builds before it: number 0 (ZuulBuild before, NodeLost)"
	if s.build.Status.Message != want {
		t.Errorf("message %q, want %q", s.build.Status.Message, want)
	}
}
