//go:build linux

package e2e

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// podCase is something that can become of a Pod, and what Zuul is told then.
type podCase struct {
	name string
	what string // for people
	spec v1alpha1.ZuulJobSpec
	node string // the class that is asked for
	full bool   // in the namespace whose quota is used up
	// disturb, which may be nil, is called once the build was submitted.
	disturb func(*disturbance)

	outcome  zuulclient.Outcome
	result   string
	reason   string
	says     string // part of the message
	lostPods int
	// slow cases are left out of the everyday run.
	slow bool
}

// caseGroup is a part of the table. Where alone is set its cases harm what shares their node, and run one after the other when all others have ended.
type caseGroup struct {
	name  string
	alone bool
	cases []podCase
}

const (
	decided  = zuulclient.Decided
	again    = zuulclient.Retry // no result: Zuul runs the job again
	canceled = zuulclient.Canceled

	busybox = "zuulbuild.test/busybox:1"
	// atEnd has a script end by itself, and at once when it is told to.
	atEnd = "trap 'exit 0' TERM; sleep 600 & wait"
	// deaf does not hear SIGTERM.
	deaf = "trap '' TERM; while true; do sleep 1; done"
)

func script(lines string) v1alpha1.ZuulJobSpec {
	return v1alpha1.ZuulJobSpec{Image: busybox, Script: lines}
}

func limited(lines, memory string) v1alpha1.ZuulJobSpec {
	spec := script(lines)
	spec.Resources = &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}}
	return spec
}

func container(name, lines string) corev1.Container {
	return corev1.Container{Name: name, Image: busybox, Command: []string{"/bin/sh", "-ec", lines}}
}

func withLimit(c corev1.Container, memory string) corev1.Container {
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	return c
}

func sidecar(c corev1.Container) corev1.Container {
	c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
	return c
}

// template is a job of a Pod template, which may be changed.
func template(changes ...func(*corev1.PodTemplateSpec)) v1alpha1.ZuulJobSpec {
	t := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		SecurityContext: &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](1000)},
		Containers:      []corev1.Container{container("build", "true")},
	}}
	for _, change := range changes {
		change(t)
	}
	return v1alpha1.ZuulJobSpec{Template: t}
}

func does(lines string) func(*corev1.PodTemplateSpec) {
	return func(t *corev1.PodTemplateSpec) { t.Spec.Containers[0] = container("build", lines) }
}

func beside(c corev1.Container) func(*corev1.PodTemplateSpec) {
	return func(t *corev1.PodTemplateSpec) { t.Spec.Containers = append(t.Spec.Containers, c) }
}

func before(c corev1.Container) func(*corev1.PodTemplateSpec) {
	return func(t *corev1.PodTemplateSpec) { t.Spec.InitContainers = append(t.Spec.InitContainers, c) }
}

func podSpec(change func(*corev1.PodSpec)) func(*corev1.PodTemplateSpec) {
	return func(t *corev1.PodTemplateSpec) { change(&t.Spec) }
}

func image(name string, policy corev1.PullPolicy) v1alpha1.ZuulJobSpec {
	return template(podSpec(func(spec *corev1.PodSpec) {
		spec.Containers[0].Image, spec.Containers[0].ImagePullPolicy = name, policy
	}))
}

func volume(source corev1.VolumeSource) func(*corev1.PodTemplateSpec) {
	return podSpec(func(spec *corev1.PodSpec) {
		spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: source}}
		spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	})
}

// timed gives a job short clocks; those of zero stay as they are.
func timed(spec v1alpha1.ZuulJobSpec, unscheduled, pending, run time.Duration) v1alpha1.ZuulJobSpec {
	spec.Timeouts = &v1alpha1.Timeouts{}
	for to, d := range map[**metav1.Duration]time.Duration{
		&spec.Timeouts.Unscheduled: unscheduled, &spec.Timeouts.Pending: pending, &spec.Timeouts.Run: run,
	} {
		if d > 0 {
			*to = &metav1.Duration{Duration: d}
		}
	}
	return spec
}

// briefly has Pods leave a node that does not answer after seconds rather than five minutes.
func briefly(spec v1alpha1.ZuulJobSpec) v1alpha1.ZuulJobSpec {
	for _, taint := range []string{corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady} {
		spec.Template.Spec.Tolerations = append(spec.Template.Spec.Tolerations, corev1.Toleration{
			Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](2),
		})
	}
	return spec
}

const (
	success = "SUCCESS"
	failure = "FAILURE"
)

// eat takes memory until there is none.
const eat = `x=a; while true; do x="$x$x"; done`

// mostCPUs are more than half of a node's, whose machine has that many: no two Pods that request them fit.
var mostCPUs = fmt.Sprintf("%dm", runtime.NumCPU()*500+100)

// caseGroups are all of them, in the order of docs/cases.md.
var caseGroups = []caseGroup{
	{name: "It ends by itself", cases: []podCase{
		{name: "exit-0", what: "the script ends with 0", spec: script("true"), outcome: decided, result: success, reason: "Succeeded"},
		{name: "exit-3", what: "the script ends with 3", spec: script("exit 3"), outcome: decided, result: failure, reason: "ExitCode", says: "exit code 3"},
		{name: "exit-255", what: "the script ends with 255", spec: script("exit 255"), outcome: decided, result: failure, reason: "ExitCode"},
		{name: "sigkill", what: "a command of the script is killed", spec: script("sh -c 'kill -KILL $$'\ntrue"), outcome: decided, result: failure, reason: "ExitCode", says: "SIGKILL"},
		{name: "sigsegv", what: "a command of the script faults", spec: script("sh -c 'kill -SEGV $$'\ntrue"), outcome: decided, result: failure, reason: "ExitCode", says: "SIGSEGV"},
		{name: "oom-main", what: "the main container takes more memory than its limit", spec: limited(eat, "32Mi"), outcome: decided, result: failure, reason: "OOMKilled", says: "limit 32Mi"},
		{name: "oom-sidecar", what: "a native sidecar takes more memory than its limit, and is started again",
			spec:    template(does("sleep 5"), before(sidecar(withLimit(container("service", "sleep 1; "+eat), "32Mi")))),
			outcome: decided, result: success, reason: "Succeeded"},
		{name: "oom-init", what: "an init container takes more memory than its limit", spec: template(before(withLimit(container("prepare", eat), "32Mi"))),
			outcome: decided, result: failure, reason: "InitFailed", says: "want of memory"},
		{name: "init-fails", what: "an init container ends with 4", spec: template(before(container("prepare", "exit 4"))), outcome: decided, result: failure, reason: "InitFailed", says: "exit code 4"},
		{name: "init-succeeds", what: "an init container and the main one end with 0", spec: template(before(container("prepare", "true"))), outcome: decided, result: success, reason: "Succeeded"},
		{name: "sidecar-runs-on", what: "a native sidecar never ends; the main container ends with 0",
			spec: template(before(sidecar(container("service", atEnd)))), outcome: decided, result: success, reason: "Succeeded"},
		{name: "sidecar-runs-on-failure", what: "a native sidecar never ends; the main container ends with 1",
			spec: template(does("exit 1"), before(sidecar(container("service", atEnd)))), outcome: decided, result: failure, reason: "ExitCode"},
		{name: "sidecar-ends-badly", what: "a native sidecar ends with 9 whenever it is started; the main container ends with 0",
			spec: template(does("sleep 4"), before(sidecar(container("service", "sleep 1; exit 9")))), outcome: decided, result: success, reason: "Succeeded"},
		{name: "second-container-fails", what: "a second ordinary container ends with 9, the main one with 0",
			spec: template(beside(container("database", "exit 9"))), outcome: decided, result: failure, reason: "ExitCode", says: "container database"},
		{name: "optional-container-runs-on", what: "a second container that was declared not to matter never ends; the main one ends with 0",
			spec: template(beside(container("database", atEnd)), optional("database")), outcome: decided, result: success, reason: "Succeeded"},
		{name: "optional-container-fails", what: "a second container that was declared not to matter ends with 9, the main one with 0",
			spec: template(beside(container("database", "exit 9")), optional("database")), outcome: decided, result: success, reason: "Succeeded"},
		{name: "run-timeout", what: "the script runs longer than its run timeout", spec: timed(script("sleep 600"), 0, 0, 3*time.Second),
			outcome: decided, result: "TIMED_OUT", reason: "TimedOut"},
		{name: "run-timeout-caught", what: "the same, and the script ends with 0 when it is told to", spec: timed(script(atEnd), 0, 0, 3*time.Second),
			outcome: decided, result: "TIMED_OUT", reason: "TimedOut"},
		{name: "run-timeout-deaf", what: "the same, and the script does not hear SIGTERM", spec: timed(script(deaf), 0, 0, 3*time.Second),
			outcome: decided, result: "TIMED_OUT", reason: "TimedOut"},
		{name: "storage-container", what: "the container logs more than its limit of ephemeral-storage", slow: true,
			spec: template(does("yes | head -c 8000000; sleep 600"), podSpec(func(spec *corev1.PodSpec) {
				spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("4Mi")}
			})), outcome: decided, result: failure, reason: "StorageExceeded"},
		{name: "storage-volume", what: "an emptyDir grows beyond its size limit", slow: true,
			spec: template(does("dd if=/dev/zero of=/data/x bs=1M count=16; sleep 600"), volume(corev1.VolumeSource{
				EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse("4Mi"))},
			})), outcome: decided, result: failure, reason: "StorageExceeded"},
	}},
	{name: "It cannot start", cases: []podCase{
		{name: "image-name", what: "the image's name is none", spec: image("No Image!", corev1.PullIfNotPresent), outcome: decided, result: failure, reason: "ImageInvalid"},
		{name: "image-never-pull", what: "the image is not on the node and must not be pulled", spec: image("localhost:1/missing:1", corev1.PullNever), outcome: decided, result: failure, reason: "ImageInvalid"},
		{name: "image-pull", what: "the image cannot be pulled", spec: image("localhost:1/missing:1", corev1.PullIfNotPresent), slow: true,
			outcome: decided, result: failure, reason: "ImagePullFailed", says: "localhost:1/missing:1"},
		{name: "image-pull-init", what: "the image of an init container cannot be pulled", slow: true,
			spec:    template(before(corev1.Container{Name: "prepare", Image: "localhost:1/missing:1"})),
			outcome: decided, result: failure, reason: "ImagePullFailed", says: "container prepare"},
		{name: "missing-configmap", what: "a container wants a ConfigMap that does not exist", spec: template(podSpec(func(spec *corev1.PodSpec) {
			spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "missing"}}}}
		})), outcome: decided, result: failure, reason: "ContainerConfigError", says: `configmap "missing" not found`},
		{name: "missing-secret", what: "a container wants a Secret that does not exist", spec: template(podSpec(func(spec *corev1.PodSpec) {
			spec.Containers[0].Env = []corev1.EnvVar{{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: "missing"}, Key: "password",
			}}}}
		})), outcome: decided, result: failure, reason: "ContainerConfigError", says: `secret "missing" not found`},
		{name: "missing-secret-volume", what: "a volume wants a Secret that does not exist, until the pending timeout",
			spec:    timed(template(volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "missing"}})), 0, 12*time.Second, 0),
			outcome: again, reason: "StartTimeout"},
		{name: "init-never-ends", what: "an init container runs until the pending timeout", spec: timed(template(before(container("prepare", atEnd))), 0, 30*time.Second, 0),
			outcome: again, reason: "StartTimeout", says: "init container prepare runs"},
		{name: "no-command", what: "the command of the container does not exist", spec: template(podSpec(func(spec *corev1.PodSpec) { spec.Containers[0].Command = []string{"/no/such/command"} })),
			outcome: decided, result: failure, reason: "StartError", says: "/no/such/command"},
		{name: "unschedulable", what: "no node is as the Pod wants it, until the unscheduled timeout",
			spec:    timed(template(podSpec(func(spec *corev1.PodSpec) { spec.NodeSelector = map[string]string{"example.org/none": "such"} })), 15*time.Second, 0, 0),
			outcome: again, reason: "Unschedulable", says: "node(s) didn't match"},
		{name: "no-room", what: "no node has the CPUs, until the unscheduled timeout", spec: timed(template(requests("1000")), 15*time.Second, 0, 0),
			outcome: again, reason: "Unschedulable", says: "Insufficient cpu"},
		{name: "gated", what: "a scheduling gate holds the Pod back for longer than the unscheduled timeout, and is lifted",
			spec: timed(template(podSpec(func(spec *corev1.PodSpec) {
				spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.org/gate"}}
			})), 8*time.Second, 0, 0),
			disturb: func(d *disturbance) { d.awaitGated(); d.liftGates() },
			outcome: decided, result: success, reason: "Succeeded"},
		{name: "quota", what: "the namespace's quota has no room, until the unscheduled timeout", full: true, spec: timed(script("true"), 5*time.Second, 0, 0),
			outcome: again, reason: "QuotaExceeded", says: "exceeded quota"},
		{name: "invalid-pod", what: "the template makes a Pod that the API server refuses: it mounts a volume that it does not have",
			spec: template(podSpec(func(spec *corev1.PodSpec) {
				spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "missing", MountPath: "/data"}}
			})), outcome: decided, result: failure, reason: "InvalidPod", says: `"missing"`},
		{name: "pod-security", what: "Pod Security refuses the Pod", node: trustedClass,
			spec:    template(podSpec(func(spec *corev1.PodSpec) { spec.HostNetwork = true })),
			outcome: decided, result: failure, reason: "Forbidden", says: "violates PodSecurity"},
		{name: "service-account", what: "the Pod's service account does not exist", spec: template(podSpec(func(spec *corev1.PodSpec) { spec.ServiceAccountName = "missing" })),
			outcome: decided, result: failure, reason: "Forbidden", says: `serviceaccount "missing" not found`},
		{name: "out-of-cpu", what: "a kubelet refuses the Pod for want of CPUs, as often as one may be made", spec: once(template(requests("1000"), assigned("node-1"))),
			outcome: again, reason: "Rejected", says: "OutOfcpu"},
		{name: "node-affinity", what: "a kubelet refuses the Pod because the node's labels do not match",
			spec:    once(template(assigned("node-1"), podSpec(func(spec *corev1.PodSpec) { spec.NodeSelector = map[string]string{"example.org/none": "such"} }))),
			outcome: again, reason: "Rejected", says: "NodeAffinity"},
	}},
	{name: "It is stopped, deleted or pushed away", cases: []podCase{
		{name: "stop-running", what: "`stop:` while it runs", spec: script(atEnd), disturb: func(d *disturbance) { d.awaitRunning(); d.stop() },
			outcome: canceled, result: "ABORTED", reason: "Aborted"},
		{name: "stop-deaf", what: "`stop:` while it runs, and it does not hear SIGTERM", spec: script(deaf), disturb: func(d *disturbance) { d.awaitRunning(); d.stop() },
			outcome: canceled, result: "ABORTED", reason: "Aborted"},
		{name: "stop-pending", what: "`stop:` while an init container runs", spec: template(before(container("prepare", atEnd))),
			disturb: func(d *disturbance) { d.awaitInit(); d.stop() }, outcome: canceled, result: "ABORTED", reason: "Aborted"},
		{name: "stop-unscheduled", what: "`stop:` while it has no node", spec: template(requests("1000")),
			disturb: func(d *disturbance) { d.awaitPod(); d.stop() }, outcome: canceled, result: "ABORTED", reason: "Aborted"},
		{name: "abort-by-hand", what: "somebody sets `spec.abort`", spec: script(atEnd), disturb: func(d *disturbance) { d.awaitRunning(); d.abort() },
			outcome: decided, result: "ABORTED", reason: "Aborted"},
		{name: "build-deleted", what: "somebody deletes the ZuulBuild", spec: script(atEnd), disturb: func(d *disturbance) { d.awaitRunning(); d.deleteBuild() },
			outcome: decided, result: "ABORTED"},
		{name: "pod-deleted-pending", what: "somebody deletes the Pod while an init container runs; it is made again", spec: template(before(container("prepare", "sleep 15"))),
			disturb: func(d *disturbance) { d.awaitInit(); d.deletePod() }, outcome: decided, result: success, reason: "Succeeded", lostPods: 1},
		{name: "pod-deleted-running", what: "somebody deletes the Pod while it runs", spec: script("sleep 600"),
			disturb: func(d *disturbance) { d.awaitRunning(); d.deletePod() }, outcome: again, reason: "PodDeleted"},
		{name: "pod-deleted-caught", what: "the same, and the script ends with 0 when it is told to", spec: script(atEnd),
			disturb: func(d *disturbance) { d.awaitRunning(); d.deletePod() }, outcome: again, reason: "PodDeleted"},
		{name: "pod-deleted-by-force", what: "somebody deletes the Pod with no grace", spec: script(atEnd),
			disturb: func(d *disturbance) { d.awaitRunning(); d.deletePodByForce() }, outcome: again, reason: "PodDeleted"},
		{name: "pod-deleted-ended", what: "somebody deletes the Pod as soon as it has ended", spec: script("sleep 3; exit 5"),
			disturb: func(d *disturbance) { d.awaitVerdict(); d.deletePod() }, outcome: decided, result: failure, reason: "ExitCode"},
		{name: "evicted", what: "the Pod is evicted through the API", spec: script(atEnd), disturb: func(d *disturbance) { d.awaitRunning(); d.evict() },
			outcome: again, reason: "Disrupted", says: "EvictionByEvictionAPI"},
		{name: "evicted-pending", what: "the Pod is evicted while an init container runs; it is made again", spec: template(before(container("prepare", "sleep 15"))),
			disturb: func(d *disturbance) { d.awaitInit(); d.evict() }, outcome: decided, result: success, reason: "Succeeded", lostPods: 1},
		{name: "preempted", what: "the scheduler preempts the Pod", spec: template(does(atEnd), requests(mostCPUs)), node: "trusty",
			disturb: func(d *disturbance) { d.awaitRunning(); d.preempt(mostCPUs) }, outcome: again, reason: "Disrupted", says: "PreemptionByScheduler"},
	}},
	{name: "Something happens to its node", alone: true, cases: []podCase{
		{name: "kubelet-restarted", what: "the kubelet is started again", spec: script("sleep 8"), node: "trusty",
			disturb: func(d *disturbance) { d.awaitRunning(); d.restart("kubelet-" + secondNode) }, outcome: decided, result: success, reason: "Succeeded"},
		{name: "containerd-restarted", what: "containerd is started again", spec: script("sleep 8"), node: "trusty",
			disturb: func(d *disturbance) { d.awaitRunning(); d.restart("containerd-" + secondNode) }, outcome: decided, result: success, reason: "Succeeded"},
		{name: "drained", what: "the node is drained", spec: script(atEnd), node: "trusty", disturb: func(d *disturbance) { d.awaitRunning(); d.drain() },
			outcome: again, reason: "Disrupted", says: "EvictionByEvictionAPI"},
		{name: "tainted", what: "the node gets a taint with NoExecute", spec: script(atEnd), node: "trusty", disturb: func(d *disturbance) { d.awaitRunning(); d.taint() },
			outcome: again, reason: "Disrupted", says: "DeletionByTaintManager"},
		{name: "cut-off-briefly", what: "the node is cut off for 15 seconds", spec: script("sleep 8"), node: "trusty", slow: true,
			disturb: func(d *disturbance) { d.awaitRunning(); d.cutFor(15 * time.Second) }, outcome: decided, result: success, reason: "Succeeded"},
		{name: "memory-pressure", what: "the node is short of memory: the kubelet evicts the Pod", spec: template(does(atEnd), requests("10m")), node: "trusty", slow: true,
			disturb: func(d *disturbance) { d.awaitRunning(); d.squeeze() }, outcome: again, reason: "Disrupted", says: "TerminationByKubelet"},
		{name: "rejected-running", what: "the node is short of memory when the kubelet is started again: it rejects the Pod, which runs and ends with 0", spec: script(atEnd), node: "trusty",
			slow: true, disturb: func(d *disturbance) { d.awaitRunning(); d.squeeze() }, outcome: again, reason: "Disrupted", says: "rejected the Pod while it ran"},
		{name: "rebooted", what: "the node stops at once and is started again", spec: script(atEnd), node: "trusty", slow: true,
			disturb: func(d *disturbance) { d.awaitRunning(); d.reboot() }, outcome: again, reason: "Disrupted"},
		{name: "node-deleted", what: "the Node object is deleted while its kubelet is stopped", spec: script(atEnd), node: "trusty", slow: true,
			disturb: func(d *disturbance) { d.awaitRunning(); d.deleteNode() }, outcome: again, reason: "Disrupted", says: "DeletionByPodGC"},
		{name: "kubelet-stopped", what: "the kubelet stops for good", spec: briefly(template(does(atEnd))), node: "trusty", slow: true,
			disturb: func(d *disturbance) { d.awaitRunning(); d.stopKubelet() }, outcome: again, reason: "NodeLost"},
		{name: "cut-off", what: "the node is cut off for good", spec: briefly(template(does(atEnd))), node: "trusty", slow: true,
			disturb: func(d *disturbance) { d.awaitRunning(); d.cut() }, outcome: again, reason: "NodeLost"},
	}},
}

func optional(names ...string) func(*corev1.PodTemplateSpec) {
	return func(t *corev1.PodTemplateSpec) {
		t.Annotations = map[string]string{v1alpha1.AnnotationOptionalContainers: strings.Join(names, ",")}
	}
}

func requests(cpus string) func(*corev1.PodTemplateSpec) {
	return podSpec(func(spec *corev1.PodSpec) {
		spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpus)}
	})
}

// assigned has a Pod pass the scheduler by.
func assigned(node string) func(*corev1.PodTemplateSpec) {
	return podSpec(func(spec *corev1.PodSpec) { spec.NodeName = node })
}

// once has no Pod made again.
func once(spec v1alpha1.ZuulJobSpec) v1alpha1.ZuulJobSpec {
	spec.MaxPods = 1
	return spec
}
