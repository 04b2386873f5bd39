// Package buildpages serves the web pages behind a build's url: the page of one build with its live log, and a short overview of the newest
// builds. It only reads, and only answers GET and HEAD.
//
// Everything that comes from a build (parameters, messages, names, the log) is untrusted: the templates escape it, the script inserts it as text
// only, and a strict Content-Security-Policy stands behind both. The description alone is shown as HTML, sanitised for each page. Links are relative, so that the pages work under any path prefix of a proxy.
package buildpages

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

const (
	// pageTimeout is how long a client may take to receive a whole page, or one piece of a log.
	pageTimeout = 30 * time.Second
	// shutdownTimeout is how long requests under way have after the server was told to stop.
	shutdownTimeout = 5 * time.Second
	// defaultMaxStreams is the number of logs read at once where Server.MaxStreams says nothing.
	defaultMaxStreams = 256
)

// Server serves the pages. Builds, Logs and Secrets must be set, and Listener or Address if it is started; the rest has defaults.
// It is a manager.Runnable that runs on every replica, not only the leader.
//
// +kubebuilder:rbac:groups=zuulbuild.dev,resources=zuulbuilds,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods/log,verbs=get
type Server struct {
	// Builds reads ZuulBuilds, usually from the manager's cache. It needs the index made by SetupIndexes.
	Builds client.Reader
	// Pods reads the Pods of builds: labels or owner references, container names and container statuses are looked at. Default: Builds.
	Pods client.Reader
	// Logs opens the logs of containers.
	Logs LogStreamer
	// Secrets reads those that logs are censored for, past every cache. It need not be allowed to: logs it would need one for are not shown then.
	Secrets client.Reader
	// Listener is where Start accepts connections; Start closes it. Default: a new one on Address.
	Listener net.Listener
	// Address is the TCP address to listen on, as in ":8080", where there is no Listener.
	Address string
	// MaxStreams bounds the logs being read at once, each of which holds a connection to the API server. Further readers are told to come
	// back (503). Default: 256.
	MaxStreams int

	now func() time.Time // for tests; nil means time.Now
}

// BuildPath is the path of a build's page, percent-encoded ASCII, beginning with a slash. The url of a build is a base URL without a trailing
// slash followed by this.
func BuildPath(name string) string {
	return "/builds/" + url.PathEscape(name)
}

// NeedLeaderElection makes a manager start the server on every replica.
func (s *Server) NeedLeaderElection() bool { return false }

// Start serves until ctx ends, then ends every log stream, lets pages under way finish and returns nil. It returns an error if it cannot listen
// or serve.
func (s *Server) Start(ctx context.Context) error {
	listener := s.Listener
	if listener == nil {
		var err error
		if listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.Address); err != nil {
			return fmt.Errorf("build pages: %w", err)
		}
	}
	logger := log.FromContext(ctx).WithName("buildpages")
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       pageTimeout,
		WriteTimeout:      pageTimeout, // log streams extend it piece by piece
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return log.IntoContext(ctx, logger) },
		ErrorLog: stdlog.New(writerFunc(func(line []byte) (int, error) {
			logger.Info("HTTP server: " + strings.TrimSpace(string(line)))
			return len(line), nil
		}), "", 0),
	}
	logger.Info("serving build pages", "address", listener.Addr().String())

	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("build pages on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	stopContext, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(stopContext); err != nil {
		logger.Info("build pages: closing connections that did not end in time", "timeout", shutdownTimeout.String())
		_ = server.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("build pages on %s: %w", listener.Addr(), err)
	}
	return nil
}

// Handler serves the pages: / is the overview, /builds/NAME a build, /builds/NAME/log.txt its log, /assets/ the style and the script.
func (s *Server) Handler() http.Handler {
	maxStreams := s.MaxStreams
	if maxStreams <= 0 {
		maxStreams = defaultMaxStreams
	}
	streams := make(chan struct{}, maxStreams)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.serveOverview)
	mux.HandleFunc("GET /builds/{name}", s.serveBuild)
	mux.HandleFunc("GET /builds/{name}/{$}", func(w http.ResponseWriter, r *http.Request) {
		// An absolute path would leave the prefix of a proxy.
		page := url.URL{Path: "../" + r.PathValue("name"), RawPath: "../" + url.PathEscape(r.PathValue("name")), RawQuery: r.URL.RawQuery}
		w.Header().Set("Location", page.String())
		w.WriteHeader(http.StatusMovedPermanently)
	})
	mux.HandleFunc("GET /builds/{name}/log.txt", func(w http.ResponseWriter, r *http.Request) {
		s.serveLog(w, r, streams)
	})
	mux.HandleFunc("GET /assets/{file}", serveAsset)
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeMessage(w, r, http.StatusNotFound, "No such page", "Nothing is served at this address. The pages of builds are at /builds/NAME.")
	})
	return harden(mux)
}

// harden sets the headers that every answer carries and refuses methods that could change something.
func harden(next http.Handler) http.Handler {
	policy := strings.Join([]string{
		"default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
		"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
	}, "; ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", policy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("X-Frame-Options", "DENY")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cross-Origin-Opener-Policy", "same-origin")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			header.Set("Allow", "GET, HEAD")
			writeMessage(w, r, http.StatusMethodNotAllowed, "Method not allowed", "These pages can only be read, with GET or HEAD.")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// writerFunc is an io.Writer in one function.
type writerFunc func([]byte) (int, error)

var _ io.Writer = writerFunc(nil)

func (f writerFunc) Write(data []byte) (int, error) { return f(data) }
