package controllers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// created is when the Pods of the tests are made; `after` counts from there.
var created = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func after(d time.Duration) metav1.Time { return metav1.NewTime(created.Add(d)) }

type podOption func(*corev1.Pod)

// newPod is a Pod of one container named build, pending and without a node, changed by the options in their order.
func newPod(options ...podOption) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod", CreationTimestamp: after(0)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "build"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, option := range options {
		option(pod)
	}
	return pod
}

func withPhase(phase corev1.PodPhase) podOption {
	return func(pod *corev1.Pod) { pod.Status.Phase = phase }
}

func withReason(reason, message string) podOption {
	return func(pod *corev1.Pod) { pod.Status.Reason, pod.Status.Message = reason, message }
}

func withCondition(kind corev1.PodConditionType, status corev1.ConditionStatus, reason, message string, at time.Duration) podOption {
	return func(pod *corev1.Pod) {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
			Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: after(at),
		})
	}
}

func onNode(at time.Duration) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.NodeName = "node-1"
		withCondition(corev1.PodScheduled, corev1.ConditionTrue, "", "", at)(pod)
	}
}

func initializedAt(at time.Duration) podOption {
	return withCondition(corev1.PodInitialized, corev1.ConditionTrue, "", "", at)
}

func withoutNode(message string) podOption {
	return withCondition(corev1.PodScheduled, corev1.ConditionFalse, corev1.PodReasonUnschedulable, message, 0)
}

func deletedAt(at time.Duration) podOption {
	return func(pod *corev1.Pod) { pod.DeletionTimestamp = ptr.To(after(at)) }
}

// askedToGoAt is a Pod whose deletion was asked for then, with a grace period: the API server dates the deletion to its end.
func askedToGoAt(at, grace time.Duration) podOption {
	return func(pod *corev1.Pod) {
		deletedAt(at + grace)(pod)
		pod.DeletionGracePeriodSeconds = ptr.To(int64(grace / time.Second))
	}
}

func withDeadline(seconds int64) podOption {
	return func(pod *corev1.Pod) { pod.Spec.ActiveDeadlineSeconds = &seconds }
}

// restarted counts a restart of the container whose status was added last.
func restarted(pod *corev1.Pod) {
	statuses := pod.Status.ContainerStatuses
	if len(statuses) == 0 {
		statuses = pod.Status.InitContainerStatuses
	}
	statuses[len(statuses)-1].RestartCount++
}

func withContainer(name string) podOption {
	return func(pod *corev1.Pod) { pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: name}) }
}

func withInit(name string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: name})
	}
}

func withSidecar(name string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: name, RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)})
	}
}

func withMemoryLimit(limit string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(limit)}
	}
}

func withGate(name string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.SchedulingGates = append(pod.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: name})
	}
}

// withState adds the status of a container, to the init containers where it is one of those.
func withState(name string, state corev1.ContainerState) podOption {
	return func(pod *corev1.Pod) {
		status := corev1.ContainerStatus{Name: name, State: state}
		for _, container := range pod.Spec.InitContainers {
			if container.Name == name {
				pod.Status.InitContainerStatuses = append(pod.Status.InitContainerStatuses, status)
				return
			}
		}
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, status)
	}
}

func waitingFor(name, reason, message string) podOption {
	return withState(name, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}})
}

func runningSince(name string, at time.Duration) podOption {
	return withState(name, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: after(at)}})
}

// ended is a container that ran from 10 to 60 seconds after the Pod was made.
func ended(name string, code int32, reason string) podOption {
	return withState(name, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, Reason: reason, StartedAt: after(10 * time.Second), FinishedAt: after(time.Minute),
	}})
}

// neverRan is a container that ended without having started: the kubelet gives its times as the epoch.
func neverRan(name string, code int32, reason, message string) podOption {
	epoch := metav1.NewTime(time.Unix(0, 0))
	return withState(name, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, Reason: reason, Message: message, StartedAt: epoch, FinishedAt: epoch,
	}})
}

// ranUntilNow is a container that ended well just now, having run for so long.
func ranUntilNow(name string, duration time.Duration) podOption {
	now := time.Now()
	return withState(name, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		Reason: "Completed", StartedAt: metav1.NewTime(now.Add(-duration)), FinishedAt: metav1.NewTime(now),
	}})
}
