package buildpages

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
	"zuulbuild.dev/zuulbuild/censor"
	"zuulbuild.dev/zuulbuild/description"
)

// overviewLength is how many builds the overview lists.
const overviewLength = 200

//go:embed templates
var templateFiles embed.FS

// Every page is the layout with the blocks of its own file filled in.
var (
	buildTemplate    = parsePage("build.html")
	overviewTemplate = parsePage("overview.html")
	choiceTemplate   = parsePage("choice.html")
	messageTemplate  = parsePage("message.html")
)

func parsePage(file string) *template.Template {
	functions := template.FuncMap{"visible": visible, "asset": assetPath, "moment": moment, "machineTime": machineTime}
	return template.Must(template.New("layout.html").Funcs(functions).ParseFS(templateFiles, "templates/layout.html", "templates/"+file))
}

// layout is what every page has; the pages embed it.
type layout struct {
	Root  string // the relative path to /, as in "../": pages work under any prefix
	Title string
	Tone  tone // colours the icon
	Live  bool // something on the page will change: refresh it
}

func newLayout(r *http.Request, title string) layout {
	depth := strings.Count(r.URL.EscapedPath(), "/") - 1
	root := "./"
	if depth > 0 {
		root = strings.Repeat("../", depth)
	}
	return layout{Root: root, Title: title, Tone: toneNone}
}

func (s *Server) serveBuild(w http.ResponseWriter, r *http.Request) {
	build := s.oneBuild(w, r)
	if build == nil {
		return
	}
	s.serveBuildOf(w, r.WithContext(about(r.Context(), build)), build)
}

func (s *Server) serveBuildOf(w http.ResponseWriter, r *http.Request, build *v1alpha1.ZuulBuild) {
	pod, err := s.findPod(r.Context(), build)
	if err != nil {
		writeFailure(w, r, "reading the Pod of the build failed", err)
		return
	}
	state := logStateOf(build, pod)
	sentence := state.sentence()
	if state.readable() {
		var refusal censor.Refusal
		if _, err := censor.Of(r.Context(), s.Secrets, pod); errors.As(err, &refusal) {
			state, sentence = logWithheld, withheldSentence(refusal)
		}
	}
	view := describe(build, s.clock())
	page := struct {
		layout
		buildView
		Description template.HTML
		Log         logState
		LogSentence string
		LogPath     string
		TailLines   int
	}{
		layout:      newLayout(r, pageTitle(view)),
		buildView:   view,
		Description: template.HTML(description.Sanitize(build.Status.Description)), //nolint:gosec // G203: made harmless right here, whoever wrote it
		Log:         state,
		LogSentence: sentence,
		LogPath:     strings.TrimPrefix(BuildPath(build.Name), "/") + "/log.txt?namespace=" + url.QueryEscape(build.Namespace),
		TailLines:   5000,
	}
	page.Tone, page.Live = view.StateTone, !view.Complete
	writePage(w, r, http.StatusOK, buildTemplate, page)
}

// about is the context with a log whose lines are about a build.
func about(ctx context.Context, build *v1alpha1.ZuulBuild) context.Context {
	return log.IntoContext(ctx, log.FromContext(ctx).WithValues(buildlog.Of(build)...))
}

// oneBuild returns the build a request names. If there is not exactly one, it answers the request and returns nil.
func (s *Server) oneBuild(w http.ResponseWriter, r *http.Request) *v1alpha1.ZuulBuild {
	name := r.PathValue("name")
	builds, err := s.findBuilds(r.Context(), name, r.URL.Query().Get("namespace"))
	switch {
	case err != nil:
		writeFailure(w, r, "reading the build failed", err)
		return nil
	case len(builds) == 1:
		return &builds[0]
	case len(builds) == 0:
		writeMessage(w, r, http.StatusNotFound, "No such build", "There is no build named “"+visible(name)+"” any more, or there never was. Builds are "+
			"deleted some time after they ended, by the retention of their job or of the operator.")
		return nil
	}
	if wantsText(r) {
		writeMessage(w, r, http.StatusMultipleChoices, "Several builds", "Several namespaces have a build of this name; add ?namespace=NAMESPACE.")
		return nil
	}
	page := struct {
		layout
		Name   string
		Builds []overviewRow
	}{layout: newLayout(r, "Several builds named "+visible(name)), Name: name}
	for i := range builds {
		page.Builds = append(page.Builds, describeRow(&builds[i], s.clock()))
	}
	writePage(w, r, http.StatusMultipleChoices, choiceTemplate, page)
	return nil
}

func (s *Server) serveOverview(w http.ResponseWriter, r *http.Request) {
	builds, total, err := s.newestBuilds(r.Context(), overviewLength)
	if err != nil {
		writeFailure(w, r, "listing the builds failed", err)
		return
	}
	page := struct {
		layout
		Builds []overviewRow
		Total  int
	}{layout: newLayout(r, "Builds"), Total: total}
	for i := range builds {
		page.Builds = append(page.Builds, describeRow(&builds[i], s.clock()))
	}
	writePage(w, r, http.StatusOK, overviewTemplate, page)
}

func (s *Server) clock() time.Time {
	if s.now != nil {
		return s.now()
	}
	return time.Now()
}

// wantsText tells whether a person reads the answer as plain text: by the suffix of the path.
func wantsText(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, ".txt") }

// writeFailure says that something inside failed, without what: that goes to the operator's log.
func writeFailure(w http.ResponseWriter, r *http.Request, what string, err error) {
	log.FromContext(r.Context()).Error(err, what, "path", r.URL.Path)
	writeMessage(w, r, http.StatusInternalServerError, "Something failed", "The page could not be made: "+what+". Try again; the log of the operator says why.")
}

// writeMessage answers with one sentence, as a page or, for paths that end in .txt, as plain text.
func writeMessage(w http.ResponseWriter, r *http.Request, status int, title, sentence string) {
	if wantsText(r) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(sentence + "\n"))
		return
	}
	page := struct {
		layout
		Sentence string
	}{newLayout(r, title), sentence}
	writePage(w, r, status, messageTemplate, page)
}

// writePage renders the whole page first, so that a failure is a 500 and not half a page.
func writePage(w http.ResponseWriter, r *http.Request, status int, page *template.Template, data any) {
	var body bytes.Buffer
	if err := page.Execute(&body, data); err != nil {
		log.FromContext(r.Context()).Error(err, "rendering a page failed", "path", r.URL.Path)
		http.Error(w, "The page could not be rendered; the log of the operator says why.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes())
}
