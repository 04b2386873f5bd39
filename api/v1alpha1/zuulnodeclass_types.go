package v1alpha1

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PodSecurityLevel is one of https://kubernetes.io/docs/concepts/security/pod-security-standards/
type PodSecurityLevel string

// PodSecurityRestricted is what the operator fills in where a template is silent.
const PodSecurityRestricted PodSecurityLevel = "restricted"

// ZuulNodeClassSpec says where builds of the class run. The zero value means: on Nodes labelled zuulbuild.dev/node with the class's name.
type ZuulNodeClassSpec struct {
	// className is what Zuul calls the class (ZUUL_NODE), where that is not the name of this object: printable ASCII without spaces. Where two
	// objects claim one name, the older says what it means, but the lower maxBuilds counts. Default: metadata.name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[!-~]+$`
	// +optional
	ClassName string `json:"className,omitempty"`

	// nodeSelector of the Pods. Default: zuulbuild.dev/node with the class's name.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// tolerations added to the Pods.
	// +listType=atomic
	// +optional
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// runtimeClassName of the Pods, where the job names none.
	// +optional
	RuntimeClassName *string `json:"runtimeClassName,omitempty"`

	// podSecurity is the level of Pod Security (restricted, baseline or privileged) that Pods of the class's builds may not go beyond: where the template of a
	// job asks for more, the build ends Forbidden. The level that the namespace enforces counts as well. Builds without a class, and those of a class that
	// is a label of Nodes alone, have restricted. Default: restricted.
	// +kubebuilder:validation:Enum=restricted;baseline;privileged
	// +optional
	PodSecurity PodSecurityLevel `json:"podSecurity,omitempty"`

	// userNamespace gives each Pod a user namespace of its own (hostUsers: false), where the job's template says nothing of hostUsers: who breaks out of a
	// container, even as root, is nobody on the node. The nodes must be able to: Linux 6.3, containerd 2.0 with runc 1.2, or CRI-O 1.25 with crun 1.9, and
	// what comes after these. On others such a Pod does not start, and the build ends StartTimeout. Kubernetes 1.34 and 1.35 drop hostUsers without a word,
	// and the Pod runs without the namespace, where somebody turned the feature gate UserNamespacesSupport off. A template that uses hostNetwork, hostPID or
	// hostIPC has to say hostUsers: true. Default false.
	// +optional
	UserNamespace bool `json:"userNamespace,omitempty"`

	// priorityClassName of the Pods, where the job names none.
	// +optional
	PriorityClassName string `json:"priorityClassName,omitempty"`

	// resources of the main container, where the job gives none.
	// +optional
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`

	// workspaceSizeLimit is how much each of the empty directories may hold that builds have of the operator: /workspace, and the home of those that are a
	// script. The kubelet ends a build that writes more within a minute or two, and it is StorageExceeded. Volumes of a template are its own matter, and
	// what containers write elsewhere is that of ephemeral-storage in resources. Default: no limit but the node's disk.
	// +optional
	WorkspaceSizeLimit *resource.Quantity `json:"workspaceSizeLimit,omitempty"`

	// timeouts are the clocks of builds that ask for the class, where their job gives none.
	// +optional
	Timeouts *Timeouts `json:"timeouts,omitempty"`

	// forceDeleteUnreachable has Pods of the class's builds taken out of the API where their node does not let them go: five minutes after they should
	// have gone, and never before their build has its verdict. Their containers may run on where the node is only cut off, so it is for nodes that are
	// known to be gone for good when they do not answer (spot instances, say). Default false: such Pods stay, as Kubernetes has it, until their node
	// comes back or is deleted.
	// +optional
	ForceDeleteUnreachable bool `json:"forceDeleteUnreachable,omitempty"`

	// cordonWhenComplete cordons the node a build of the class ran on when the build has ended, whatever its result, if the build's parameter
	// OFFLINE_NODE_WHEN_COMPLETE is `1` or `true` (in any case). Each build does so at most once: a node uncordoned afterwards stays so until
	// another build asks. Default false: the parameter is only passed on, since each build has a Pod of its own anyway.
	// +optional
	CordonWhenComplete bool `json:"cordonWhenComplete,omitempty"`

	// maxBuilds is how many builds that ask for the class may be at work at once, in all namespaces together. Further ones wait, in the Gearman
	// server or, made by hand, as Queued. Lowering it stops nothing. Builds that ask for no class are not counted. Default: no limit but the operator's.
	// +kubebuilder:validation:Minimum=1
	// +optional
	MaxBuilds int32 `json:"maxBuilds,omitempty"`
}

// ZuulNodeClass is what a ZUUL_NODE means. A Node labelled zuulbuild.dev/node=NAME makes class NAME exist without an object; the object is for
// pools that scale to zero nodes and for tuning.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=znc,categories=zuul,scope=Cluster
// +kubebuilder:printcolumn:name="Class",type=string,JSONPath=`.spec.className`
// +kubebuilder:printcolumn:name="Max builds",type=integer,JSONPath=`.spec.maxBuilds`
// +kubebuilder:printcolumn:name="Selector",type=string,JSONPath=`.spec.nodeSelector`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ZuulNodeClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec ZuulNodeClassSpec `json:"spec,omitempty"`
}

// ZuulNodeClassList is a list of ZuulNodeClasses.
// +kubebuilder:object:root=true
type ZuulNodeClassList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ZuulNodeClass `json:"items"`
}

// Find gives the class Zuul calls by a name; nil where there is none. Where several claim the name the oldest counts, and of those made in the same
// second the first by name.
func (l *ZuulNodeClassList) Find(name string) *ZuulNodeClass {
	var found *ZuulNodeClass
	for i := range l.Items {
		class := &l.Items[i]
		if class.GearmanName() != name {
			continue
		}
		if found == nil || cmp.Or(class.CreationTimestamp.Compare(found.CreationTimestamp.Time), cmp.Compare(class.Name, found.Name)) < 0 {
			found = class
		}
	}
	return found
}

// GearmanName is the name Zuul calls the class by.
func (c *ZuulNodeClass) GearmanName() string {
	if c.Spec.ClassName != "" {
		return c.Spec.ClassName
	}
	return c.Name
}
