package tracing

import (
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Report is the end of a build as the Gearman server was told it.
type Report struct {
	// Build as it was reported. One that was deleted has no status.completionTime, and ends with the report.
	Build *v1alpha1.ZuulBuild
	// Assigned is when the Gearman job was assigned, and Taken when its ZuulBuild was known to be there.
	Assigned, Taken time.Time
	// Adopted tells that the ZuulBuild was there before the job was assigned: the job came again after its connection was lost, say.
	Adopted bool
	// Learned is when the bridge learned of the verdict; zero where that was there when the job was assigned.
	Learned time.Time
	// Sent is when the finishing packet was written. Nothing in the trace is later.
	Sent time.Time
}

// Attributes that have no name in OpenTelemetry's semantic conventions.
const (
	keyBuild         = attribute.Key("zuulbuild.build")          // name of the ZuulBuild
	keyNumber        = attribute.Key("zuulbuild.number")         // build number
	keyNodeClass     = attribute.Key("zuulbuild.node_class")     // the NODE of build:JOB:NODE
	keyGearmanServer = attribute.Key("zuulbuild.gearman_server") // its name
	keyResult        = attribute.Key("zuulbuild.result")         // what Zuul was told
	keyReason        = attribute.Key("zuulbuild.reason")         // a word of docs/reasons.md
)

// span is a part of a trace.
type span struct {
	name       string
	start, end time.Time
	attributes []attribute.KeyValue // without those that would be empty
	events     []event
	failure    string // why the build is not what was hoped for; empty where it is, and where somebody stopped it
}

type event struct {
	name       string
	at         time.Time
	attributes []attribute.KeyValue
}

// spansOf is the trace of a build: the root, then what it came through, in that order. A stage that the build did not come to is not there; the one it
// did not come out of lasts until the verdict. The clocks behind the times are several, and those of objects tell whole seconds only, so no time is
// earlier than the one before it, nor later than the report.
func spansOf(r Report) []span {
	status := &r.Build.Status
	now := r.Assigned
	if r.Adopted {
		now = r.Build.CreationTimestamp.Time
	}
	next := func(at time.Time) time.Time {
		now = earlier(later(now, at), r.Sent)
		return now
	}
	root := span{name: "build " + r.Build.Spec.Job, start: now, end: r.Sent, attributes: attributesOf(r.Build), failure: failureOf(status)}
	var parts []span
	if !r.Adopted {
		parts = append(parts, span{name: "intake", start: root.start, end: next(r.Taken)})
	}
	// The stages have the names they have in zuulbuild_build_stage_duration_seconds.
	parts = append(parts, span{name: "queued", start: now})
	for _, stage := range []struct {
		name  string
		since *metav1.Time
	}{
		{"unscheduled", status.PodCreationTime}, {"starting", status.ScheduledTime}, {"running", status.StartTime},
	} {
		if !stage.since.IsZero() {
			start := next(stage.since.Time)
			parts[len(parts)-1].end = start
			parts = append(parts, span{name: stage.name, start: start})
		}
	}
	ended := r.Sent
	if !status.CompletionTime.IsZero() {
		ended = status.CompletionTime.Time
	}
	ended = next(ended)
	parts[len(parts)-1].end = ended
	parts = append(parts, span{name: "report", start: next(later(later(ended, r.Learned), r.Assigned)), end: r.Sent})

	for _, lost := range status.LostPods {
		root.events = append(root.events, event{"Pod lost", lost.LostTime.Time, given(
			semconv.K8SPodUID(string(lost.UID)), semconv.K8SNodeName(lost.NodeName), keyReason.String(lost.Reason))})
	}
	if r.Adopted {
		root.events = append(root.events, event{name: "job assigned again", at: r.Assigned})
	}
	root.events = append(root.events, event{"verdict", ended, given(keyResult.String(status.Result), keyReason.String(status.Reason))})
	return append([]span{root}, parts...)
}

// attributesOf a build are what it is found by. Its parameters are not among them, but for three that Zuul always sends.
func attributesOf(build *v1alpha1.ZuulBuild) []attribute.KeyValue {
	spec, status := &build.Spec, &build.Status
	return given(
		semconv.CICDPipelineName(spec.Parameters["ZUUL_PIPELINE"]),
		semconv.CICDPipelineTaskName(spec.Job),
		semconv.CICDPipelineTaskRunID(spec.UUID),
		semconv.CICDPipelineTaskRunURLFull(status.URL),
		resultOf(status),
		semconv.VCSRepositoryName(spec.Parameters["ZUUL_PROJECT"]),
		semconv.VCSChangeID(spec.Parameters["ZUUL_CHANGE"]),
		semconv.K8SNamespaceName(build.Namespace),
		semconv.K8SPodName(status.PodName),
		semconv.K8SNodeName(status.NodeName),
		keyBuild.String(build.Name),
		keyNumber.Int64(spec.Number),
		keyNodeClass.String(spec.Node),
		keyGearmanServer.String(build.Labels[v1alpha1.LabelGearmanServer]),
		keyResult.String(status.Result),
		keyReason.String(status.Reason),
	)
}

// given leaves out what is an empty text.
func given(attributes ...attribute.KeyValue) []attribute.KeyValue {
	return slices.DeleteFunc(attributes, func(a attribute.KeyValue) bool { return a.Value.Type() == attribute.STRING && a.Value.AsString() == "" })
}

// resultOf a build in the words of the conventions, which know fewer than Zuul.
func resultOf(status *v1alpha1.ZuulBuildStatus) attribute.KeyValue {
	switch {
	case status.Phase == v1alpha1.PhaseSucceeded:
		return semconv.CICDPipelineTaskRunResultSuccess
	case status.Phase == v1alpha1.PhaseAborted:
		return semconv.CICDPipelineTaskRunResultCancellation
	case status.Phase == v1alpha1.PhaseLost:
		return semconv.CICDPipelineTaskRunResultError
	case status.Result == "TIMED_OUT":
		return semconv.CICDPipelineTaskRunResultTimeout
	default:
		return semconv.CICDPipelineTaskRunResultFailure
	}
}

func failureOf(status *v1alpha1.ZuulBuildStatus) string {
	if status.Phase == v1alpha1.PhaseFailed || status.Phase == v1alpha1.PhaseLost {
		return status.Reason
	}
	return ""
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
