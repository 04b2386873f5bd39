//go:build linux

package conformance

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
)

// nodeName is the node of all Pods.
const nodeName = "node-1"

// A job's script is played, not run. These are all there are.
const (
	exits       = "exit 0" // or another number, and after it what the container says of its end
	holds       = "hold"   // runs until the test has it end
	lingers     = "linger" // the same, and when told to go, goes only after let
	unscheduled = "unscheduled"
	waits       = "wait " // and a reason: the container never starts
	runs        = "run "  // and a duration, and then an exit code or "evict"
)

// runsFor is a script of a Pod that runs for a while and then exits, or is evicted if the code is evicted.
func runsFor(duration time.Duration, code int32) string {
	return fmt.Sprintf("%s%s %d", runs, duration, code)
}

// evicted stands for an exit code.
const evicted = -1

// kubelet plays scheduler and kubelet for the Pods of all builds: it gives them a node, has them run as the script of their job says, and ends and
// deletes them when they are told to go.
type kubelet struct {
	pods  kubernetes.Interface
	queue workqueue.TypedRateLimitingInterface[types.NamespacedName]
	store cache.Store

	mu      sync.Mutex
	scripts map[types.NamespacedName]string // by namespace and Gearman name of the job
	each    map[types.NamespacedName]string // by namespace and name of the Pod, before that of the job
	due     map[types.UID]time.Time         // when a Pod with runs ends
	let     map[types.NamespacedName]bool
	made    map[types.NamespacedName]map[types.UID]bool // every Pod there ever was
	active  map[string]map[types.UID]bool               // by namespace: Pods that have not ended
	most    map[string]int
}

// startKubelet runs it until the test ends.
func startKubelet(t *testing.T) *kubelet {
	t.Helper()
	clientset, err := kubernetes.NewForConfig(apiserver.Config(t))
	must(t, err)
	k := &kubelet{
		pods:    clientset,
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](10*time.Millisecond, time.Second)),
		scripts: map[types.NamespacedName]string{}, each: map[types.NamespacedName]string{}, due: map[types.UID]time.Time{}, let: map[types.NamespacedName]bool{}, made: map[types.NamespacedName]map[types.UID]bool{},
		active: map[string]map[types.UID]bool{}, most: map[string]int{},
	}
	factory := informers.NewSharedInformerFactoryWithOptions(clientset, 0, informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.LabelSelector = v1alpha1.LabelBuild
	}))
	informer := factory.Core().V1().Pods().Informer()
	k.store = informer.GetStore()
	_, err = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { k.seen(object, false) },
		UpdateFunc: func(_, object any) { k.seen(object, false) },
		DeleteFunc: func(object any) { k.seen(object, true) },
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() { k.work(ctx, t) })
	}
	t.Cleanup(func() {
		cancel()
		k.queue.ShutDown()
		workers.Wait()
		factory.Shutdown()
	})
	return k
}

// seen counts the Pod and has it looked at.
func (k *kubelet) seen(object any, gone bool) {
	if last, is := object.(cache.DeletedFinalStateUnknown); is {
		object = last.Obj
	}
	pod := object.(*corev1.Pod)
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	k.mu.Lock()
	if k.made[key] == nil {
		k.made[key] = map[types.UID]bool{}
	}
	k.made[key][pod.UID] = true
	if k.active[pod.Namespace] == nil {
		k.active[pod.Namespace] = map[types.UID]bool{}
	}
	if gone || ended(pod) {
		delete(k.active[pod.Namespace], pod.UID)
	} else {
		k.active[pod.Namespace][pod.UID] = true
	}
	k.most[pod.Namespace] = max(k.most[pod.Namespace], len(k.active[pod.Namespace]))
	k.mu.Unlock()
	k.queue.Add(key)
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// plays sets what Pods of a job do.
func (k *kubelet) plays(namespace, job, script string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.scripts[types.NamespacedName{Namespace: namespace, Name: job}] = script
}

// playsPod sets what one Pod does, whatever its job.
func (k *kubelet) playsPod(namespace, pod, script string) {
	key := types.NamespacedName{Namespace: namespace, Name: pod}
	k.mu.Lock()
	k.each[key] = script
	k.mu.Unlock()
	k.queue.Add(key)
}

// dueAt is when a Pod that runs for a while ends. The first call starts its time.
func (k *kubelet) dueAt(pod *corev1.Pod, duration time.Duration) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, running := k.due[pod.UID]; !running {
		k.due[pod.UID] = time.Now().Add(duration)
	}
	return k.due[pod.UID]
}

// run ends a running Pod at its time.
func (k *kubelet) run(ctx context.Context, pod *corev1.Pod, script string) error {
	var length string
	var code int32
	if _, err := fmt.Sscan(script, &length, &code); err != nil {
		return fmt.Errorf("script %q: %w", script, err)
	}
	duration, err := time.ParseDuration(length)
	if err != nil {
		return err
	}
	if left := time.Until(k.dueAt(pod, duration)); left > 0 {
		k.queue.AddAfter(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, left)
		return nil
	}
	if code == evicted {
		return k.write(ctx, pod, podEvicted(pod))
	}
	return k.write(ctx, pod, podEnded(pod, code, ""))
}

// lets a lingering Pod go.
func (k *kubelet) lets(namespace, pod string) {
	key := types.NamespacedName{Namespace: namespace, Name: pod}
	k.mu.Lock()
	k.let[key] = true
	k.mu.Unlock()
	k.queue.Add(key)
}

// everMade is how many Pods of the name there have been.
func (k *kubelet) everMade(namespace, pod string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.made[types.NamespacedName{Namespace: namespace, Name: pod}])
}

// mostAtOnce is the most Pods of the namespace that were there at once and had not ended.
func (k *kubelet) mostAtOnce(namespace string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.most[namespace]
}

func (k *kubelet) work(ctx context.Context, t *testing.T) {
	for {
		key, shutdown := k.queue.Get()
		if shutdown {
			return
		}
		err := k.sync(ctx, key)
		switch {
		case err == nil || apierrors.IsNotFound(err):
			k.queue.Forget(key)
		case ctx.Err() == nil:
			if !apierrors.IsConflict(err) {
				t.Logf("kubelet: Pod %s: %v", key, err)
			}
			k.queue.AddRateLimited(key)
		}
		k.queue.Done(key)
	}
}

// sync brings one Pod a step further.
func (k *kubelet) sync(ctx context.Context, key types.NamespacedName) error {
	object, exists, err := k.store.GetByKey(key.String())
	if err != nil || !exists {
		return err
	}
	pod := object.(*corev1.Pod)
	k.mu.Lock()
	script, let := k.scripts[types.NamespacedName{Namespace: key.Namespace, Name: pod.Annotations[v1alpha1.AnnotationJob]}], k.let[key]
	if own, given := k.each[key]; given {
		script = own
	}
	k.mu.Unlock()
	switch verb, rest, _ := strings.Cut(script, " "); {
	case pod.DeletionTimestamp != nil && script == lingers && !let:
		return nil
	case pod.DeletionTimestamp != nil:
		return k.remove(ctx, pod)
	case pod.Spec.NodeName == "" && script == unscheduled:
		return nil
	case pod.Spec.NodeName == "":
		return k.pods.CoreV1().Pods(key.Namespace).Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, UID: pod.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: nodeName},
		}, metav1.CreateOptions{})
	case pod.Status.Phase == corev1.PodRunning && strings.HasPrefix(script, runs):
		return k.run(ctx, pod, rest)
	case pod.Status.Phase != corev1.PodPending || len(pod.Status.ContainerStatuses) > 0:
		return nil
	case verb == "exit":
		code, said, _ := strings.Cut(rest, " ")
		number, err := strconv.Atoi(code)
		if err != nil {
			return fmt.Errorf("script %q", script)
		}
		return k.write(ctx, pod, podEnded(pod, int32(number), said))
	case strings.HasPrefix(script, waits):
		return k.write(ctx, pod, podStatus(pod, corev1.PodPending, corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: rest, Message: "as the test wants it"},
		}))
	default:
		return k.write(ctx, pod, podStatus(pod, corev1.PodRunning, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}))
	}
}

// remove ends a Pod that was told to go, and then takes it away.
func (k *kubelet) remove(ctx context.Context, pod *corev1.Pod) error {
	if !ended(pod) {
		if err := k.write(ctx, pod, podEnded(pod, 143, "")); err != nil {
			return err
		}
	}
	return k.pods.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: ptr.To[int64](0), Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
}

func (k *kubelet) write(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) error {
	changed := pod.DeepCopy()
	changed.Status = status
	_, err := k.pods.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, changed, metav1.UpdateOptions{})
	return err
}

// podStatus has every container of a Pod in one state.
func podStatus(pod *corev1.Pod, phase corev1.PodPhase, state corev1.ContainerState) corev1.PodStatus {
	status := *pod.Status.DeepCopy()
	status.Phase = phase
	status.ContainerStatuses = nil
	for _, container := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{Name: container.Name, Image: container.Image, State: state})
	}
	return status
}

// podEnded is the status of a Pod whose containers ended with the code and the message.
func podEnded(pod *corev1.Pod, code int32, message string) corev1.PodStatus {
	phase := corev1.PodSucceeded
	if code != 0 {
		phase = corev1.PodFailed
	}
	now := metav1.Now()
	return podStatus(pod, phase, corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: message, StartedAt: now, FinishedAt: now},
	})
}

// podEvicted is the status of a Pod that the kubelet had to end for want of memory on the node.
func podEvicted(pod *corev1.Pod) corev1.PodStatus {
	status := podEnded(pod, 137, "")
	status.Reason, status.Message = "Evicted", "the node was low on memory"
	return status
}
