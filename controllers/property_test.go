package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// A kubelet, a scheduler and people, acting on the world's Pod. Each does nothing where there is nothing to do.

func (w *world) schedule() {
	if pod := w.pod(); pod != nil && pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
		w.changePod(func(pod *corev1.Pod) {
			pod.Spec.NodeName = "node-1"
			withCondition(corev1.PodScheduled, corev1.ConditionTrue, "", "", w.now.Sub(created))(pod)
		})
	}
}

// prepares tells whether a kubelet that answers has the Pod and has not started it.
func (w *world) prepares() bool {
	pod := w.pod()
	return pod != nil && pod.Spec.NodeName != "" && !podTerminal(pod) && !w.truths[pod.UID].started && !w.nodeDead
}

// runs tells whether it has started it and the Pod has not ended.
func (w *world) runs() bool {
	pod := w.pod()
	return pod != nil && !podTerminal(pod) && w.truths[pod.UID].started && !w.nodeDead
}

func (w *world) start() {
	if w.prepares() && w.pod().DeletionTimestamp == nil {
		w.truths[w.pod().UID].started = true
		w.changePod(withPhase(podRunning), w.running("build"), w.beside(w.running("proxy")))
	}
}

func (w *world) beside(option podOption) podOption {
	if w.proxy {
		return option
	}
	return func(*corev1.Pod) {}
}

func (w *world) running(name string) podOption {
	return withState(name, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(w.now)}})
}

// endOf ends a container that runs.
func (w *world) endOf(name string, code int32) podOption {
	return func(pod *corev1.Pod) {
		for i := range pod.Status.ContainerStatuses {
			if status := &pod.Status.ContainerStatuses[i]; status.Name == name && status.State.Running != nil {
				status.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
					ExitCode: code, Reason: "Completed", StartedAt: status.State.Running.StartedAt, FinishedAt: metav1.NewTime(w.now),
				}}
			}
		}
	}
}

// end has the main container end by itself.
func (w *world) end(code int32) {
	if !w.runs() || w.truths[w.pod().UID].exit != nil {
		return
	}
	w.truths[w.pod().UID].exit = &code
	options := []podOption{w.endOf("build", code)}
	if !w.proxy {
		options = append(options, withPhase(phaseFor(code)))
	}
	w.changePod(options...)
}

func phaseFor(code int32) corev1.PodPhase {
	if code == 0 {
		return podSucceeded
	}
	return podFailed
}

// endAll has the kubelet end what still runs, which it says to be the end of the Pod.
func (w *world) endAll(code int32, options ...podOption) {
	pod := w.pod()
	if t := w.truths[pod.UID]; t.exit == nil && t.started {
		t.exit = &code
		t.disturbed = true
	}
	w.changePod(slices.Concat([]podOption{withPhase(phaseFor(code)), w.endOf("build", code), w.endOf("proxy", code)}, options)...)
}

// obey has the kubelet end a Pod that is being deleted, or that is past its deadline, and let one go that has ended.
func (w *world) obey(code int32) {
	pod := w.pod()
	switch {
	case pod == nil || w.nodeDead:
	case pod.DeletionTimestamp != nil && podTerminal(pod):
		w.removePod()
	case pod.DeletionTimestamp != nil && w.truths[pod.UID].started:
		w.endAll(code)
	case pod.DeletionTimestamp != nil:
		w.changePod(withPhase(podFailed))
	case w.runs() && *pod.Spec.ActiveDeadlineSeconds == expiredDeadline:
		w.endAll(code, withPhase(podFailed), withReason("DeadlineExceeded", ""))
	}
}

func (w *world) refuse() {
	if w.prepares() {
		w.disturb()
		w.changePod(withPhase(podFailed), withReason("OutOfcpu", "full"))
	}
}

func (w *world) disrupt() {
	if pod := w.pod(); pod != nil && pod.Spec.NodeName != "" && !podTerminal(pod) && pod.DeletionTimestamp == nil {
		w.disturb()
		w.changePod(withCondition(corev1.DisruptionTarget, corev1.ConditionTrue, "EvictionByEvictionAPI", "", 0))
		w.askToGo()
	}
}

// TestAnyOrder: whatever happens in whatever order, with caches as late as they like, writes that fail before or after they count, and an operator
// that starts again, there is one verdict, it is no false one, and in the end nothing is left.
func TestAnyOrder(t *testing.T) {
	property := func(t *rapid.T) {
		w := newWorld(&v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: "builds", Name: "job"}, Spec: v1alpha1.ZuulJobSpec{Image: "x", Script: "x"}})
		w.proxy = rapid.Bool().Draw(t, "proxy")
		if rapid.Bool().Draw(t, "class") {
			w.class = &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: "spot"}, Spec: v1alpha1.ZuulNodeClassSpec{ForceDeleteUnreachable: rapid.Bool().Draw(t, "force")}}
			w.change(func(build *v1alpha1.ZuulBuild) { build.Spec.Node = "spot" })
		}
		code := func(codes ...int32) int32 { return rapid.SampledFrom(codes).Draw(t, "exit code") }
		var journal []string
		actions := map[string]func(){
			"reconcile": func() { w.round(t) },
			"a write fails": func() {
				w.writesUntilFailure, w.failAfterwards = rapid.IntRange(1, 3).Draw(t, "write"), rapid.Bool().Draw(t, "afterwards")
				w.round(t)
			},
			"cache of builds": func() { w.seenBuild = rapid.IntRange(w.seenBuild, len(w.builds)-1).Draw(t, "version") },
			"cache of pods":   func() { w.seenPod = rapid.IntRange(w.seenPod, len(w.pods)-1).Draw(t, "version") },
			"caches":          w.catchUp,
			"restart": func() { // its first look may be at a server that is behind
				w.restart()
				w.seenBuild = rapid.IntRange(max(0, len(w.builds)-4), len(w.builds)-1).Draw(t, "build")
				w.seenPod = rapid.IntRange(max(0, len(w.pods)-4), len(w.pods)-1).Draw(t, "pod")
			},
			"go on": func() {
				w.catchUp()
				w.round(t)
				w.schedule()
			},
			"lose": func() { // what else comes together too seldom
				w.catchUp()
				w.round(t)
				w.schedule()
				w.refuse()
				w.seenPod = len(w.pods) - 1
				w.round(t)
				w.seenPod = len(w.pods) - 1
			},
			"moment": func() { w.now = w.now.Add(time.Second) },
			"minute": func() { w.now = w.now.Add(time.Minute) },
			"time": func() {
				w.now = w.now.Add(rapid.SampledFrom([]time.Duration{settledGrace, 6 * time.Minute, 20 * time.Minute, 4 * time.Hour}).Draw(t, "time"))
			},
			"schedule": w.schedule, "start": w.start,
			"end":    func() { w.end(code(0, 1)) },
			"obey":   func() { w.obey(code(0, 143)) },
			"refuse": w.refuse, "disrupt": w.disrupt,
			"delete": func() {
				if w.pod() != nil {
					w.askToGo()
				}
			},
			"vanish": func() {
				if w.pod() != nil && rapid.IntRange(0, 3).Draw(t, "vanish") == 0 {
					w.removePod()
				}
			},
			"node": func() { w.nodeDead = rapid.Bool().Draw(t, "dead") },
			"abort": func() {
				if w.build() != nil && rapid.IntRange(0, 3).Draw(t, "abort") == 0 {
					w.change(func(build *v1alpha1.ZuulBuild) { build.Spec.Abort = true })
				}
			},
		}
		names := make([]string, 0, len(actions))
		for name := range actions {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range []string{"reconcile", "caches", "go on", "start", "end", "obey"} {
			names = append(names, name, name)
		}
		for range rapid.IntRange(0, 60).Draw(t, "actions") {
			name := rapid.SampledFrom(names).Draw(t, "action")
			journal = append(journal, name)
			actions[name]()
			w.check(t, journal)
		}
		journal = append(journal, "settle")
		w.settle(t)
		w.check(t, journal)
	}
	for range 10 { // of 100 worlds each
		rapid.Check(t, property)
	}
}

// round is one Reconcile, which may fail only for want of an answer or because its view was old.
func (w *world) round(t *rapid.T) time.Duration {
	result, err := w.reconcile()
	w.writesUntilFailure = 0
	if err != nil && !w.injected && !apierrors.IsConflict(err) {
		t.Fatalf("the round failed: %v", err)
	}
	return result.RequeueAfter
}

// settle lets caches catch up and everyone do their work until the build has its verdict and no Pod is left.
func (w *world) settle(t *rapid.T) {
	begin := w.now
	for i := range 500 {
		w.catchUp()
		after := w.round(t)
		w.catchUp()
		if w.verdict == nil && w.now.Sub(begin) > 12*time.Hour {
			t.Fatalf("no verdict after %s", w.now.Sub(begin))
		}
		if (w.build() == nil || w.build().Complete()) && w.pod() == nil {
			return
		}
		w.schedule()
		w.start()
		w.end(0)
		w.obey(143)
		switch pod := w.pod(); {
		case pod == nil || !w.nodeDead:
		case i == 100: // the taint of a node that does not answer
			w.disrupt()
		case i > 300: // the node is deleted, and the garbage collector comes
			w.removePod()
		}
		w.now = w.now.Add(max(after, time.Second))
	}
	t.Fatalf("not settled: build %+v, Pod %+v", w.build(), w.pod())
}

// check is what must hold at any time.
func (w *world) check(t *rapid.T, journal []string) {
	complain := func(format string, arguments ...any) {
		t.Fatalf("%s\nafter %s", fmt.Sprintf(format, arguments...), strings.Join(journal, ", "))
	}
	if len(w.wrong) > 0 {
		complain("%v", w.wrong)
	}
	if w.forced > 0 && (w.class == nil || !w.class.Spec.ForceDeleteUnreachable) {
		complain("a Pod was deleted by force, which nobody asked for")
	}
	if build := w.build(); build != nil {
		if w.verdict != nil && (build.Status.Phase != w.verdict.Phase || build.Status.Result != w.verdict.Result) {
			complain("a second verdict: %+v after %+v", build.Status, *w.verdict)
		}
		lost := build.Status.LostPods
		if len(lost) >= defaultMaxPods || w.made > len(lost)+1+w.vanished {
			complain("%d Pods were made, of which %d vanished and these were lost: %+v", w.made, w.vanished, lost)
		}
		for i := range lost {
			if w.truths[lost[i].UID].started {
				complain("Pod %s was made again although it had begun", lost[i].UID)
			}
			if slices.ContainsFunc(lost[:i], func(l v1alpha1.LostPod) bool { return l.UID == lost[i].UID }) {
				complain("Pod %s is listed twice", lost[i].UID)
			}
		}
		if i := slices.IndexFunc(w.builds, func(old *v1alpha1.ZuulBuild) bool { return old != nil && len(old.Status.LostPods) > len(lost) }); i >= 0 {
			complain("lost Pods were forgotten: %+v", w.builds[i].Status.LostPods)
		}
	}
	started, well := 0, false
	for _, truth := range w.truths {
		if truth.started {
			started++
		}
		well = well || truth.exit != nil && *truth.exit == 0 && !truth.disturbed
	}
	if started > 1+w.vanished {
		complain("the job began %d times", started)
	}
	if w.verdict == nil {
		return
	}
	v := w.verdict
	if v.Phase == v1alpha1.PhaseSucceeded && !well || (v.Phase == v1alpha1.PhaseSucceeded) != (v.Result == ResultSuccess) {
		complain("a false green: %+v", v)
	}
	if (v.Phase == v1alpha1.PhaseLost) != (v.Result == "") {
		complain("phase %s with result %q", v.Phase, v.Result)
	}
	if w.startedByVerdict && slices.Contains([]string{ReasonUnschedulable, ReasonStartTimeout, ReasonImagePullFailed}, v.Reason) {
		complain("%s, of a Pod that had started", v.Reason)
	}
	if v.Phase == v1alpha1.PhaseAborted && !w.aborted() {
		complain("aborted, which nobody asked for")
	}
}

func (w *world) aborted() bool {
	return slices.ContainsFunc(w.builds, func(build *v1alpha1.ZuulBuild) bool { return build != nil && build.Spec.Abort })
}
