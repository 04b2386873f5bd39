package controllers

import (
	"cmp"
	"context"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Bounds of estimates; docs/jobs.md tells them to users.
const (
	estimateFrom     = 10 // successes, as Zuul does from 2.5.0 on
	estimateBranch   = 3  // successes a branch needs for an estimate of its own
	estimateBranches = 20
	estimateInterval = time.Minute // between two writes
	maxBranchName    = 255         // bytes
)

// estimatesOf is how long a build is expected to run, in all and by branch (in the order of their names), after the finished builds of a job; 0 where
// none of them tells.
func estimatesOf(builds []v1alpha1.ZuulBuild) (time.Duration, []v1alpha1.BranchEstimate) {
	var successes []*v1alpha1.ZuulBuild
	for i := range builds {
		status := &builds[i].Status
		if status.Phase == v1alpha1.PhaseSucceeded && status.StartTime != nil && status.CompletionTime != nil {
			successes = append(successes, &builds[i])
		}
	}
	if len(successes) == 0 {
		return 0, nil
	}
	slices.SortFunc(successes, newestFirst)
	var branches []string // the one with the last success first
	last := map[string][]*v1alpha1.ZuulBuild{}
	for _, build := range successes {
		branch := build.Spec.Parameters["ZUUL_BRANCH"]
		if branch == "" || len(branch) > maxBranchName || len(last[branch]) == estimateFrom {
			continue
		}
		if last[branch] == nil {
			branches = append(branches, branch)
		}
		last[branch] = append(last[branch], build)
	}
	branches = slices.DeleteFunc(branches, func(branch string) bool { return len(last[branch]) < estimateBranch })
	var estimates []v1alpha1.BranchEstimate
	for _, branch := range branches[:min(len(branches), estimateBranches)] {
		estimates = append(estimates, v1alpha1.BranchEstimate{Branch: branch, Duration: metav1.Duration{Duration: median(last[branch])}})
	}
	slices.SortFunc(estimates, func(a, b v1alpha1.BranchEstimate) int { return cmp.Compare(a.Branch, b.Branch) })
	return median(successes[:min(len(successes), estimateFrom)]), estimates
}

// median of how long builds ran, in whole seconds, at least one.
func median(builds []*v1alpha1.ZuulBuild) time.Duration {
	ran := make([]time.Duration, len(builds))
	for i, build := range builds {
		ran[i] = build.Status.CompletionTime.Sub(build.Status.StartTime.Time)
	}
	slices.Sort(ran)
	middle := (ran[(len(ran)-1)/2] + ran[len(ran)/2]) / 2
	return max(middle.Round(time.Second), time.Second)
}

// estimateChanged tells whether something in the estimates of a job is new, or is other than before by more than 5 %.
func estimateChanged(status *v1alpha1.ZuulJobStatus, all time.Duration, branches []v1alpha1.BranchEstimate) bool {
	differs := func(before, after time.Duration) bool { return 20*(after-before).Abs() > before }
	if status.EstimatedDuration == nil || differs(status.EstimatedDuration.Duration, all) {
		return true
	}
	return !slices.EqualFunc(status.BranchEstimates, branches, func(before, after v1alpha1.BranchEstimate) bool {
		return before.Branch == after.Branch && !differs(before.Duration.Duration, after.Duration.Duration)
	})
}

// estimate writes the estimates of a job where they changed, and tells how long to wait with that; job may be nil. What was known stays where no
// success is left.
func (r *finishedReconciler) estimate(ctx context.Context, job *v1alpha1.ZuulJob, builds []v1alpha1.ZuulBuild, now time.Time) (time.Duration, error) {
	if job == nil {
		return 0, nil
	}
	all, branches := estimatesOf(builds)
	if all == 0 || !estimateChanged(&job.Status, all, branches) {
		return 0, nil
	}
	if written := job.Status.EstimateTime; written != nil && now.Sub(written.Time) < estimateInterval {
		return estimateInterval - now.Sub(written.Time), nil
	}
	after := job.DeepCopy()
	after.Status.EstimatedDuration, after.Status.BranchEstimates = &metav1.Duration{Duration: all}, branches
	after.Status.EstimateTime = &metav1.Time{Time: now.Truncate(time.Second)}
	return 0, client.IgnoreNotFound(r.Status().Patch(ctx, after, client.MergeFrom(job)))
}
