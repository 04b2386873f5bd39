package buildpages

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubefake "k8s.io/client-go/kubernetes/fake"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func TestLogArrivesBeforeItsEnd(t *testing.T) {
	build := newBuild("ci", "b1")
	logs := newScriptedLogs()
	server := newTestServer(t, logs, build, newPod(build, running()))

	type answer struct {
		response *http.Response
		err      error
	}
	answered := make(chan answer, 1)
	go func() {
		response, err := server.Client().Get(server.URL + "/builds/b1/log.txt?tail=50")
		answered <- answer{response, err}
	}()
	stream := logs.next(t)
	want := opened{namespace: "ci", pod: "b1", container: "build", options: LogOptions{Follow: true, TailLines: 50}}
	if stream.namespace != want.namespace || stream.pod != want.pod || stream.container != want.container || stream.options != want.options {
		t.Errorf("opened %+v, want %+v", stream, want)
	}
	// The headers come before the first line does.
	got := receive(t, answered, "no answer before the first line")
	if got.err != nil {
		t.Fatal(got.err)
	}
	defer got.response.Body.Close()
	if kind := got.response.Header.Get("Content-Type"); kind != "text/plain; charset=utf-8" {
		t.Errorf("Content-Type %q", kind)
	}
	for _, piece := range []string{"one\n", "two <script>\x00\x1b[31m\xff\n"} {
		if _, err := io.WriteString(stream.feed, piece); err != nil {
			t.Fatal(err)
		}
		seen := make([]byte, len(piece))
		if _, err := io.ReadFull(got.response.Body, seen); err != nil {
			t.Fatal(err)
		}
		if string(seen) != piece {
			t.Errorf("got %q, want %q", seen, piece)
		}
	}
	stream.feed.Close()
	rest, err := io.ReadAll(got.response.Body)
	if err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	receive(t, stream.closed, "the stream was not closed at its end")
}

func TestClientGoneEndsTheStream(t *testing.T) {
	build := newBuild("ci", "b1")
	logs := newScriptedLogs()
	server := newTestServer(t, logs, build, newPod(build, running()))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/builds/b1/log.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stream := logs.next(t)
	leave()
	receive(t, stream.closed, "the stream outlived its reader")
}

func TestLogThatBreaksOffIsNotTakenForWhole(t *testing.T) {
	build := newBuild("ci", "b1")
	logs := newScriptedLogs()
	server := newTestServer(t, logs, build, newPod(build, running()))
	response, err := server.Client().Get(server.URL + "/builds/b1/log.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stream := logs.next(t)
	if _, err := io.WriteString(stream.feed, "half"); err != nil {
		t.Fatal(err)
	}
	stream.feed.CloseWithError(errors.New("kubelet went away"))
	body, err := io.ReadAll(response.Body)
	if err == nil || string(body) != "half" {
		t.Errorf("got %q, %v; want the part that came, and an error", body, err)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	build := newBuild("ci", "b1")
	logs := newScriptedLogs()
	server := newTestServer(t, logs, build, newPod(build, running()))
	for range 2 { // MaxStreams
		response, err := server.Client().Get(server.URL + "/builds/b1/log.txt")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		defer logs.next(t).feed.Close()
	}
	response, body := get(t, server, http.MethodGet, "/builds/b1/log.txt")
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("got %s, Retry-After %q: %s", response.Status, response.Header.Get("Retry-After"), body)
	}
}

// TestBigLogIsNotHeld copies 256 MB through a writer that counts: the pieces stay small.
func TestBigLogIsNotHeld(t *testing.T) {
	const size = 256 << 20
	sink := &countingWriter{}
	source := io.NopCloser(io.LimitReader(endless{}, size))
	if err := copyLog(t.Context(), sink, source); err != nil {
		t.Fatal(err)
	}
	if sink.total != size || sink.largest > 64<<10 {
		t.Errorf("wrote %d bytes in pieces of up to %d, want %d in pieces of up to 64 KiB", sink.total, sink.largest, size)
	}
	if sink.flushes < size/(64<<10) {
		t.Errorf("flushed %d times", sink.flushes)
	}
}

func TestUnreadableLogs(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	build := newBuild("ci", "b1")
	queued := newBuild("ci", "b2", func(b *v1alpha1.ZuulBuild) { b.Status = v1alpha1.ZuulBuildStatus{} })
	gone := newBuild("ci", "b3", complete)
	for name, test := range map[string]struct {
		path   string
		err    error
		status int
		part   string
	}{
		"no build":       {path: "/builds/none/log.txt", status: 404, part: "deleted"},
		"no Pod yet":     {path: "/builds/b2/log.txt", status: 404, part: "no log yet"},
		"Pod gone":       {path: "/builds/b3/log.txt", status: 404, part: "no longer there"},
		"Pod just gone":  {path: "/builds/b1/log.txt", err: apierrors.NewNotFound(pods, "b1"), status: 404, part: "no longer there"},
		"just waiting":   {path: "/builds/b1/log.txt", err: apierrors.NewBadRequest("ContainerCreating"), status: 404, part: "no log yet"},
		"kubelet silent": {path: "/builds/b1/log.txt", err: errors.New("dial 10.1.2.3"), status: 502, part: "Try again"},
		"bad follow":     {path: "/builds/b1/log.txt?follow=perhaps", status: 400, part: "true or false"},
		"bad tail":       {path: "/builds/b1/log.txt?tail=-1", status: 400, part: "from 1 to"},
	} {
		t.Run(name, func(t *testing.T) {
			logs := newScriptedLogs()
			logs.err = test.err
			server := newTestServer(t, logs, build, newPod(build, running()), queued, gone)
			response, body := get(t, server, http.MethodGet, test.path)
			if response.StatusCode != test.status {
				t.Errorf("got %s, want %d", response.Status, test.status)
			}
			if kind := response.Header.Get("Content-Type"); kind != "text/plain; charset=utf-8" {
				t.Errorf("Content-Type %q", kind)
			}
			wantParts(t, body, test.part)
			if strings.Contains(body, "10.1.2.3") {
				t.Errorf("the inside of the cluster shows: %s", body)
			}
		})
	}
}

func TestFollowOnlyWhatGrows(t *testing.T) {
	build := newBuild("ci", "b1")
	ended := newBuild("ci", "b2", complete)
	for path, follow := range map[string]bool{
		"/builds/b1/log.txt":              true,
		"/builds/b1/log.txt?follow=false": false,
		"/builds/b2/log.txt":              false,
		"/builds/b2/log.txt?follow=true":  false,
	} {
		t.Run(path, func(t *testing.T) {
			logs := newScriptedLogs()
			server := newTestServer(t, logs, build, newPod(build, running()), ended, newPod(ended, terminated()))
			if response, body := get(t, server, http.MethodHead, path); response.StatusCode != http.StatusOK || body != "" || len(logs.opened) != 0 {
				t.Errorf("HEAD: %s, %q, %d streams", response.Status, body, len(logs.opened))
			}
			done := make(chan string, 1)
			go func() {
				response, err := server.Client().Get(server.URL + path)
				if err != nil {
					done <- err.Error()
					return
				}
				defer response.Body.Close()
				body, _ := io.ReadAll(response.Body)
				done <- string(body)
			}()
			stream := logs.next(t)
			if stream.options.Follow != follow {
				t.Errorf("Follow %v, want %v", stream.options.Follow, follow)
			}
			if _, err := io.WriteString(stream.feed, "all\n"); err != nil {
				t.Fatal(err)
			}
			stream.feed.Close()
			if body := receive(t, done, "no end"); body != "all\n" {
				t.Errorf("got %q", body)
			}
		})
	}
}

func TestStrangersPodIsNotShown(t *testing.T) {
	build := newBuild("ci", "b1")
	pod := newPod(build, running())
	pod.Labels = map[string]string{v1alpha1.LabelBuild: "another"}
	server := newTestServer(t, newScriptedLogs(), build, pod)
	if response, body := get(t, server, http.MethodGet, "/builds/b1/log.txt"); response.StatusCode != http.StatusNotFound {
		t.Errorf("got %s: %s", response.Status, body)
	}
}

// TestStop ends the server while a log is being followed on it.
func TestStop(t *testing.T) {
	build := newBuild("ci", "b1")
	logs := newScriptedLogs()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pages := &Server{Builds: newReader(t, build, newPod(build, running())), Logs: logs, Listener: listener}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- pages.Start(ctx) }()

	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("http://" + listener.Addr().String() + "/builds/b1/log.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	stream := logs.next(t)
	stop()
	receive(t, stream.closed, "the stream outlived the server")
	if err := receive(t, ended, "the server did not stop"); err != nil {
		t.Errorf("Start: %v", err)
	}
	if _, err := io.ReadAll(response.Body); err == nil {
		t.Error("the broken log looks whole to its reader")
	}
}

func TestStartWithoutAddressFails(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	pages := &Server{Address: listener.Addr().String()}
	if err := pages.Start(t.Context()); err == nil || !strings.Contains(err.Error(), listener.Addr().String()) {
		t.Errorf("Start on a taken address: %v", err)
	}
}

func TestNewLogStreamer(t *testing.T) {
	clients := kubefake.NewClientset()
	stream, err := NewLogStreamer(clients).Stream(t.Context(), "ci", "b1", "build", LogOptions{Follow: true, TailLines: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	lines := int64(7)
	want := &corev1.PodLogOptions{Container: "build", Follow: true, TailLines: &lines}
	actions := clients.Actions()
	if len(actions) != 1 || actions[0].GetSubresource() != "log" || actions[0].GetNamespace() != "ci" {
		t.Fatalf("calls: %v", actions)
	}
	got := actions[0].(interface{ GetValue() any }).GetValue()
	if difference := cmp.Diff(want, got); difference != "" {
		t.Errorf("options (-want +got):\n%s", difference)
	}
}

// TestStuckClientIsGivenUp sees a deadline at every write, none while the log is silent, and the end of the stream when one passes.
func TestStuckClientIsGivenUp(t *testing.T) {
	sink := &countingWriter{stuckAfter: 100}
	reader, feed := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := copyLog(t.Context(), sink, reader)
		reader.CloseWithError(errors.New("copyLog left the stream open"))
		ended <- err
	}()
	var feedError error
	for range 1000 {
		if _, feedError = io.WriteString(feed, "a line\n"); feedError != nil {
			break
		}
	}
	if !errors.Is(feedError, io.ErrClosedPipe) {
		t.Errorf("feeding ended with %v", feedError)
	}
	if err := receive(t, ended, "still copying"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("copying ended with %v", err)
	}
	if sink.unguarded != 0 {
		t.Errorf("%d writes without a deadline", sink.unguarded)
	}
}

func TestSilentLogHasNoDeadline(t *testing.T) {
	sink := &countingWriter{}
	silent := readerFunc(func([]byte) (int, error) {
		if !sink.deadline.IsZero() {
			t.Error("the deadline runs while the log is silent")
		}
		return 0, io.EOF
	})
	if err := copyLog(t.Context(), sink, io.NopCloser(silent)); err != nil {
		t.Fatal(err)
	}
	if sink.deadline.IsZero() {
		t.Error("the end of the answer is written without a deadline")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(buffer []byte) (int, error) { return f(buffer) }

// countingWriter is a ResponseWriter that remembers only sizes, and can get stuck.
type countingWriter struct {
	total, largest, flushes, unguarded int
	stuckAfter                         int // bytes; 0 means never
	deadline                           time.Time
}

func (c *countingWriter) Header() http.Header { return http.Header{} }
func (c *countingWriter) WriteHeader(int)     {}
func (c *countingWriter) Flush()              { c.flushes++ }

func (c *countingWriter) SetWriteDeadline(deadline time.Time) error {
	c.deadline = deadline
	return nil
}

func (c *countingWriter) Write(data []byte) (int, error) {
	if c.deadline.IsZero() {
		c.unguarded++
	}
	if c.stuckAfter > 0 && c.total >= c.stuckAfter {
		return 0, os.ErrDeadlineExceeded
	}
	c.total += len(data)
	c.largest = max(c.largest, len(data))
	return len(data), nil
}

// endless is a log without end.
type endless struct{}

func (endless) Read(buffer []byte) (int, error) {
	return copy(buffer, bytes.Repeat([]byte("line\n"), len(buffer)/5+1)), nil
}
