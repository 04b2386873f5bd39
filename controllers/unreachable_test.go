package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func newTestWorld() *world {
	return newWorld(&v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: "builds", Name: "job"}, Spec: v1alpha1.ZuulJobSpec{Image: "x", Script: "x"}})
}

// rounds are some Reconciles, each with a cache that has caught up.
func (w *world) rounds(t *testing.T, count int) {
	t.Helper()
	for range count {
		w.catchUp()
		if _, err := w.reconcile(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForceDelete: the Pod of a node that is gone stays until its class says otherwise, its time is over and its build has a verdict.
func TestForceDelete(t *testing.T) {
	for _, asked := range []bool{false, true} {
		w := newTestWorld()
		w.class = &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: "spot"}, Spec: v1alpha1.ZuulNodeClassSpec{ForceDeleteUnreachable: asked}}
		w.change(func(build *v1alpha1.ZuulBuild) { build.Spec.Node = "spot" })
		w.rounds(t, 1)
		w.schedule()
		w.start()
		w.nodeDead = true
		w.disrupt()
		gone := w.pod().DeletionTimestamp.Add(unreachableGrace)
		w.now = gone.Add(-time.Second)
		w.rounds(t, 2)
		if w.verdict != nil || w.forced > 0 {
			t.Fatalf("too early: verdict %+v, %d Pods deleted by force", w.verdict, w.forced)
		}
		w.now = gone
		w.rounds(t, 1)
		if w.verdict == nil || w.verdict.Reason != ReasonNodeLost || w.pod() == nil {
			t.Fatalf("verdict %+v, Pod %v: the verdict comes first", w.verdict, w.pod())
		}
		w.rounds(t, 2)
		if left := w.pod() != nil; left == asked || len(w.wrong) > 0 {
			t.Errorf("force asked for: %v, Pod left: %v, %v", asked, left, w.wrong)
		}
	}
}

// TestPodOfAnEarlierBuildOnADeadNode: the name is not to be had, so the build ends rather than waits for ever.
func TestPodOfAnEarlierBuildOnADeadNode(t *testing.T) {
	w := newTestWorld()
	earlier := newPod(onNode(0), withPhase(podRunning), runningSince("build", 0), deletedAt(time.Minute))
	earlier.UID, earlier.Labels = "earlier", map[string]string{v1alpha1.LabelBuild: "b"}
	w.truths["earlier"] = &truth{started: true}
	w.pods = []*corev1.Pod{earlier}
	w.now = created.Add(time.Minute + unreachableGrace - time.Second)
	w.rounds(t, 2)
	if w.verdict != nil {
		t.Fatalf("too early: %+v", w.verdict)
	}
	w.now = w.now.Add(time.Second)
	w.rounds(t, 2)
	if w.verdict == nil || w.verdict.Phase != v1alpha1.PhaseLost || w.verdict.Reason != ReasonNodeLost || w.made > 0 {
		t.Errorf("verdict %+v, %d Pods made", w.verdict, w.made)
	}
}

// TestOldViewForgetsNoLostPod: a list is written whole, so a round that does not know all of it must not write.
func TestOldViewForgetsNoLostPod(t *testing.T) {
	w := newTestWorld()
	w.rounds(t, 1)
	w.schedule()
	w.refuse()
	old := w.seenBuild
	w.change(func(build *v1alpha1.ZuulBuild) {
		build.Status.LostPods = []v1alpha1.LostPod{{UID: types.UID("before")}}
	})
	w.restart()
	w.seenBuild = old
	if _, err := w.reconcile(); err == nil {
		t.Error("a status was written from an old view")
	}
	if got := w.build().Status.LostPods; len(got) != 1 || got[0].UID != "before" {
		t.Errorf("lost Pods: %+v", got)
	}
	w.rounds(t, 1)
	if got := w.build().Status.LostPods; len(got) != 2 || got[1].UID != w.pod().UID {
		t.Errorf("lost Pods in the end: %+v", got)
	}
}
