package controllers

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func withAnnotation(name, value string) podOption {
	return func(pod *corev1.Pod) {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[name] = value
	}
}

// told is a Pod that the operator has the kubelet end.
func told(why string, at time.Duration) podOption {
	return func(pod *corev1.Pod) {
		withAnnotation(v1alpha1.AnnotationToldToEnd, why)(pod)
		withAnnotation(v1alpha1.AnnotationToldToEndAt, created.Add(at).Format(time.RFC3339))(pod)
		withDeadline(expiredDeadline)(pod)
	}
}

// injected puts a container before all others, as service meshes do.
func injected(name string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.Containers = append([]corev1.Container{{Name: name}}, pod.Spec.Containers...)
	}
}

func TestRequiredContainers(t *testing.T) {
	template := func(optional string, names ...string) *corev1.PodTemplateSpec {
		template := &corev1.PodTemplateSpec{}
		template.Annotations = map[string]string{v1alpha1.AnnotationOptionalContainers: optional}
		for _, name := range names {
			template.Spec.Containers = append(template.Spec.Containers, corev1.Container{Name: name})
		}
		return template
	}
	cases := []struct {
		name     string
		template *corev1.PodTemplateSpec
		want     string
		refusal  string
	}{
		{"a script", nil, "build", ""},
		{"all", template("", "a", "b"), "a b", ""},
		{"the main one first", template("", "a", "build", "b"), "build a b", ""},
		{"one does not matter", template("a", "a", "build", "b"), "build b", ""},
		{"several do not", template("a, b", "a", "build", "b"), "build", ""},
		{"the main one must", template("build", "a", "build"), "", "main container"},
		{"a slip of the pen", template("logs", "log", "build"), "", `"logs", which is none`},
		{"no container", template("a"), "", "none"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := requiredContainers(c.template)
			if strings.Join(got, " ") != c.want || (err != nil) != (c.refusal != "") || err != nil && !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("%v (%v)", got, err)
			}
		})
	}
}

func TestDecideBesideContainersThatDoNotMatter(t *testing.T) {
	// The containers build and database matter, proxy does not.
	pod := func(options ...podOption) *corev1.Pod {
		return newPod(slices.Concat([]podOption{
			onNode(0), injected("proxy"), withContainer("database"), withAnnotation(v1alpha1.AnnotationRequiredContainers, "build,database"), withPhase(podFailed),
		}, options)...)
	}
	settled := []podOption{withReason("DeadlineExceeded", ""), told(v1alpha1.ToldSettled, 70*time.Second)}
	good := []podOption{ended("build", 0, ""), ended("database", 0, "")}
	with := func(options ...[]podOption) *corev1.Pod { return pod(slices.Concat(options...)...) }
	disruption := withCondition(corev1.DisruptionTarget, corev1.ConditionTrue, "EvictionByEvictionAPI", "", 0)
	success := func(name string, pod *corev1.Pod) decideCase {
		return decideCase{name: name, pod: pod, phase: v1alpha1.PhaseSucceeded, result: "SUCCESS", reason: "Succeeded"}
	}
	failure := func(name string, pod *corev1.Pod, reason, says string) decideCase {
		return decideCase{name: name, pod: pod, phase: v1alpha1.PhaseFailed, result: "FAILURE", reason: reason, says: says}
	}
	lost := func(name string, pod *corev1.Pod, reason string) decideCase {
		return decideCase{name: name, pod: pod, phase: v1alpha1.PhaseLost, reason: reason}
	}
	runDecideCases(t, []decideCase{
		success("all good", with(good, []podOption{withPhase(podSucceeded), ended("proxy", 0, "")})),
		success("it failed", with(good, []podOption{ended("proxy", 1, "Error")})),
		success("it was out of memory", with(good, []podOption{ended("proxy", 137, "OOMKilled")})),
		success("it ran on and was ended", with(good, settled, []podOption{ended("proxy", 137, "Error")})),
		success("it ran on and was ended well", with(good, settled, []podOption{ended("proxy", 0, "")})),
		success("its image was never there", with(good, settled, []podOption{waitingFor("proxy", "ImagePullBackOff", "")})),
		failure("the main one failed, too", with(settled, []podOption{ended("proxy", 1, ""), ended("build", 3, ""), ended("database", 137, "")}), "ExitCode", "container build ended with exit code 3"),
		failure("the database failed", with([]podOption{ended("proxy", 1, ""), ended("build", 0, ""), ended("database", 4, "")}), "ExitCode", "container database"),
		lost("failed for no reason seen", with(good, []podOption{ended("proxy", 0, "")}), "Unknown"),
		lost("failed for no reason seen, though told to end", with(good, []podOption{told(v1alpha1.ToldSettled, 0), ended("proxy", 0, "")}), "Unknown"),
		lost("the database was not seen to end", with(settled, []podOption{ended("build", 0, ""), ended("proxy", 1, "")}), "Unknown"),
		lost("disrupted", with(good, settled, []podOption{disruption, ended("proxy", 137, "")}), "Disrupted"),
		lost("disrupted, and only it failed", with(good, []podOption{disruption, ended("proxy", 143, "")}), "Disrupted"),
		lost("deleted while it was to end", with(good, settled, []podOption{deletedAt(2 * time.Minute), ended("proxy", 137, "")}), "PodDeleted"),
		lost("deleted, and only it failed", with(good, []podOption{deletedAt(2 * time.Minute), ended("proxy", 137, "")}), "PodDeleted"),
		lost("evicted", with(good, []podOption{withReason("Evicted", "The node was low on resource: memory."), ended("proxy", 137, "")}), "Disrupted"),
		lost("nobody knows how it ended", with(good, []podOption{neverRan("proxy", 137, "ContainerStatusUnknown", "")}), "Disrupted"),
		{name: "past the Pod's deadline, without a word of the operator", pod: with(good, []podOption{withReason("DeadlineExceeded", ""), ended("proxy", 137, "")}),
			phase: v1alpha1.PhaseFailed, result: "TIMED_OUT", reason: "TimedOut"},
		{name: "told to end when the run clock was over", pod: with(good, []podOption{withReason("DeadlineExceeded", ""), told(v1alpha1.ToldTimedOut, 0), ended("proxy", 137, "")}),
			phase: v1alpha1.PhaseFailed, result: "TIMED_OUT", reason: "TimedOut"},
		{name: "it has no image while the build runs", pod: pod(withPhase(corev1.PodPending), waitingFor("proxy", "ImagePullBackOff", ""), runningSince("build", 0), runningSince("database", 0)), at: time.Hour - time.Second},
		{name: "it runs on", pod: with(good, []podOption{withPhase(podRunning), runningSince("proxy", 0)}), at: time.Hour},
		{name: "told to end, within grace", pod: with(good, []podOption{withPhase(podRunning), told(v1alpha1.ToldSettled, 0), runningSince("proxy", 0)}), at: unreachableGrace},
		{name: "told to end, and the node does not answer", pod: with(good, []podOption{withPhase(podRunning), told(v1alpha1.ToldSettled, 0), runningSince("proxy", 0)}),
			at: unreachableGrace + testLimits.abort, phase: v1alpha1.PhaseLost, reason: "NodeLost", says: "node-1 does not answer"},
	})
	if started := mainStarted(pod(runningSince("proxy", 0))); started != nil {
		t.Error("a container put before the main one counts as the main one")
	}
}

func TestMustEnd(t *testing.T) {
	running := func(options ...podOption) *corev1.Pod {
		return newPod(slices.Concat([]podOption{
			onNode(0), withContainer("database"), injected("proxy"), withAnnotation(v1alpha1.AnnotationRequiredContainers, "build,database"),
			withPhase(podRunning), runningSince("proxy", 0),
		}, options)...)
	}
	cases := []struct {
		name string
		pod  *corev1.Pod
		at   time.Duration
		want string
		next time.Duration
	}{
		{"it runs", running(runningSince("build", 0), runningSince("database", 0)), time.Hour - time.Second, "", time.Second},
		{"it runs too long", running(runningSince("build", 0), runningSince("database", 0)), time.Hour, "TimedOut", shortestRequeue},
		{"it has ended well, another that matters has not", running(ended("build", 0, ""), runningSince("database", 0)), 2 * time.Minute, "", time.Hour + 10*time.Second - 2*time.Minute},
		{"… for too long", running(ended("build", 0, ""), runningSince("database", 0)), time.Hour + 10*time.Second, "TimedOut", shortestRequeue},
		{"it has failed", running(ended("build", 1, ""), runningSince("database", 0)), time.Minute + settledGrace, "Settled", shortestRequeue},
		{"all that matter have just ended", running(ended("build", 0, ""), ended("database", 1, "")), time.Minute, "", settledGrace},
		{"all that matter have ended", running(ended("build", 0, ""), ended("database", 0, "")), time.Minute + settledGrace, "Settled", shortestRequeue},
		{"long ago", running(ended("build", 0, ""), ended("database", 0, "")), 2 * time.Hour, "Settled", shortestRequeue},
		{"deleted", running(ended("build", 0, ""), ended("database", 0, ""), deletedAt(time.Minute)), 2 * time.Minute, "", unreachableGrace - time.Minute},
		{"the Pod has ended", running(ended("build", 0, ""), ended("database", 0, ""), withPhase(podFailed)), 2 * time.Minute, "", 0},
		{"told", running(ended("build", 0, ""), ended("database", 0, ""), told(v1alpha1.ToldSettled, time.Minute)), 2 * time.Minute, "Settled", testLimits.abort + unreachableGrace - time.Minute},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := facts{pod: c.pod, limits: testLimits, now: created.Add(c.at)}
			if diff := cmp.Diff([]any{c.want, c.next}, []any{mustEnd(f), nextDeadline(f)}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSidecarThatRunsOn(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Image, spec.Script = "", ""
		spec.Template = &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "logs", Image: "x"}, {Name: "build", Image: "x"}}}}
		spec.Template.Annotations = map[string]string{v1alpha1.AnnotationOptionalContainers: "logs"}
	})
	h.request("b", "job", numbered(1))
	h.awaitPod("b")
	h.schedule("b")
	h.report("b", withPhase(podRunning), runningNow("logs"), ended("build", 0, "")) // ended long ago
	h.eventually(func() string {
		if pod := h.pod("b"); toldToEnd(pod) != v1alpha1.ToldSettled || *pod.Spec.ActiveDeadlineSeconds != expiredDeadline {
			return "the Pod was not told to end"
		}
		return ""
	})
	if build := h.build("b"); build.Complete() {
		t.Errorf("decided before the Pod had ended: %+v", build.Status)
	}
	h.report("b", withPhase(podFailed), withReason("DeadlineExceeded", ""), ended("logs", 137, "Error"), ended("build", 0, ""))
	h.awaitVerdict("b", v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded")
	if pod := h.pod("b"); pod == nil || pod.DeletionTimestamp != nil {
		t.Error("the Pod and its log are gone")
	}
}
