package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// names of the builds that exist.
func (h *harness) names() string {
	h.Helper()
	builds := &v1alpha1.ZuulBuildList{}
	if err := h.api.List(h.Context(), builds, client.InNamespace(h.namespace)); err != nil {
		h.Fatal(err)
	}
	var names []string
	for i := range builds.Items {
		names = append(names, builds.Items[i].Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (h *harness) awaitNames(want string) {
	h.Helper()
	h.eventually(func() string {
		if names := h.names(); names != want {
			return fmt.Sprintf("there are builds %q, want %q", names, want)
		}
		return ""
	})
}

func (h *harness) annotate(name, wish string) {
	h.Helper()
	h.patchBuild(name, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.AnnotationKeepPod, wish))
}

// series are the values by name and labels, without those that are 0; a histogram tells how many it has seen.
func series(t testing.TB, registry prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := strings.TrimPrefix(family.GetName(), "zuulbuild_")
			for _, label := range metric.GetLabel() {
				name += fmt.Sprintf(" %s=%s", label.GetName(), label.GetValue())
			}
			value := metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
			if value != 0 {
				values[name] = value
			}
		}
	}
	return values
}

// TestRetention: builds go by count and by time, and their Pods before them or with them, but not what is held or counted by retries.
func TestRetention(t *testing.T) {
	h := newHarness(t)
	h.delays = []time.Duration{0}
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Retention = &v1alpha1.Retention{
			Pod: duration(time.Minute), KeepFailedPodFor: duration(24 * time.Hour),
			Successes: &v1alpha1.RetentionLimit{For: duration(5 * time.Hour), Count: ptr.To[int32](1)},
		}
	})
	h.job("lossy", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Retention = &v1alpha1.Retention{Failures: &v1alpha1.RetentionLimit{For: duration(0), Count: ptr.To[int32](1)}}
	})
	stop, _ := h.start()
	for i, name := range []string{"s1", "s2-held", "s3", "f1"} {
		h.request(name, "job", numbered(int64(i+1)))
		h.run(name)
	}
	for _, name := range []string{"s1", "s2-held", "s3"} {
		h.report(name, withPhase(podSucceeded), ended("build", 0, "Completed"))
		h.awaitPhase(name, v1alpha1.PhaseSucceeded)
		if name == "s2-held" { // soon, for its Pod is kept for a minute
			h.annotate(name, "6h")
		}
	}
	h.report("f1", withPhase(podFailed), ended("build", 1, "Error"))
	h.awaitPhase("f1", v1alpha1.PhaseFailed)
	h.lose(h.ask(10, "lossy"))
	h.lose(h.ask(11, "lossy"))
	stop()

	h.ahead = 11 * time.Minute
	stop, _ = h.start()
	h.awaitNames("attempt-10 attempt-11 f1 s2-held s3")
	h.awaitNoPod("s3")
	for _, name := range []string{"s2-held", "f1"} {
		if h.pod(name) == nil {
			t.Errorf("the Pod of %s is gone though it is held", name)
		}
	}
	h.eventually(func() string {
		return cmp.Diff(map[string]float64{"retention_deleted_builds_total cause=count": 1}, onlyDeletions(series(t, h.registry)))
	})
	stop()

	h.ahead = 5*time.Hour + 10*time.Minute
	h.start()
	h.awaitNames("f1 s2-held")
	if h.pod("s2-held") == nil {
		t.Error("the Pod of s2-held is gone before its time")
	}
	h.annotate("s2-held", "false")
	h.awaitNames("f1")
	h.awaitNoPod("s2-held")
	h.eventually(func() string {
		return cmp.Diff(map[string]float64{"retention_deleted_builds_total cause=time": 4}, onlyDeletions(series(t, h.registry)))
	})
}

// onlyDeletions of builds.
func onlyDeletions(series map[string]float64) map[string]float64 {
	for name := range series {
		if !strings.HasPrefix(name, "retention_") {
			delete(series, name)
		}
	}
	return series
}

// TestRetentionOfAChangedJob: a lower limit holds at once, for builds that ended long before.
func TestRetentionOfAChangedJob(t *testing.T) {
	h := newHarness(t)
	h.job("job")
	h.start()
	h.request("b", "job", numbered(1))
	h.succeed("b")
	job := &v1alpha1.ZuulJob{}
	if err := h.api.Get(t.Context(), types.NamespacedName{Namespace: h.namespace, Name: "job"}, job); err != nil {
		t.Fatal(err)
	}
	if err := h.api.Patch(t.Context(), job, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"retention":{"build":"1s"}}}`))); err != nil {
		t.Fatal(err)
	}
	h.awaitNames("")
}

// TestRetentionOfAnotherJob: a build that refers to a job of another name, or to none that is there, does not decide what is kept of the job whose name it has.
func TestRetentionOfAnotherJob(t *testing.T) {
	h := newHarness(t)
	keep := func(d time.Duration) func(*v1alpha1.ZuulJobSpec) {
		return func(spec *v1alpha1.ZuulJobSpec) { spec.Retention = &v1alpha1.Retention{Build: duration(d)} }
	}
	h.job("unit", keep(720*time.Hour))
	h.job("trial", keep(30*time.Minute))
	h.job("gone-name", keep(30*time.Minute))
	stop, _ := h.start()
	for i, build := range []struct{ name, job, ref string }{
		{"older", "unit", ""}, {"newest", "unit", "trial"},
		{"old-gone", "gone-name", ""}, {"new-gone", "gone-name", "gone"},
		{"old-own", "nowhere", ""}, {"new-own", "nowhere", "trial"},
	} {
		h.request(build.name, build.job, numbered(int64(i+1)), func(spec *v1alpha1.ZuulBuildSpec) {
			spec.Abort = true
			if build.ref != "" {
				spec.JobRef = &v1alpha1.JobReference{Name: build.ref}
			}
		})
		h.eventually(func() string {
			if h.build(build.name).Complete() {
				return ""
			}
			return build.name + " has not ended"
		})
	}
	stop()

	h.ahead = time.Hour
	h.start()
	h.awaitNames("new-own newest old-own older")
}

// TestRetentionOnADeadNode: a build stays as long as its Pod does that no node ends, since without it the Pod would have a slot.
func TestRetentionOnADeadNode(t *testing.T) {
	h := newHarness(t)
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) { spec.Retention = &v1alpha1.Retention{Build: duration(time.Hour)} })
	stop, _ := h.start()
	h.request("lost", "job", numbered(1))
	h.run("lost")
	h.deletePod("lost")
	stop()

	h.ahead = time.Hour
	stop, _ = h.start()
	h.awaitVerdict("lost", v1alpha1.PhaseLost, "", ReasonNodeLost)
	h.request("later", "job", numbered(2), func(spec *v1alpha1.ZuulBuildSpec) { spec.Abort = true })
	h.awaitPhase("later", v1alpha1.PhaseAborted)
	stop()

	h.ahead = 10 * time.Hour
	stop, _ = h.start()
	h.awaitNames("lost") // which would go before the later one
	stop()
	h.deletePod("lost", client.GracePeriodSeconds(0))
	h.start()
	h.awaitNames("")
}

// TestDeletedAsSeen: a build that somebody changed since it was seen is looked at again first, and one that cannot be deleted holds up no other.
func TestDeletedAsSeen(t *testing.T) {
	h := newHarness(t)
	h.job("job")
	var gone []expiry
	for _, name := range []string{"changed", "replaced", "gone", "as-seen"} {
		h.request(name, "job", numbered(1))
		gone = append(gone, expiry{h.build(name), expiredByTime})
	}
	h.annotate("changed", "2h")
	for _, name := range []string{"replaced", "gone"} {
		if err := h.api.Delete(t.Context(), h.build(name)); err != nil {
			t.Fatal(err)
		}
	}
	h.request("replaced", "job", numbered(2))
	reconciler := &finishedReconciler{h.uncached()}
	if changed, err := reconciler.deleteBuilds(t.Context(), gone); err != nil || !changed {
		t.Errorf("changed %t, error %v", changed, err)
	}
	if got := h.names(); got != "changed replaced" {
		t.Errorf("left are %q", got)
	}
	if changed, err := reconciler.deleteBuilds(t.Context(), gone[3:]); err != nil || changed {
		t.Errorf("of one that is gone: changed %t, error %v", changed, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reconciler.deleteBuilds(cancelled, gone[:1]); err == nil {
		t.Error("no error, though the API server could not be asked")
	}
}
