package controllers

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
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
	// The volumes the operator adds to templates, by names that leave theirs free.
	workspaceVolume  = "zuulbuild-workspace"
	parametersVolume = "zuulbuild-parameters"
	// scriptUser runs scripts: an ordinary user, as restricted Pod Security asks for, whatever the image's own is.
	scriptUser = 1000
)

// buildPod makes the Pod of a build, and the ConfigMap it mounts, which is nil where every parameter fits into the environment. class may be nil:
// then the node the build asks for is the label zuulbuild.dev/node. The error is the job's or the request's fault, and says which part of it cannot
// become a Pod.
func buildPod(build *v1alpha1.ZuulBuild, job *v1alpha1.ZuulJob, class *v1alpha1.ZuulNodeClass, url string) (*corev1.Pod, *corev1.ConfigMap, error) {
	own := buildVariables(build, url)
	required, err := requiredContainers(job.Spec.Template)
	if err != nil {
		return nil, nil, err
	}
	var template *corev1.PodTemplateSpec
	if job.Spec.Template != nil {
		template = job.Spec.Template.DeepCopy()
		addWorkspace(&template.Spec, class)
	} else {
		command, err := scriptCommand(job.Spec.Script)
		if err != nil {
			return nil, nil, err
		}
		template = scriptTemplate(job, class, command)
		own = append(own, corev1.EnvVar{Name: "HOME", Value: homePath})
	}
	parameters, err := deliverParameters(build.Spec.Parameters, own, len(template.Spec.InitContainers)+len(template.Spec.Containers))
	if err != nil {
		return nil, nil, err
	}

	pod := &corev1.Pod{ObjectMeta: ownedMeta(build), Spec: template.Spec}
	maps.Copy(pod.Labels, template.Labels)
	maps.Copy(pod.Annotations, template.Annotations)
	pod.Labels[v1alpha1.LabelBuild] = build.Name
	delete(pod.Annotations, v1alpha1.AnnotationToldToEnd)
	pod.Annotations[v1alpha1.AnnotationRequiredContainers] = strings.Join(required, ",")
	pod.Annotations[v1alpha1.AnnotationJob] = build.Spec.Job
	if build.Spec.UUID != "" {
		pod.Annotations[v1alpha1.AnnotationUUID] = build.Spec.UUID
	}
	if build.Spec.Node != "" {
		pod.Annotations[v1alpha1.AnnotationNode] = build.Spec.Node
	}
	pod.Annotations[v1alpha1.AnnotationNumber] = strconv.FormatInt(build.Spec.Number, 10)

	for container := range allContainers(&pod.Spec) {
		addVariables(container, &parameters, own)
	}
	var files *corev1.ConfigMap
	if len(parameters.files) > 0 {
		files = &corev1.ConfigMap{ObjectMeta: ownedMeta(build), BinaryData: parameters.files, Immutable: ptr.To(true)}
		mountEverywhere(&pod.Spec, corev1.VolumeMount{Name: parametersVolume, MountPath: parametersPath, ReadOnly: true},
			corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: files.Name}}})
	}
	placePod(&pod.Spec, build.Spec.Node, class)
	restrictPod(&pod.Spec)

	limits := timeoutsOf(job, class)
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.ActiveDeadlineSeconds = ptr.To(int64((limits.pending + limits.run) / time.Second))
	pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(limits.abort / time.Second))
	return pod, files, nil
}

// requiredContainers are the names of the containers of a template that decide the result, the main one first; template may be nil, for a script. The
// error is for the person who wrote the template.
func requiredContainers(template *corev1.PodTemplateSpec) ([]string, error) {
	if template == nil {
		return []string{v1alpha1.MainContainerName}, nil
	}
	required := v1alpha1.RequiredContainers(&corev1.Pod{Spec: template.Spec})
	for _, name := range v1alpha1.ContainerNames(template.Annotations[v1alpha1.AnnotationOptionalContainers]) {
		at := slices.Index(required, name)
		switch {
		case at == 0:
			return nil, fmt.Errorf("annotation %s of the template names %q, which is the main container", v1alpha1.AnnotationOptionalContainers, shorten(name))
		case at < 0:
			return nil, fmt.Errorf("annotation %s of the template names %q, which is none of spec.containers, or twice", v1alpha1.AnnotationOptionalContainers, shorten(name))
		}
		required = slices.Delete(required, at, at+1)
	}
	return required, nil
}

// ownedMeta is what the objects of a build have in common: its own name, and that they go with it.
func ownedMeta(build *v1alpha1.ZuulBuild) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:            build.Name,
		Namespace:       build.Namespace,
		Labels:          map[string]string{v1alpha1.LabelBuild: build.Name},
		Annotations:     map[string]string{},
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(build, v1alpha1.GroupVersion.WithKind("ZuulBuild"))},
	}
}

// scriptTemplate is the Pod of a job that is an image and a script: a workspace and a home of its own, both writable by the script's user.
func scriptTemplate(job *v1alpha1.ZuulJob, class *v1alpha1.ZuulNodeClass, command []string) *corev1.PodTemplateSpec {
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
			{Name: "workspace", VolumeSource: emptyDirectory(class)},
			{Name: "home", VolumeSource: emptyDirectory(class)},
		},
	}}
}

// emptyDirectory is a volume of the operator's own making, as large as the class allows.
func emptyDirectory(class *v1alpha1.ZuulNodeClass) corev1.VolumeSource {
	directory := &corev1.EmptyDirVolumeSource{}
	if class != nil && class.Spec.WorkspaceSizeLimit != nil {
		directory.SizeLimit = ptr.To(class.Spec.WorkspaceSizeLimit.DeepCopy())
	}
	return corev1.VolumeSource{EmptyDir: directory}
}

// addWorkspace gives a template that mounts nothing at WORKSPACE an empty directory there, one for all its containers: scripts that were written for
// Jenkins begin with `cd "$WORKSPACE"`.
func addWorkspace(spec *corev1.PodSpec, class *v1alpha1.ZuulNodeClass) {
	for container := range allContainers(spec) {
		if slices.ContainsFunc(container.VolumeMounts, func(mount corev1.VolumeMount) bool { return path.Clean(mount.MountPath) == workspacePath }) {
			return
		}
	}
	mountEverywhere(spec, corev1.VolumeMount{Name: workspaceVolume, MountPath: workspacePath}, emptyDirectory(class))
}

// mountEverywhere adds a volume and mounts it in every container.
func mountEverywhere(spec *corev1.PodSpec, mount corev1.VolumeMount, source corev1.VolumeSource) {
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: mount.Name, VolumeSource: source})
	for container := range allContainers(spec) {
		container.VolumeMounts = append(container.VolumeMounts, mount)
	}
}

// allContainers are those that run before the main ones, then the main ones.
func allContainers(spec *corev1.PodSpec) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
			for i := range containers {
				if !yield(&containers[i]) {
					return
				}
			}
		}
	}
}

// addVariables gives a container the parameters and the operator's variables. They come first, so that variables of the template may refer to
// them as $(ZUUL_PROJECT), and win over variables of the same name, as does a parameter that is a file.
func addVariables(container *corev1.Container, parameters *delivery, own []corev1.EnvVar) {
	variables := slices.Concat(parameters.variables, own)
	for _, variable := range container.Env {
		if !hasVariable(variables, variable.Name) && !slices.Contains(parameters.unset, variable.Name) {
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
		if class.Spec.UserNamespace {
			spec.HostUsers = cmp.Or(spec.HostUsers, ptr.To(false))
		}
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
// as it is: whether that may run is for its node class and for the namespace's own policy to decide.
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
	for container := range allContainers(spec) {
		if container.SecurityContext == nil {
			container.SecurityContext = &corev1.SecurityContext{}
		}
		context := container.SecurityContext
		privileged := context.Privileged != nil && *context.Privileged
		if context.AllowPrivilegeEscalation == nil && !privileged {
			context.AllowPrivilegeEscalation = ptr.To(false)
		}
		if context.Capabilities == nil && !privileged {
			context.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}
		}
	}
}

// memoryLimit of a container as a person writes it, or "" where it has none.
func memoryLimit(spec *corev1.PodSpec, container string) string {
	for c := range allContainers(spec) {
		if limit, ok := c.Resources.Limits[corev1.ResourceMemory]; ok && c.Name == container && limit.Cmp(resource.Quantity{}) > 0 {
			return limit.String()
		}
	}
	return ""
}
