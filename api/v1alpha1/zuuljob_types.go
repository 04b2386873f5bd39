package v1alpha1

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ConditionRegistered on a ZuulJob: Zuul can ask for the job. Where it is False the reason and message say what to change.
const ConditionRegistered = "Registered"

// ReasonPolicy says what follows from the end of a build.
// +kubebuilder:validation:Enum=retry;fail
// +kubebuilder:validation:MaxLength=16
type ReasonPolicy string

const (
	// PolicyRetry: no result, so that Zuul runs the job again.
	PolicyRetry ReasonPolicy = "retry"
	// PolicyFail: the result is FAILURE.
	PolicyFail ReasonPolicy = "fail"
)

// Timeouts are the clocks of a build. A field that a job leaves out has the default of the node class the build asked for; one that neither gives has
// the operator's, which is named here.
type Timeouts struct {
	// unscheduled is how long the Pod may be without a node. Default 15m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	Unscheduled *metav1.Duration `json:"unscheduled,omitempty"`

	// pending is how long the Pod may take from having a node to its main container running (image pull, init containers). Default 15m.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	Pending *metav1.Duration `json:"pending,omitempty"`

	// run is how long the main container may run; then the build ends TIMED_OUT. Default 3h.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	Run *metav1.Duration `json:"run,omitempty"`

	// abort is how long the containers have between SIGTERM and SIGKILL. Default 30s.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	Abort *metav1.Duration `json:"abort,omitempty"`
}

// RetentionLimit is how many of a job's finished builds of one kind are kept, and for how long. Whichever is reached first counts.
type RetentionLimit struct {
	// for is how long after its end a ZuulBuild is kept.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	For *metav1.Duration `json:"for,omitempty"`

	// count is how many ZuulBuilds are kept: those that ended last. One that ended within the last 10 minutes is kept in any case.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	// +optional
	Count *int32 `json:"count,omitempty"`
}

// Retention is how long, and how many, of a job's finished builds are kept. A field left out has the operator's default. Durations are as in `90s`,
// `1h30m` or `168h`.
//
// Whatever is set here, a build that was lost, or that ended a row of losses, is kept for at least 2h: by it the next attempt knows which it is.
type Retention struct {
	// pod is how long the Pod is kept after the build completed, and with it its log. Default 1h. An aborted build loses its Pod at once, and so does
	// one whose Pod has not ended.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	Pod *metav1.Duration `json:"pod,omitempty"`

	// keepFailedPodFor is the same for a build that failed or was lost, where its Pod is to be kept for longer than `pod`, to find out why. The
	// ZuulBuild is kept as long. The annotation zuulbuild.dev/keep-pod does so for one build, whatever its result.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	KeepFailedPodFor *metav1.Duration `json:"keepFailedPodFor,omitempty"`

	// build is how long the ZuulBuild is kept, where successes and failures say nothing else. Default: 168h, and 720h if it failed or was lost.
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,6}(\.[0-9]{1,9})?(ms|s|m|h))+$`
	// +optional
	Build *metav1.Duration `json:"build,omitempty"`

	// successes is the limit for builds that succeeded and, counted apart, for those that were aborted. Default: 168h and 1000.
	// +optional
	Successes *RetentionLimit `json:"successes,omitempty"`

	// failures is the limit for builds that failed or were lost. Default: 720h and 1000.
	// +optional
	Failures *RetentionLimit `json:"failures,omitempty"`
}

// CensoredSecret is a Secret whose values are kept out of logs.
type CensoredSecret struct {
	// name of the Secret, which is in the namespace of the ZuulJob.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Name string `json:"name"`

	// keys of the values. Default: every key there is.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^[-._a-zA-Z0-9]+$`
	// +listType=set
	// +optional
	Keys []string `json:"keys,omitempty"`
}

// ZuulJobSpec says how to run a job: either image and script, or a whole Pod template.
//
// +kubebuilder:validation:XValidation:rule="has(self.template) ? !has(self.image) && !has(self.script) && !has(self.resources) : has(self.image) && has(self.script)",message="give either image and script (and resources), or template"
// +kubebuilder:validation:XValidation:rule="!has(self.template) || has(self.template.spec)",message="template needs a spec with at least one container"
type ZuulJobSpec struct {
	// jobName is what Zuul calls the job, where that is not the name of this object: printable ASCII without spaces. Default: metadata.name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=400
	// +kubebuilder:validation:Pattern=`^[!-~]+$`
	// +optional
	JobName string `json:"jobName,omitempty"`

	// image runs the script.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Image string `json:"image,omitempty"`

	// script is run by `/bin/sh -e`, or by the interpreter its first line names (#!). At most 120,000 bytes.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=120000
	// +optional
	Script string `json:"script,omitempty"`

	// resources of the script's container. Default: those of the node class.
	// +optional
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`

	// template is a whole Pod template, for jobs that need more than a script. The main container is the one named `build`, else the first: it
	// decides the result. restartPolicy is always Never.
	// +optional
	Template *corev1.PodTemplateSpec `json:"template,omitempty"`

	// nodes are the node classes the job may be asked to run on. Empty means every class.
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^[!-~]+$`
	// +listType=set
	// +optional
	Nodes []string `json:"nodes,omitempty"`

	// maxBuilds is how many builds of the job may be at work at once, on all nodes together. Further ones wait, in the Gearman server or, made by
	// hand, as Queued. Lowering it stops nothing. Default: no limit but those of the node class and the operator.
	// +kubebuilder:validation:Minimum=1
	// +optional
	MaxBuilds int32 `json:"maxBuilds,omitempty"`

	// timeouts are the clocks of its builds.
	// +optional
	Timeouts *Timeouts `json:"timeouts,omitempty"`

	// maxAttempts is how many builds of the same change the infrastructure may lose in a row: the last of them ends RETRY_LIMIT instead of without a
	// result, at which Zuul would run it again. 1 means that no build is to be run twice. Zuul from 2.5.2 on has a limit of its own (`attempts`, 3),
	// and the lower one counts. The second attempt gets its Pod at once, the third 15s after the loss before it, the fourth 1m, any further one 5m;
	// meanwhile it keeps its slot. Default 5.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	// +optional
	MaxAttempts int32 `json:"maxAttempts,omitempty"`

	// onReason says what follows where a build ends for one of these reasons, of which none is for certain the job's fault: retry (no result, so that
	// Zuul runs it again, up to maxAttempts) or fail (FAILURE). Default: retry for Disrupted, Rejected, NodeLost, PodDeleted, Unschedulable,
	// StartTimeout, QuotaExceeded and Unknown, fail for ImagePullFailed and InitFailed. Pods are made again (maxPods) before that is asked.
	// +kubebuilder:validation:MaxProperties=10
	// +kubebuilder:validation:XValidation:rule="self.all(reason, reason in ['Disrupted', 'Rejected', 'NodeLost', 'PodDeleted', 'Unschedulable', 'StartTimeout', 'QuotaExceeded', 'Unknown', 'ImagePullFailed', 'InitFailed'])",message="only Disrupted, Rejected, NodeLost, PodDeleted, Unschedulable, StartTimeout, QuotaExceeded, Unknown, ImagePullFailed and InitFailed are for the job to decide"
	// +mapType=atomic
	// +optional
	OnReason map[string]ReasonPolicy `json:"onReason,omitempty"`

	// maxPods is how many Pods one build may have: a Pod that the infrastructure takes before its main container ran (evicted, refused by the kubelet,
	// deleted) is made again, after 10s, then 1m, without Zuul being told. status.lostPods of the build lists such Pods. The loss of the last one is
	// the loss of the build. 1 means that no Pod is made again. Default 3.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=20
	// +optional
	MaxPods int32 `json:"maxPods,omitempty"`

	// retention is how long, and how many of, its builds and their Pods are kept.
	// +optional
	Retention *Retention `json:"retention,omitempty"`

	// censor names Secrets whose values logs show as ****. It hides them from readers, not from the job: a script can always write a secret in a way that
	// nothing recognises. The operator needs the right to read these Secrets; where it has not, or where one was changed since the Pod was made,
	// the build's page shows no log. docs/jobs.md says what is recognised.
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	// +optional
	Censor []CensoredSecret `json:"censor,omitempty"`

	// disabled takes the job away from Zuul; running builds go on.
	// +optional
	Disabled bool `json:"disabled,omitempty"`

	// firstBuildNumber is the lowest number to give, to go on where another system stopped. Default 1. The most leaves room for a
	// billion builds below the largest number.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=9007198254740991
	// +optional
	FirstBuildNumber int64 `json:"firstBuildNumber,omitempty"`
}

// BranchEstimate is how long builds for a branch run.
type BranchEstimate struct {
	// branch is their ZUUL_BRANCH.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	Branch string `json:"branch"`

	// duration is the median of the last successes, at most 10, in whole seconds.
	Duration metav1.Duration `json:"duration"`
}

// ZuulJobStatus is what the operator makes of the job.
type ZuulJobStatus struct {
	// functions are the Gearman functions registered for the job.
	// +listType=set
	// +optional
	Functions []string `json:"functions,omitempty"`

	// lastNumber is the highest build number given or set aside to be given. Numbers up to it are never given again, so after an unclean end of
	// the operator some may be skipped.
	// +optional
	LastNumber int64 `json:"lastNumber,omitempty"`

	// estimatedDuration is how long a build of the job is expected to run: the median of the last builds that succeeded, at most 10, from the start of
	// the main container to the end, in whole seconds, at least 1s. It is written at most once a minute, and where something changed by more than 5 %.
	// +optional
	EstimatedDuration *metav1.Duration `json:"estimatedDuration,omitempty"`

	// branchEstimates are the same by branch (ZUUL_BRANCH), for branches with at least 3 successes that are still kept: of those the 20 that had one
	// last.
	// +kubebuilder:validation:MaxItems=20
	// +listType=map
	// +listMapKey=branch
	// +optional
	BranchEstimates []BranchEstimate `json:"branchEstimates,omitempty"`

	// estimateTime is when the estimates were written.
	// +optional
	EstimateTime *metav1.Time `json:"estimateTime,omitempty"`

	// conditions: Registered.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ZuulJob is what Zuul calls a job.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=zj,categories=zuul
// +kubebuilder:printcolumn:name="Job",type=string,JSONPath=`.spec.jobName`
// +kubebuilder:printcolumn:name="Registered",type=string,JSONPath=`.status.conditions[?(@.type=="Registered")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Registered")].reason`
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Estimated",type=string,JSONPath=`.status.estimatedDuration`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Registered")].message`,priority=1
type ZuulJob struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ZuulJobSpec `json:"spec"`
	// +optional
	Status ZuulJobStatus `json:"status,omitempty"`
}

// ZuulJobList is a list of ZuulJobs.
// +kubebuilder:object:root=true
type ZuulJobList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ZuulJob `json:"items"`
}

// GearmanName is the name Zuul calls the job by.
func (j *ZuulJob) GearmanName() string {
	if j.Spec.JobName != "" {
		return j.Spec.JobName
	}
	return j.Name
}

// Estimate is how long a build for a branch, or for none (""), is expected to run; 0 where that is not known.
func (s *ZuulJobStatus) Estimate(branch string) time.Duration {
	for i := range s.BranchEstimates {
		if s.BranchEstimates[i].Branch == branch {
			return s.BranchEstimates[i].Duration.Duration
		}
	}
	if s.EstimatedDuration == nil {
		return 0
	}
	return s.EstimatedDuration.Duration
}
