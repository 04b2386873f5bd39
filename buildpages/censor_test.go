package buildpages

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/censor"
)

// The version of the Secret that censored Pods were given.
const givenVersion = "7"

func newSecret(version string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: "deploy-token", ResourceVersion: version},
		Data:       map[string][]byte{"token": []byte("hunter2-rosebud\n")},
	}
}

// newCensoredPod is a Pod whose log must not show the Secret.
func newCensoredPod(build *v1alpha1.ZuulBuild, state corev1.ContainerState) *corev1.Pod {
	pod := newPod(build, state)
	pod.Annotations = map[string]string{v1alpha1.AnnotationCensor: `[{"name":"deploy-token","version":"` + givenVersion + `"}]`}
	return pod
}

func TestCensoredLog(t *testing.T) {
	build := newBuild("ci", "b1")
	logs := newScriptedLogs()
	server := newTestServer(t, logs, build, newCensoredPod(build, running()), newSecret(givenVersion))
	if _, page := get(t, server, http.MethodGet, "/builds/b1"); !strings.Contains(page, `data-log="live"`) {
		t.Errorf("the page does not show the log:\n%s", page)
	}

	type answer struct {
		response *http.Response
		err      error
	}
	answered := make(chan answer, 1)
	go func() {
		response, err := server.Client().Get(server.URL + "/builds/b1/log.txt")
		answered <- answer{response, err}
	}()
	stream := logs.next(t)
	got := receive(t, answered, "no answer before the first line")
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.response.Body.Close()
	// Each line is there before the next one comes, though the secret comes in pieces.
	for _, line := range []struct {
		pieces []string
		want   string
	}{
		{[]string{"one\n"}, "one\n"},
		{[]string{"token=hunt", "er2-rose", "bud;\n"}, "token=****;\n"},
		{[]string{"hunter2-rosa\n"}, "hunter2-rosa\n"},
	} {
		for _, piece := range line.pieces {
			if _, err := io.WriteString(stream.feed, piece); err != nil {
				t.Fatal(err)
			}
		}
		seen := make([]byte, len(line.want))
		if _, err := io.ReadFull(got.response.Body, seen); err != nil || string(seen) != line.want {
			t.Errorf("got %q, %v; want %q", seen, err, line.want)
		}
	}
	if _, err := io.WriteString(stream.feed, "half a hunter2-"); err != nil {
		t.Fatal(err)
	}
	stream.feed.Close()
	if rest, err := io.ReadAll(got.response.Body); err != nil || string(rest) != "half a ****" {
		t.Errorf("at the end: %q, %v", rest, err)
	}
	receive(t, stream.closed, "the stream was not closed at its end")
}

// Where it is not known what to hide nothing is shown, and the page says why, as does the log for who asks for it by itself.
func TestWithheldLog(t *testing.T) {
	for name, test := range map[string]struct {
		secret *corev1.Secret
		part   string
	}{
		"no Secret":      {nil, "Secret deploy-token does not exist"},
		"another Secret": {newSecret("8"), "Secret deploy-token was changed since the build began"},
	} {
		t.Run(name, func(t *testing.T) {
			build := newBuild("ci", "b1", complete)
			objects := []client.Object{build, newCensoredPod(build, terminated())}
			if test.secret != nil {
				objects = append(objects, test.secret)
			}
			logs := newScriptedLogs()
			server := newTestServer(t, logs, objects...)
			for _, method := range []string{http.MethodHead, http.MethodGet} {
				response, body := get(t, server, method, "/builds/b1/log.txt")
				if response.StatusCode != http.StatusForbidden {
					t.Errorf("%s: got %s", method, response.Status)
				}
				if method == http.MethodGet {
					wantParts(t, body, "The log is not shown", test.part, "kubectl")
				}
			}
			response, page := get(t, server, http.MethodGet, "/builds/b1")
			if response.StatusCode != http.StatusOK {
				t.Errorf("the page: %s", response.Status)
			}
			wantParts(t, page, `data-log="withheld"`, "The log is not shown", test.part)
			if strings.Contains(page, `log.txt?namespace=ci">`) {
				t.Error("the page links to a log that is not shown")
			}
			if len(logs.opened) != 0 {
				t.Error("the log was read")
			}
		})
	}
}

// readerOfSecrets is an API server that gives one answer.
type readerOfSecrets struct {
	client.Reader
	answer func() (*corev1.Secret, error)
}

func (r *readerOfSecrets) Get(_ context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	secret, err := r.answer()
	if err == nil {
		secret.DeepCopyInto(object.(*corev1.Secret))
	}
	return err
}

func TestSecretsThatCannotBeRead(t *testing.T) {
	build := newBuild("ci", "b1")
	pages := &Server{Builds: newReader(t, build, newCensoredPod(build, running())), Logs: newScriptedLogs()}
	for name, test := range map[string]struct {
		err    error
		status int
		part   string
		page   string
	}{
		"forbidden":   {apierrors.NewForbidden(corev1.Resource("secrets"), "deploy-token", errors.New("no")), http.StatusForbidden, "may not read Secret deploy-token", "withheld"},
		"unreachable": {errors.New("dial 10.1.2.3"), http.StatusBadGateway, "Try again", "live"},
	} {
		t.Run(name, func(t *testing.T) {
			pages.Secrets = &readerOfSecrets{answer: func() (*corev1.Secret, error) { return nil, test.err }}
			answer := serve(t, pages, "/builds/b1/log.txt")
			if answer.Code != test.status || strings.Contains(answer.Body.String(), "10.1.2.3") {
				t.Errorf("got %d: %s", answer.Code, answer.Body)
			}
			wantParts(t, answer.Body.String(), test.part)
			wantParts(t, serve(t, pages, "/builds/b1").Body.String(), `data-log="`+test.page+`"`)
		})
	}
}

// serve answers one request.
func serve(t *testing.T, pages *Server, path string) *httptest.ResponseRecorder {
	t.Helper()
	recorder := httptest.NewRecorder()
	pages.Handler().ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return recorder
}

// A log that is followed breaks off before anything is shown that came when the Secret was another already; while it is the same, it goes on.
func TestSecretChangedWhileTheLogIsRead(t *testing.T) {
	version := givenVersion
	reads := 0
	now := start
	pages := &Server{now: func() time.Time { return now }, Secrets: &readerOfSecrets{answer: func() (*corev1.Secret, error) {
		reads++
		return newSecret(version), nil
	}}}
	pod := newCensoredPod(newBuild("ci", "b1"), running())
	secrets, err := censor.Of(t.Context(), pages.Secrets, pod)
	if err != nil {
		t.Fatal(err)
	}
	source := &lines{}
	shown := pages.censored(t.Context(), pod, secrets, source)
	reads = 0
	for _, step := range []struct {
		later   time.Duration
		version string
		reads   int
		want    string // empty: the log breaks off
	}{
		{0, givenVersion, 0, "a line\n"},
		{recheckInterval - 1, givenVersion, 0, "a line\n"},
		{1, givenVersion, 1, "a line\n"},
		{1, "8", 1, "a line\n"},
		{recheckInterval, "8", 2, ""},
	} {
		now, version = now.Add(step.later), step.version
		buffer := make([]byte, 100)
		count, err := shown.Read(buffer)
		if got := string(buffer[:count]); got != step.want || (err != nil) != (step.want == "") || reads != step.reads {
			t.Errorf("after %s and %d reads: %q, %v; want %q after %d", now.Sub(start), reads, got, err, step.want, step.reads)
		}
	}
	if err := shown.Close(); err != nil || !source.closed {
		t.Errorf("the stream was not closed: %v", err)
	}
}

// lines is a log that is always the same, a line at a time.
type lines struct{ closed bool }

func (*lines) Read(target []byte) (int, error) { return copy(target, "a line\n"), nil }
func (l *lines) Close() error                  { l.closed = true; return nil }
