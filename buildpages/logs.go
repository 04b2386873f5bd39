package buildpages

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/censor"
)

// maxTailLines bounds the tail a reader may ask for; the whole log needs no tail.
const maxTailLines = 1_000_000

// LogOptions say which part of a log to read.
type LogOptions struct {
	// Follow keeps the stream open for what is still to come, until the container ends.
	Follow bool
	// TailLines is how many of the lines already written to begin with; 0 means all of them.
	TailLines int64
}

// LogStreamer opens the log of a container. The stream ends with io.EOF when the log does, and with another error where it broke off. It must end
// when ctx does or it is closed. Errors of opening are Kubernetes API errors where they can be: NotFound for a Pod that is gone, BadRequest for a
// container that has not started.
type LogStreamer interface {
	Stream(ctx context.Context, namespace, pod, container string, options LogOptions) (io.ReadCloser, error)
}

// NewLogStreamer reads logs through the API server (pods/log).
func NewLogStreamer(clients kubernetes.Interface) LogStreamer {
	return podLogs{clients}
}

type podLogs struct{ clients kubernetes.Interface }

func (p podLogs) Stream(ctx context.Context, namespace, pod, container string, options LogOptions) (io.ReadCloser, error) {
	request := &corev1.PodLogOptions{Container: container, Follow: options.Follow}
	if options.TailLines > 0 {
		request.TailLines = &options.TailLines
	}
	return p.clients.CoreV1().Pods(namespace).GetLogs(pod, request).Stream(ctx)
}

// serveLog answers /builds/NAME/log.txt: the bytes of the log as they are, but for secrets that the job has censored. While the container runs, the
// answer goes on as the log grows.
//
//	follow=false   only what is there now
//	tail=N         begin with the last N lines; 1 to 1,000,000
//	namespace=NS   where two namespaces hold a build of the name
func (s *Server) serveLog(w http.ResponseWriter, r *http.Request, streams chan struct{}) {
	options, err := parseLogOptions(r)
	if err != nil {
		writeMessage(w, r, http.StatusBadRequest, "Bad request", err.Error()+".")
		return
	}
	build := s.oneBuild(w, r)
	if build == nil {
		return
	}
	s.serveLogOf(w, r.WithContext(about(r.Context(), build)), build, options, streams)
}

func (s *Server) serveLogOf(w http.ResponseWriter, r *http.Request, build *v1alpha1.ZuulBuild, options LogOptions, streams chan struct{}) {
	pod, err := s.findPod(r.Context(), build)
	if err != nil {
		writeFailure(w, r, "reading the Pod of the build failed", err)
		return
	}
	state := logStateOf(build, pod)
	if !state.readable() {
		writeMessage(w, r, http.StatusNotFound, "No log", state.sentence())
		return
	}
	options.Follow = options.Follow && state == logLive
	secrets, err := censor.Of(r.Context(), s.Secrets, pod)
	if refusal := censor.Refusal(""); errors.As(err, &refusal) {
		writeMessage(w, r, http.StatusForbidden, "Log not shown", withheldSentence(refusal))
		return
	} else if err != nil {
		log.FromContext(r.Context()).Error(err, "reading the Secrets that a log is censored for failed", "pod", pod.Name)
		writeMessage(w, r, http.StatusBadGateway, "Log not readable", "The Secrets that the log is censored for could not be read at this moment. Try "+
			"again; the log of the operator says why.")
		return
	}

	select {
	case streams <- struct{}{}:
		defer func() { <-streams }()
	default:
		w.Header().Set("Retry-After", "10")
		writeMessage(w, r, http.StatusServiceUnavailable, "Busy", "Too many logs are being read at this moment. Try again in a few seconds.")
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("X-Accel-Buffering", "no") // nginx would hold back a slow log
	if r.Method == http.MethodHead {
		return
	}
	stream, err := s.Logs.Stream(r.Context(), pod.Namespace, pod.Name, mainContainer(pod), options)
	switch {
	case r.Context().Err() != nil:
		if err == nil {
			_ = stream.Close()
		}
		panic(http.ErrAbortHandler)
	case apierrors.IsNotFound(err):
		writeMessage(w, r, http.StatusNotFound, "No log", logGone.sentence())
	case apierrors.IsBadRequest(err):
		writeMessage(w, r, http.StatusNotFound, "No log", logWaiting.sentence())
	case err != nil:
		log.FromContext(r.Context()).Error(err, "opening a log failed", "pod", pod.Name)
		writeMessage(w, r, http.StatusBadGateway, "Log not readable", "The log could not be read from the cluster at this moment. Try again; the log of "+
			"the operator says why.")
	default:
		if err := copyLog(r.Context(), w, s.censored(r.Context(), pod, secrets, stream)); err != nil {
			// The answer is not whole, and breaking the connection is the only way left to say so.
			log.FromContext(r.Context()).V(1).Info("log stream broke off", "pod", pod.Name, "error", err.Error())
			panic(http.ErrAbortHandler)
		}
	}
}

// withheldSentence explains to a person why a log is not shown.
func withheldSentence(refusal censor.Refusal) string {
	return "The log is not shown: the job has secrets censored in it, and " + visible(string(refusal)) + ". Whoever may read the logs of Pods has it " +
		"from kubectl."
}

// censored is a log without the values of secrets, which are those of its Pod. It breaks off where one of them is changed while the log is read, since
// the Pod may get the new value, too.
func (s *Server) censored(ctx context.Context, pod *corev1.Pod, secrets *censor.Censor, stream io.ReadCloser) io.ReadCloser {
	if secrets == nil {
		return stream
	}
	check := func() error {
		_, err := censor.Of(ctx, s.Secrets, pod)
		return err
	}
	return struct {
		io.Reader
		io.Closer
	}{&checkedReader{secrets.Reader(stream), check, s.clock, s.clock()}, stream}
}

// recheckInterval is how old a check may be when something is read by a checkedReader. The kubelet mostly takes longer to bring a new value to a
// container, which is once a minute or so.
const recheckInterval = 10 * time.Second

// checkedReader gives what the source does, as long as check has no error.
type checkedReader struct {
	source  io.Reader
	check   func() error
	now     func() time.Time
	checked time.Time
}

func (c *checkedReader) Read(target []byte) (int, error) {
	count, err := c.source.Read(target)
	if now := c.now(); count > 0 && now.Sub(c.checked) >= recheckInterval {
		if failure := c.check(); failure != nil {
			return 0, failure
		}
		c.checked = now
	}
	return count, err
}

// parseLogOptions reads the query of log.txt.
func parseLogOptions(r *http.Request) (LogOptions, error) {
	options := LogOptions{Follow: true}
	query := r.URL.Query()
	if value := query.Get("follow"); value != "" {
		follow, err := strconv.ParseBool(value)
		if err != nil {
			return options, errors.New("follow must be true or false")
		}
		options.Follow = follow
	}
	if value := query.Get("tail"); value != "" {
		lines, err := strconv.ParseInt(value, 10, 64)
		if err != nil || lines < 1 || lines > maxTailLines {
			return options, errors.New("tail must be a number of lines from 1 to " + strconv.Itoa(maxTailLines))
		}
		options.TailLines = lines
	}
	return options, nil
}

// copyLog copies the stream to the client piece by piece, each flushed at once, and closes the stream. A client that takes no piece for
// pageTimeout is given up, as is one that has gone (ctx). It returns nil only if the log was copied to its end.
func copyLog(ctx context.Context, w http.ResponseWriter, stream io.ReadCloser) error {
	// A blocked Read does not see ctx by itself. Closing twice does no harm.
	stopWatching := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer stopWatching()
	defer stream.Close()

	control := http.NewResponseController(w)
	send := func(piece []byte) error {
		if err := setDeadline(control, pageTimeout); err != nil {
			return err
		}
		if _, err := w.Write(piece); err != nil {
			return err
		}
		if err := control.Flush(); err != nil {
			return err
		}
		return setDeadline(control, 0) // waiting for the next line is not the client's fault
	}
	if err := send(nil); err != nil { // the headers: the reader sees that there is a log before its first line comes
		return err
	}
	buffer := make([]byte, 32<<10)
	for {
		count, readError := stream.Read(buffer)
		if count > 0 {
			if err := send(buffer[:count]); err != nil {
				return err
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(readError, io.EOF):
			return setDeadline(control, pageTimeout) // for the end of the answer, which is written after this
		case readError != nil:
			return readError
		}
	}
}

// setDeadline gives the client that long to take the next write; 0 means for ever. Writers without deadlines (recorders in tests) have none.
func setDeadline(control *http.ResponseController, timeout time.Duration) error {
	var deadline time.Time
	if timeout > 0 {
		deadline = time.Now().Add(timeout)
	}
	if err := control.SetWriteDeadline(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
