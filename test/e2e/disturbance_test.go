//go:build linux

package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/controllers"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

// secondNode is the node of class trusty, which cases may harm.
const secondNode = "node-2"

// disturbance does something to a build that was submitted, or to what it runs on.
type disturbance struct {
	*testing.T
	namespace string
	build     *zuulclient.Build
}

func (d *disturbance) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *disturbance) key() client.ObjectKey {
	return client.ObjectKey{Namespace: d.namespace, Name: d.build.State().UUID}
}

// pod is the Pod of the build, or nil.
func (d *disturbance) pod() *corev1.Pod {
	d.Helper()
	pod := &corev1.Pod{}
	return found(d.T, pod, kubernetes.Get(context.Background(), d.key(), pod))
}

func (d *disturbance) awaitPod() *corev1.Pod {
	d.Helper()
	return d.awaitPodThat("exists", func(*corev1.Pod) bool { return true })
}

func (d *disturbance) awaitRunning() *corev1.Pod {
	d.Helper()
	return d.awaitPodThat("runs", func(pod *corev1.Pod) bool { return pod.Status.Phase == corev1.PodRunning })
}

// awaitInit waits until the first init container runs.
func (d *disturbance) awaitInit() *corev1.Pod {
	d.Helper()
	return d.awaitPodThat("runs its init container", func(pod *corev1.Pod) bool {
		return len(pod.Status.InitContainerStatuses) > 0 && pod.Status.InitContainerStatuses[0].State.Running != nil
	})
}

// awaitGated waits until the operator has noted that scheduling gates hold the Pod back, which takes ten seconds of them.
func (d *disturbance) awaitGated() {
	d.Helper()
	eventually(d.T, "the gates are noted", func() bool {
		build := d.zuulBuild()
		d.must(client.IgnoreNotFound(kubernetes.Get(d.Context(), d.key(), build)))
		scheduled := meta.FindStatusCondition(build.Status.Conditions, v1alpha1.ConditionPodScheduled)
		return scheduled != nil && scheduled.Reason == controllers.ReasonSchedulingGated
	})
}

// awaitVerdict waits until the build is complete. Between the end of the container and that a deletion may count as one while the Pod ran.
func (d *disturbance) awaitVerdict() {
	d.Helper()
	eventually(d.T, "a verdict", func() bool {
		build := d.zuulBuild()
		d.must(client.IgnoreNotFound(kubernetes.Get(d.Context(), d.key(), build)))
		return build.Complete()
	})
}

func (d *disturbance) awaitPodThat(what string, condition func(*corev1.Pod) bool) (pod *corev1.Pod) {
	d.Helper()
	eventually(d.T, "a Pod that "+what, func() bool {
		pod = d.pod()
		return pod != nil && condition(pod)
	})
	return pod
}

// pass lets time pass that a clock of the operator needs.
func (*disturbance) pass(duration time.Duration) { time.Sleep(duration) }

func (d *disturbance) stop() {
	d.Helper()
	cancellation, err := d.build.Cancel(d.Context())
	d.must(err)
	ctx, cancel := context.WithTimeout(d.Context(), enough)
	defer cancel()
	answer, err := cancellation.Stop.Wait(ctx)
	d.must(err)
	if answer.Type != gearman.PacketWorkComplete {
		d.Errorf("stop: was answered with %v", answer.Type)
	}
}

func (d *disturbance) patch(object client.Object, change string) {
	d.Helper()
	d.must(kubernetes.Patch(d.Context(), object, client.RawPatch(types.MergePatchType, []byte(change))))
}

func (d *disturbance) zuulBuild() *v1alpha1.ZuulBuild {
	return &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: d.key().Name}}
}

func (d *disturbance) abort() {
	d.Helper()
	d.patch(d.zuulBuild(), `{"spec":{"abort":true}}`)
}

func (d *disturbance) deleteBuild() {
	d.Helper()
	d.must(kubernetes.Delete(d.Context(), d.zuulBuild()))
}

func (d *disturbance) deletePod() {
	d.Helper()
	d.must(kubernetes.Delete(d.Context(), d.pod()))
}

func (d *disturbance) deletePodByForce() {
	d.Helper()
	d.must(kubernetes.Delete(d.Context(), d.pod(), client.GracePeriodSeconds(0)))
}

func (d *disturbance) liftGates() {
	d.Helper()
	d.patch(d.pod(), `{"spec":{"schedulingGates":[]}}`)
}

func (d *disturbance) evict() {
	d.Helper()
	d.must(kubernetes.SubResource("eviction").Create(d.Context(), d.pod(), &policyv1.Eviction{}))
}

// preempt has the scheduler need the CPUs of the build's node for something more urgent.
func (d *disturbance) preempt(cpus string) {
	d.Helper()
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "urgent"}, Value: 1000}
	wanted := template(does(atEnd), requests(cpus)).Template.Spec
	wanted.PriorityClassName, wanted.NodeSelector = class.Name, d.pod().Spec.NodeSelector
	urgent := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "urgent"}, Spec: wanted}
	for _, object := range []client.Object{class, urgent} {
		d.must(kubernetes.Create(d.Context(), object))
		d.Cleanup(func() { d.must(kubernetes.Delete(context.Background(), object, client.GracePeriodSeconds(0))) })
	}
}

func (d *disturbance) drain() {
	d.Helper()
	d.Cleanup(func() { kubectl(d.T, "uncordon", secondNode) })
	kubectl(d.T, "drain", secondNode, "--force", "--delete-emptydir-data", "--pod-selector", v1alpha1.LabelBuild+"="+d.key().Name, "--timeout=60s")
}

func (d *disturbance) taint() {
	d.Helper()
	const taint = "example.org/broken"
	d.Cleanup(func() { kubectl(d.T, "taint", "node", secondNode, taint+"-") })
	kubectl(d.T, "taint", "node", secondNode, taint+"=yes:NoExecute")
}

func (d *disturbance) restart(component string) {
	d.Helper()
	d.must(cluster.Restart(d.Context(), component))
}

func (*disturbance) node() *localcluster.Node { return cluster.Node(2) }

// awaitReady waits until Pods may go to the second node again.
func (d *disturbance) awaitReady() {
	d.Helper()
	gearmantest.Eventually(d.T, patient, secondNode+" takes Pods", func() bool {
		node := &corev1.Node{}
		node = found(d.T, node, kubernetes.Get(context.Background(), client.ObjectKey{Name: secondNode}, node))
		return node != nil && len(node.Spec.Taints) == 0 && slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
	})
}

func (d *disturbance) stopKubelet() {
	d.Helper()
	d.Cleanup(func() {
		d.must(d.node().StartKubelet(context.Background()))
		d.awaitReady()
	})
	d.must(d.node().StopKubelet(d.Context()))
}

func (d *disturbance) cut() {
	d.Helper()
	d.Cleanup(func() {
		d.must(d.node().RestoreLink(context.Background()))
		d.awaitReady()
	})
	d.must(d.node().CutLink(d.Context()))
}

func (d *disturbance) cutFor(duration time.Duration) {
	d.Helper()
	d.must(d.node().CutLink(d.Context()))
	d.pass(duration)
	d.must(d.node().RestoreLink(d.Context()))
}

func (d *disturbance) deleteNode() {
	d.Helper()
	d.stopKubelet()
	d.must(kubernetes.Delete(d.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: secondNode}}))
}

// squeeze has the kubelet call the node short of memory.
func (d *disturbance) squeeze() {
	d.Helper()
	file := filepath.Join(d.node().VarFolder(), "lib", "zuulbuild", "kubelet.yaml")
	before, err := os.ReadFile(file)
	d.must(err)
	d.Cleanup(func() {
		d.must(os.WriteFile(file, before, 0o600))
		d.must(cluster.Restart(context.Background(), "kubelet-"+secondNode))
		// The kubelet takes its time to believe that the pressure is over.
		gearmantest.Eventually(d.T, patient, "the memory pressure is over", func() bool {
			return kubectl(d.T, "get", "node", secondNode, "-o", `jsonpath={.status.conditions[?(@.type=="MemoryPressure")].status}`) == "False"
		})
		d.awaitReady()
	})
	after := bytes.Replace(before, []byte("memory.available: 50Mi"), []byte("memory.available: 99%"), 1)
	if bytes.Equal(before, after) {
		d.Fatalf("%s says nothing of memory.available", file)
	}
	d.must(os.WriteFile(file, after, 0o600))
	d.restart("kubelet-" + secondNode)
}

// reboot is a loss of power.
func (d *disturbance) reboot() {
	d.Helper()
	d.Cleanup(d.awaitReady)
	d.must(d.node().Reboot(d.Context()))
}
