// Package v1alpha1 holds the objects of zuulbuild: ZuulBuild (one build), ZuulJob (what Zuul calls a job) and ZuulNodeClass (what ZUUL_NODE
// means). It is the only thing the Gearman side and the Kubernetes side of the operator share, and imports nothing else of ours.
//
// +kubebuilder:object:generate=true
// +groupName=zuulbuild.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every type in this package.
var GroupVersion = schema.GroupVersion{Group: "zuulbuild.dev", Version: "v1alpha1"}

// AddToScheme registers the types of this package.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&ZuulBuild{}, &ZuulBuildList{},
		&ZuulJob{}, &ZuulJobList{},
		&ZuulNodeClass{}, &ZuulNodeClassList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
