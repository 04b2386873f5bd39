package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// BuildPhase is a one-word summary of a ZuulBuild. Conditions tell more.
// +kubebuilder:validation:Enum=Queued;Starting;Running;Aborting;Succeeded;Failed;Aborted;Lost
// +kubebuilder:validation:MaxLength=16
type BuildPhase string

const (
	// PhaseQueued: accepted, no container has run, and nothing is known to be in the way but, as the reason then says, a limit.
	PhaseQueued BuildPhase = "Queued"
	// PhaseStarting: the Pod has been waiting for some time, or cannot be made yet; reason and message say for what.
	PhaseStarting BuildPhase = "Starting"
	// PhaseRunning: the main container has started.
	PhaseRunning BuildPhase = "Running"
	// PhaseAborting: the build is to stop and its Pod is not gone yet.
	PhaseAborting BuildPhase = "Aborting"
	// PhaseSucceeded: ended, result SUCCESS.
	PhaseSucceeded BuildPhase = "Succeeded"
	// PhaseFailed: ended by the job's or the configuration's fault; the result says how.
	PhaseFailed BuildPhase = "Failed"
	// PhaseAborted: ended because somebody stopped it.
	PhaseAborted BuildPhase = "Aborted"
	// PhaseLost: ended by no fault of the job and without a result, so that Zuul runs it again.
	PhaseLost BuildPhase = "Lost"
)

// Condition types of a ZuulBuild. All of them carry observedGeneration.
const (
	// ConditionPodScheduled: the Pod has a node.
	ConditionPodScheduled = "PodScheduled"
	// ConditionStarted: the main container has started.
	ConditionStarted = "Started"
	// ConditionComplete: the verdict is final. Its reason is the reason of the verdict.
	ConditionComplete = "Complete"
)

// AbortReason says why a build is to stop.
// +kubebuilder:validation:Enum=Stopped;Abandoned
// +kubebuilder:validation:MaxLength=16
type AbortReason string

const (
	// AbortStopped: somebody asked for it, by stop: or by hand. The build ends ABORTED. The same as no reason.
	AbortStopped AbortReason = "Stopped"
	// AbortAbandoned: the Gearman job behind the build is gone, so nobody waits for it. The build ends without a result: if the server does
	// hand the same unique out once more, Zuul runs it again rather than being told ABORTED.
	AbortAbandoned AbortReason = "Abandoned"
)

// JobReference names a ZuulJob in the namespace of the build.
type JobReference struct {
	// name of the ZuulJob.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// ZuulBuildSpec is what was asked for. It cannot change, but for abort, which can only become true, and number, which is given once.
//
// +kubebuilder:validation:XValidation:rule="has(self.jobRef) == has(oldSelf.jobRef)",message="jobRef cannot change: create a new ZuulBuild"
// +kubebuilder:validation:XValidation:rule="has(self.node) == has(oldSelf.node)",message="node cannot change: create a new ZuulBuild"
// +kubebuilder:validation:XValidation:rule="has(self.uuid) == has(oldSelf.uuid)",message="uuid cannot change: create a new ZuulBuild"
// +kubebuilder:validation:XValidation:rule="has(self.parameters) == has(oldSelf.parameters)",message="parameters cannot change: create a new ZuulBuild"
// +kubebuilder:validation:XValidation:rule="has(self.requestError) == has(oldSelf.requestError)",message="requestError cannot change"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.number) || has(self.number)",message="number is given once and cannot change"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.abort) || !oldSelf.abort || (has(self.abort) && self.abort)",message="abort can only become true: an aborted build does not come back, create a new ZuulBuild"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.abort) || !oldSelf.abort || has(self.abortReason) == has(oldSelf.abortReason)",message="abortReason cannot change once abort is true"
type ZuulBuildSpec struct {
	// job is the name Zuul calls the job by: the JOB of build:JOB:NODE.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=500
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="job cannot change: create a new ZuulBuild"
	Job string `json:"job"`

	// jobRef is the ZuulJob that says how to run it. Without it, the ZuulJob of this namespace whose job name is `job`.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="jobRef cannot change: create a new ZuulBuild"
	JobRef *JobReference `json:"jobRef,omitempty"`

	// node is the node class the build asks for: the NODE of build:JOB:NODE. Empty means any node.
	// +kubebuilder:validation:MaxLength=253
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="node cannot change: create a new ZuulBuild"
	Node string `json:"node,omitempty"`

	// uuid is the Gearman unique, which Zuul makes equal to ZUUL_UUID. Empty for a build made by hand.
	// +kubebuilder:validation:MaxLength=4096
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="uuid cannot change: create a new ZuulBuild"
	UUID string `json:"uuid,omitempty"`

	// number is the build number: at least 1, rising per job, never given twice. Left out of a build made by hand, it is filled in. The most is 2^53-1,
	// which every reader of JSON has exactly.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=9007199254740991
	// +optional
	// +kubebuilder:validation:XValidation:rule="oldSelf == 0 || self == oldSelf",message="number is given once and cannot change"
	Number int64 `json:"number,omitempty"`

	// parameters reach every container byte for byte: as environment variables, and as files where they are too long for that. Whoever may see
	// this object or its page sees them, so they are no place for secrets. At most 1000, of together about 1 MiB; docs/parameters.md says the rest.
	// +mapType=atomic
	// +kubebuilder:validation:MaxProperties=1000
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="parameters cannot change: create a new ZuulBuild"
	Parameters map[string]string `json:"parameters,omitempty"`

	// requestError says why the request could not be understood. Such a build never gets a Pod and ends at once, failed, with this as its message.
	// +kubebuilder:validation:MaxLength=4096
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="requestError cannot change"
	RequestError string `json:"requestError,omitempty"`

	// abort stops the build. It can only become true.
	// +optional
	Abort bool `json:"abort,omitempty"`

	// abortReason says why abort was set; empty means Stopped.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="abortReason cannot change"
	AbortReason AbortReason `json:"abortReason,omitempty"`
}

// LostPod is a Pod of a build that was made again.
type LostPod struct {
	// uid of the Pod. Its name was the build's, as that of every Pod of the build.
	UID types.UID `json:"uid"`

	// nodeName is the node it was on, if it had one.
	// +optional
	NodeName string `json:"nodeName,omitempty"`

	// reason is one word for why it was lost: Disrupted, Rejected or PodDeleted.
	// +optional
	Reason string `json:"reason,omitempty"`

	// message is a sentence for a person, with the facts behind the reason.
	// +optional
	Message string `json:"message,omitempty"`

	// creationTime is when it was made.
	// +optional
	CreationTime metav1.Time `json:"creationTime,omitempty"`

	// lostTime is when its loss was seen.
	// +optional
	LostTime metav1.Time `json:"lostTime,omitempty"`
}

// ZuulBuildStatus is what became of it. Only the controllers write it, and only the bridge writes the description. The verdict is given once: the
// API server refuses a second one, so that a late writer with an old view cannot change what Zuul was told.
//
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.phase) || !(oldSelf.phase in ['Succeeded', 'Failed', 'Aborted', 'Lost']) || (has(self.phase) && self.phase == oldSelf.phase && has(self.result) == has(oldSelf.result) && (!has(self.result) || self.result == oldSelf.result) && has(self.reason) == has(oldSelf.reason) && (!has(self.reason) || self.reason == oldSelf.reason))",message="the verdict on a build is given once"
type ZuulBuildStatus struct {
	// phase is a one-word summary.
	// +optional
	Phase BuildPhase `json:"phase,omitempty"`

	// result is what Zuul is told, decided once. Empty in a complete build means that Zuul is told nothing and runs the job again.
	// +kubebuilder:validation:Pattern=`^[A-Z][A-Z0-9_]*$`
	// +kubebuilder:validation:MaxLength=64
	// +optional
	Result string `json:"result,omitempty"`

	// reason is one word for why the build is where it is; docs/reasons.md lists them.
	// +optional
	Reason string `json:"reason,omitempty"`

	// message is a sentence for a person, with the facts behind the reason.
	// +optional
	Message string `json:"message,omitempty"`

	// attempts is how often the same change has been tried, this build included, where the infrastructure lost the builds before it. Absent: once.
	// +optional
	Attempts int32 `json:"attempts,omitempty"`

	// lostPods are the Pods of this build that the infrastructure took before their main container ran, the oldest first. For each the operator made
	// another one, without telling Zuul. They have nothing to do with attempts, which are builds. At most spec.maxPods of the ZuulJob less one.
	// +kubebuilder:validation:MaxItems=20
	// +listType=map
	// +listMapKey=uid
	// +optional
	LostPods []LostPod `json:"lostPods,omitempty"`

	// conditions: PodScheduled, Started, Complete.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// podCreationTime is when the Pod was made.
	// +optional
	PodCreationTime *metav1.Time `json:"podCreationTime,omitempty"`

	// scheduledTime is when the Pod got its node.
	// +optional
	ScheduledTime *metav1.Time `json:"scheduledTime,omitempty"`

	// startTime is when the main container started.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// completionTime is when the build ended.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`

	// podName is the Pod of the build, in the build's namespace.
	// +optional
	PodName string `json:"podName,omitempty"`

	// nodeName is the node the Pod ran on.
	// +optional
	NodeName string `json:"nodeName,omitempty"`

	// url is the page of this build.
	// +optional
	URL string `json:"url,omitempty"`

	// description is what Zuul says of the build by set_description, as HTML: the change, the other builds of it, the reported result. It may come
	// and change after the verdict. It is sanitised before it is stored; nobody should rely on that, since whoever may write the status may
	// have written it. At most 16 KiB.
	// +kubebuilder:validation:MaxLength=16384
	// +optional
	Description string `json:"description,omitempty"`
}

// ZuulBuild is one build of a job. Its name comes from the Gearman unique, so that a request seen twice is the same build.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=zb,categories=zuul
// +kubebuilder:selectablefield:JSONPath=`.spec.job`
// +kubebuilder:selectablefield:JSONPath=`.spec.node`
// +kubebuilder:selectablefield:JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Job",type=string,JSONPath=`.spec.job`
// +kubebuilder:printcolumn:name="Number",type=integer,JSONPath=`.spec.number`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Project",type=string,JSONPath=`.spec.parameters.ZUUL_PROJECT`
// +kubebuilder:printcolumn:name="Change",type=string,JSONPath=`.spec.parameters.ZUUL_CHANGE`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Result",type=string,JSONPath=`.status.result`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.status.podName`,priority=1
// +kubebuilder:printcolumn:name="On",type=string,JSONPath=`.status.nodeName`,priority=1
// +kubebuilder:printcolumn:name="Pipeline",type=string,JSONPath=`.spec.parameters.ZUUL_PIPELINE`,priority=1
// +kubebuilder:printcolumn:name="Branch",type=string,JSONPath=`.spec.parameters.ZUUL_BRANCH`,priority=1
// +kubebuilder:printcolumn:name="Attempts",type=integer,JSONPath=`.status.attempts`,priority=1
// +kubebuilder:printcolumn:name="UUID",type=string,JSONPath=`.spec.uuid`,priority=1
// +kubebuilder:printcolumn:name="URL",type=string,JSONPath=`.status.url`,priority=1
type ZuulBuild struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ZuulBuildSpec `json:"spec"`
	// Queued needs no write: it is how a build without a status reads.
	// +kubebuilder:default={phase: Queued}
	// +optional
	Status ZuulBuildStatus `json:"status,omitempty"`
}

// ZuulBuildList is a list of ZuulBuilds.
// +kubebuilder:object:root=true
type ZuulBuildList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ZuulBuild `json:"items"`
}

// Complete tells whether the verdict on the build is final.
func (b *ZuulBuild) Complete() bool {
	switch b.Status.Phase {
	case PhaseSucceeded, PhaseFailed, PhaseAborted, PhaseLost:
		return true
	default:
		return false
	}
}
