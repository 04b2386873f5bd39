package controllers

import (
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// refusal is what an answer Forbidden to a Pod, or to what it needs, is about.
type refusal int

const (
	// refusedPod: a policy, such as Pod Security, does not let it be, and never will.
	refusedPod refusal = iota
	// refusedByQuota: there is no room, or nobody has counted yet whether there is.
	refusedByQuota
	// refusedToOperator: the operator may make none, or the API server cannot tell yet. One that has just started serves before it has read the RBAC
	// roles and what its admission plugins need: moments, but minutes where there are many RoleBindings (kubernetes issue 121635).
	refusedToOperator
	// refusedServiceAccount: the namespace has no such service account. In a new one the default comes a moment after the namespace.
	refusedServiceAccount
)

// refusalOf tells them apart by the API server's words: the answer has nothing else. The words are those of its authorizer and of its own admission
// plugins ResourceQuota, ServiceAccount and OwnerReferencesPermissionEnforcement.
func refusalOf(err error) refusal {
	says := func(words string) bool { return strings.Contains(err.Error(), words) }
	switch {
	case says("exceeded quota"), says("status unknown for quota"):
		return refusedByQuota
	case says(` cannot create resource "`), says("you can't set finalizers on"), says("not yet ready to handle request"):
		return refusedToOperator
	case says("error looking up service account"):
		return refusedServiceAccount
	default:
		return refusedPod
	}
}

// forbidden is what becomes of a build where the API server does not let its Pod be, or what the Pod needs.
func (s *scope) forbidden(what string, err error) {
	limit := timeoutsOf(s.job, s.class).unscheduled
	final := failed(ReasonForbidden, "the API server does not let the %s be: %v", what, err)
	switch refusalOf(err) {
	case refusedByQuota:
		s.awaitLeave(ReasonQuotaExceeded, err, quotaRetry, limit, lost(ReasonQuotaExceeded, "no room for the Pod within %s: %v", limit, err))
	case refusedToOperator:
		s.awaitLeave(ReasonOperatorForbidden, err, shortestRequeue, limit,
			lost(ReasonOperatorForbidden, "the operator was not let make the %s within %s: %v", what, limit, err))
	case refusedServiceAccount:
		s.awaitLeave(ReasonForbidden, err, shortestRequeue, accountGrace, final)
	default:
		s.end(final)
	}
}

// awaitLeave has what was refused tried again, first after so long and then less and less often, until the limit is over; that is the verdict then. The
// condition holds since when, over all such reasons: they must not add up.
func (s *scope) awaitLeave(reason string, refusal error, first, limit time.Duration, over *verdict) {
	refused := meta.FindStatusCondition(s.build.Status.Conditions, v1alpha1.ConditionPodScheduled)
	if refused == nil || refused.Reason != reason {
		s.condition(v1alpha1.ConditionPodScheduled, metav1.ConditionFalse, reason, refusal.Error())
		refused = meta.FindStatusCondition(s.build.Status.Conditions, v1alpha1.ConditionPodScheduled)
	}
	waited := s.now.Sub(refused.LastTransitionTime.Time)
	if waited >= limit {
		s.end(over)
		return
	}
	s.explain(reason, refusal.Error())
	s.after = min(limit-waited, max(first, min(waited, quotaRetry)))
}
