package controllers

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Metrics are those of docs/metrics.md. Events are counted as they come; the builds there are, are counted at each scrape, and only while this replica
// works, so that a sum over all replicas is right. They outlive the reconciler, of which there may be one after another. nil counts nothing.
type Metrics struct {
	stages                                      *prometheus.HistogramVec
	completed, lostPods, deletedBuilds, orphans *prometheus.CounterVec

	byJob bool // whether the first two have a label for the job

	failed func(error) // is told why builds cannot be counted
	// read tells which builds are not complete; nil while this replica does not work.
	read atomic.Pointer[func() ([]v1alpha1.ZuulBuild, error)]

	mu      sync.Mutex
	classes map[string]bool // node classes that have a label value of their own
}

// Stages of a build, in their order.
const (
	stageQueued      = "queued"
	stageUnscheduled = "unscheduled"
	stageStarting    = "starting"
	stageRunning     = "running"
)

const (
	resultNone = "none"
	// waitNew stands for no reason yet, and waitOther for the kubelet's rarer words.
	waitNew   = "new"
	waitOther = "other"
	// classOther stands for node classes beyond maxClasses: builds made by hand may ask for any.
	classOther = "other"
	maxClasses = 100
)

// stageBuckets are from a second, as exact as the times of objects are, to the default of the run clock and beyond.
var stageBuckets = []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600}

// waitReasons are why builds that have not started may wait, with those words of the kubelet that are known.
var waitReasons = []string{
	ReasonCapacityReached, ReasonReplacingPod, ReasonRetryDelayed, ReasonQuotaExceeded, ReasonOperatorForbidden, ReasonFailedCreate, ReasonForbidden, ReasonScheduling,
	ReasonSchedulingGated, ReasonUnschedulable, ReasonContainerCreating, ReasonInitializing, "ErrImagePull", "ImagePullBackOff",
	"CreateContainerConfigError", "CreateContainerError",
}

// reasonsOf a result, which is how builds end where their job says nothing else in spec.onReason.
var reasonsOf = map[string][]string{
	ResultSuccess: {ReasonSucceeded},
	ResultFailure: {
		ReasonExitCode, ReasonOOMKilled, ReasonStorageExceeded, ReasonJobNotFound, ReasonInvalidPod, ReasonForbidden, ReasonImageInvalid,
		ReasonImagePullFailed, ReasonContainerConfigError, ReasonStartError, ReasonInitFailed,
	},
	ResultTimedOut:       {ReasonTimedOut},
	ResultAborted:        {ReasonAborted},
	ResultInvalidRequest: {ReasonInvalidRequest},
	ResultRetryLimit:     {ReasonRetryLimit},
	resultNone: {
		ReasonQuotaExceeded, ReasonOperatorForbidden, ReasonFailedCreate, ReasonUnschedulable, ReasonStartTimeout, ReasonDisrupted, ReasonRejected, ReasonNodeLost,
		ReasonPodDeleted, ReasonAbandoned, ReasonUnknown,
	},
}

var buildsDesc = prometheus.NewDesc("zuulbuild_builds",
	"Builds that are not complete, by node class (empty for none, other beyond 100) and phase: Queued, Starting (reason and message of the build say what it "+
		"waits for), Running or Aborting.", []string{"class", "phase"}, nil)

var waitingDesc = prometheus.NewDesc("zuulbuild_builds_waiting",
	"Builds that have not started, by what they wait for, in the words of docs/reasons.md; new where there is no reason yet, other for a rare one of the kubelet's.",
	[]string{"reason"}, nil)

// NewMetrics makes the metrics and registers them, once in a process. byJob gives those that are about builds a label for the job.
func NewMetrics(registry prometheus.Registerer, byJob bool) (*Metrics, error) {
	m := newMetrics(byJob, func(err error) { ctrl.Log.Error(err, "Metrics are left out of a scrape") })
	return m, registry.Register(m)
}

// newMetrics has every series of known labels begin at 0, so that the first event is an increase.
func newMetrics(byJob bool, failed func(error)) *Metrics {
	var job []string
	if byJob {
		job = []string{"zuul_job"} // Prometheus has a label job of its own, and would call this one exported_job
	}
	m := &Metrics{
		byJob: byJob, failed: failed, classes: map[string]bool{},
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "zuulbuild_build_stage_duration_seconds",
			Help: "How long builds were in a stage, by node class (empty for none, other beyond 100) and stage: queued (from the ZuulBuild to its Pod: quota, " +
				"retries held back, the operator itself), unscheduled (from the Pod to its node), starting (from the node to the main container running: images, " +
				"volumes, init containers) or running (to the end). A stage a build did not come out of is not in it.",
			Buckets:                         stageBuckets,
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  160,
			NativeHistogramMinResetDuration: time.Hour,
		}, append([]string{"class", "stage"}, job...)),
		completed: counter("zuulbuild_builds_completed_total",
			"Builds that got their verdict, by result (none: lost by the infrastructure or abandoned, Zuul is told nothing) and reason; docs/reasons.md lists the reasons.",
			append([]string{"result", "reason"}, job...)...),
		lostPods: counter("zuulbuild_pods_lost_total",
			"Pods that the infrastructure took before their job began, and that are made again under the same build, by reason: Disrupted, Rejected or PodDeleted.",
			"reason"),
		deletedBuilds: counter("zuulbuild_retention_deleted_builds_total",
			"Finished builds deleted because they are no longer kept, by cause: time, or count (as many of the job ended later).", "cause"),
		orphans: counter("zuulbuild_orphan_pods_deleted_total",
			"Pods deleted because they have no build, by cause: build_deleted, or build_replaced (the build of that name is another one).", "cause"),
	}
	for result, reasons := range reasonsOf {
		for _, reason := range reasons {
			if !byJob { // jobs are not known yet, and most end in few ways
				m.completed.WithLabelValues(result, reason)
			}
		}
	}
	for _, reason := range replaceableReasons {
		m.lostPods.WithLabelValues(reason)
	}
	for _, cause := range []string{expiredByTime, expiredByCount} {
		m.deletedBuilds.WithLabelValues(cause)
	}
	for _, cause := range []string{orphanDeleted, orphanReplaced} {
		m.orphans.WithLabelValues(cause)
	}
	return m
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

// indexUnfinished finds the builds that are not complete, under "true".
const indexUnfinished = "unfinished"

func indexUnfinishedOf(object client.Object) []string {
	if object.(*v1alpha1.ZuulBuild).Complete() {
		return nil
	}
	return []string{"true"}
}

// unfinished are the builds that are not complete; not to be changed.
func (r *ZuulBuildReconciler) unfinished() ([]v1alpha1.ZuulBuild, error) {
	builds := v1alpha1.ZuulBuildList{}
	err := r.List(context.Background(), &builds, client.MatchingFields{indexUnfinished: "true"}, client.UnsafeDisableDeepCopy)
	return builds.Items, err
}

// work says that this replica works, until ctx ends, and how to read which builds are not complete.
func (m *Metrics) work(ctx context.Context, read func() ([]v1alpha1.ZuulBuild, error)) {
	if m == nil {
		return
	}
	m.read.Store(&read)
	defer m.read.CompareAndSwap(&read, nil)
	<-ctx.Done()
}

func (m *Metrics) counted() []prometheus.Collector {
	return []prometheus.Collector{m.stages, m.completed, m.lostPods, m.deletedBuilds, m.orphans}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, collector := range m.counted() {
		collector.Describe(descs)
	}
	descs <- buildsDesc
	descs <- waitingDesc
}

// Collect implements prometheus.Collector. It asks nobody but the cache.
func (m *Metrics) Collect(values chan<- prometheus.Metric) {
	for _, collector := range m.counted() {
		collector.Collect(values)
	}
	read := m.read.Load()
	if read == nil {
		return
	}
	builds, err := (*read)()
	if err != nil {
		m.failed(err)
		return
	}
	m.collect(values, builds)
}

func (m *Metrics) collect(values chan<- prometheus.Metric, builds []v1alpha1.ZuulBuild) {
	type key struct{ class, phase string }
	counts, waiting := map[key]int{}, map[string]int{}
	for i := range builds {
		phase := cmp.Or(builds[i].Status.Phase, v1alpha1.PhaseQueued)
		counts[key{m.class(&builds[i]), string(phase)}]++
		if phase == v1alpha1.PhaseQueued || phase == v1alpha1.PhaseStarting {
			waiting[waitLabel(builds[i].Status.Reason)]++
		}
	}
	for key, count := range counts {
		values <- prometheus.MustNewConstMetric(buildsDesc, prometheus.GaugeValue, float64(count), key.class, key.phase)
	}
	for reason, count := range waiting {
		values <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(count), reason)
	}
}

// waitLabel bounds the values of the label.
func waitLabel(reason string) string {
	switch {
	case reason == "":
		return waitNew
	case slices.Contains(waitReasons, reason):
		return reason
	default:
		return waitOther
	}
}

// class is the node class of a build as a label value, of which there are at most maxClasses and classOther.
func (m *Metrics) class(build *v1alpha1.ZuulBuild) string {
	class := build.Spec.Node
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.classes[class] && len(m.classes) >= maxClasses {
		return classOther
	}
	m.classes[class] = true
	return class
}

// written counts what a build came through with the status that was just written; job may be nil, and so may pod.
func (m *Metrics) written(before, after *v1alpha1.ZuulBuild, job *v1alpha1.ZuulJob, pod *corev1.Pod) {
	if m == nil {
		return
	}
	var byJob []string
	if m.byJob {
		name := "" // whoever makes builds by hand could name any
		if job != nil {
			name = job.GearmanName()
		}
		byJob = []string{name}
	}
	for stage, took := range stagesOver(before, after, pod) {
		m.stages.WithLabelValues(append([]string{m.class(after), stage}, byJob...)...).Observe(took.Seconds())
	}
	for _, l := range after.Status.LostPods[len(before.Status.LostPods):] {
		m.lostPods.WithLabelValues(l.Reason).Inc()
	}
	if after.Complete() && !before.Complete() {
		m.completed.WithLabelValues(append([]string{cmp.Or(after.Status.Result, resultNone), after.Status.Reason}, byJob...)...).Inc()
	}
}

// stagesOver are the stages a build came out of with this status, and how long it was in each. Those up to the start of the main container are told
// together, with the start, or with the end if that never started. pod may be nil.
func stagesOver(before, after *v1alpha1.ZuulBuild, pod *corev1.Pod) map[string]time.Duration {
	over := map[string]time.Duration{}
	between := func(stage string, from, to time.Time) { over[stage] = max(to.Sub(from), 0) }
	started, ends := after.Status.StartTime, after.Complete() && !before.Complete()
	if pod != nil && before.Status.StartTime == nil && (started != nil || ends) {
		between(stageQueued, after.CreationTimestamp.Time, pod.CreationTimestamp.Time)
		if scheduled := after.Status.ScheduledTime; scheduled != nil {
			between(stageUnscheduled, pod.CreationTimestamp.Time, scheduled.Time)
			if started != nil {
				between(stageStarting, scheduled.Time, started.Time)
			}
		}
	}
	if ends && started != nil {
		between(stageRunning, started.Time, completedAt(after))
	}
	return over
}

// buildDeleted counts a build that is no longer kept.
func (m *Metrics) buildDeleted(cause string) {
	if m != nil {
		m.deletedBuilds.WithLabelValues(cause).Inc()
	}
}

// orphanDeleted counts a Pod that had no build.
func (m *Metrics) orphanDeleted(cause string) {
	if m != nil {
		m.orphans.WithLabelValues(cause).Inc()
	}
}
