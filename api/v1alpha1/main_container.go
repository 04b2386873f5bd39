package v1alpha1

import corev1 "k8s.io/api/core/v1"

// MainContainerName is the container of a template that decides the result, where there is one of that name.
const MainContainerName = "build"

// MainContainer is the container that decides the result of a build: the one named build, else the first. nil where there is none.
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
