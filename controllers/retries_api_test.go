package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// ask makes the ZuulBuild that Zuul's n-th request for a change would become: another unique and another number each time.
func (h *harness) ask(n int, job string, change ...func(*v1alpha1.ZuulBuildSpec)) string {
	h.Helper()
	name := fmt.Sprintf("attempt-%d", n)
	build := zuulBuild(job, "ZUUL_PROJECT=p", "ZUUL_PIPELINE=gate", "ZUUL_CHANGE=1", "ZUUL_PATCHSET=1", fmt.Sprintf("ZUUL_REF=refs/zuul/master/Z%d", n))
	build.Name, build.Spec.UUID, build.Spec.Number = name, name, int64(n)
	for _, f := range change {
		f(&build.Spec)
	}
	h.create(build)
	return name
}

// lose has the infrastructure lose a build that has a Pod.
func (h *harness) lose(name string) *v1alpha1.ZuulBuild {
	h.Helper()
	h.awaitPod(name)
	h.deletePod(name, client.GracePeriodSeconds(0))
	return h.awaitVerdict(name, v1alpha1.PhaseLost, "", "PodDeleted")
}

func (h *harness) succeed(name string) {
	h.Helper()
	h.run(name)
	h.report(name, withPhase(podSucceeded), ended("build", 0, "Completed"))
	h.awaitVerdict(name, v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded")
}

func heldBack(build *v1alpha1.ZuulBuild) bool { return build.Status.Reason == ReasonRetryDelayed }

// TestNoHotLoop: a job whose Pod never gets a node, and a Zuul that asks again at once and for ever, as up to 2.5.1. The operator is started anew
// while an attempt is held back, so it can know only what the objects tell.
func TestNoHotLoop(t *testing.T) {
	h := newHarness(t)
	h.delays = []time.Duration{0, 6 * time.Second, 7 * time.Second} // time to see a build held back
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Timeouts, spec.MaxAttempts = &v1alpha1.Timeouts{Unscheduled: duration(3 * time.Second)}, 4
		spec.Retention = &v1alpha1.Retention{Pod: duration(0), Build: duration(0)}
	})
	var lost time.Time
	past, end := h.record()
	defer end()
	stop, _ := h.start()
	for n := 1; ; n++ {
		name := h.ask(n, "job")
		if n > 2 {
			delayed := h.awaitPast(past, name, "held back", heldBack).Status
			if delayed.Phase != v1alpha1.PhaseStarting || !strings.Contains(delayed.Message, fmt.Sprintf("attempt-%d", n-1)) || !strings.Contains(delayed.Message, "attempt-1") {
				t.Errorf("%s is held back without saying so: %s: %s", name, delayed.Phase, delayed.Message)
			}
			stop()
			stop, _ = h.start()
		}
		pod := h.awaitPastPod(past, name)
		if n > 1 {
			if spaced := pod.CreationTimestamp.Sub(lost); spaced < h.delays[n-2] || spaced > h.delays[n-2]+patience {
				t.Errorf("%s began %s after the loss before it, want %s", name, spaced, h.delays[n-2])
			}
		}
		var build *v1alpha1.ZuulBuild
		h.eventually(func() string {
			build = h.build(name)
			if build.Complete() {
				return ""
			}
			return name + " has not ended"
		})
		if n == 4 {
			break
		}
		if build.Status.Phase != v1alpha1.PhaseLost || build.Status.Result != "" || build.Status.Reason != "Unschedulable" || (n > 1 && build.Status.Attempts != int32(n)) {
			t.Fatalf("attempt %d ended %+v", n, build.Status)
		}
		lost = build.Status.CompletionTime.Time
	}
	last := h.awaitVerdict("attempt-4", v1alpha1.PhaseFailed, "RETRY_LIMIT", "RetryLimit").Status.Message
	for _, want := range []string{"attempt 4 of 4", "Unschedulable: no node for the Pod", "attempt-3", "attempt-2", "attempt-1"} {
		if !strings.Contains(last, want) {
			t.Errorf("message %q does not say %q", last, want)
		}
	}
	// A person says "recheck": a new beginning, at once.
	name := h.ask(5, "job")
	h.awaitPastPod(past, name)
	if build := h.build(name); build.Status.Attempts != 0 || build.Status.Reason == "RetryDelayed" {
		t.Errorf("after the limit: %+v", build.Status)
	}
}

// TestWhatCountsAsALoss: a result ends the row; a build that was stopped or abandoned neither counts nor ends it.
func TestWhatCountsAsALoss(t *testing.T) {
	h := newHarness(t)
	h.delays = []time.Duration{0}
	h.job("job")
	h.start()
	attempts := func(name string, want int32) {
		t.Helper()
		h.eventually(func() string {
			if got := h.build(name).Status.Attempts; got != want {
				return fmt.Sprintf("%s is attempt %d, want %d", name, got, want)
			}
			return ""
		})
	}
	h.lose(h.ask(1, "job"))
	attempts("attempt-1", 0)
	h.lose(h.ask(2, "job"))
	attempts("attempt-2", 2)

	h.awaitPod(h.ask(3, "job"))
	h.patchBuild("attempt-3", `{"spec":{"abort":true,"abortReason":"Abandoned"}}`)
	h.awaitVerdict("attempt-3", v1alpha1.PhaseLost, "", "Abandoned")
	h.awaitPod(h.ask(4, "job"))
	h.stopBuild("attempt-4")
	h.awaitVerdict("attempt-4", v1alpha1.PhaseAborted, "ABORTED", "Aborted")

	h.succeed(h.ask(5, "job"))
	attempts("attempt-5", 3)
	h.lose(h.ask(6, "job"))
	attempts("attempt-6", 0)
	h.lose(h.ask(7, "job"))
	attempts("attempt-7", 2)
}

func TestStopWhileHeldBack(t *testing.T) {
	h := newHarness(t)
	h.delays = []time.Duration{time.Hour}
	h.job("job")
	_, writes := h.start()
	h.lose(h.ask(1, "job"))
	h.ask(2, "job")
	h.awaitPhase("attempt-2", v1alpha1.PhaseStarting)
	h.stopBuild("attempt-2")
	h.awaitVerdict("attempt-2", v1alpha1.PhaseAborted, "ABORTED", "Aborted")
	h.ask(3, "job")
	h.awaitPhase("attempt-3", v1alpha1.PhaseStarting)
	h.patchBuild("attempt-3", `{"spec":{"abort":true,"abortReason":"Abandoned"}}`)
	h.awaitVerdict("attempt-3", v1alpha1.PhaseLost, "", "Abandoned")
	if got := slices.DeleteFunc(writes.all(), func(write string) bool { return write != "POST pods" }); len(got) != 1 {
		t.Errorf("%d Pods were made, want that of the first attempt", len(got))
	}
}

// TestHeldBackNoMore: what a build waited for is not told any more once it has its Pod.
func TestHeldBackNoMore(t *testing.T) {
	h := newHarness(t)
	h.delays = []time.Duration{6 * time.Second}
	h.job("job")
	past, end := h.record()
	defer end()
	h.start()
	h.lose(h.ask(1, "job"))
	h.ask(2, "job")
	held := h.awaitPast(past, "attempt-2", "held back", heldBack)
	h.awaitPod("attempt-2")
	afterwards := h.awaitPast(past, "attempt-2", "held back no more", func(build *v1alpha1.ZuulBuild) bool {
		return build.Status.Attempts == held.Status.Attempts && !heldBack(build)
	})
	if status := afterwards.Status; status.Phase != v1alpha1.PhaseQueued || status.Reason != "" || status.Message != "" {
		t.Errorf("the Pod is made, and the build says %s, %s: %s", status.Phase, status.Reason, status.Message)
	}
	h.succeed("attempt-2")
}

// TestLostBuildsOutliveRetention: what counts for the limit is kept for the window, however short retention is; anything else goes.
func TestLostBuildsOutliveRetention(t *testing.T) {
	h := newHarness(t)
	h.delays = []time.Duration{0}
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Retention = &v1alpha1.Retention{Pod: duration(0), Build: duration(2 * time.Second)}
	})
	h.start()
	h.lose(h.ask(1, "job"))
	h.succeed(h.ask(2, "job")) // ends the row, and must be remembered as long as the loss
	h.request("by-hand", "job", numbered(50))
	h.awaitPod("by-hand")
	h.deletePod("by-hand", client.GracePeriodSeconds(0))
	h.eventually(func() string {
		builds := &v1alpha1.ZuulBuildList{}
		if err := h.api.List(t.Context(), builds, client.InNamespace(h.namespace)); err != nil {
			t.Fatal(err)
		}
		if len(builds.Items) > 2 {
			return fmt.Sprintf("there are %d builds, want the two that are remembered", len(builds.Items))
		}
		return ""
	})
	h.build("attempt-1")
	h.build("attempt-2")
}

// TestQuotaIsNotWaitedForLongerThanForANode: the end carries the API server's words, and counts as a loss.
func TestQuotaIsNotWaitedForLongerThanForANode(t *testing.T) {
	const limit = 10 * time.Minute
	h := newHarness(t)
	h.quota(0, true)
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Timeouts, spec.MaxAttempts = &v1alpha1.Timeouts{Unscheduled: duration(limit)}, 2
	})
	h.ahead = -limit
	stop, _ := h.start()
	h.ask(1, "job")
	h.awaitPhase("attempt-1", v1alpha1.PhaseStarting)
	stop()
	h.ahead = 0
	stop, _ = h.start() // the clock goes on
	build := h.awaitVerdict("attempt-1", v1alpha1.PhaseLost, "", "QuotaExceeded")
	if !strings.Contains(build.Status.Message, "exceeded quota: quota") || h.pod("attempt-1") != nil {
		t.Errorf("message %q, Pod %v", build.Status.Message, h.pod("attempt-1"))
	}
	refused := meta.FindStatusCondition(build.Status.Conditions, v1alpha1.ConditionPodScheduled)
	if refused == nil || build.Status.CompletionTime.Sub(refused.LastTransitionTime.Time) < limit {
		t.Errorf("it waited from %v to %v, want %s", refused, build.Status.CompletionTime, limit)
	}
	h.ask(2, "job")
	h.awaitPhase("attempt-2", v1alpha1.PhaseStarting)
	stop()
	h.ahead = limit
	h.start()
	h.awaitVerdict("attempt-2", v1alpha1.PhaseFailed, "RETRY_LIMIT", "RetryLimit")
}

// TestRetryThatIsRefused: a definite result ends the row, also where the retry is refused before anything else is looked at.
func TestRetryThatIsRefused(t *testing.T) {
	h := newHarness(t)
	h.delays = []time.Duration{0}
	h.job("job")
	h.start()
	h.lose(h.ask(1, "job"))
	h.ask(2, "job", func(spec *v1alpha1.ZuulBuildSpec) { spec.JobRef = &v1alpha1.JobReference{Name: "gone"} })
	h.awaitVerdict("attempt-2", v1alpha1.PhaseFailed, "FAILURE", "JobNotFound")
	h.lose(h.ask(3, "job"))
	if build := h.build("attempt-3"); build.Status.Attempts != 0 {
		t.Errorf("after the refusal the row goes on: attempt %d", build.Status.Attempts)
	}
}
