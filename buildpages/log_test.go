package buildpages

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/buildlog/buildlogtest"
)

// noPods is a reader that finds builds alone.
type noPods struct{ client.Reader }

func (noPods) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.New("the network is down")
}

// TestLogOfTroubles: what the pages say of a build in the operator's log is found by its uuid.
func TestLogOfTroubles(t *testing.T) {
	const uuid = "0123456789abcdef0123456789abcdef"
	build := newBuild("ci", "b1")
	build.Spec.UUID = uuid
	reader := newReader(t, build, newCensoredPod(build, running()), newSecret(givenVersion))
	unreadable := &readerOfSecrets{answer: func() (*corev1.Secret, error) { return nil, errors.New("the network is down") }}
	for _, test := range []struct {
		path   string
		pages  Server
		status int
	}{
		{"/builds/b1", Server{Pods: noPods{}}, http.StatusInternalServerError},
		{"/builds/b1/log.txt", Server{Pods: noPods{}}, http.StatusInternalServerError},
		{"/builds/b1/log.txt", Server{Secrets: unreadable}, http.StatusBadGateway},
		{"/builds/b1/log.txt", Server{Secrets: reader, Logs: &scriptedLogs{err: errors.New("the network is down")}}, http.StatusBadGateway},
	} {
		lines := buildlogtest.New(testWriter{t})
		test.pages.Builds = reader
		answer := httptest.NewRecorder()
		ctx := log.IntoContext(t.Context(), logr.FromSlogHandler(lines.Handler()))
		test.pages.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, test.path, nil))
		if answer.Code != test.status {
			t.Errorf("%s: got %d, want %d", test.path, answer.Code, test.status)
		}
		if about := lines.Of(uuid, 0); len(about) != 1 {
			t.Errorf("%s: lines about the build: %v", test.path, about)
		}
		lines.Check(t)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Logf("%s", line)
	return len(line), nil
}
