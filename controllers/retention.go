package controllers

import (
	"cmp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Defaults of retention; docs/jobs.md tells them to users.
const (
	defaultKeepPod       = time.Hour
	defaultKeepSuccesses = 7 * 24 * time.Hour
	defaultKeepFailures  = 30 * 24 * time.Hour
	defaultKeepCount     = 1000
	// countGrace is for how long after its end no build goes because there are too many: its result may still have to be sent, or sent again to a
	// server that handed the job out once more (protocol section 5, item 3).
	countGrace = 10 * time.Minute
)

// keeping is how long, and how many, of a job's finished builds are kept, and how long the Pods that ended.
type keeping struct {
	pod, failedPod      time.Duration // failedPod is 0 where it is not asked for
	successes, failures keepLimit
}

type keepLimit struct {
	time  time.Duration
	count int
}

// keepingOf gives the limits of a job; job may be nil.
func keepingOf(job *v1alpha1.ZuulJob) keeping {
	keep := keeping{
		pod:       defaultKeepPod,
		successes: keepLimit{defaultKeepSuccesses, defaultKeepCount},
		failures:  keepLimit{defaultKeepFailures, defaultKeepCount},
	}
	if job == nil || job.Spec.Retention == nil {
		return keep
	}
	set := func(from *metav1.Duration, to ...*time.Duration) {
		for i := range to {
			if from != nil {
				*to[i] = from.Duration
			}
		}
	}
	retention := job.Spec.Retention
	set(retention.Pod, &keep.pod)
	set(retention.KeepFailedPodFor, &keep.failedPod)
	set(retention.Build, &keep.successes.time, &keep.failures.time)
	limit := func(to *keepLimit, from *v1alpha1.RetentionLimit) {
		if from == nil {
			return
		}
		set(from.For, &to.time)
		if from.Count != nil {
			to.count = int(*from.Count)
		}
	}
	limit(&keep.successes, retention.Successes)
	limit(&keep.failures, retention.Failures)
	return keep
}

// limit of the builds that ended in a phase.
func (k keeping) limit(phase v1alpha1.BuildPhase) keepLimit {
	if phase == v1alpha1.PhaseFailed || phase == v1alpha1.PhaseLost {
		return k.failures
	}
	return k.successes
}

// completedAt is when a complete build ended.
func completedAt(build *v1alpha1.ZuulBuild) time.Time {
	if build.Status.CompletionTime == nil { // somebody wrote the status by hand
		return build.CreationTimestamp.Time
	}
	return build.Status.CompletionTime.Time
}

// held is for how long after the end of a build its Pod is kept on purpose, to look into it; 0 where nobody asked for that.
func (k keeping) held(build *v1alpha1.ZuulBuild) time.Duration {
	if build.Status.Phase == v1alpha1.PhaseFailed || build.Status.Phase == v1alpha1.PhaseLost {
		return max(k.failedPod, k.asked(build))
	}
	return k.asked(build)
}

// asked is the same as far as the annotation of the build asks for it. What it says and cannot be read as a duration is a wish to keep the Pod.
func (k keeping) asked(build *v1alpha1.ZuulBuild) time.Duration {
	wish := build.Annotations[v1alpha1.AnnotationKeepPod]
	if wish == "" || strings.EqualFold(wish, "false") || build.Status.Phase == v1alpha1.PhaseAborted {
		return 0
	}
	if asked, err := time.ParseDuration(wish); err == nil {
		return max(asked, 0)
	}
	return k.limit(build.Status.Phase).time
}

// podUntil is until when the Pod of a complete build is kept. One that has not ended goes at once, since nobody would end it later.
func (k keeping) podUntil(build *v1alpha1.ZuulBuild, podEnded bool) time.Time {
	completed := completedAt(build)
	if !podEnded || build.Status.Phase == v1alpha1.PhaseAborted {
		return completed
	}
	return completed.Add(max(k.pod, k.held(build)))
}

// due is when a complete build goes, if it is among so many as are kept, or if it is not. In any case it is kept as long as later attempts count it,
// and as long as its annotation asks for its Pod.
func (k keeping) due(build *v1alpha1.ZuulBuild, counted bool) (time.Time, string) {
	least := k.asked(build)
	if remembered(build) {
		least = max(least, retryWindow)
	}
	completed := completedAt(build)
	full, early := max(k.limit(build.Status.Phase).time, k.held(build), least), max(countGrace, least)
	if counted || early >= full {
		return completed.Add(full), expiredByTime
	}
	return completed.Add(early), expiredByCount
}

// Why a build goes: its time is over, or there are enough that ended later.
const (
	expiredByTime  = "time"
	expiredByCount = "count"
)

// expiry is a build that is no longer kept.
type expiry struct {
	build *v1alpha1.ZuulBuild
	cause string
}

// expired are the builds that go now, those that ended first before the others, and when the next of them goes if nothing else happens; zero if none
// does. builds are the finished builds of one job. Builds that succeeded, that were aborted, and that failed or were lost are counted apart, so that
// resets of a queue do not push out what is worth keeping.
func (k keeping) expired(builds []v1alpha1.ZuulBuild, now time.Time) (gone []expiry, next time.Time) {
	kinds := map[v1alpha1.BuildPhase][]*v1alpha1.ZuulBuild{}
	for i := range builds {
		kind := builds[i].Status.Phase
		if kind == v1alpha1.PhaseLost {
			kind = v1alpha1.PhaseFailed
		}
		kinds[kind] = append(kinds[kind], &builds[i])
	}
	for kind, builds := range kinds {
		slices.SortFunc(builds, newestFirst)
		count := k.limit(kind).count
		for i, build := range builds {
			due, cause := k.due(build, i < count)
			if !due.After(now) {
				gone = append(gone, expiry{build, cause})
			} else if next.IsZero() || due.Before(next) {
				next = due
			}
		}
	}
	slices.SortFunc(gone, func(a, b expiry) int { return newestFirst(b.build, a.build) })
	return gone, next
}

// newestFirst orders builds by their ends; those of the same second by their numbers.
func newestFirst(a, b *v1alpha1.ZuulBuild) int {
	return cmp.Or(completedAt(b).Compare(completedAt(a)), cmp.Compare(b.Spec.Number, a.Spec.Number), cmp.Compare(b.Name, a.Name))
}
