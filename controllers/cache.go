package controllers

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// CacheOptions keep in memory only what is read: Pods of builds and Nodes that make a class, without the parts nobody looks at. Namespaces, where
// some are given, are the only ones that jobs and builds are seen in, so that several operators can share a cluster.
func CacheOptions(namespaces ...string) cache.Options {
	var only map[string]cache.Config // nil: all
	for _, namespace := range namespaces {
		if only == nil {
			only = map[string]cache.Config{}
		}
		only[namespace] = cache.Config{}
	}
	return cache.Options{
		DefaultNamespaces: only,
		DefaultTransform:  cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}:  {Label: labelled(v1alpha1.LabelBuild), Transform: stripPod},
			&corev1.Node{}: {Label: labelled(v1alpha1.LabelNode), Transform: stripNode},
		},
	}
}

// LimitRequests sets the client's own limits far above need: the API server's priority and fairness sees to the rest, while client-go's default
// of 5 requests a second would hold builds up unseen.
func LimitRequests(config *rest.Config) {
	config.QPS, config.Burst = 500, 1000
}

func labelled(key string) labels.Selector {
	requirement, err := labels.NewRequirement(key, selection.Exists, nil)
	if err != nil {
		panic(err) // a key of our own that is no label
	}
	return labels.NewSelector().Add(*requirement)
}

// stripPod keeps of a Pod what verdicts, clocks and pages read. A Pod read from the cache must not be written back.
func stripPod(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	pod.ManagedFields = nil
	pod.Spec = corev1.PodSpec{
		NodeName:              pod.Spec.NodeName,
		ActiveDeadlineSeconds: pod.Spec.ActiveDeadlineSeconds,
		SchedulingGates:       pod.Spec.SchedulingGates,
		InitContainers:        stripContainers(pod.Spec.InitContainers),
		Containers:            stripContainers(pod.Spec.Containers),
	}
	return pod, nil
}

func stripContainers(containers []corev1.Container) []corev1.Container {
	stripped := make([]corev1.Container, len(containers))
	for i, c := range containers {
		stripped[i] = corev1.Container{Name: c.Name, RestartPolicy: c.RestartPolicy, Resources: corev1.ResourceRequirements{Limits: c.Resources.Limits}}
	}
	return stripped
}

// stripNode keeps of a Node its labels.
func stripNode(object any) (any, error) {
	if node, ok := object.(*corev1.Node); ok {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: node.Name, UID: node.UID, ResourceVersion: node.ResourceVersion, Labels: node.Labels,
		}}, nil
	}
	return object, nil
}
