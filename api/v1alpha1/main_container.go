package v1alpha1

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// MainContainerName is the container of a template that decides the result, where there is one of that name.
const MainContainerName = "build"

// RequiredContainers are the names of those containers of a Pod that decide the result of its build, the main one first: as its annotation says, else
// all. Empty for a Pod without containers.
func RequiredContainers(pod *corev1.Pod) []string {
	if names := ContainerNames(pod.Annotations[AnnotationRequiredContainers]); len(names) > 0 {
		return names
	}
	main := MainContainer(&pod.Spec)
	if main == nil {
		return nil
	}
	names := []string{main.Name}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name != main.Name {
			names = append(names, pod.Spec.Containers[i].Name)
		}
	}
	return names
}

// ContainerNames reads the value of an annotation that names containers, separated by commas and perhaps by spaces.
func ContainerNames(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' })
}

// MainContainer is the container of a template that decides the result of a build: the one named build, else the first. nil where there is none. In a
// Pod others may have put containers before it: see RequiredContainers.
func MainContainer(spec *corev1.PodSpec) *corev1.Container {
	for i := range spec.Containers {
		if spec.Containers[i].Name == MainContainerName {
			return &spec.Containers[i]
		}
	}
	if len(spec.Containers) > 0 {
		return &spec.Containers[0]
	}
	return nil
}
