package controllers

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func TestReplaceable(t *testing.T) {
	rejectedPod := func(options ...podOption) *corev1.Pod {
		return newPod(append([]podOption{onNode(0), withPhase(podFailed), withReason("OutOfcpu", "full")}, options...)...)
	}
	disruption := func(reason string) podOption {
		return withCondition(corev1.DisruptionTarget, corev1.ConditionTrue, reason, "", 0)
	}
	job := func(maxPods int32) *v1alpha1.ZuulJob {
		return &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{MaxPods: maxPods}}
	}
	cases := []struct {
		name    string
		pod     *corev1.Pod
		job     *v1alpha1.ZuulJob
		lost    int
		started bool // by the status
		want    bool
	}{
		{name: "refused by the kubelet", pod: rejectedPod(), job: job(0), want: true},
		{name: "refused again", pod: rejectedPod(), job: job(0), lost: 1, want: true},
		{name: "refused a third time", pod: rejectedPod(), job: job(0), lost: 2},
		{name: "refused a third time of five", pod: rejectedPod(), job: job(5), lost: 2, want: true},
		{name: "only one Pod allowed", pod: rejectedPod(), job: job(1)},
		{name: "the job is gone", pod: rejectedPod()},
		{name: "refused when it had run before: the kubelet was restarted", pod: rejectedPod(), job: job(0), started: true},
		{name: "evicted while it waited", pod: rejectedPod(withReason("", ""), disruption("EvictionByEvictionAPI"), waitingFor("build", "ContainerCreating", "")), job: job(0), want: true},
		{name: "deleted while it waited", pod: rejectedPod(withReason("", ""), deletedAt(time.Minute), waitingFor("build", "ImagePullBackOff", "")), job: job(0), want: true},
		{name: "evicted after an init container", pod: rejectedPod(withInit("prepare"), ended("prepare", 0, ""), waitingFor("build", "PodInitializing", "")), job: job(0), want: true},
		{name: "evicted while it ran", pod: rejectedPod(runningSince("build", 0)), job: job(0)},
		{name: "evicted after it ended", pod: rejectedPod(ended("build", 143, "")), job: job(0)},
		{name: "evicted when another container had run", pod: rejectedPod(withContainer("publish"), waitingFor("build", "ContainerCreating", ""), ended("publish", 0, "")), job: job(0)},
		{name: "nobody knows what it did", pod: rejectedPod(neverRan("build", 137, "ContainerStatusUnknown", "")), job: job(0)},
		{name: "out of touch", pod: rejectedPod(disruption("DeletionByPodGC"), waitingFor("build", "ContainerCreating", "")), job: job(0)},
		{name: "no node", pod: newPod(withoutNode("")), job: job(0)},
		{name: "too slow to start", pod: newPod(onNode(0), withPhase(podFailed), withReason("DeadlineExceeded", "")), job: job(0)},
		{name: "full disk", pod: rejectedPod(withReason("Evicted", `Usage of EmptyDir volume "w" exceeds the limit "1Gi". `)), job: job(0)},
		{name: "vanished", job: job(0)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := &scope{build: zuulBuild("job"), job: c.job, pod: c.pod, now: created.Add(time.Hour)}
			s.build.Status.LostPods = make([]v1alpha1.LostPod, c.lost)
			if c.started {
				s.build.Status.StartTime = ptr.To(after(0))
			}
			v := decide(s.facts())
			if v == nil {
				t.Fatal("no verdict")
			}
			if got := s.replaceable(v); got != c.want {
				t.Errorf("%v for %s", got, v.reason)
			}
		})
	}
}

// TestTimesOfALostPod: the next Pod has times of its own.
func TestTimesOfALostPod(t *testing.T) {
	s := &scope{build: zuulBuild("job"), pod: newPod(onNode(time.Second), withPhase(podFailed)), now: created.Add(time.Hour)}
	status := &s.build.Status
	s.recordPod()
	if status.PodCreationTime == nil || status.ScheduledTime == nil {
		t.Fatalf("status of a build with a Pod: %+v", status)
	}
	s.losePod(lost(ReasonRejected, "no room"))
	if status.PodCreationTime != nil || status.ScheduledTime != nil {
		t.Errorf("status of a build whose Pod was lost: %+v", status)
	}
}

// held keeps a Pod that is being deleted until letGo. Without it the API server takes one away at once that has failed.
const held = "example.org/kubelet"

// refuse has the kubelet refuse the Pod of a build.
func (h *harness) refuse(name string) types.UID {
	h.Helper()
	pod := h.awaitPod(name)
	uid := pod.UID
	h.setFinalizers(pod, held)
	h.schedule(name)
	h.report(name, withPhase(podFailed), withReason("OutOfcpu", "the node is full"))
	return uid
}

// letGo has the kubelet let a Pod go that is being deleted.
func (h *harness) letGo(name string, uid types.UID) {
	h.Helper()
	var pod *corev1.Pod
	h.eventually(func() string {
		if pod = h.pod(name); pod == nil || pod.UID != uid || pod.DeletionTimestamp == nil {
			return "the lost Pod was not told to go"
		}
		return ""
	})
	h.setFinalizers(pod)
}

func (h *harness) setFinalizers(pod *corev1.Pod, finalizers ...string) {
	h.Helper()
	before := pod.DeepCopy()
	pod.Finalizers = finalizers
	if err := h.api.Patch(h.Context(), pod, client.MergeFrom(before)); err != nil {
		h.Fatal(err)
	}
}

func (h *harness) awaitLostPods(name string, count int) *v1alpha1.ZuulBuild {
	h.Helper()
	var build *v1alpha1.ZuulBuild
	h.eventually(func() string {
		if build = h.build(name); len(build.Status.LostPods) != count {
			return "another number of Pods lost"
		}
		return ""
	})
	return build
}

// TestPodIsMadeAgain: a build outlives the loss of Pods that never began, and restarts of the operator in between, up to its limit.
func TestPodIsMadeAgain(t *testing.T) {
	h := newHarness(t)
	h.podDelays = []time.Duration{time.Millisecond}
	stop, _ := h.start()
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) { spec.MaxPods = 4 })
	h.request("b", "job", numbered(1))
	seen := map[types.UID]bool{}
	for i := range 3 {
		uid := h.refuse("b")
		build := h.awaitLostPods("b", i+1)
		if l := build.Status.LostPods[i]; l.UID != uid || l.NodeName != "node-1" || l.Reason != "Rejected" || l.Message != "OutOfcpu: the node is full" || l.LostTime.IsZero() || l.CreationTime.IsZero() {
			t.Errorf("lost Pod %+v", l)
		}
		if build.Status.PodName != "" || build.Status.Reason != "ReplacingPod" || build.Status.Phase != v1alpha1.PhaseStarting {
			t.Errorf("status between two Pods: %+v", build.Status)
		}
		if pod := h.pod("b"); pod != nil && pod.UID != uid {
			t.Error("there was a new Pod while the old one was not gone")
		}
		if i < 2 {
			stop()
			stop, _ = h.start()
		}
		h.letGo("b", uid)
		h.eventually(func() string {
			if pod := h.pod("b"); pod == nil || pod.UID == uid {
				return "no new Pod"
			}
			return ""
		})
		if seen[uid] {
			t.Error("a Pod came back")
		}
		seen[uid] = true
	}
	if got := series(t, h.registry)["pods_lost_total reason=Rejected"]; got != 1 {
		t.Errorf("%v Pods were counted as lost by the operator that saw the last one go", got)
	}
	h.run("b")
	h.report("b", withPhase(podSucceeded), ended("build", 0, "Completed"))
	build := h.awaitVerdict("b", v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded")
	if len(build.Status.LostPods) != 3 || build.Status.PodName != "b" || build.Status.Attempts != 0 {
		t.Errorf("status in the end: %+v", build.Status)
	}
}

func TestPodsAreMadeAgainUpToALimit(t *testing.T) {
	h := newHarness(t)
	h.podDelays = []time.Duration{time.Second}
	h.start()
	h.job("job")
	h.request("b", "job", numbered(1))
	for i := range 2 {
		uid := h.refuse("b")
		h.awaitLostPods("b", i+1)
		h.letGo("b", uid)
		h.eventually(func() string {
			if pod := h.pod("b"); pod == nil || pod.UID == uid {
				return "no new Pod"
			}
			return ""
		})
	}
	h.refuse("b")
	build := h.awaitVerdict("b", v1alpha1.PhaseLost, "", "Rejected")
	if !strings.Contains(build.Status.Message, "2 of its Pods were lost before") || len(build.Status.LostPods) != 2 {
		t.Errorf("message %q, Pods %v", build.Status.Message, build.Status.LostPods)
	}
}

func TestStopBetweenTwoPods(t *testing.T) {
	for name, gone := range map[string]bool{"while the lost one goes": false, "when the lost one is gone": true} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			h.podDelays = []time.Duration{time.Hour}
			_, writes := h.start()
			h.job("job")
			h.request("b", "job", numbered(1))
			uid := h.refuse("b")
			h.awaitLostPods("b", 1)
			if gone {
				h.letGo("b", uid)
				h.awaitNoPod("b")
			}
			h.stopBuild("b")
			h.awaitVerdict("b", v1alpha1.PhaseAborted, "ABORTED", "Aborted")
			if !gone {
				h.letGo("b", uid)
			}
			h.awaitNoPod("b")
			posts := 0
			for _, write := range writes.all() {
				if write == "POST pods" {
					posts++
				}
			}
			if posts != 1 {
				t.Errorf("%d Pods were made", posts)
			}
		})
	}
}

// TestPodMemory: a Pod that was made or met counts until the status lists it as lost, and an old status does not make it forgotten.
func TestPodMemory(t *testing.T) {
	build := zuulBuild("job")
	build.UID = "b"
	m := &PodMemory{}
	lost := func(pods ...types.UID) *v1alpha1.ZuulBuild {
		b := build.DeepCopy()
		for _, pod := range pods {
			b.Status.LostPods = append(b.Status.LostPods, v1alpha1.LostPod{UID: pod})
		}
		return b
	}
	pod := func(uid types.UID) *corev1.Pod { return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}} }
	if m.knows(lost()) {
		t.Error("knows a Pod nobody made")
	}
	m.remember(lost(), pod("1"))
	if !m.knows(lost()) || m.knows(lost("1")) {
		t.Error("the first Pod counts only until it is lost")
	}
	m.remember(lost("1"), pod("2"))
	m.remember(lost(), pod("1"))
	if !m.knows(lost("1")) || m.knows(lost("1", "2")) {
		t.Error("an old view made it forget the second Pod")
	}
	other := lost()
	if other.UID = "c"; m.knows(other) {
		t.Error("a later build of the name is another one")
	}
}
