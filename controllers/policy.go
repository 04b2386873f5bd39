package controllers

import "zuulbuild.dev/zuulbuild/api/v1alpha1"

// defaultPolicies are what follows from the reasons a job may decide about itself, where it does not. The API server takes no others in spec.onReason.
var defaultPolicies = map[string]v1alpha1.ReasonPolicy{
	ReasonDisrupted:       v1alpha1.PolicyRetry,
	ReasonRejected:        v1alpha1.PolicyRetry,
	ReasonNodeLost:        v1alpha1.PolicyRetry,
	ReasonPodDeleted:      v1alpha1.PolicyRetry,
	ReasonUnschedulable:   v1alpha1.PolicyRetry,
	ReasonStartTimeout:    v1alpha1.PolicyRetry,
	ReasonQuotaExceeded:   v1alpha1.PolicyRetry,
	ReasonUnknown:         v1alpha1.PolicyRetry,
	ReasonImagePullFailed: v1alpha1.PolicyFail,
	ReasonInitFailed:      v1alpha1.PolicyFail,
}

// withPolicy is the verdict as the job wants it: FAILURE instead of no result, or the other way round. It never makes or unmakes another result.
// job may be nil.
func withPolicy(v *verdict, job *v1alpha1.ZuulJob) *verdict {
	if _, known := defaultPolicies[v.reason]; !known || job == nil {
		return v
	}
	switch policy := job.Spec.OnReason[v.reason]; {
	case policy == v1alpha1.PolicyFail && v.phase == v1alpha1.PhaseLost:
		return failed(v.reason, "%s", v.message)
	case policy == v1alpha1.PolicyRetry && v.phase == v1alpha1.PhaseFailed:
		return lost(v.reason, "%s", v.message)
	default:
		return v
	}
}
