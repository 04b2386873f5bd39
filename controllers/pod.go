package controllers

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

const (
	workspacePath = "/workspace"
	homePath      = "/home/zuul"
	// scriptUser runs scripts: an ordinary user, as restricted Pod Security asks for, whatever the image's own is.
	scriptUser = 1000
)

// buildPod makes the Pod of a build. class may be nil: then the node the build asks for is the label zuulbuild.dev/node. The error is the
// job's or the request's fault, and says which part of it cannot become a Pod.
func buildPod(build *v1alpha1.ZuulBuild, job *v1alpha1.ZuulJob, class *v1alpha1.ZuulNodeClass, url string) (*corev1.Pod, error) {
	own := buildVariables(build, url)
	var template *corev1.PodTemplateSpec
	if job.Spec.Template != nil {
		template = job.Spec.Template.DeepCopy()
	} else {
		command, err := scriptCommand(job.Spec.Script)
		if err != nil {
			return nil, err
		}
		template = scriptTemplate(job, command)
		own = append(own, corev1.EnvVar{Name: "HOME", Value: homePath})
	}
	parameters, err := parameterVariables(build.Spec.Parameters, own)
	if err != nil {
		return nil, err
	}

	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:            build.Name,
			Namespace:       build.Namespace,
			Labels:          map[string]string{},
			Annotations:     map[string]string{},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(build, v1alpha1.GroupVersion.WithKind("ZuulBuild"))},
		},
		Spec: template.Spec,
	}
	maps.Copy(pod.Labels, template.Labels)
	maps.Copy(pod.Annotations, template.Annotations)
	pod.Labels[v1alpha1.LabelBuild] = build.Name
	pod.Annotations[v1alpha1.AnnotationJob] = build.Spec.Job
	pod.Annotations[v1alpha1.AnnotationNumber] = strconv.FormatInt(build.Spec.Number, 10)

	for i := range pod.Spec.InitContainers {
		addVariables(&pod.Spec.InitContainers[i], parameters, own)
	}
	for i := range pod.Spec.Containers {
		addVariables(&pod.Spec.Containers[i], parameters, own)
	}
	placePod(&pod.Spec, build.Spec.Node, class)
	restrictPod(&pod.Spec)

	limits := timeoutsOf(job)
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.ActiveDeadlineSeconds = ptr.To(int64((limits.pending + limits.run) / time.Second))
	pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(limits.abort / time.Second))
	return pod, nil
}

// scriptTemplate is the Pod of a job that is an image and a script: a workspace and a home of its own, both writable by the script's user.
func scriptTemplate(job *v1alpha1.ZuulJob, command []string) *corev1.PodTemplateSpec {
	container := corev1.Container{
		Name:       v1alpha1.MainContainerName,
		Image:      job.Spec.Image,
		Command:    command,
		WorkingDir: workspacePath,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "workspace", MountPath: workspacePath},
			{Name: "home", MountPath: homePath},
		},
	}
	if job.Spec.Resources != nil {
		container.Resources = *job.Spec.Resources.DeepCopy()
	}
	return &corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		Containers:      []corev1.Container{container},
		SecurityContext: &corev1.PodSecurityContext{RunAsUser: ptr.To[int64](scriptUser), RunAsGroup: ptr.To[int64](scriptUser), FSGroup: ptr.To[int64](scriptUser)},
		Volumes: []corev1.Volume{
			{Name: "workspace", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "home", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		},
	}}
}

// addVariables gives a container the parameters and the operator's variables. They come first, so that variables of the template may refer to
// them as $(ZUUL_PROJECT), and win over variables of the same name.
func addVariables(container *corev1.Container, parameters, own []corev1.EnvVar) {
	variables := slices.Concat(parameters, own)
	for _, variable := range container.Env {
		if !hasVariable(variables, variable.Name) {
			variables = append(variables, variable)
		}
	}
	container.Env = variables
}

// placePod sends the Pod where its node class says. A template's own selector stays: both must match.
func placePod(spec *corev1.PodSpec, node string, class *v1alpha1.ZuulNodeClass) {
	selector := map[string]string{}
	maps.Copy(selector, spec.NodeSelector)
	if class != nil {
		if len(class.Spec.NodeSelector) > 0 {
			maps.Copy(selector, class.Spec.NodeSelector)
		} else {
			selector[v1alpha1.LabelNode] = class.GearmanName()
		}
		spec.Tolerations = append(spec.Tolerations, class.Spec.Tolerations...)
		spec.RuntimeClassName = cmp.Or(spec.RuntimeClassName, class.Spec.RuntimeClassName)
		spec.PriorityClassName = cmp.Or(spec.PriorityClassName, class.Spec.PriorityClassName)
		main := v1alpha1.MainContainer(spec)
		if class.Spec.Resources != nil && main != nil && main.Resources.Limits == nil && main.Resources.Requests == nil {
			main.Resources = *class.Spec.Resources.DeepCopy()
		}
	} else if node != "" {
		selector[v1alpha1.LabelNode] = node
	}
	spec.NodeSelector = selector
}

// restrictPod fills in what Pod Security's `restricted` profile asks for, wherever the template is silent. A template that says otherwise is left
// as it is: whether that may run is for the namespace's own policy to decide.
func restrictPod(spec *corev1.PodSpec) {
	if spec.AutomountServiceAccountToken == nil {
		spec.AutomountServiceAccountToken = ptr.To(false)
	}
	if spec.EnableServiceLinks == nil {
		spec.EnableServiceLinks = ptr.To(false)
	}
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	spec.SecurityContext.RunAsNonRoot = cmp.Or(spec.SecurityContext.RunAsNonRoot, ptr.To(true))
	spec.SecurityContext.SeccompProfile = cmp.Or(spec.SecurityContext.SeccompProfile, &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault})
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			if containers[i].SecurityContext == nil {
				containers[i].SecurityContext = &corev1.SecurityContext{}
			}
			context := containers[i].SecurityContext
			privileged := context.Privileged != nil && *context.Privileged
			if context.AllowPrivilegeEscalation == nil && !privileged {
				context.AllowPrivilegeEscalation = ptr.To(false)
			}
			if context.Capabilities == nil && !privileged {
				context.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
			}
		}
	}
}

// memoryLimit of a container as a person writes it, or "" where it has none.
func memoryLimit(spec *corev1.PodSpec, container string) string {
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			if limit, ok := containers[i].Resources.Limits[corev1.ResourceMemory]; ok && containers[i].Name == container && limit.Cmp(resource.Quantity{}) > 0 {
				return limit.String()
			}
		}
	}
	return ""
}
