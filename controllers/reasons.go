package controllers

// Reasons of a verdict: the same word in status.reason, in the Complete condition, in the event and in docs/reasons.md.
const (
	ReasonSucceeded       = "Succeeded"
	ReasonExitCode        = "ExitCode"
	ReasonTimedOut        = "TimedOut"
	ReasonOOMKilled       = "OOMKilled"
	ReasonStorageExceeded = "StorageExceeded"
	ReasonAborted         = "Aborted"
	ReasonAbandoned       = "Abandoned"

	// The job's or the request's configuration.
	ReasonInvalidRequest       = "InvalidRequest"
	ReasonJobNotFound          = "JobNotFound"
	ReasonInvalidPod           = "InvalidPod"
	ReasonForbidden            = "Forbidden"
	ReasonImageInvalid         = "ImageInvalid"
	ReasonImagePullFailed      = "ImagePullFailed"
	ReasonContainerConfigError = "ContainerConfigError"
	ReasonStartError           = "StartError"
	ReasonInitFailed           = "InitFailed"

	// The infrastructure: no result, Zuul runs the job again.
	ReasonDisrupted     = "Disrupted"
	ReasonRejected      = "Rejected"
	ReasonNodeLost      = "NodeLost"
	ReasonPodDeleted    = "PodDeleted"
	ReasonUnschedulable = "Unschedulable"
	ReasonStartTimeout  = "StartTimeout"
	ReasonUnknown       = "Unknown"

	// The infrastructure too often in a row: a result, so that Zuul does not run the job again.
	ReasonRetryLimit = "RetryLimit"

	// Why a build that has not ended is where it is. QuotaExceeded, OperatorForbidden and FailedCreate for too long are verdicts of the infrastructure, too.
	ReasonCapacityReached   = "CapacityReached"
	ReasonReplacingPod      = "ReplacingPod"
	ReasonRetryDelayed      = "RetryDelayed"
	ReasonQuotaExceeded     = "QuotaExceeded"
	ReasonOperatorForbidden = "OperatorForbidden"
	ReasonFailedCreate      = "FailedCreate"
	ReasonScheduling        = "Scheduling"
	ReasonSchedulingGated   = "SchedulingGated"
	ReasonContainerCreating = "ContainerCreating"
	ReasonInitializing      = "Initializing"
	ReasonRunning           = "Running"
)

// Results Zuul is told. An infrastructure verdict has none.
const (
	ResultSuccess        = "SUCCESS"
	ResultFailure        = "FAILURE"
	ResultAborted        = "ABORTED"
	ResultTimedOut       = "TIMED_OUT"
	ResultInvalidRequest = "INVALID_REQUEST"
	ResultRetryLimit     = "RETRY_LIMIT" // what Zuul from 2.5.2 on says of its own limit
)
