package buildpages

import (
	"cmp"
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// indexName is the field ZuulBuilds are found by where the namespace is not known.
const indexName = "metadata.name"

// SetupIndexes adds the index that finds a build by its name in every namespace. Call it once, before the manager starts.
func SetupIndexes(ctx context.Context, indexer client.FieldIndexer) error {
	return indexer.IndexField(ctx, &v1alpha1.ZuulBuild{}, indexName, func(object client.Object) []string {
		return []string{object.GetName()}
	})
}

// findBuilds returns the builds of a name, by namespace; only the one in namespace if that is not empty. The builds are the cache's own: they must
// not be changed.
func (s *Server) findBuilds(ctx context.Context, name, namespace string) ([]v1alpha1.ZuulBuild, error) {
	options := []client.ListOption{client.MatchingFields{indexName: name}, client.UnsafeDisableDeepCopy}
	if namespace != "" {
		options = append(options, client.InNamespace(namespace))
	}
	var list v1alpha1.ZuulBuildList
	if err := s.Builds.List(ctx, &list, options...); err != nil {
		return nil, err
	}
	slices.SortFunc(list.Items, func(a, b v1alpha1.ZuulBuild) int { return cmp.Compare(a.Namespace, b.Namespace) })
	return list.Items, nil
}

// newestBuilds returns up to limit builds, newest first, and how many there are. The builds are the cache's own: they must not be changed.
func (s *Server) newestBuilds(ctx context.Context, limit int) ([]v1alpha1.ZuulBuild, int, error) {
	var list v1alpha1.ZuulBuildList
	if err := s.Builds.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, 0, err
	}
	total := len(list.Items)
	slices.SortFunc(list.Items, func(a, b v1alpha1.ZuulBuild) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return list.Items[:min(limit, total)], total, nil
}

// findPod returns the Pod of a build, or nil if there is none. A Pod that is not the build's own counts as none, so that a status written by a
// stranger cannot make this server show another Pod's log.
func (s *Server) findPod(ctx context.Context, build *v1alpha1.ZuulBuild) (*corev1.Pod, error) {
	if build.Status.PodName == "" {
		return nil, nil
	}
	reader := s.Pods
	if reader == nil {
		reader = s.Builds
	}
	var pod corev1.Pod
	err := reader.Get(ctx, client.ObjectKey{Namespace: build.Namespace, Name: build.Status.PodName}, &pod)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, err
	case pod.Labels[v1alpha1.LabelBuild] != build.Name && !metav1.IsControlledBy(&pod, build):
		return nil, nil
	}
	return &pod, nil
}

// mainContainer names the container whose log is the build's; empty for a Pod without containers.
func mainContainer(pod *corev1.Pod) string {
	if names := v1alpha1.RequiredContainers(pod); len(names) > 0 {
		return names[0]
	}
	return ""
}

// logState says what can be read of a build's log.
type logState string

const (
	logWaiting logState = "waiting" // nothing yet
	logLive    logState = "live"    // there, and more may come
	logEnded   logState = "ended"   // there and whole
	logGone    logState = "gone"    // was there, until its Pod went
	logNone    logState = "none"    // there never was one

	logWithheld logState = "withheld" // there, but not to be shown
)

// readable tells whether the log can be opened now.
func (l logState) readable() bool { return l == logLive || l == logEnded }

// sentence explains the state to a person; empty where the log itself does.
func (l logState) sentence() string {
	switch l {
	case logWaiting:
		return "There is no log yet: it begins when the build's container starts."
	case logGone:
		return "The log is gone: the Pod it was in is no longer there. The Pod of an aborted build is deleted at once, others some time after the build " +
			"ended; a Pod also goes with its node."
	case logNone:
		return "There is no log: the build ended before its container started."
	default:
		return ""
	}
}

// logStateOf decides what can be read of a build's log; pod is nil if there is none.
func logStateOf(build *v1alpha1.ZuulBuild, pod *corev1.Pod) logState {
	switch {
	case pod == nil && build.Status.StartTime != nil:
		return logGone
	case pod == nil && build.Complete():
		return logNone
	case pod == nil:
		return logWaiting
	}
	container := mainContainer(pod)
	for _, status := range pod.Status.ContainerStatuses {
		switch {
		case status.Name != container:
		case status.State.Terminated != nil:
			return logEnded
		case status.State.Running != nil && build.Complete():
			return logEnded
		case status.State.Running != nil:
			return logLive
		}
	}
	if build.Complete() {
		return logNone
	}
	return logWaiting
}
