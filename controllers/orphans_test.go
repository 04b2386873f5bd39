package controllers

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
)

// uncached is a reconciler that asks the API server for everything, and to whom nothing happens but what the test does. Its builds must have a jobRef
// and be made by hand, since the API server has none of the cache's indexes.
func (h *harness) uncached() *ZuulBuildReconciler {
	return &ZuulBuildReconciler{
		Builds: capacity.NewBuilds(), Pods: &PodMemory{}, MaxBuilds: capacity.NewCeiling(10),
		Client: h.api, Live: h.api, Recorder: events.NewFakeRecorder(10), Clock: fastClock{ahead: h.ahead}, Metrics: newMetrics(false, nil),
		BuildURL: func(*v1alpha1.ZuulBuild) string { return "https://builds.example.org/" },
	}
}

// round has a reconciler look at a build once.
func (h *harness) round(r *ZuulBuildReconciler, name string) {
	h.Helper()
	if _, err := r.Reconcile(h.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: h.namespace, Name: name}}); err != nil {
		h.Fatal(err)
	}
}

// TestSweep: Pods without a build are deleted and counted, others are left alone.
func TestSweep(t *testing.T) {
	h := newHarness(t)
	h.request("here", "job", numbered(1))
	here := h.build("here").UID
	owner := func(apiVersion, kind, name string, uid types.UID) metav1.OwnerReference {
		return metav1.OwnerReference{APIVersion: apiVersion, Kind: kind, Name: name, UID: uid, Controller: ptr.To(true)}
	}
	build := func(name string, uid types.UID) metav1.OwnerReference {
		return owner(v1alpha1.GroupVersion.String(), "ZuulBuild", name, uid)
	}
	want := map[string]bool{}
	for _, c := range []struct {
		name, build string
		owners      []metav1.OwnerReference
		stays       bool
	}{
		{"owned", "here", []metav1.OwnerReference{build("here", here)}, true},
		{"helper", "here", nil, true},
		{"replaced", "here", []metav1.OwnerReference{build("here", "another")}, false},
		{"deleted", "gone", []metav1.OwnerReference{build("gone", "gone")}, false},
		{"disowned", "gone", nil, false},
		{"somebody-elses", "gone", []metav1.OwnerReference{owner("apps/v1", "ReplicaSet", "gone", "gone")}, true},
		{"unlabelled", "", nil, true},
	} {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: c.name, OwnerReferences: c.owners},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "build", Image: "example.org/image"}}},
		}
		if c.build != "" {
			pod.Labels = map[string]string{v1alpha1.LabelBuild: c.build}
		}
		h.create(pod)
		want[c.name] = c.stays
	}
	reconciler := h.uncached()
	reconciler.Client = client.NewNamespacedClient(h.api, h.namespace) // as a cache of this namespace
	sweep := func() map[string]bool {
		t.Helper()
		if err := reconciler.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for name := range want {
			there[name] = h.pod(name) != nil
		}
		return there
	}
	for name, there := range sweep() {
		if !there {
			t.Errorf("Pod %s was deleted though it is young: its build may not be in the cache yet", name)
		}
	}
	reconciler.Clock = fastClock{ahead: 2 * time.Minute}
	if diff := cmp.Diff(want, sweep()); diff != "" {
		t.Errorf("Pods that are still there (-want +got):\n%s", diff)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(reconciler.Metrics)
	counts := map[string]float64{"orphan_pods_deleted_total cause=build_deleted": 2, "orphan_pods_deleted_total cause=build_replaced": 1}
	if diff := cmp.Diff(counts, series(t, registry)); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// TestPodThatEndedIsTakenAway: the cluster's terminated-pod-gc, or anybody, deletes a Pod that has ended before its end was looked at. What was seen
// of it counts.
func TestPodThatEndedIsTakenAway(t *testing.T) {
	succeeded := []podOption{withPhase(podSucceeded), ended("build", 0, "Completed")}
	cases := []struct {
		name     string
		recorded bool // that it ran
		restart  bool // of the operator, before the Pod's end
		end      []podOption
		foreign  bool // the Pod has a finalizer, so that it is there for a while after its deletion
		phase    v1alpha1.BuildPhase
		reason   string
	}{
		{"success", true, false, succeeded, false, v1alpha1.PhaseSucceeded, ReasonSucceeded},
		{"failure", true, false, []podOption{withPhase(podFailed), ended("build", 3, "Error")}, false, v1alpha1.PhaseFailed, ReasonExitCode},
		{"sooner than its start was recorded", false, false, succeeded, false, v1alpha1.PhaseSucceeded, ReasonSucceeded},
		{"seen by a new operator only", false, true, succeeded, false, v1alpha1.PhaseSucceeded, ReasonSucceeded},
		{"held by a finalizer", true, false, succeeded, true, v1alpha1.PhaseSucceeded, ReasonSucceeded},
		{"evicted", true, false, []podOption{withPhase(podFailed), withReason("Evicted", "The node was low on memory."), ended("build", 0, "Completed")}, false, v1alpha1.PhaseLost, ReasonDisrupted},
		{"deleted while it ran", true, false, nil, false, v1alpha1.PhaseLost, ReasonPodDeleted},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			h.job("job")
			h.request("b", "job", numbered(1), func(spec *v1alpha1.ZuulBuildSpec) { spec.JobRef = &v1alpha1.JobReference{Name: "job"} })
			r := h.uncached()
			h.round(r, "b")
			h.schedule("b")
			h.report("b", withPhase(podRunning), runningNow("build"))
			if c.recorded {
				h.round(r, "b")
				h.awaitPhase("b", v1alpha1.PhaseRunning)
			}
			if c.restart {
				r = h.uncached()
			}
			pod := h.pod("b")
			if c.end != nil {
				h.report("b", c.end...)
				pod = h.pod("b")
			}
			r.Pods.note(pod)
			if c.foreign {
				h.setFinalizers(pod, held)
			}
			h.deletePod("b", client.GracePeriodSeconds(0))
			if c.foreign {
				r.Pods.note(h.pod("b"))
			}
			h.round(r, "b")
			build := h.build("b")
			if build.Status.Phase != c.phase || build.Status.Reason != c.reason {
				t.Errorf("the build ended %s, %s: %s; want %s, %s", build.Status.Phase, build.Status.Reason, build.Status.Message, c.phase, c.reason)
			}
			h.round(r, "b")
			if r.Pods.endOf(build) != nil {
				t.Error("the Pod is remembered though the build has its verdict")
			}
			if !c.foreign && h.pod("b") != nil {
				t.Error("a second Pod was made")
			}
		})
	}
}

// TestPodThatEndedIsEvicted: a drain of the node gives a Pod that has ended the sign of a disruption, and then deletes it.
func TestPodThatEndedIsEvicted(t *testing.T) {
	for name, deleted := range map[string]bool{"there still": false, "gone": true} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.job("job")
			h.request("b", "job", numbered(1), func(spec *v1alpha1.ZuulBuildSpec) { spec.JobRef = &v1alpha1.JobReference{Name: "job"} })
			r := h.uncached()
			h.round(r, "b")
			h.schedule("b")
			succeeded := []podOption{withPhase(podSucceeded), ended("build", 0, "Completed")}
			h.report("b", succeeded...)
			r.Pods.note(h.pod("b"))
			h.report("b", append(succeeded, withCondition(corev1.DisruptionTarget, corev1.ConditionTrue, "EvictionByEvictionAPI", "", 0))...)
			r.Pods.note(h.pod("b"))
			if deleted {
				h.deletePod("b", client.GracePeriodSeconds(0))
			}
			h.round(r, "b")
			h.awaitVerdict("b", v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded")
		})
	}
}

// TestPodTakenAwayAtOnce: the same with all parts at work.
func TestPodTakenAwayAtOnce(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job")
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		h.request(name, "job", numbered(1))
		h.run(name)
		h.report(name, withPhase(podSucceeded), ended("build", 0, "Completed"))
		h.deletePod(name, client.GracePeriodSeconds(0))
		h.awaitVerdict(name, v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded")
	}
}
