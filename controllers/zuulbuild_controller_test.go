package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func numbered(number int64) func(*v1alpha1.ZuulBuildSpec) {
	return func(spec *v1alpha1.ZuulBuildSpec) { spec.Number = number }
}

func TestBuildRunsToItsEnd(t *testing.T) {
	h := newHarness(t)
	h.ahead = neverSlow
	h.start()
	h.job("job")
	h.request("b", "job", func(spec *v1alpha1.ZuulBuildSpec) {
		spec.Number, spec.Parameters = 5, map[string]string{"ZUUL_PROJECT": "p$(HOME)\n"}
	})
	pod := h.awaitPod("b")
	env := map[string]string{}
	for _, variable := range pod.Spec.Containers[0].Env {
		env[variable.Name] = expand(variable.Value, nil)
	}
	if env["ZUUL_PROJECT"] != "p$(HOME)\n" || env["BUILD_NUMBER"] != "5" || env["BUILD_URL"] != "https://builds.example.org/b" {
		t.Errorf("the container sees %v", env)
	}
	if got := h.build("b").Status; got.Phase != v1alpha1.PhaseQueued || len(got.Conditions) != 0 {
		t.Errorf("a build whose Pod was just made has status %+v, which is a write too many", got)
	}

	h.run("b")
	build := h.build("b")
	if build.Status.PodName != "b" || build.Status.NodeName != "node-1" || build.Status.StartTime == nil || build.Status.ScheduledTime == nil || build.Status.URL != "https://builds.example.org/b" {
		t.Errorf("status of a running build: %+v", build.Status)
	}
	if made := build.Status.PodCreationTime; made == nil || !made.Equal(&pod.CreationTimestamp) {
		t.Errorf("the Pod was made %v, and the status says %v", pod.CreationTimestamp, made)
	}

	h.report("b", withPhase(podSucceeded), ended("build", 0, "Completed"))
	build = h.awaitVerdict("b", v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded")
	var conditions []string
	for _, c := range build.Status.Conditions {
		conditions = append(conditions, c.Type+"="+string(c.Status))
		if c.ObservedGeneration != build.Generation {
			t.Errorf("condition %s observed generation %d, not %d", c.Type, c.ObservedGeneration, build.Generation)
		}
	}
	slices.Sort(conditions)
	if diff := cmp.Diff([]string{"Complete=True", "PodScheduled=True", "Started=True"}, conditions); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
	if h.pod("b") == nil {
		t.Error("the Pod, and its log, went with the end of the build")
	}
}

// TestDescriptionSurvivesTheVerdict: the status is written without a look at the description, which the bridge may have stored meanwhile.
func TestDescriptionSurvivesTheVerdict(t *testing.T) {
	h := newHarness(t)
	h.request("b", "job", numbered(1))
	old := h.build("b")
	describe := func(text string) {
		t.Helper()
		patch := client.RawPatch(types.MergePatchType, []byte(`{"status":{"description":"`+text+`"}}`))
		if err := h.api.Status().Patch(t.Context(), h.build("b"), patch); err != nil {
			t.Fatal(err)
		}
	}
	reconciler := &ZuulBuildReconciler{Pods: &PodMemory{}, Client: h.api, Live: h.api, Recorder: events.NewFakeRecorder(1), BuildURL: func(*v1alpha1.ZuulBuild) string { return "url" }}
	for _, verdict := range []verdict{{phase: v1alpha1.PhaseRunning, reason: ReasonRunning}, {phase: v1alpha1.PhaseSucceeded, result: "SUCCESS", reason: ReasonSucceeded}} {
		text := "before " + string(verdict.phase)
		describe(text)
		s := &scope{build: old.DeepCopy(), now: time.Now()} // as a cache that is late shows it
		s.end(&verdict)
		if err := reconciler.writeStatus(t.Context(), old, s); err != nil {
			t.Fatal(err)
		}
		build := h.build("b")
		if build.Status.Phase != verdict.phase || build.Status.Result != verdict.result || build.Status.Description != text {
			t.Errorf("phase %s, result %q, description %q, want the verdict %+v and %q", build.Status.Phase, build.Status.Result, build.Status.Description, verdict, text)
		}
		old = build
	}
	describe("after the verdict")
	if status := h.build("b").Status; status.Description != "after the verdict" || status.Result != "SUCCESS" {
		t.Errorf("status %+v", status)
	}
}

// TestNothingIsWrittenFromAnOldView: a round that began before the cache showed what the round before it wrote leaves the status alone.
func TestNothingIsWrittenFromAnOldView(t *testing.T) {
	h := newHarness(t)
	h.request("b", "job", numbered(1))
	reconciler := &ZuulBuildReconciler{Pods: &PodMemory{}, Client: h.api, Live: h.api, BuildURL: func(*v1alpha1.ZuulBuild) string { return "url" }}
	write := func(view *v1alpha1.ZuulBuild, message string) {
		t.Helper()
		s := &scope{build: view.DeepCopy(), now: time.Now()}
		s.build.Status.Phase, s.build.Status.Message = v1alpha1.PhaseStarting, message
		if err := reconciler.writeStatus(t.Context(), view, s); err != nil {
			t.Fatal(err)
		}
	}
	first := h.build("b")
	write(first, "first")
	write(first, "again")
	second := h.build("b")
	if second.Status.Message != "first" {
		t.Errorf("the old view wrote %q", second.Status.Message)
	}
	write(second, "second")
	if message := h.build("b").Status.Message; message != "second" {
		t.Errorf("the new view's message is not there, but %q", message)
	}
}

// TestWritesOfAnUndisturbedBuild: beside the creation of the build, five writes see it through.
func TestWritesOfAnUndisturbedBuild(t *testing.T) {
	h := newHarness(t)
	h.ahead = neverSlow
	_, writes := h.start()
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Retention = &v1alpha1.Retention{Pod: duration(0), Build: duration(20 * time.Second)} // long after the Pod
	})
	h.request("b", "job", numbered(1))
	h.run("b")
	h.report("b", withPhase(podSucceeded), ended("build", 0, "Completed"))
	h.eventually(func() string {
		err := h.api.Get(t.Context(), types.NamespacedName{Namespace: h.namespace, Name: "b"}, &v1alpha1.ZuulBuild{})
		if apierrors.IsNotFound(err) {
			return ""
		}
		return fmt.Sprintf("the build is still there (%v)", err)
	})
	want := []string{"POST pods", "PATCH zuulbuilds/status", "PATCH zuulbuilds/status", "DELETE pods", "DELETE zuulbuilds"}
	ofBuild := slices.DeleteFunc(writes.all(), func(write string) bool { return write == "PATCH zuuljobs/status" }) // at most one a minute, see estimate.go
	// The Pod is deleted once more where the cache does not show yet that it is.
	ofBuild = slices.CompactFunc(ofBuild, func(a, b string) bool { return a == "DELETE pods" && b == "DELETE pods" })
	if diff := cmp.Diff(want, ofBuild); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
}

func TestBuildsThatGetNoPod(t *testing.T) {
	h := newHarness(t)
	_, writes := h.start()
	h.job("job")
	h.job("php", func(spec *v1alpha1.ZuulJobSpec) { spec.Script = "#!/usr/bin/php\n" })
	h.job("broken", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Image, spec.Script = "", ""
		spec.Template = &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "Not A Name", Image: "x"}}}}
	})
	cases := []struct {
		name, job      string
		change         func(*v1alpha1.ZuulBuildSpec)
		phase          v1alpha1.BuildPhase
		result, reason string
		says           string
	}{
		{"no-job", "no-such-job", func(*v1alpha1.ZuulBuildSpec) {}, v1alpha1.PhaseFailed, "FAILURE", "JobNotFound", `"no-such-job"`},
		{"no-ref", "job", func(s *v1alpha1.ZuulBuildSpec) { s.JobRef = &v1alpha1.JobReference{Name: "other"} }, v1alpha1.PhaseFailed, "FAILURE", "JobNotFound", ""},
		{"not-understood", "job", func(s *v1alpha1.ZuulBuildSpec) { s.RequestError = "it is no JSON" }, v1alpha1.PhaseFailed, "INVALID_REQUEST", "InvalidRequest", "it is no JSON"},
		{"refused", "job", func(s *v1alpha1.ZuulBuildSpec) { s.Parameters = map[string]string{"PATH": "/tmp"} }, v1alpha1.PhaseFailed, "INVALID_REQUEST", "InvalidRequest", `"PATH"`},
		{"interpreter", "php", func(*v1alpha1.ZuulBuildSpec) {}, v1alpha1.PhaseFailed, "FAILURE", "InvalidPod", "php"},
		{"invalid", "broken", func(*v1alpha1.ZuulBuildSpec) {}, v1alpha1.PhaseFailed, "FAILURE", "InvalidPod", "Not A Name"},
		{"stopped", "job", func(s *v1alpha1.ZuulBuildSpec) { s.Abort = true }, v1alpha1.PhaseAborted, "ABORTED", "Aborted", ""},
		{"abandoned", "job", func(s *v1alpha1.ZuulBuildSpec) { s.Abort, s.AbortReason = true, v1alpha1.AbortAbandoned }, v1alpha1.PhaseLost, "", "Abandoned", ""},
	}
	for _, c := range cases {
		h.request(c.name, c.job, numbered(1), c.change)
	}
	for _, c := range cases {
		build := h.awaitVerdict(c.name, c.phase, c.result, c.reason)
		if !strings.Contains(build.Status.Message, c.says) {
			t.Errorf("build %s: message %q does not say %q", c.name, build.Status.Message, c.says)
		}
	}
	pods := &corev1.PodList{}
	if err := h.api.List(t.Context(), pods, client.InNamespace(h.namespace)); err != nil || len(pods.Items) != 0 {
		t.Errorf("%d Pods (%v)", len(pods.Items), err)
	}
	posts := 0
	for _, write := range writes.all() {
		if write == "POST pods" {
			posts++
		}
	}
	if posts != 1 { // the invalid one, which the API server refused
		t.Errorf("%d tries to make a Pod, want 1", posts)
	}
}

func TestStopBeforeThePodHasANode(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job")
	h.request("b", "job", numbered(1))
	h.awaitPod("b")
	h.stopBuild("b")
	h.awaitVerdict("b", v1alpha1.PhaseAborted, "ABORTED", "Aborted")
	h.awaitNoPod("b")
}

func TestStopWhileRunning(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job")
	h.request("b", "job", numbered(1))
	h.run("b")
	h.stopBuild("b")
	h.awaitPhase("b", v1alpha1.PhaseAborting)
	pod := h.pod("b")
	if pod == nil || pod.DeletionTimestamp == nil {
		t.Fatalf("the Pod was not told to go: %v", pod)
	}
	h.report("b", withPhase(podSucceeded), ended("build", 0, "Completed")) // exit 0 on SIGTERM
	h.awaitVerdict("b", v1alpha1.PhaseAborted, "ABORTED", "Aborted")
	h.deletePod("b", client.GracePeriodSeconds(0))
	h.awaitNoPod("b")
}

func TestPodDeletedBehindItsBack(t *testing.T) {
	cases := map[string]func(*harness){
		"before it has a node": func(h *harness) {
			h.awaitPod("b")
			h.deletePod("b")
		},
		"while it runs": func(h *harness) {
			h.run("b")
			h.deletePod("b", client.GracePeriodSeconds(0))
		},
		"while it runs, and exits 0": func(h *harness) {
			h.run("b")
			h.deletePod("b")
			h.report("b", withPhase(podSucceeded), ended("build", 0, "Completed"))
		},
	}
	for name, disturb := range cases {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			stop, writes := h.start()
			h.job("job")
			h.request("b", "job", numbered(1))
			disturb(h)
			h.awaitVerdict("b", v1alpha1.PhaseLost, "", "PodDeleted")
			stop()
			h.start() // neither now nor after a restart is there a second Pod
			h.request("marker", "job", numbered(2))
			h.awaitPod("marker")
			if got := slices.DeleteFunc(writes.all(), func(write string) bool { return write != "POST pods" }); len(got) != 1 {
				t.Errorf("%d Pods were made", len(got))
			}
			if pod := h.pod("b"); pod != nil && pod.DeletionTimestamp == nil {
				t.Error("there is a second Pod")
			}
		})
	}
}

func TestPodFoundAfterARestart(t *testing.T) {
	h := newHarness(t)
	stop, _ := h.start()
	h.job("job")
	h.request("b", "job", numbered(1))
	uid := h.awaitPod("b").UID
	stop()
	h.schedule("b")
	h.report("b", withPhase(podFailed), ended("build", 3, "Error"))
	_, writes := h.start()
	build := h.awaitVerdict("b", v1alpha1.PhaseFailed, "FAILURE", "ExitCode")
	if build.Status.NodeName != "node-1" || build.Status.StartTime == nil {
		t.Errorf("status %+v lacks what the Pod tells", build.Status)
	}
	if h.pod("b").UID != uid || slices.Contains(writes.all(), "POST pods") {
		t.Error("a second Pod was made, or tried")
	}
}

func TestNamesTakenByOtherPods(t *testing.T) {
	h := newHarness(t)
	foreign := func(name string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "x", Image: "x"}}},
		}
	}
	h.create(foreign("earlier", map[string]string{v1alpha1.LabelBuild: "earlier"}), foreign("other", nil))
	earlier := h.pod("earlier").UID
	h.schedule("earlier") // so that deletion waits for a kubelet
	h.job("job")
	h.start()
	h.request("earlier", "job", numbered(1))
	h.request("other", "job", numbered(2))

	h.awaitVerdict("other", v1alpha1.PhaseFailed, "FAILURE", "InvalidPod")
	if pod := h.pod("other"); pod == nil || pod.DeletionTimestamp != nil {
		t.Error("somebody else's Pod was deleted")
	}
	h.eventually(func() string {
		if h.pod("earlier").DeletionTimestamp == nil {
			return "the Pod of the earlier build was not told to go"
		}
		return ""
	})
	if build := h.build("earlier"); build.Complete() {
		t.Errorf("the build ended %s while the earlier one's Pod may run", build.Status.Phase)
	}
	h.deletePod("earlier", client.GracePeriodSeconds(0))
	h.eventually(func() string {
		if pod := h.pod("earlier"); pod == nil || pod.UID == earlier {
			return "the build has no Pod of its own"
		}
		return ""
	})
}

func TestQuotaIsWaitedFor(t *testing.T) {
	h := newHarness(t)
	quota := h.quota(0, true)
	h.job("job")
	h.start()
	h.request("b", "job", numbered(1))
	h.awaitPhase("b", v1alpha1.PhaseStarting)
	if status := h.build("b").Status; status.Reason != "QuotaExceeded" || !strings.Contains(status.Message, "exceeded quota") {
		t.Errorf("reason %s: %s", status.Reason, status.Message)
	}
	if err := h.api.Delete(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	h.awaitPod("b") // within quotaRetry
}

// TestPodSecurity: the default Pod fits the strictest profile. A template that does not is refused unless its node class allows it, and then the namespace
// has its say, in the API server's own words.
func TestPodSecurity(t *testing.T) {
	h := newHarness(t)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: h.namespace}}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"baseline"}}}`))
	if err := h.api.Patch(t.Context(), namespace, patch); err != nil {
		t.Fatal(err)
	}
	ofLevel := func(level v1alpha1.PodSecurityLevel) string { return "level" + string(level) + "-" + h.namespace }
	asking := func(name string, context *corev1.SecurityContext) {
		h.job(name, func(spec *v1alpha1.ZuulJobSpec) {
			spec.Image, spec.Script = "", ""
			spec.Template = &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "build", Image: "x", SecurityContext: context}}}}
		})
	}
	asking("modest", nil)
	asking("root", &corev1.SecurityContext{RunAsUser: ptr.To[int64](0), RunAsNonRoot: ptr.To(false)})
	asking("privileged", &corev1.SecurityContext{Privileged: ptr.To(true)})
	for _, level := range []v1alpha1.PodSecurityLevel{"", "restricted", "baseline", "privileged"} {
		h.create(&v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: ofLevel(level)}, Spec: v1alpha1.ZuulNodeClassSpec{PodSecurity: level}})
	}
	h.start()
	const byClass, byNamespace = "spec.podSecurity", "violates PodSecurity"
	for i, c := range []struct{ job, class, refused string }{
		{"modest", "", ""},
		{"modest", ofLevel("restricted"), ""},
		{"root", "", byClass},
		{"root", "a-label-of-nodes", byClass},
		{"root", ofLevel(""), byClass},
		{"root", ofLevel("restricted"), byClass},
		{"root", ofLevel("baseline"), ""},
		{"root", ofLevel("privileged"), ""},
		{"privileged", ofLevel("baseline"), byClass},
		{"privileged", ofLevel("privileged"), byNamespace},
	} {
		name := fmt.Sprintf("b%d", i)
		h.request(name, c.job, numbered(1), func(spec *v1alpha1.ZuulBuildSpec) { spec.Node = c.class })
		if c.refused == "" {
			h.awaitPod(name)
			continue
		}
		if build := h.awaitVerdict(name, v1alpha1.PhaseFailed, "FAILURE", "Forbidden"); !strings.Contains(build.Status.Message, c.refused) {
			t.Errorf("%s on %q: message %q", c.job, c.class, build.Status.Message)
		}
	}
}

func TestHandMadeBuildsAreNumbered(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) { spec.JobName, spec.FirstBuildNumber = "Gate.Job_1", 100 })
	h.request("a", "Gate.Job_1")
	h.request("b", "Gate.Job_1")
	var numbers []string
	for _, name := range []string{"a", "b"} {
		pod := h.awaitPod(name)
		if got := fmt.Sprint(h.build(name).Spec.Number); got != pod.Annotations[v1alpha1.AnnotationNumber] {
			t.Errorf("build %s has number %s, its Pod %s", name, got, pod.Annotations[v1alpha1.AnnotationNumber])
		}
		numbers = append(numbers, pod.Annotations[v1alpha1.AnnotationNumber])
	}
	slices.Sort(numbers)
	if diff := cmp.Diff([]string{"100", "101"}, numbers); diff != "" {
		t.Errorf("numbers (-want +got):\n%s", diff)
	}
}

// TestJobAndBuildAtOnce: a manifest with a job and a build of it works, however late the cache of jobs is.
func TestJobAndBuildAtOnce(t *testing.T) {
	h := newHarness(t)
	h.start()
	const pairs = 30
	for i := range pairs {
		name := fmt.Sprintf("b%d", i)
		h.job(name)
		h.request(name, name)
	}
	for i := range pairs {
		name := fmt.Sprintf("b%d", i)
		h.awaitPod(name)
		if number := h.build(name).Spec.Number; number != 1 {
			t.Errorf("build %s has number %d", name, number)
		}
	}
	jobs := &v1alpha1.ZuulJobList{}
	if err := h.api.List(t.Context(), jobs, client.InNamespace(h.namespace)); err != nil {
		t.Fatal(err)
	}
	for _, job := range jobs.Items {
		if job.Status.LastNumber == 0 {
			t.Errorf("the number of build %s did not come from its ZuulJob", job.Name)
		}
	}
}

func TestRunClockShortensTheDeadline(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) { spec.Timeouts = &v1alpha1.Timeouts{Run: duration(time.Second)} })
	h.request("b", "job", numbered(1))
	h.run("b")
	h.eventually(func() string {
		if deadline := *h.pod("b").Spec.ActiveDeadlineSeconds; deadline != 1 {
			return fmt.Sprintf("activeDeadlineSeconds is %d", deadline)
		}
		return ""
	})
	h.report("b", withPhase(podFailed), withReason("DeadlineExceeded", ""), ended("build", 137, "Error"))
	h.awaitVerdict("b", v1alpha1.PhaseFailed, "TIMED_OUT", "TimedOut")
}

func TestPodOfADeletedBuildGoes(t *testing.T) {
	h := newHarness(t)
	h.start()
	h.job("job")
	h.request("b", "job", numbered(1))
	h.run("b")
	if err := h.api.Delete(t.Context(), h.build("b"), client.PropagationPolicy(metav1.DeletePropagationBackground)); err != nil {
		t.Fatal(err)
	}
	h.eventually(func() string {
		if h.pod("b").DeletionTimestamp == nil {
			return "the Pod was not told to go"
		}
		return ""
	})
}

func TestPodOfAnAbortedBuildGoesThoughItEnded(t *testing.T) {
	h := newHarness(t)
	stop, _ := h.start()
	h.job("job")
	h.request("b", "job", numbered(1))
	h.run("b")
	stop()
	h.report("b", withPhase(podSucceeded), ended("build", 0, "Completed"))
	h.stopBuild("b")
	h.start()
	h.awaitVerdict("b", v1alpha1.PhaseAborted, "ABORTED", "Aborted")
	h.awaitNoPod("b")
}
