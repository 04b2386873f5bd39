package controllers

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// TestWordsOfContainers: what a container says may be the end of its log, which is not to be seen by whoever may see the build; what the kubelet and the
// runtime say of it is.
func TestWordsOfContainers(t *testing.T) {
	saying := func(state corev1.ContainerState, options ...podOption) *corev1.Pod {
		return newPod(append([]podOption{onNode(time.Second), withState("build", state)}, options...)...)
	}
	ending := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 1, Reason: reason, Message: "token is hunter2", StartedAt: after(10 * time.Second), FinishedAt: after(time.Minute),
		}}
	}
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "token is hunter2"}}
	}
	initEnding := newPod(onNode(time.Second), withPhase(podFailed), withInit("prepare"), withState("prepare", ending("Error")))
	for name, c := range map[string]struct {
		pod   *corev1.Pod
		shown bool // although the log is censored
	}{
		"exit code":           {saying(ending("Error"), withPhase(podFailed)), false},
		"out of memory":       {saying(ending("OOMKilled"), withPhase(podFailed)), false},
		"a reason of its own": {saying(ending("Whatever"), withPhase(podFailed)), false},
		"init container":      {initEnding, false},
		"lost with its node":  {saying(ending("Unknown"), withPhase(podFailed)), false},
		"not started":         {saying(ending("StartError"), withPhase(podFailed)), true},
		"not seen to end":     {saying(ending("ContainerStatusUnknown"), withPhase(podFailed)), true},
		"a hook":              {saying(waiting("PostStartHookError")), false},
		"a missing Secret":    {saying(waiting("CreateContainerConfigError")), true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, censored := range []bool{false, true} {
				pod := c.pod.DeepCopy()
				if censored {
					pod.Annotations = map[string]string{v1alpha1.AnnotationCensor: `[{"name":"token"}]`}
				}
				got := decide(facts{pod: pod, limits: testLimits, now: created.Add(4 * time.Minute)})
				if got == nil {
					t.Fatal("no verdict")
				}
				want := !censored || c.shown
				if shown := strings.Contains(got.message, "hunter2"); shown != want || strings.Contains(got.message, leftOut) == want {
					t.Errorf("censored %v: %s: %q", censored, got.reason, got.message)
				}
			}
		})
	}
	_, message := waitingPod(saying(waiting("PostStartHookError")))
	if strings.Contains(message, "hunter2") {
		t.Errorf("while it waits: %q", message)
	}
}

// waitingPod is what is said of a Pod that waits, where the log of its job is censored.
func waitingPod(pod *corev1.Pod) (reason, message string) {
	pod.Annotations = map[string]string{v1alpha1.AnnotationCensor: `[{"name":"token"}]`}
	return waiting(pod)
}

// TestPodNotesWhatToCensor: its annotation names the Secrets that the job has censored, and the version of each; none where there is none, and never
// what a template says.
func TestPodNotesWhatToCensor(t *testing.T) {
	h := newHarness(t)
	h.start()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "token"}, StringData: map[string]string{"a": "hunter2"}}
	h.create(secret)
	template := &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{v1alpha1.AnnotationCensor: `[]`}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "build", Image: "example.org/image"}}},
	}
	h.job("open", func(spec *v1alpha1.ZuulJobSpec) { spec.Image, spec.Script, spec.Template = "", "", template })
	h.job("censored", func(spec *v1alpha1.ZuulJobSpec) {
		spec.Image, spec.Script, spec.Template = "", "", template
		spec.Censor = []v1alpha1.CensoredSecret{{Name: "token", Keys: []string{"a"}}, {Name: "missing"}}
	})
	h.request("open", "open")
	h.request("censored", "censored")
	if text, there := h.awaitPod("open").Annotations[v1alpha1.AnnotationCensor]; there {
		t.Errorf("the Pod of a job that censors nothing says %s", text)
	}
	var got []map[string]any
	if err := json.Unmarshal([]byte(h.awaitPod("censored").Annotations[v1alpha1.AnnotationCensor]), &got); err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{{"name": "token", "keys": []any{"a"}, "version": secret.ResourceVersion}, {"name": "missing"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("annotation (-want +got):\n%s", diff)
	}
}
