package controllers

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func newBuild() *v1alpha1.ZuulBuild {
	return &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Name: "u-1", Namespace: "builds", UID: "build-uid"},
		Spec:       v1alpha1.ZuulBuildSpec{Job: "gate-Project.unit_tests", Number: 7, Parameters: map[string]string{"ZUUL_PROJECT": "p", "ZUUL_UUID": "u"}},
	}
}

func scriptJob() *v1alpha1.ZuulJob {
	return &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Image: "example.org/image", Script: "make $(TARGET)"}}
}

func templateJob(spec corev1.PodSpec) *v1alpha1.ZuulJob {
	return &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Template: &corev1.PodTemplateSpec{Spec: spec}}}
}

func mustBuildPod(t *testing.T, build *v1alpha1.ZuulBuild, job *v1alpha1.ZuulJob, class *v1alpha1.ZuulNodeClass) *corev1.Pod {
	t.Helper()
	pod, _, err := buildPod(build, job, class, "https://builds.example.org/u-1")
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestScriptPod(t *testing.T) {
	pod := mustBuildPod(t, newBuild(), scriptJob(), nil)
	emptyDir := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "u-1", Namespace: "builds",
			Labels:      map[string]string{"zuulbuild.dev/build": "u-1"},
			Annotations: map[string]string{"zuulbuild.dev/job": "gate-Project.unit_tests", "zuulbuild.dev/number": "7", "zuulbuild.dev/required-containers": "build"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "zuulbuild.dev/v1alpha1", Kind: "ZuulBuild", Name: "u-1", UID: "build-uid", Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true),
			}},
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "build", Image: "example.org/image", Command: []string{"/bin/sh", "-e", "-c", "make $$(TARGET)"}, WorkingDir: "/workspace",
				Env: []corev1.EnvVar{
					{Name: "ZUUL_PROJECT", Value: "p"}, {Name: "ZUUL_UUID", Value: "u"},
					{Name: "BUILD_ID", Value: "7"}, {Name: "BUILD_NUMBER", Value: "7"}, {Name: "BUILD_TAG", Value: "zuulbuild-gate-Project.unit_tests-7"},
					{Name: "BUILD_URL", Value: "https://builds.example.org/u-1"}, {Name: "EXECUTOR_NUMBER", Value: "0"}, {Name: "JOB_NAME", Value: "gate-Project.unit_tests"},
					{Name: "NODE_LABELS"}, {Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
					{Name: "WORKSPACE", Value: "/workspace"}, {Name: "HOME", Value: "/home/zuul"},
				},
				VolumeMounts: []corev1.VolumeMount{{Name: "workspace", MountPath: "/workspace"}, {Name: "home", MountPath: "/home/zuul"}},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: ptr.To(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
			Volumes:       []corev1.Volume{{Name: "workspace", VolumeSource: emptyDir}, {Name: "home", VolumeSource: emptyDir}},
			RestartPolicy: corev1.RestartPolicyNever,
			NodeSelector:  map[string]string{},
			SecurityContext: &corev1.PodSecurityContext{
				RunAsUser: ptr.To[int64](1000), RunAsGroup: ptr.To[int64](1000), FSGroup: ptr.To[int64](1000), RunAsNonRoot: ptr.To(true),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			AutomountServiceAccountToken:  ptr.To(false),
			EnableServiceLinks:            ptr.To(false),
			ActiveDeadlineSeconds:         ptr.To(int64(11700)), // 15 minutes to start and 3 hours to run
			TerminationGracePeriodSeconds: ptr.To(int64(30)),
		},
	}
	if diff := cmp.Diff(want, pod); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPodDeadlines(t *testing.T) {
	job := scriptJob()
	job.Spec.Timeouts = &v1alpha1.Timeouts{Pending: duration(time.Minute), Run: duration(2 * time.Hour), Abort: duration(90 * time.Second)}
	spec := mustBuildPod(t, newBuild(), job, nil).Spec
	if *spec.ActiveDeadlineSeconds != 7260 || *spec.TerminationGracePeriodSeconds != 90 {
		t.Errorf("activeDeadlineSeconds %d, terminationGracePeriodSeconds %d, want 7260 and 90", *spec.ActiveDeadlineSeconds, *spec.TerminationGracePeriodSeconds)
	}
}

func TestPlacePod(t *testing.T) {
	named := func(spec v1alpha1.ZuulNodeClassSpec) *v1alpha1.ZuulNodeClass {
		return &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: "class"}, Spec: spec}
	}
	cases := []struct {
		name  string
		spec  corev1.PodSpec
		node  string
		class *v1alpha1.ZuulNodeClass
		want  map[string]string
	}{
		{"anywhere", corev1.PodSpec{}, "", nil, map[string]string{}},
		{"a label makes a class", corev1.PodSpec{}, "big", nil, map[string]string{"zuulbuild.dev/node": "big"}},
		{"a class without a selector", corev1.PodSpec{}, "class", named(v1alpha1.ZuulNodeClassSpec{}), map[string]string{"zuulbuild.dev/node": "class"}},
		{"a class by another name", corev1.PodSpec{}, "Big_1", named(v1alpha1.ZuulNodeClassSpec{ClassName: "Big_1"}), map[string]string{"zuulbuild.dev/node": "Big_1"}},
		{"a class with a selector", corev1.PodSpec{}, "class", named(v1alpha1.ZuulNodeClassSpec{NodeSelector: map[string]string{"pool": "a"}}), map[string]string{"pool": "a"}},
		{"a template's selector stays", corev1.PodSpec{NodeSelector: map[string]string{"arch": "arm64", "pool": "mine"}}, "class",
			named(v1alpha1.ZuulNodeClassSpec{NodeSelector: map[string]string{"pool": "a"}}), map[string]string{"arch": "arm64", "pool": "a"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			placePod(&c.spec, c.node, c.class)
			if diff := cmp.Diff(c.want, c.spec.NodeSelector); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestNodeClassFillsIn(t *testing.T) {
	limits := func(memory string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}}
	}
	class := &v1alpha1.ZuulNodeClass{Spec: v1alpha1.ZuulNodeClassSpec{
		Tolerations:       []corev1.Toleration{{Key: "class"}},
		RuntimeClassName:  ptr.To("gvisor"),
		UserNamespace:     true,
		PriorityClassName: "builds",
		Resources:         ptr.To(limits("2Gi")),
	}}
	silent := corev1.PodSpec{Containers: []corev1.Container{{Name: "database"}, {Name: "build"}}}
	placePod(&silent, "class", class)
	if diff := cmp.Diff([]corev1.Container{{Name: "database"}, {Name: "build", Resources: limits("2Gi")}}, silent.Containers); diff != "" {
		t.Errorf("containers (-want +got):\n%s", diff)
	}
	if hostUsers := ptr.Deref(silent.HostUsers, true); *silent.RuntimeClassName != "gvisor" || hostUsers || silent.PriorityClassName != "builds" {
		t.Errorf("runtimeClassName %s, hostUsers %t, priorityClassName %s", *silent.RuntimeClassName, hostUsers, silent.PriorityClassName)
	}

	explicit := corev1.PodSpec{
		Containers:        []corev1.Container{{Name: "build", Resources: limits("1Gi")}},
		Tolerations:       []corev1.Toleration{{Key: "mine"}},
		RuntimeClassName:  ptr.To("kata"),
		HostUsers:         ptr.To(true),
		PriorityClassName: "urgent",
	}
	placePod(&explicit, "class", class)
	want := corev1.PodSpec{
		Containers:        []corev1.Container{{Name: "build", Resources: limits("1Gi")}},
		Tolerations:       []corev1.Toleration{{Key: "mine"}, {Key: "class"}},
		RuntimeClassName:  ptr.To("kata"),
		HostUsers:         ptr.To(true),
		PriorityClassName: "urgent",
		NodeSelector:      map[string]string{"zuulbuild.dev/node": ""},
	}
	if diff := cmp.Diff(want, explicit); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTemplateEnvironment(t *testing.T) {
	own := []corev1.EnvVar{{Name: "PROJECT_PATH", Value: "/src/$(ZUUL_PROJECT)"}, {Name: "ZUUL_UUID", Value: "forged"}, {Name: "PATH", Value: "/opt/bin"}, {Name: "HOME", Value: "/root"}}
	job := templateJob(corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "prepare"}},
		Containers:     []corev1.Container{{Name: "build", Env: own}, {Name: "database"}},
	})
	pod := mustBuildPod(t, newBuild(), job, nil)
	names := func(container corev1.Container) string {
		var names []string
		for _, variable := range container.Env {
			names = append(names, variable.Name)
		}
		return strings.Join(names, " ")
	}
	const common = "ZUUL_PROJECT ZUUL_UUID BUILD_ID BUILD_NUMBER BUILD_TAG BUILD_URL EXECUTOR_NUMBER JOB_NAME NODE_LABELS NODE_NAME WORKSPACE"
	for _, container := range []corev1.Container{pod.Spec.InitContainers[0], pod.Spec.Containers[1]} {
		if got := names(container); got != common {
			t.Errorf("container %s has %s", container.Name, got)
		}
	}
	build := pod.Spec.Containers[0]
	if got := names(build); got != common+" PROJECT_PATH PATH HOME" {
		t.Errorf("container build has %s", got)
	}
	for _, variable := range build.Env {
		if variable.Name == "ZUUL_UUID" && variable.Value != "u" {
			t.Errorf("the template overrides ZUUL_UUID with %q", variable.Value)
		}
		if variable.Name == "PROJECT_PATH" && variable.Value != "/src/$(ZUUL_PROJECT)" {
			t.Errorf("the template's own reference became %q", variable.Value)
		}
	}
}

func TestTemplateIsLeftAlone(t *testing.T) {
	job := templateJob(corev1.PodSpec{
		AutomountServiceAccountToken:  ptr.To(true),
		EnableServiceLinks:            ptr.To(true),
		ServiceAccountName:            "deployer",
		RestartPolicy:                 corev1.RestartPolicyAlways,
		ActiveDeadlineSeconds:         ptr.To(int64(5)),
		TerminationGracePeriodSeconds: ptr.To(int64(5)),
		SecurityContext:               &corev1.PodSecurityContext{RunAsNonRoot: ptr.To(false), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}},
		Containers: []corev1.Container{
			{Name: "build", Command: []string{"run", "$(ZUUL_PROJECT)"}, SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)},
				VolumeMounts: []corev1.VolumeMount{{Name: "mine", MountPath: "/workspace/"}}},
			{Name: "partly", SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: ptr.To(true), Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}},
		},
	})
	job.Spec.Template.Labels = map[string]string{"team": "a", v1alpha1.LabelBuild: "forged"}
	job.Spec.Template.Annotations = map[string]string{"note": "b", v1alpha1.AnnotationNumber: "1"}
	before := job.DeepCopy()
	pod := mustBuildPod(t, newBuild(), job, &v1alpha1.ZuulNodeClass{Spec: v1alpha1.ZuulNodeClassSpec{NodeSelector: map[string]string{"pool": "a"}}})

	if diff := cmp.Diff(before, job); diff != "" {
		t.Errorf("the ZuulJob, which is the cache's, was changed:\n%s", diff)
	}
	for i := range pod.Spec.Containers {
		pod.Spec.Containers[i].Env = nil
	}
	want := before.Spec.Template.Spec
	want.RestartPolicy = corev1.RestartPolicyNever // what the operator's clocks and verdict rest on is its own
	want.ActiveDeadlineSeconds = ptr.To(int64(11700))
	want.TerminationGracePeriodSeconds = ptr.To(int64(30))
	want.NodeSelector = map[string]string{"pool": "a"}
	if diff := cmp.Diff(want, pod.Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"team": "a", "zuulbuild.dev/build": "u-1"}, pod.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	annotations := map[string]string{"note": "b", "zuulbuild.dev/job": "gate-Project.unit_tests", "zuulbuild.dev/number": "7", "zuulbuild.dev/required-containers": "build,partly"}
	if diff := cmp.Diff(annotations, pod.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
}

func TestTemplateWorkspace(t *testing.T) {
	mount := func(name, path string) []corev1.VolumeMount {
		return []corev1.VolumeMount{{Name: name, MountPath: path}}
	}
	cases := map[string]struct {
		init, build []corev1.VolumeMount
		added       bool
	}{
		"nothing mounted":       {nil, nil, true},
		"mounted elsewhere":     {mount("src", "/src"), mount("src", "/workspace/src"), true},
		"mounted in the build":  {nil, mount("src", "/workspace"), false},
		"mounted in an init":    {mount("src", "/workspace/."), nil, false},
		"a name that begins so": {nil, mount("src", "/workspaces"), true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			job := templateJob(corev1.PodSpec{
				InitContainers: []corev1.Container{{Name: "init", VolumeMounts: c.init}},
				Containers:     []corev1.Container{{Name: "build", VolumeMounts: c.build}, {Name: "database"}},
			})
			spec := mustBuildPod(t, newBuild(), job, nil).Spec
			for container := range allContainers(&spec) {
				want := map[string][]corev1.VolumeMount{"init": c.init, "build": c.build}[container.Name]
				if c.added {
					want = slices.Concat(want, mount("zuulbuild-workspace", "/workspace"))
				}
				if diff := cmp.Diff(want, container.VolumeMounts); diff != "" {
					t.Errorf("mounts of %s (-want +got):\n%s", container.Name, diff)
				}
				if container.WorkingDir != "" {
					t.Errorf("%s works in %s", container.Name, container.WorkingDir)
				}
			}
			if added := len(spec.Volumes) > 0; added != c.added {
				t.Errorf("volumes %v", spec.Volumes)
			}
		})
	}
}

func TestWorkspaceSizeLimit(t *testing.T) {
	limit := resource.MustParse("20Gi")
	own := corev1.Volume{Name: "home", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	cases := map[string]struct {
		job   *v1alpha1.ZuulJob
		class *v1alpha1.ZuulNodeClass
		want  map[string]*resource.Quantity
	}{
		"a script, no class":        {scriptJob(), nil, map[string]*resource.Quantity{"workspace": nil, "home": nil}},
		"a class that says nothing": {scriptJob(), &v1alpha1.ZuulNodeClass{}, map[string]*resource.Quantity{"workspace": nil, "home": nil}},
		"a script": {scriptJob(), &v1alpha1.ZuulNodeClass{Spec: v1alpha1.ZuulNodeClassSpec{WorkspaceSizeLimit: &limit}},
			map[string]*resource.Quantity{"workspace": &limit, "home": &limit}},
		"a template, and its own volume": {templateJob(corev1.PodSpec{Containers: []corev1.Container{{Name: "build"}}, Volumes: []corev1.Volume{own}}),
			&v1alpha1.ZuulNodeClass{Spec: v1alpha1.ZuulNodeClassSpec{WorkspaceSizeLimit: &limit}},
			map[string]*resource.Quantity{"zuulbuild-workspace": &limit, "home": nil}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := map[string]*resource.Quantity{}
			for _, volume := range mustBuildPod(t, newBuild(), c.job, c.class).Spec.Volumes {
				got[volume.Name] = volume.EmptyDir.SizeLimit
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestFilesArePutIntoThePod(t *testing.T) {
	build := newBuild()
	build.Spec.Parameters["LONG"] = strings.Repeat("x", maxEnvironmentString)
	job := templateJob(corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "prepare"}},
		Containers:     []corev1.Container{{Name: "build", Env: []corev1.EnvVar{{Name: "LONG", Value: "default"}, {Name: "LONG_FILE", Value: "/dev/null"}}}, {Name: "database"}},
	})
	pod, files, err := buildPod(build, job, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: "u-1", Namespace: "builds", Labels: map[string]string{"zuulbuild.dev/build": "u-1"}, Annotations: map[string]string{},
			OwnerReferences: pod.OwnerReferences,
		},
		BinaryData: map[string][]byte{"LONG": []byte(build.Spec.Parameters["LONG"])},
		Immutable:  ptr.To(true),
	}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Errorf("ConfigMap (-want +got):\n%.2000s", diff)
	}
	volume := corev1.Volume{Name: "zuulbuild-parameters", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "u-1"}},
	}}
	if diff := cmp.Diff(volume, pod.Spec.Volumes[len(pod.Spec.Volumes)-1]); diff != "" {
		t.Errorf("volume (-want +got):\n%s", diff)
	}
	for container := range allContainers(&pod.Spec) {
		mount := corev1.VolumeMount{Name: "zuulbuild-parameters", MountPath: "/zuulbuild/parameters", ReadOnly: true}
		if !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return cmp.Equal(m, mount) }) {
			t.Errorf("container %s mounts %v", container.Name, container.VolumeMounts)
		}
		if hasVariable(container.Env, "LONG") {
			t.Errorf("container %s has a variable LONG, which is a file", container.Name)
		}
		if !slices.Contains(container.Env, corev1.EnvVar{Name: "LONG_FILE", Value: "/zuulbuild/parameters/LONG"}) || slices.Contains(container.Env, corev1.EnvVar{Name: "LONG_FILE", Value: "/dev/null"}) {
			t.Errorf("container %s is not told the file", container.Name)
		}
	}
}

func TestSilentTemplateIsRestricted(t *testing.T) {
	job := templateJob(corev1.PodSpec{InitContainers: []corev1.Container{{Name: "prepare"}}, Containers: []corev1.Container{{Name: "main"}}})
	spec := mustBuildPod(t, newBuild(), job, nil).Spec
	if *spec.AutomountServiceAccountToken || *spec.EnableServiceLinks || !*spec.SecurityContext.RunAsNonRoot || spec.SecurityContext.SeccompProfile == nil {
		t.Errorf("Pod is not restricted: %+v", spec)
	}
	for _, container := range append(spec.InitContainers, spec.Containers...) {
		if context := container.SecurityContext; *context.AllowPrivilegeEscalation || len(context.Capabilities.Drop) != 1 {
			t.Errorf("container %s is not restricted: %+v", container.Name, context)
		}
	}
	if spec.SecurityContext.RunAsUser != nil {
		t.Error("a template's user is not the operator's to choose")
	}
}

func TestUnbuildable(t *testing.T) {
	wrong := newBuild()
	wrong.Spec.Parameters["LD_PRELOAD"] = "x"
	php := scriptJob()
	php.Spec.Script = "#!/usr/bin/php\n"
	cases := []struct {
		name           string
		build          *v1alpha1.ZuulBuild
		job            *v1alpha1.ZuulJob
		result, reason string
	}{
		{"the request's fault", wrong, scriptJob(), "INVALID_REQUEST", "InvalidRequest"},
		{"the job's fault", newBuild(), php, "FAILURE", "InvalidPod"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := buildPod(c.build, c.job, nil, "")
			if err == nil {
				t.Fatal("a Pod was made")
			}
			got := unbuildable(err)
			if got.phase != v1alpha1.PhaseFailed || got.result != c.result || got.reason != c.reason || got.message != err.Error() {
				t.Errorf("verdict %+v", *got)
			}
		})
	}
}

func TestStripPodKeepsWhatIsRead(t *testing.T) {
	pod := newPod(onNode(0), withPhase(podFailed), withInit("prepare"), withSidecar("proxy"), withMemoryLimit("64Mi"), withGate("gate"),
		ended("prepare", 0, ""), ended("proxy", 1, ""), ended("build", 137, "OOMKilled"))
	pod.Spec.ActiveDeadlineSeconds = ptr.To(int64(1))
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "LARGE", Value: strings.Repeat("x", 1000)}}
	pod.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "x"}}
	f := facts{pod: pod, limits: testLimits, now: created}
	want, wantStart, wantSaid := decide(f), mainStarted(pod), memoryLimit(&pod.Spec, "build")
	if _, err := stripPod(pod); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, decide(f), cmp.AllowUnexported(verdict{})); diff != "" {
		t.Errorf("the verdict on a stripped Pod differs:\n%s", diff)
	}
	if diff := cmp.Diff(wantStart, mainStarted(pod)); diff != "" || memoryLimit(&pod.Spec, "build") != wantSaid || !gated(pod) || *pod.Spec.ActiveDeadlineSeconds != 1 {
		t.Errorf("a stripped Pod lacks something: %+v", pod.Spec)
	}
	if pod.Spec.Containers[0].Env != nil || pod.ManagedFields != nil {
		t.Error("a stripped Pod still has its environment or managedFields")
	}
}
