package controllers

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

var testLimits = timeouts{unscheduled: 10 * time.Minute, pending: 5 * time.Minute, run: time.Hour, abort: 30 * time.Second}

// decideCase is a Pod, the time it is looked at (minutes after it was made unless given), and the verdict; no reason means none yet.
type decideCase struct {
	name   string
	pod    *corev1.Pod
	at     time.Duration
	phase  v1alpha1.BuildPhase
	result string
	reason string
	says   string // part of the message
}

const (
	podSucceeded = corev1.PodSucceeded
	podFailed    = corev1.PodFailed
	podRunning   = corev1.PodRunning
)

func runDecideCases(t *testing.T, cases []decideCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := decide(facts{pod: c.pod, limits: testLimits, now: created.Add(c.at)})
			if c.reason == "" {
				if got != nil {
					t.Fatalf("verdict %+v, want none yet", *got)
				}
				return
			}
			if got == nil {
				t.Fatalf("no verdict, want %s", c.reason)
			}
			want := verdict{c.phase, c.result, c.reason, got.message}
			if diff := cmp.Diff(want, *got, cmp.AllowUnexported(verdict{})); diff != "" {
				t.Errorf("verdict (-want +got):\n%s", diff)
			}
			if !strings.Contains(got.message, c.says) {
				t.Errorf("message %q does not say %q", got.message, c.says)
			}
		})
	}
}

func TestDecideSuccess(t *testing.T) {
	succeededPod := func(options ...podOption) *corev1.Pod {
		return newPod(slices.Concat([]podOption{onNode(time.Second), withPhase(podSucceeded)}, options)...)
	}
	const success = v1alpha1.PhaseSucceeded
	const lost = v1alpha1.PhaseLost
	runDecideCases(t, []decideCase{
		{name: "one container", pod: succeededPod(ended("build", 0, "Completed")), phase: success, result: "SUCCESS", reason: "Succeeded"},
		{name: "two containers", pod: succeededPod(withContainer("database"), ended("build", 0, ""), ended("database", 0, "")), phase: success, result: "SUCCESS", reason: "Succeeded"},
		{name: "a native sidecar's exit code does not matter", pod: succeededPod(withSidecar("proxy"), ended("proxy", 137, "Error"), ended("build", 0, "")),
			phase: success, result: "SUCCESS", reason: "Succeeded"},
		{name: "an init container that ended well", pod: succeededPod(withInit("prepare"), ended("prepare", 0, ""), ended("build", 0, "")),
			phase: success, result: "SUCCESS", reason: "Succeeded"},
		{name: "a disruption that was called off", pod: succeededPod(withCondition(corev1.DisruptionTarget, corev1.ConditionFalse, "", "", 0), ended("build", 0, "")),
			phase: success, result: "SUCCESS", reason: "Succeeded"},
		{name: "no container seen to end", pod: succeededPod(), phase: lost, reason: "Unknown", says: "container build was not seen"},
		{name: "one of two not seen to end", pod: succeededPod(withContainer("database"), ended("build", 0, "")), phase: lost, reason: "Unknown", says: "container database"},
		{name: "still running in a Pod that says Succeeded", pod: succeededPod(runningSince("build", 0)), phase: lost, reason: "Unknown"},
		{name: "exit code 1 in a Pod that says Succeeded", pod: succeededPod(ended("build", 1, "Error")), phase: lost, reason: "Unknown"},
		{name: "exit code 0 without a time", pod: succeededPod(neverRan("build", 0, "", "")), phase: lost, reason: "Unknown"},
		{name: "status unknown with exit code 0", pod: succeededPod(ended("build", 0, "ContainerStatusUnknown")), phase: lost, reason: "Disrupted", says: "lost track of container build"},
		{name: "deleted, and ended 0 on SIGTERM", pod: succeededPod(deletedAt(time.Minute), ended("build", 0, "")), at: time.Minute, phase: lost, reason: "PodDeleted"},
		{name: "disrupted, and ended 0 on SIGTERM",
			pod:   succeededPod(withCondition(corev1.DisruptionTarget, corev1.ConditionTrue, "PreemptionByScheduler", "default-scheduler: preempting", 0), ended("build", 0, "")),
			phase: lost, reason: "Disrupted", says: "PreemptionByScheduler: default-scheduler: preempting"},
	})
}

func TestDecideJobFailed(t *testing.T) {
	failedPod := func(options ...podOption) *corev1.Pod {
		return newPod(slices.Concat([]podOption{onNode(time.Second), withPhase(podFailed)}, options)...)
	}
	failure := func(name string, pod *corev1.Pod, reason, says string) decideCase {
		return decideCase{name: name, pod: pod, phase: v1alpha1.PhaseFailed, result: "FAILURE", reason: reason, says: says}
	}
	runDecideCases(t, []decideCase{
		failure("exit code", failedPod(ended("build", 3, "Error")), "ExitCode", "container build ended with exit code 3"),
		failure("exit code 128 is no signal", failedPod(ended("build", 128, "Error")), "ExitCode", "exit code 128"),
		failure("killed", failedPod(ended("build", 137, "Error")), "ExitCode", "exit code 137 (SIGKILL)"),
		failure("told to stop", failedPod(ended("build", 143, "Error")), "ExitCode", "exit code 143 (SIGTERM)"),
		failure("segmentation fault", failedPod(ended("build", 139, "Error")), "ExitCode", "(SIGSEGV)"),
		failure("a signal without a name", failedPod(ended("build", 128+40, "Error")), "ExitCode", "(signal 40)"),
		failure("exit code 255", failedPod(ended("build", 255, "Error")), "ExitCode", "exit code 255"),
		failure("the main container is named before others", failedPod(withContainer("database"), ended("database", 9, ""), ended("build", 2, "")), "ExitCode", "container build ended with exit code 2"),
		failure("another container failed", failedPod(withContainer("database"), ended("database", 9, ""), ended("build", 0, "")), "ExitCode", "container database ended with exit code 9"),
		failure("out of memory", failedPod(withMemoryLimit("64Mi"), ended("build", 137, "OOMKilled")), "OOMKilled", "killed for want of memory (limit 64Mi)"),
		failure("out of memory without a limit", failedPod(ended("build", 137, "OOMKilled")), "OOMKilled", "killed for want of memory"),
		failure("a second container out of memory explains the first's exit code",
			failedPod(withContainer("database"), ended("build", 1, "Error"), ended("database", 137, "OOMKilled")), "OOMKilled", "container database"),
		failure("init container", failedPod(withInit("prepare"), ended("prepare", 4, "Error"), waitingFor("build", "PodInitializing", "")), "InitFailed", "init container prepare ended with exit code 4"),
		failure("init container out of memory", failedPod(withInit("prepare"), ended("prepare", 137, "OOMKilled")), "InitFailed", "killed for want of memory"),
		failure("a sidecar's exit code does not hide the job's", failedPod(withSidecar("proxy"), ended("proxy", 1, "Error"), ended("build", 2, "Error")), "ExitCode", "container build"),
		failure("command not found", failedPod(neverRan("build", 128, "StartError", `exec: "nothing": not found`)), "StartError", `exec: "nothing": not found`),
		failure("command not found, Docker's word", failedPod(neverRan("build", 127, "ContainerCannotRun", "no such file")), "StartError", "no such file"),
		{name: "run timeout", pod: failedPod(withReason("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"), ended("build", 137, "Error")),
			phase: v1alpha1.PhaseFailed, result: "TIMED_OUT", reason: "TimedOut", says: "run timeout (1h0m0s)"},
		{name: "run timeout, though the job caught SIGTERM", pod: failedPod(withReason("DeadlineExceeded", ""), ended("build", 0, "Completed")),
			phase: v1alpha1.PhaseFailed, result: "TIMED_OUT", reason: "TimedOut"},
		{name: "run timeout, deleted when the operator had set the deadline", pod: failedPod(withReason("DeadlineExceeded", ""), withDeadline(expiredDeadline), deletedAt(time.Minute), ended("build", 0, "")),
			phase: v1alpha1.PhaseFailed, result: "TIMED_OUT", reason: "TimedOut"},
		{name: "run timeout, deleted when the clock was over", pod: failedPod(withReason("DeadlineExceeded", ""), askedToGoAt(10*time.Second+testLimits.run, 30*time.Second), ended("build", 137, "")),
			phase: v1alpha1.PhaseFailed, result: "TIMED_OUT", reason: "TimedOut"},
		failure("its own disk: a container", failedPod(withReason("Evicted", `Container build exceeded its local ephemeral storage limit "1Gi". `), ended("build", 137, "")), "StorageExceeded", `limit "1Gi".`),
		failure("its own disk: the Pod", failedPod(withReason("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. "), ended("build", 0, "")), "StorageExceeded", "containers 2Gi."),
		failure("its own disk: a volume", failedPod(withReason("Evicted", `Usage of EmptyDir volume "workspace" exceeds the limit "1Gi". `)), "StorageExceeded", `"workspace"`),
	})
}

func TestDecideInfrastructureFailed(t *testing.T) {
	failedPod := func(options ...podOption) *corev1.Pod {
		return newPod(slices.Concat([]podOption{onNode(time.Second), withPhase(podFailed)}, options)...)
	}
	lost := func(name string, pod *corev1.Pod, at time.Duration, reason, says string) decideCase {
		return decideCase{name: name, pod: pod, at: at, phase: v1alpha1.PhaseLost, reason: reason, says: says}
	}
	failure := func(name string, pod *corev1.Pod) decideCase {
		return decideCase{name: name, pod: pod, phase: v1alpha1.PhaseFailed, result: "FAILURE", reason: "ExitCode"}
	}
	disruption := withCondition(corev1.DisruptionTarget, corev1.ConditionTrue, "EvictionByEvictionAPI", "Eviction API: evicting", 0)
	runDecideCases(t, []decideCase{
		lost("no Pod", nil, 0, "PodDeleted", "deleted before it ended"),
		lost("disrupted, whatever its exit code", failedPod(disruption, ended("build", 143, "Error")), 0, "Disrupted", "EvictionByEvictionAPI: Eviction API: evicting"),
		lost("disrupted, though out of memory", failedPod(disruption, ended("build", 137, "OOMKilled")), 0, "Disrupted", ""),
		lost("disrupted, though past its deadline", failedPod(disruption, withReason("DeadlineExceeded", ""), ended("build", 137, "")), 0, "Disrupted", ""),
		{name: "disruption announced, still running", pod: newPod(onNode(0), withPhase(podRunning), disruption, runningSince("build", time.Second)), at: time.Minute},
		lost("deleted while running, and failed", failedPod(deletedAt(time.Minute), ended("build", 143, "Error")), time.Minute, "PodDeleted", "deleted while it ran"),
		{name: "deleted, still running", pod: newPod(onNode(0), withPhase(podRunning), deletedAt(time.Minute), runningSince("build", time.Second)), at: 2 * time.Minute},
		lost("deleted, and its node does not answer", newPod(onNode(0), withPhase(podRunning), deletedAt(time.Minute), runningSince("build", time.Second)), 6*time.Minute, "NodeLost", "node node-1"),
		lost("evicted", failedPod(withReason("Evicted", "The node was low on resource: ephemeral-storage."), ended("build", 137, "Error")), 0, "Disrupted", "Evicted: The node was low"),
		lost("evicted, and the node's words name a container", failedPod(withReason("Evicted", "The node was low on resource: ephemeral-storage. Container build was using 5Gi, request is 0, has larger consumption of ephemeral-storage. "), ended("build", 137, "")), 0, "Disrupted", ""),
		lost("evicted for its own disk, but a disruption, too", failedPod(disruption, withReason("Evicted", `Container build exceeded its local ephemeral storage limit "1Gi". `)), 0, "Disrupted", ""),
		lost("words of its own disk without an eviction", failedPod(withReason("NodeShutdown", "Usage of EmptyDir volume")), 0, "Disrupted", ""),
		lost("deleted, and past the Pod's deadline only while it ended", failedPod(withReason("DeadlineExceeded", ""), withDeadline(600), askedToGoAt(9*time.Second+testLimits.run, 30*time.Second), ended("build", 137, "")), time.Hour, "PodDeleted", ""),
		lost("deadline before the start, and deleted", failedPod(withReason("DeadlineExceeded", ""), withDeadline(expiredDeadline), deletedAt(0), waitingFor("build", "ContainerCreating", "")), 0, "PodDeleted", ""),
		lost("node shut down", failedPod(withReason("NodeShutdown", "Pod was rejected"), ended("build", 0, "")), 0, "Disrupted", "NodeShutdown"),
		lost("node shut down, newer kubelet", failedPod(withReason("Terminated", "Pod was terminated in response to imminent node shutdown."), ended("build", 143, "")), 0, "Disrupted", "imminent node shutdown"),
		lost("no room on the node", failedPod(withReason("OutOfcpu", "Node didn't have enough resource: cpu")), 0, "Rejected", "OutOfcpu: Node didn't have enough resource"),
		lost("node affinity", failedPod(withReason("NodeAffinity", "Pod was rejected")), 0, "Rejected", "NodeAffinity"),
		lost("admission error", failedPod(withReason("UnexpectedAdmissionError", "Allocate failed")), 0, "Rejected", "UnexpectedAdmissionError"),
		lost("node lost", newPod(onNode(0), withPhase(podRunning), withReason("NodeLost", ""), runningSince("build", time.Second)), time.Minute, "NodeLost", "node-1"),
		lost("status unknown", failedPod(ended("build", 137, "ContainerStatusUnknown")), 0, "Disrupted", "lost track of container build"),
		lost("rejected while it ran, and ended 0 on SIGTERM", newPod(onNode(11*time.Second), initializedAt(11*time.Second), withPhase(podSucceeded), ended("build", 0, "Completed")), 0, "Disrupted", "rejected the Pod while it ran"),
		lost("rejected while it ran, and killed", newPod(onNode(11*time.Second), initializedAt(11*time.Second), withPhase(podFailed), ended("build", 137, "Error")), 0, "Disrupted", "rejected the Pod while it ran"),
		{name: "the clock of the node is behind", pod: newPod(onNode(15*time.Second), initializedAt(9*time.Second), withPhase(podSucceeded), ended("build", 0, "Completed")),
			phase: v1alpha1.PhaseSucceeded, result: "SUCCESS", reason: "Succeeded"},
		{name: "was initialized in the very second its container started", pod: newPod(onNode(9*time.Second), initializedAt(10*time.Second), withPhase(podSucceeded), ended("build", 0, "Completed")),
			phase: v1alpha1.PhaseSucceeded, result: "SUCCESS", reason: "Succeeded"},
		lost("the container was gone when the node started again", failedPod(ended("build", 255, "Unknown")), 0, "Disrupted", "lost track of container build"),
		lost("the init container was gone when the node started again", failedPod(withInit("prepare"), ended("prepare", 255, "Unknown"), waitingFor("build", "PodInitializing", "")), 0,
			"Disrupted", "lost track of container prepare"),
		failure("a native sidecar was gone, the job's own containers were not", failedPod(withSidecar("proxy"), ended("proxy", 255, "Unknown"), ended("build", 2, "Error"))),
		lost("deadline before the start", failedPod(withReason("DeadlineExceeded", ""), waitingFor("build", "ContainerCreating", "")), 0, "StartTimeout", "had not started"),
		lost("failed without a word", failedPod(ended("build", 0, "Completed")), 0, "Unknown", "ended as Failed"),
		lost("only a sidecar failed", failedPod(withSidecar("proxy"), ended("proxy", 1, "Error"), ended("build", 0, "")), 0, "Unknown", ""),
	})
}

func TestDecideNotStarted(t *testing.T) {
	failure := func(name string, pod *corev1.Pod, at time.Duration, reason, says string) decideCase {
		return decideCase{name: name, pod: pod, at: at, phase: v1alpha1.PhaseFailed, result: "FAILURE", reason: reason, says: says}
	}
	lost := func(name string, pod *corev1.Pod, at time.Duration, reason, says string) decideCase {
		return decideCase{name: name, pod: pod, at: at, phase: v1alpha1.PhaseLost, reason: reason, says: says}
	}
	none := func(name string, pod *corev1.Pod, at time.Duration) decideCase {
		return decideCase{name: name, pod: pod, at: at}
	}
	// The Pods have their node at second 10, so graces and the pending clock count from there.
	const node = 10 * time.Second
	waits := func(reason string) *corev1.Pod { return newPod(onNode(node), waitingFor("build", reason, "because")) }
	runDecideCases(t, []decideCase{
		failure("image name that is none, at once", waits("InvalidImageName"), node, "ImageInvalid", "container build: InvalidImageName: because"),
		failure("image that must not be pulled, at once", waits("ErrImageNeverPull"), node, "ImageInvalid", ""),
		none("image not pulled, within grace", waits("ImagePullBackOff"), node+imageGrace-time.Second),
		failure("image not pulled, after grace", waits("ImagePullBackOff"), node+imageGrace, "ImagePullFailed", "ImagePullBackOff: because"),
		failure("image not pulled, between two tries", waits("ErrImagePull"), node+imageGrace, "ImagePullFailed", ""),
		none("image is being pulled, after grace", waits("ContainerCreating"), node+imageGrace),
		failure("image of an init container", newPod(onNode(node), withInit("prepare"), waitingFor("prepare", "ImagePullBackOff", "")), node+imageGrace, "ImagePullFailed", "container prepare"),
		failure("image of a second container", newPod(onNode(node), withContainer("database"), runningSince("build", 20*time.Second), waitingFor("database", "ErrImagePull", "")),
			20*time.Second+imageGrace, "ImagePullFailed", "container database"),
		none("image not pulled, within grace after an init container", newPod(onNode(node), withInit("prepare"), ended("prepare", 0, ""), waitingFor("build", "ImagePullBackOff", "")), time.Minute+imageGrace-time.Second),
		failure("image not pulled, past grace after an init container", newPod(onNode(node), withInit("prepare"), ended("prepare", 0, ""), waitingFor("build", "ImagePullBackOff", "")), time.Minute+imageGrace, "ImagePullFailed", ""),
		none("image not pulled, within grace after the volumes came", newPod(onNode(node), withCondition(corev1.PodReadyToStartContainers, corev1.ConditionTrue, "", "", 2*time.Minute), waitingFor("build", "ImagePullBackOff", "")), 4*time.Minute-time.Second),
		none("missing Secret, within grace after a sidecar started", newPod(onNode(node), withSidecar("proxy"), runningSince("proxy", time.Minute), waitingFor("build", "CreateContainerConfigError", "")), time.Minute+configurationGrace-time.Second),
		failure("missing Secret beside a sidecar that crashes", newPod(onNode(node), withSidecar("proxy"), runningSince("proxy", time.Minute), restarted, waitingFor("build", "CreateContainerConfigError", "")), time.Minute, "ContainerConfigError", ""),
		none("image not pulled, but the Pod is being deleted", newPod(onNode(node), deletedAt(time.Minute), waitingFor("build", "ImagePullBackOff", "")), node+imageGrace),
		none("missing Secret, within grace", waits("CreateContainerConfigError"), node+configurationGrace-time.Second),
		failure("missing Secret, after grace", waits("CreateContainerConfigError"), node+configurationGrace, "ContainerConfigError", "because"),
		failure("runtime cannot create the container", waits("CreateContainerError"), node+configurationGrace, "ContainerConfigError", ""),
		failure("runtime cannot run the container", waits("RunContainerError"), node+configurationGrace, "ContainerConfigError", ""),
		none("no node, within the clock", newPod(withoutNode("0/3 nodes are available")), testLimits.unscheduled-time.Second),
		lost("no node, past the clock", newPod(withoutNode("0/3 nodes are available")), testLimits.unscheduled, "Unschedulable", "within 10m0s: 0/3 nodes are available"),
		lost("no scheduler", newPod(), testLimits.unscheduled, "Unschedulable", "the scheduler has said nothing"),
		none("held back by a gate, past the clock", newPod(withGate("kueue.x-k8s.io/admission")), 10*testLimits.unscheduled),
		none("starting, within the clock", waits("ContainerCreating"), node+testLimits.pending-time.Second),
		lost("starting, past the clock", waits("ContainerCreating"), node+testLimits.pending, "StartTimeout", "within 5m0s of the Pod having node node-1"),
		lost("init container past the clock", newPod(onNode(node), withInit("prepare"), runningSince("prepare", node), waitingFor("build", "PodInitializing", "")),
			node+testLimits.pending, "StartTimeout", "init container prepare runs"),
		lost("only the other container started", newPod(onNode(node), withPhase(podRunning), withContainer("database"), runningSince("database", node)), node+testLimits.pending, "StartTimeout", ""),
		none("running", newPod(onNode(node), withPhase(podRunning), runningSince("build", node)), 50*time.Minute),
		none("running past its clock: the kubelet ends it, so that its log stays", newPod(onNode(node), withPhase(podRunning), runningSince("build", node)), 3*time.Hour),
		none("main container ended, another runs on", newPod(onNode(node), withPhase(podRunning), withContainer("database"), ended("build", 0, ""), runningSince("database", node)), time.Hour),
	})
}

// TestGatesStopTheClock: a Pod that was held back has all its time for a node from when it was let go.
func TestGatesStopTheClock(t *testing.T) {
	s := &scope{build: zuulBuild("job"), pod: newPod(withGate("kueue.x-k8s.io/admission"), withoutNode("")), now: created.Add(time.Hour)}
	s.noteGates()
	if v := decide(s.facts()); v != nil {
		t.Fatalf("held back, and yet %+v", *v)
	}
	held := s.build.Status.DeepCopy()
	s.now = created.Add(2 * time.Hour)
	s.noteGates()
	if diff := cmp.Diff(held, &s.build.Status); diff != "" {
		t.Errorf("being held on is worth no write (-before +after):\n%s", diff)
	}
	s.pod.Spec.SchedulingGates = nil
	for _, since := range []time.Duration{0, defaultUnscheduled - time.Second} {
		s.now = created.Add(2*time.Hour + since)
		s.noteGates()
		if v := decide(s.facts()); v != nil {
			t.Fatalf("%s after it was let go: %+v", since, *v)
		}
		if got := nextDeadline(s.facts()); got != defaultUnscheduled-since {
			t.Errorf("looked at again after %s", got)
		}
	}
	s.now = created.Add(2*time.Hour + defaultUnscheduled)
	if v := decide(s.facts()); v == nil || v.reason != ReasonUnschedulable {
		t.Errorf("in the end: %+v", v)
	}
	young := &scope{build: zuulBuild("job"), pod: newPod(withGate("quick")), now: created.Add(explainAfter - time.Second)}
	if young.noteGates(); len(young.build.Status.Conditions) > 0 {
		t.Error("a Pod just made is not worth a write")
	}
}

// TestNeverFalseGreen puts every sign of a disruption on a Pod that looks perfectly successful.
func TestNeverFalseGreen(t *testing.T) {
	signs := map[string]podOption{
		"DisruptionTarget": withCondition(corev1.DisruptionTarget, corev1.ConditionTrue, "DeletionByTaintManager", "", 0),
		"deleted":          deletedAt(time.Minute),
		"deleted long ago": deletedAt(-time.Hour),
		"phase Failed":     withPhase(podFailed),
		"phase Running":    withPhase(podRunning),
		"phase Unknown":    withPhase(corev1.PodUnknown),
		"unreported":       withContainer("database"),
		"failed beside":    func(pod *corev1.Pod) { withContainer("database")(pod); ended("database", 1, "")(pod) },
		"NodeLost":         withReason("NodeLost", ""),
		"lost track": func(pod *corev1.Pod) {
			pod.Status.ContainerStatuses[0].State.Terminated.Reason = "ContainerStatusUnknown"
		},
		"evicted and Failed": func(pod *corev1.Pod) { withPhase(podFailed)(pod); withReason("Evicted", "")(pod) },
	}
	for name, sign := range signs {
		t.Run(name, func(t *testing.T) {
			pod := newPod(onNode(0), withPhase(podSucceeded), ended("build", 0, "Completed"), sign)
			if v := decide(facts{pod: pod, limits: testLimits, now: created.Add(time.Minute)}); v != nil && v.result == ResultSuccess {
				t.Errorf("SUCCESS for a Pod with %s", name)
			}
		})
	}
}

// TestVerdictsAreConsistent: a result fits its pattern and its phase, for every reason a rule can give.
func TestVerdictsAreConsistent(t *testing.T) {
	pattern := regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	for _, result := range []string{ResultSuccess, ResultFailure, ResultAborted, ResultTimedOut, ResultInvalidRequest} {
		if !pattern.MatchString(result) {
			t.Errorf("result %q", result)
		}
	}
	if v := failed(ReasonExitCode, "%d", 1); v.result == "" || v.phase != v1alpha1.PhaseFailed {
		t.Errorf("failed gives %+v", v)
	}
	if v := lost(ReasonUnknown, "%d", 1); v.result != "" || v.phase != v1alpha1.PhaseLost {
		t.Errorf("lost gives %+v", v)
	}
}

func TestAbortVerdict(t *testing.T) {
	cases := []struct {
		reason v1alpha1.AbortReason
		want   verdict
	}{
		{"", verdict{v1alpha1.PhaseAborted, "ABORTED", "Aborted", ""}},
		{v1alpha1.AbortStopped, verdict{v1alpha1.PhaseAborted, "ABORTED", "Aborted", ""}},
		{v1alpha1.AbortAbandoned, verdict{v1alpha1.PhaseLost, "", "Abandoned", ""}},
	}
	for _, c := range cases {
		got := *abortVerdict(&v1alpha1.ZuulBuildSpec{Abort: true, AbortReason: c.reason})
		got.message = ""
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(verdict{})); diff != "" {
			t.Errorf("abortReason %q (-want +got):\n%s", c.reason, diff)
		}
	}
}
