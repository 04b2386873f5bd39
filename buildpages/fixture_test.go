package buildpages

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// deadline bounds every wait for an event.
const deadline = 10 * time.Second

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// at is the time some seconds after start.
func at(seconds int) *metav1.Time {
	return &metav1.Time{Time: start.Add(time.Duration(seconds) * time.Second)}
}

// newBuild is a running build of the job tox, number 12.
func newBuild(namespace, name string, changes ...func(*v1alpha1.ZuulBuild)) *v1alpha1.ZuulBuild {
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: *at(0)},
		Spec: v1alpha1.ZuulBuildSpec{Job: "tox", Number: 12, Parameters: map[string]string{
			"ZUUL_PROJECT": "tools/widget", "ZUUL_CHANGE": "4711", "ZUUL_PATCHSET": "3", "ZUUL_PIPELINE": "gate",
		}},
		Status: v1alpha1.ZuulBuildStatus{
			Phase: v1alpha1.PhaseRunning, PodName: name, NodeName: "worker-1", ScheduledTime: at(2), StartTime: at(14),
		},
	}
	for _, change := range changes {
		change(build)
	}
	return build
}

// complete ends a build with a result.
func complete(build *v1alpha1.ZuulBuild) {
	build.Status.Phase, build.Status.Result, build.Status.Reason = v1alpha1.PhaseFailed, "FAILURE", "ExitCode"
	build.Status.CompletionTime = at(317)
}

// newPod is the Pod of a build, with its main container in the given state.
func newPod(build *v1alpha1.ZuulBuild, state corev1.ContainerState) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: build.Namespace, Name: build.Name, Labels: map[string]string{v1alpha1.LabelBuild: build.Name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "helper"}, {Name: "build"}}},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Name: "helper", State: terminated()}, {Name: "build", State: state},
		}},
	}
}

func running() corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
}

func terminated() corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
}

// builderIndexer lets SetupIndexes set up the fake client.
type builderIndexer struct{ builder *fake.ClientBuilder }

func (b builderIndexer) IndexField(_ context.Context, object client.Object, field string, extract client.IndexerFunc) error {
	b.builder.WithIndex(object, field, extract)
	return nil
}

func newReader(t *testing.T, objects ...client.Object) client.Reader {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...)
	if err := SetupIndexes(t.Context(), builderIndexer{builder}); err != nil {
		t.Fatal(err)
	}
	return builder.Build()
}

// opened is one call of Stream: what was asked for, and the other end of what is read.
type opened struct {
	namespace, pod, container string
	options                   LogOptions
	feed                      *io.PipeWriter
	closed                    chan struct{} // when the reader closed its end
}

// scriptedLogs is a LogStreamer whose streams a test feeds by hand.
type scriptedLogs struct {
	err    error
	opened chan *opened

	mutex sync.Mutex
	feeds []*io.PipeWriter
}

func newScriptedLogs() *scriptedLogs { return &scriptedLogs{opened: make(chan *opened, 10)} }

func (l *scriptedLogs) Stream(_ context.Context, namespace, pod, container string, options LogOptions) (io.ReadCloser, error) {
	if l.err != nil {
		return nil, l.err
	}
	reader, writer := io.Pipe()
	stream := &opened{namespace, pod, container, options, writer, make(chan struct{})}
	l.mutex.Lock()
	l.feeds = append(l.feeds, writer)
	l.mutex.Unlock()
	l.opened <- stream
	return &closeTeller{PipeReader: reader, closed: stream.closed}, nil
}

type closeTeller struct {
	*io.PipeReader
	closed chan struct{}
}

func (c *closeTeller) Close() error {
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return c.PipeReader.Close()
}

// end ends every stream, so that a test that failed does not hang.
func (l *scriptedLogs) end() {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	for _, feed := range l.feeds {
		feed.Close()
	}
}

// next waits for a stream to be opened.
func (l *scriptedLogs) next(t *testing.T) *opened {
	t.Helper()
	return receive(t, l.opened, "no stream was opened")
}

func receive[T any](t *testing.T, from <-chan T, otherwise string) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(deadline):
		t.Fatal(otherwise)
		panic("unreachable")
	}
}

// newTestServer serves the pages of some objects at start + 60 s.
func newTestServer(t *testing.T, logs *scriptedLogs, objects ...client.Object) *httptest.Server {
	t.Helper()
	reader := newReader(t, objects...)
	pages := &Server{Builds: reader, Secrets: reader, Logs: logs, MaxStreams: 2, now: func() time.Time { return at(60).Time }}
	server := httptest.NewServer(pages.Handler())
	server.Client().Timeout = deadline
	t.Cleanup(func() {
		logs.end()
		server.Close()
	})
	return server
}

// get returns the answer to a request, its body read.
func get(t *testing.T, server *httptest.Server, method, path string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return response, string(body)
}

// wantParts fails for each part the text lacks.
func wantParts(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}
