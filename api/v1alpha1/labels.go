package v1alpha1

// Values of AnnotationToldToEnd.
const (
	// ToldTimedOut: the run clock was over.
	ToldTimedOut = "TimedOut"
	// ToldSettled: the containers that decide had ended, while others ran on.
	ToldSettled = "Settled"
)

// Labels and annotations. Values of labels are at most 63 characters, so a name that may be longer travels in an annotation.
const (
	// LabelNode on a Node makes the node class of that name exist, and is the default node selector of every class.
	LabelNode = "zuulbuild.dev/node"
	// LabelBuild on a Pod is the name of the ZuulBuild it runs, and on a ConfigMap of the one whose parameters it holds. The operator watches only
	// Pods that carry it.
	LabelBuild = "zuulbuild.dev/build"
	// LabelGearmanServer on a ZuulBuild is the name of the Gearman server the request came from. A build without it was made by hand, so that
	// nobody listens on the Gearman side and nothing is aborted for want of a listener.
	LabelGearmanServer = "zuulbuild.dev/gearman-server"
	// LabelReplica on a ZuulBuild is the replica of the operator on whose connection its Gearman job is. Only that replica can report the build, and
	// as long as it lives no other calls the build abandoned.
	LabelReplica = "zuulbuild.dev/replica"
	// AnnotationJob on a Pod is the Gearman name of the job, unshortened.
	AnnotationJob = "zuulbuild.dev/job"
	// AnnotationUUID on a Pod is the uuid of the build, if it has one.
	AnnotationUUID = "zuulbuild.dev/uuid"
	// AnnotationNode on a Pod is the node class the build asks for, if it asks for one.
	AnnotationNode = "zuulbuild.dev/node"
	// AnnotationNumber on a Pod is the build number.
	AnnotationNumber = "zuulbuild.dev/number"
	// AnnotationOptionalContainers in the template of a ZuulJob names containers, separated by commas, whose end does not matter to the result.
	AnnotationOptionalContainers = "zuulbuild.dev/optional-containers"
	// AnnotationRequiredContainers on a Pod names the containers, separated by commas, that decide the result: the main one, then every other of the
	// template that is not optional. What else is in the Pod somebody put there since.
	AnnotationRequiredContainers = "zuulbuild.dev/required-containers"
	// AnnotationCensor on a Pod says which Secrets its log is censored for; see package censor. A Pod without it has nothing to hide.
	AnnotationCensor = "zuulbuild.dev/censor"
	// AnnotationToldToEnd on a Pod is why the operator had the kubelet end it by its deadline: ToldTimedOut or ToldSettled.
	AnnotationToldToEnd = "zuulbuild.dev/told-to-end"
	// AnnotationToldToEndAt on a Pod is when that was, in RFC 3339.
	AnnotationToldToEndAt = "zuulbuild.dev/told-to-end-at"
	// AnnotationKeepPod on a ZuulBuild has its Pod kept when that has ended: for the duration it tells (2h) from the end of the build, or, with `true`,
	// as long as the ZuulBuild. It can be set at any time, and never makes anything go earlier. An aborted build loses its Pod all the same.
	AnnotationKeepPod = "zuulbuild.dev/keep-pod"
	// AnnotationCordonedBy on a Node is the build that cordoned it last, as NAMESPACE/NAME/UID, so that no build cordons a node twice.
	AnnotationCordonedBy = "zuulbuild.dev/cordoned-by"
)
