package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// TestStalePod: the cache shows the Pod as it was before an outage of the API server, and by a clock its build would end now. What counts is the Pod as
// it is.
func TestStalePod(t *testing.T) {
	pulling := []podOption{onNode(0), waitingFor("build", "ErrImagePull", "the registry stumbles")}
	running := []podOption{withPhase(podRunning), onNode(0), runningSince("build", 10*time.Second)}
	succeeded := []podOption{withPhase(podSucceeded), ended("build", 0, "Completed")}
	cases := []struct {
		name        string
		stale, live []podOption // live: besides those of stale, whose containers it replaces; nil: the Pod is gone
		after       time.Duration
		phase       v1alpha1.BuildPhase
		reason      string
		told        string // to end, and why
	}{
		{"the image was pulled meanwhile", pulling, running, 3 * time.Minute, v1alpha1.PhaseRunning, ReasonRunning, ""},
		{"it was pulled, and the build has succeeded", pulling, succeeded, 3 * time.Minute, v1alpha1.PhaseSucceeded, ReasonSucceeded, ""},
		{"it was pulled, and the build has failed", pulling, []podOption{withPhase(podFailed), ended("build", 1, "Error")}, 3 * time.Minute, v1alpha1.PhaseFailed, ReasonExitCode, ""},
		{"the image is still not there", pulling, []podOption{waitingFor("build", "ErrImagePull", "")}, 3 * time.Minute, v1alpha1.PhaseFailed, ReasonImagePullFailed, ""},
		{"the container could not be made at first", []podOption{onNode(0), waitingFor("build", "CreateContainerError", "")}, running, time.Minute, v1alpha1.PhaseRunning, ReasonRunning, ""},
		{"slow to start, but it did", []podOption{onNode(0), waitingFor("build", "ContainerCreating", "")}, running, 16 * time.Minute, v1alpha1.PhaseRunning, ReasonRunning, ""},
		{"slow to start", []podOption{onNode(0), waitingFor("build", "ContainerCreating", "")}, []podOption{}, 16 * time.Minute, v1alpha1.PhaseLost, ReasonStartTimeout, ""},
		{"long without a node, but then it had one", []podOption{withoutNode("")}, running, 16 * time.Minute, v1alpha1.PhaseRunning, ReasonRunning, ""},
		{"ended just within its run timeout", running, succeeded, 4 * time.Hour, v1alpha1.PhaseSucceeded, ReasonSucceeded, ""},
		{"only others run on past the run timeout", running, []podOption{ended("build", 0, "Completed")}, 4 * time.Hour, v1alpha1.PhaseRunning, ReasonRunning, v1alpha1.ToldSettled},
		{"runs too long", running, []podOption{runningSince("build", 10*time.Second)}, 4 * time.Hour, v1alpha1.PhaseRunning, ReasonRunning, v1alpha1.ToldTimedOut},
		{"gone", pulling, nil, 3 * time.Minute, "", "", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(&v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Image: "x", Script: "x"}})
			w.job.Namespace, w.job.Name = "builds", "job"
			round := func() {
				t.Helper()
				if _, err := w.reconcile(); err != nil {
					t.Fatal(err)
				}
				w.seenBuild = len(w.builds) - 1
			}
			round()
			w.changePod(c.stale...)
			w.catchUp()
			if c.live == nil {
				w.removePod()
			} else {
				w.changePod(func(pod *corev1.Pod) { pod.Status.Conditions, pod.Status.ContainerStatuses = nil, nil })
				w.changePod(append([]podOption{onNode(0)}, c.live...)...)
			}
			w.now = w.now.Add(c.after)
			round()
			if status := w.build().Status; status.Phase != c.phase || status.Reason != c.reason {
				t.Errorf("the build is %s, %s: %s; want %s, %s", status.Phase, status.Reason, status.Message, c.phase, c.reason)
			}
			w.now = w.now.Add(time.Second)
			round()
			if pod := w.pod(); pod != nil {
				stays := c.phase == v1alpha1.PhaseRunning || podTerminal(pod)
				if kept := pod.DeletionTimestamp == nil; kept != stays || toldToEnd(pod) != c.told {
					t.Errorf("the Pod is kept: %v, want %v; told to end: %q, want %q", kept, stays, toldToEnd(pod), c.told)
				}
			} else if c.live != nil {
				t.Error("the Pod is gone")
			}
			w.catchUp()
			round()
			if c.live == nil && w.build().Status.Reason != ReasonPodDeleted {
				t.Errorf("once the cache shows that the Pod is gone the build is %s", w.build().Status.Reason)
			}
		})
	}
}
