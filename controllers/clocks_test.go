package controllers

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func duration(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }

func TestTimeoutsOf(t *testing.T) {
	defaults := timeouts{15 * time.Minute, 15 * time.Minute, 3 * time.Hour, 30 * time.Second}
	cases := []struct {
		name  string
		given *v1alpha1.Timeouts
		want  timeouts
	}{
		{"none", nil, defaults},
		{"all", &v1alpha1.Timeouts{Unscheduled: duration(time.Second), Pending: duration(2 * time.Second), Run: duration(3 * time.Second), Abort: duration(4 * time.Second)},
			timeouts{time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second}},
		{"one", &v1alpha1.Timeouts{Run: duration(time.Minute)}, timeouts{15 * time.Minute, 15 * time.Minute, time.Minute, 30 * time.Second}},
		{"nothing below a second, which Pods do not know", &v1alpha1.Timeouts{Unscheduled: duration(0), Run: duration(-time.Hour), Abort: duration(time.Millisecond)}, defaults},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := timeoutsOf(&v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Timeouts: c.given}}, nil)
			if ofClass := timeoutsOf(nil, &v1alpha1.ZuulNodeClass{Spec: v1alpha1.ZuulNodeClassSpec{Timeouts: c.given}}); ofClass != got {
				t.Errorf("given by a class: %+v", ofClass)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(timeouts{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if got := timeoutsOf(nil, nil); got != defaults {
		t.Errorf("without a job: %+v", got)
	}
	job := &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Timeouts: &v1alpha1.Timeouts{Run: duration(time.Minute)}}}
	class := &v1alpha1.ZuulNodeClass{Spec: v1alpha1.ZuulNodeClassSpec{Timeouts: &v1alpha1.Timeouts{Run: duration(time.Hour), Pending: duration(time.Hour)}}}
	if got, want := timeoutsOf(job, class), (timeouts{15 * time.Minute, time.Hour, time.Minute, 30 * time.Second}); got != want {
		t.Errorf("job and class: %+v, want %+v", got, want)
	}
}

func TestNextDeadline(t *testing.T) {
	const node = 20 * time.Second
	starting := newPod(onNode(node), waitingFor("build", "ContainerCreating", ""))
	running := []podOption{onNode(node), withPhase(podRunning), runningSince("build", time.Minute)}
	cases := []struct {
		name     string
		pod      *corev1.Pod
		ungated  time.Time
		at, want time.Duration
	}{
		{name: "ended", pod: newPod(withPhase(podSucceeded)), at: time.Minute, want: 0},
		{name: "gated: no clock runs", pod: newPod(withGate("example.org/gate")), at: time.Minute, want: 0},
		{name: "gated: to say so", pod: newPod(withGate("example.org/gate")), at: time.Second, want: explainAfter - time.Second},
		{name: "no longer gated: the unscheduled clock from then", pod: newPod(withoutNode("")), ungated: created.Add(time.Hour), at: time.Hour + time.Minute, want: testLimits.unscheduled - time.Minute},
		{name: "after an init container: the grace for images", pod: newPod(onNode(node), withInit("prepare"), ended("prepare", 0, ""), waitingFor("build", "ImagePullBackOff", "")),
			at: time.Minute + configurationGrace, want: imageGrace - configurationGrace},
		{name: "new: to say why it has not started", pod: newPod(), at: time.Second, want: explainAfter - time.Second},
		{name: "no node: the unscheduled clock", pod: newPod(withoutNode("")), at: time.Minute, want: testLimits.unscheduled - time.Minute},
		{name: "a short unscheduled clock comes before the explanation", pod: newPod(), at: testLimits.unscheduled - 2*time.Second, want: 2 * time.Second},
		{name: "node: the grace for configuration", pod: starting, at: node + time.Second, want: configurationGrace - time.Second},
		{name: "node: the grace for images", pod: starting, at: node + configurationGrace, want: imageGrace - configurationGrace},
		{name: "node: the pending clock", pod: starting, at: node + imageGrace, want: testLimits.pending - imageGrace},
		{name: "running: the run clock", pod: newPod(running...), at: 2 * time.Minute, want: testLimits.run - time.Minute},
		{name: "past the clock: soon, but not at once", pod: newPod(running...), at: 5 * time.Hour, want: shortestRequeue},
		{name: "being deleted: the node's clock", pod: newPod(append(running, deletedAt(time.Minute))...), at: 2 * time.Minute, want: unreachableGrace - time.Minute},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := nextDeadline(facts{pod: c.pod, limits: testLimits, ungated: c.ungated, now: created.Add(c.at)}); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestEveryClockIsLookedAt: following nextDeadline from one look to the next meets the verdict at the very second it falls due.
func TestEveryClockIsLookedAt(t *testing.T) {
	cases := []struct {
		name   string
		pod    *corev1.Pod
		due    time.Duration
		reason string
	}{
		{"no node", newPod(withoutNode("")), testLimits.unscheduled, ReasonUnschedulable},
		{"never starts", newPod(onNode(time.Minute)), time.Minute + testLimits.pending, ReasonStartTimeout},
		{"no image", newPod(onNode(time.Minute), waitingFor("build", "ImagePullBackOff", "")), time.Minute + imageGrace, ReasonImagePullFailed},
		{"no Secret", newPod(onNode(time.Minute), waitingFor("build", "CreateContainerConfigError", "")), time.Minute + configurationGrace, ReasonContainerConfigError},
		{"node gone", newPod(onNode(0), withPhase(podRunning), runningSince("build", 0), deletedAt(time.Minute)), time.Minute + unreachableGrace, ReasonNodeLost},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			now := created.Add(time.Minute)
			for range 20 {
				if v := decide(facts{pod: c.pod, limits: testLimits, now: now}); v != nil {
					if v.reason != c.reason || !now.Equal(created.Add(c.due)) {
						t.Errorf("%s after %s, want %s after %s", v.reason, now.Sub(created), c.reason, c.due)
					}
					return
				}
				now = now.Add(nextDeadline(facts{pod: c.pod, limits: testLimits, now: now}))
			}
			t.Errorf("no verdict by %s", now.Sub(created))
		})
	}
}

func TestMainStarted(t *testing.T) {
	at := created.Add(10 * time.Second)
	cases := []struct {
		name string
		pod  *corev1.Pod
		want *time.Time
	}{
		{"no status", newPod(), nil},
		{"waiting", newPod(waitingFor("build", "ContainerCreating", "")), nil},
		{"running", newPod(runningSince("build", 10*time.Second)), &at},
		{"ended", newPod(ended("build", 1, "Error")), &at},
		{"could not start: the epoch is no start", newPod(neverRan("build", 128, "StartError", "")), nil},
		{"the other container runs", newPod(withContainer("database"), runningSince("database", 10*time.Second)), nil},
		{"no container", &corev1.Pod{}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, mainStarted(c.pod)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
