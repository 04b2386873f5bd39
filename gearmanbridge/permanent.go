package gearmanbridge

import (
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// forbiddenFor is how long an answer Forbidden may pass by itself. An API server that has just started serves before it has read the RBAC roles, and
// refuses until then what it will allow: moments, but minutes where there are many RoleBindings (kubernetes issue 121635). Jobs that came while it was
// away are tried again just then. Longer, and a right that is missing for good would be told of too late.
const forbiddenFor = 2 * time.Minute

// forbiddenSince is since when all answers were Forbidden, given that of those before, and zero if the last was not. A longer absence of the API server
// is no part of it: the first answer after that is just the one that passes.
func forbiddenSince(before time.Time, last error, now time.Time) time.Time {
	switch {
	case !apierrors.IsForbidden(last):
		return time.Time{}
	case before.IsZero():
		return now
	default:
		return before
	}
}

// permanent errors stay however often the request is sent again; one that is Forbidden if it has stayed for as long as it may pass.
func permanent(err error, forbidden, mayPass time.Duration) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsRequestEntityTooLargeError(err) || apierrors.IsNotFound(err) ||
		apierrors.IsForbidden(err) && !ofQuota(err) && forbidden >= mayPass
}

// ofQuota tells that a quota has no room, or that nobody has counted yet what of it is used. That is never the request's fault.
func ofQuota(err error) bool {
	return strings.Contains(err.Error(), "exceeded quota") || strings.Contains(err.Error(), "status unknown for quota")
}
