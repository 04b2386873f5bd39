package controllers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// verdict is how a build ended. result is empty where the infrastructure is to blame: Zuul then runs the job again.
type verdict struct {
	phase   v1alpha1.BuildPhase
	result  string
	reason  string
	message string
}

// facts are all a verdict rests on. A nil pod means that the build had one and the API server says it is gone. ungated is when the Pod lost its
// scheduling gates, zero where it had none: nothing in the Pod tells, because the scheduler keeps the time of its condition as long as that is False.
type facts struct {
	pod     *corev1.Pod
	limits  timeouts
	ungated time.Time
	now     time.Time
}

// unscheduledSince is when the Pod began to wait for a node.
func (f facts) unscheduledSince() time.Time {
	if f.ungated.After(f.pod.CreationTimestamp.Time) {
		return f.ungated
	}
	return f.pod.CreationTimestamp.Time
}

// rules are asked in order and the first that answers decides. Signs of disruption come before anything a container says of itself, because a
// container that is told to stop may well exit 0: that must never become SUCCESS.
var rules = []func(facts) *verdict{
	podDeleted, disrupted, storageExceeded, timedOut, deletedWhileRunning, lostTrack, rejected, rejectedWhileRunning, nodeLost,
	imageInvalid, imagePullFailed, containerConfigError, unschedulable, startTimeout,
	initFailed, outOfMemory, startError, exitCode, succeeded, unknown,
}

// decide gives the verdict on a Pod, or nil while there is none to give.
func decide(f facts) *verdict {
	for _, rule := range rules {
		if v := rule(f); v != nil {
			return v
		}
	}
	return nil
}

func failed(reason, message string, arguments ...any) *verdict {
	return &verdict{v1alpha1.PhaseFailed, ResultFailure, reason, fmt.Sprintf(message, arguments...)}
}

func lost(reason, message string, arguments ...any) *verdict {
	return &verdict{v1alpha1.PhaseLost, "", reason, fmt.Sprintf(message, arguments...)}
}

func podDeleted(f facts) *verdict {
	if f.pod == nil {
		return lost(ReasonPodDeleted, "the Pod was deleted before it ended")
	}
	return nil
}

// disrupted: the Pod was told to go by somebody other than the build (https://kubernetes.io/docs/concepts/workloads/pods/disruptions/).
// The condition alone is not the end: an eviction may be called off.
func disrupted(f facts) *verdict {
	if c := podCondition(f.pod, corev1.DisruptionTarget); podTerminal(f.pod) && c != nil && c.Status == corev1.ConditionTrue {
		return lost(ReasonDisrupted, "%s: %s", c.Reason, c.Message)
	}
	return nil
}

// storageExceeded: the kubelet evicted the Pod because its own containers took more of the node's disk than their limits, or an emptyDir's. That is
// the job's fault, unlike an eviction because the node is short of it, which is told apart by the kubelet's words only: pkg/kubelet/eviction, and
// that it has no DisruptionTarget.
func storageExceeded(f facts) *verdict {
	message := f.pod.Status.Message
	own := strings.HasPrefix(message, "Pod ephemeral local storage usage exceeds ") || strings.HasPrefix(message, "Usage of EmptyDir volume ") ||
		strings.HasPrefix(message, "Container ") && strings.Contains(message, " exceeded its local ephemeral storage limit ")
	if f.pod.Status.Phase != corev1.PodFailed || f.pod.Status.Reason != "Evicted" || !own {
		return nil
	}
	return failed(ReasonStorageExceeded, "%s", strings.TrimSpace(message))
}

// deletedWhileRunning: a Pod that is being deleted and has ended. Its containers ended because they were told to, whatever their exit code.
func deletedWhileRunning(f facts) *verdict {
	if podTerminal(f.pod) && f.pod.DeletionTimestamp != nil {
		return lost(ReasonPodDeleted, "the Pod was deleted while it ran")
	}
	return nil
}

// lostTrack: nobody saw how a container ended. ContainerStatusUnknown is the kubelet's word, Unknown containerd's, with exit code 255, for a container
// that was gone when it started again, as all are after the node stopped at once (internal/cri/server/restart.go of containerd).
func lostTrack(f facts) *verdict {
	if !podTerminal(f.pod) {
		return nil
	}
	for _, status := range slices.Concat(f.pod.Status.InitContainerStatuses, f.pod.Status.ContainerStatuses) {
		t := status.State.Terminated
		if t != nil && (t.Reason == "ContainerStatusUnknown" || t.Reason == "Unknown") && !nativeSidecar(&f.pod.Spec, status.Name) {
			said := strings.TrimSuffix(t.Reason+": "+endMessage(f.pod, t), ": ")
			return lost(ReasonDisrupted, "node %s lost track of container %s, as when it stops at once: %s", f.pod.Spec.NodeName, status.Name, said)
		}
	}
	return nil
}

// rejected: the kubelet failed the Pod before or instead of running it. DeadlineExceeded is the build's own clock.
func rejected(f facts) *verdict {
	switch reason := f.pod.Status.Reason; {
	case f.pod.Status.Phase != corev1.PodFailed || reason == "" || reason == "DeadlineExceeded" || reason == "NodeLost":
		return nil
	case reason == "Evicted", reason == "Terminated", reason == "NodeShutdown", reason == "Shutdown":
		return lost(ReasonDisrupted, "%s: %s", reason, f.pod.Status.Message)
	default: // NodeAffinity, UnexpectedAdmissionError, OutOfcpu, OutOfmemory, OutOfpods …
		return lost(ReasonRejected, "%s: %s", reason, f.pod.Status.Message)
	}
}

// rejectedWhileRunning: a kubelet that starts again under pressure admits the Pods it has anew, and may reject one that runs. It then ends the
// containers, and what it tells in the end is their exit codes alone: the reason is kept back while they run, and is lost (mergePodStatus of its status
// manager). What remains is that it wrote the status from the beginning: the Pod is initialized since after its main container started. Both times are the
// kubelet's; when the Pod was given its node is told by another clock.
func rejectedWhileRunning(f facts) *verdict {
	initialized, ended := podCondition(f.pod, corev1.PodInitialized), terminated(f.pod, v1alpha1.MainContainer(&f.pod.Spec).Name)
	if !podTerminal(f.pod) || initialized == nil || ended == nil || ended.StartedAt.Unix() <= 0 || !initialized.LastTransitionTime.After(ended.StartedAt.Time) {
		return nil
	}
	return lost(ReasonDisrupted, "node %s rejected the Pod while it ran, as a kubelet may that starts again under pressure", f.pod.Spec.NodeName)
}

func nodeLost(f facts) *verdict {
	overdue := f.pod.DeletionTimestamp != nil && f.now.Sub(f.pod.DeletionTimestamp.Time) >= unreachableGrace
	if f.pod.Status.Reason == "NodeLost" || overdue {
		return lost(ReasonNodeLost, "node %s does not answer", f.pod.Spec.NodeName)
	}
	if toldToEnd(f.pod) != "" && !podTerminal(f.pod) && f.now.Sub(toldToEndAt(f.pod)) >= f.limits.abort+unreachableGrace {
		return lost(ReasonNodeLost, "node %s does not answer: it has not ended the Pod, which has been due since %s (%s)",
			f.pod.Spec.NodeName, toldToEndAt(f.pod).UTC().Format(time.RFC3339), toldToEnd(f.pod))
	}
	return nil
}

// timedOut: the kubelet ended the Pod at its deadline. A Pod that was deleted and came to its deadline only while it was ending was not ended by it,
// unless its run clock was over when it was deleted.
func timedOut(f facts) *verdict {
	if f.pod.Status.Phase != corev1.PodFailed || f.pod.Status.Reason != "DeadlineExceeded" || f.pod.DeletionTimestamp != nil && !ranOut(f) {
		return nil
	}
	if toldToEnd(f.pod) == v1alpha1.ToldSettled { // only containers that do not matter ran so long
		return nil
	}
	if mainStarted(f.pod) == nil {
		return lost(ReasonStartTimeout, "the main container had not started within the pending and run timeouts (%s)", f.limits.pending+f.limits.run)
	}
	return &verdict{v1alpha1.PhaseFailed, ResultTimedOut, ReasonTimedOut, fmt.Sprintf("the build ran longer than its run timeout (%s)", f.limits.run)}
}

// ranOut tells whether the run clock of a Pod that is being deleted was over by then: the operator had set the Pod's deadline to its least, or the
// main container had run long enough when the deletion was asked for.
func ranOut(f facts) bool {
	started, deadline := mainStarted(f.pod), f.pod.Spec.ActiveDeadlineSeconds
	if started == nil {
		return false
	}
	return toldToEnd(f.pod) != v1alpha1.ToldSettled && deadline != nil && *deadline == expiredDeadline || !askedToGo(f.pod).Before(started.Add(f.limits.run))
}

// askedToGo is when the deletion of a Pod that is being deleted was asked for.
func askedToGo(pod *corev1.Pod) time.Time {
	return pod.DeletionTimestamp.Add(-time.Duration(ptr.Deref(pod.DeletionGracePeriodSeconds, 0)) * time.Second)
}

func imageInvalid(f facts) *verdict {
	return waitingVerdict(f, 0, ReasonImageInvalid, "InvalidImageName", "ErrImageNeverPull")
}

func imagePullFailed(f facts) *verdict {
	return waitingVerdict(f, imageGrace, ReasonImagePullFailed, "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed")
}

func containerConfigError(f facts) *verdict {
	return waitingVerdict(f, configurationGrace, ReasonContainerConfigError, "CreateContainerConfigError", "CreateContainerError", "PreCreateHookError",
		"PreStartHookError", "PostStartHookError", "RunContainerError")
}

// waitingVerdict: a container has been waiting for one of the kubelet's reasons for longer than grace, counted from when the kubelet could turn to it.
func waitingVerdict(f facts, grace time.Duration, reason string, kubelet ...string) *verdict {
	if f.pod.Status.Phase != corev1.PodPending || f.pod.DeletionTimestamp != nil {
		return nil
	}
	since := lastProgress(f.pod)
	if since.IsZero() || f.now.Sub(since) < grace {
		return nil
	}
	required := v1alpha1.RequiredContainers(f.pod)
	for i, status := range slices.Concat(f.pod.Status.InitContainerStatuses, f.pod.Status.ContainerStatuses) {
		matters := i < len(f.pod.Status.InitContainerStatuses) || slices.Contains(required, status.Name)
		if w := status.State.Waiting; w != nil && matters && slices.Contains(kubelet, w.Reason) {
			return failed(reason, "container %s: %s: %s", status.Name, w.Reason, waitMessage(f.pod, w))
		}
	}
	return nil
}

func unschedulable(f facts) *verdict {
	c := podCondition(f.pod, corev1.PodScheduled)
	scheduled := c != nil && c.Status == corev1.ConditionTrue
	if scheduled || f.pod.Status.Phase != corev1.PodPending || gated(f.pod) || f.now.Sub(f.unscheduledSince()) < f.limits.unscheduled {
		return nil
	}
	said := "the scheduler has said nothing"
	if c != nil && c.Message != "" {
		said = c.Message
	}
	return lost(ReasonUnschedulable, "no node for the Pod within %s: %s", f.limits.unscheduled, said)
}

func startTimeout(f facts) *verdict {
	c := podCondition(f.pod, corev1.PodScheduled)
	if c == nil || c.Status != corev1.ConditionTrue || podTerminal(f.pod) || mainStarted(f.pod) != nil || f.now.Sub(c.LastTransitionTime.Time) < f.limits.pending {
		return nil
	}
	_, message := waiting(f.pod)
	return lost(ReasonStartTimeout, "the main container had not started within %s of the Pod having node %s: %s", f.limits.pending, f.pod.Spec.NodeName, message)
}

func initFailed(f facts) *verdict {
	if f.pod.Status.Phase != corev1.PodFailed {
		return nil
	}
	for _, status := range f.pod.Status.InitContainerStatuses {
		if t := status.State.Terminated; t != nil && t.ExitCode != 0 && !nativeSidecar(&f.pod.Spec, status.Name) {
			return failed(ReasonInitFailed, "init container %s", describeEnd(f.pod, status.Name, t))
		}
	}
	return nil
}

func outOfMemory(f facts) *verdict {
	return firstEnd(f, ReasonOOMKilled, func(t *corev1.ContainerStateTerminated) bool { return t.Reason == "OOMKilled" })
}

func startError(f facts) *verdict {
	return firstEnd(f, ReasonStartError, func(t *corev1.ContainerStateTerminated) bool {
		return t.Reason == "StartError" || t.Reason == "ContainerCannotRun"
	})
}

func exitCode(f facts) *verdict {
	return firstEnd(f, ReasonExitCode, func(t *corev1.ContainerStateTerminated) bool { return t.ExitCode != 0 })
}

// firstEnd is FAILURE where a container that matters, of a failed Pod, ended as `matches` says; the main container is asked first.
func firstEnd(f facts, reason string, matches func(*corev1.ContainerStateTerminated) bool) *verdict {
	if f.pod.Status.Phase != corev1.PodFailed {
		return nil
	}
	for _, name := range v1alpha1.RequiredContainers(f.pod) {
		if t := terminated(f.pod, name); t != nil && matches(t) {
			return failed(reason, "container %s", describeEnd(f.pod, name, t))
		}
	}
	return nil
}

// succeeded asks for more than the Pod's phase: every container that matters must have been seen to end, with 0.
func succeeded(f facts) *verdict {
	if f.pod.Status.Phase != corev1.PodSucceeded && !onlyOthersFailed(f.pod) {
		return nil
	}
	required := v1alpha1.RequiredContainers(f.pod)
	for _, name := range required {
		if t := terminated(f.pod, name); t == nil || t.ExitCode != 0 || t.FinishedAt.Unix() <= 0 {
			return lost(ReasonUnknown, "the Pod says %s, but container %s was not seen to end with 0", f.pod.Status.Phase, name)
		}
	}
	if len(required) == 0 {
		return nil
	}
	return &verdict{v1alpha1.PhaseSucceeded, ResultSuccess, ReasonSucceeded, ""}
}

// onlyOthersFailed: the Pod has failed, which is all explained by a container that does not matter: it ended badly, or it ran on until the operator had
// it ended.
func onlyOthersFailed(pod *corev1.Pod) bool {
	switch {
	case pod.Status.Phase != corev1.PodFailed:
		return false
	case pod.Status.Reason == "DeadlineExceeded":
		return toldToEnd(pod) == v1alpha1.ToldSettled
	}
	required := v1alpha1.RequiredContainers(pod)
	return pod.Status.Reason == "" && slices.ContainsFunc(pod.Status.ContainerStatuses, func(s corev1.ContainerStatus) bool {
		t := s.State.Terminated
		return t != nil && t.ExitCode != 0 && t.FinishedAt.Unix() > 0 && !slices.Contains(required, s.Name)
	})
}

func unknown(f facts) *verdict {
	if !podTerminal(f.pod) {
		return nil
	}
	return lost(ReasonUnknown, "the Pod ended as %s %s without saying why", f.pod.Status.Phase, f.pod.Status.Message)
}

// waiting says why a Pod has not started, in a word and a sentence.
func waiting(pod *corev1.Pod) (reason, message string) {
	c := podCondition(pod, corev1.PodScheduled)
	switch {
	case gated(pod):
		return ReasonSchedulingGated, "the Pod is held back by a scheduling gate: " + pod.Spec.SchedulingGates[0].Name
	case c == nil:
		return ReasonScheduling, "the Pod waits for a node"
	case c.Status != corev1.ConditionTrue:
		return ReasonUnschedulable, c.Message
	}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := status.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating" {
			return w.Reason, fmt.Sprintf("container %s: %s", status.Name, waitMessage(pod, w))
		}
	}
	for _, status := range pod.Status.InitContainerStatuses {
		if status.State.Running != nil && !nativeSidecar(&pod.Spec, status.Name) {
			return ReasonInitializing, "init container " + status.Name + " runs"
		}
	}
	return ReasonContainerCreating, "node " + pod.Spec.NodeName + " prepares the containers"
}

func nativeSidecar(spec *corev1.PodSpec, container string) bool {
	return slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == container && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

// describeEnd is how a container ended, as a person would say it.
func describeEnd(pod *corev1.Pod, container string, t *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("%s ended with exit code %d", container, t.ExitCode)
	if t.ExitCode > 128 && t.ExitCode < 128+65 {
		text += fmt.Sprintf(" (%s)", cmp.Or(unix.SignalName(syscall.Signal(t.ExitCode-128)), fmt.Sprintf("signal %d", t.ExitCode-128)))
	}
	if t.Reason == "OOMKilled" {
		text += ", killed for want of memory"
		if limit := memoryLimit(&pod.Spec, container); limit != "" {
			text += " (limit " + limit + ")"
		}
	}
	if message := endMessage(pod, t); message != "" {
		text += ": " + message
	}
	return text
}

// leftOut stands for words of a container, which may be the end of its log, where the job has that censored: what is to be hidden is not known here.
const leftOut = "(what it said is left out, because the job has its log censored)"

// endMessage is what is said of the end of a container. It may be what the container wrote, unless it is for certain the runtime's or the kubelet's.
func endMessage(pod *corev1.Pod, t *corev1.ContainerStateTerminated) string {
	official := t.Reason == "StartError" || t.Reason == "ContainerCannotRun" || t.Reason == "ContainerStatusUnknown"
	if t.Message == "" || official || pod.Annotations[v1alpha1.AnnotationCensor] == "" {
		return t.Message
	}
	return leftOut
}

// waitMessage is what is said of a container that waits: the kubelet's words, but that of a hook that failed, which has what the hook wrote in it.
func waitMessage(pod *corev1.Pod, w *corev1.ContainerStateWaiting) string {
	if !strings.HasSuffix(w.Reason, "HookError") || pod.Annotations[v1alpha1.AnnotationCensor] == "" {
		return w.Message
	}
	return leftOut
}
