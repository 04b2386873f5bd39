package buildpages

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func TestBuildPage(t *testing.T) {
	for name, test := range map[string]struct {
		build   *v1alpha1.ZuulBuild
		pod     func(*v1alpha1.ZuulBuild) *corev1.Pod
		parts   []string
		missing []string
	}{
		"running": {
			build: newBuild("ci", "b1"),
			pod:   func(b *v1alpha1.ZuulBuild) *corev1.Pod { return newPod(b, running()) },
			parts: []string{
				"<title>Running – tox #12 – zuulbuild</title>", "tools/widget", "4711, patch set 3", "gate", "ci/b1", "worker-1", `<th scope="row">Running for</th><td>46 s</td>`,
				"after 12 s", `href="../builds/b1/log.txt?namespace=ci"`, `data-log="live"`, `http-equiv="refresh"`, "icon-running.svg",
				`<time datetime="2026-03-01T12:00:14Z">2026-03-01 12:00:14 UTC</time>`,
			},
		},
		"aborting": {
			build: newBuild("ci", "b1", func(b *v1alpha1.ZuulBuild) { b.Spec.Abort = true }),
			parts: []string{"<title>Aborting – tox #12", "icon-stopped.svg", "no longer there"},
		},
		"failed": {
			build: newBuild("ci", "b1", complete, func(b *v1alpha1.ZuulBuild) {
				b.Status.Message = "exit code 2"
				b.Status.Conditions = []metav1.Condition{{Type: "Complete", Status: "True", Reason: "ExitCode", LastTransitionTime: *at(317)}}
			}),
			pod:     func(b *v1alpha1.ZuulBuild) *corev1.Pod { return newPod(b, terminated()) },
			parts:   []string{"<title>FAILURE – tox #12", "icon-failure.svg", `<th scope="row">Ran for</th><td>5 min 3 s</td>`, "exit code 2", `data-log="ended"`, `<th scope="row">Complete</th>`},
			missing: []string{`http-equiv="refresh"`},
		},
		"lost": {
			build: newBuild("ci", "b1", func(b *v1alpha1.ZuulBuild) { b.Status.Phase, b.Status.Reason = v1alpha1.PhaseLost, "NodeLost" }),
			parts: []string{"<title>Lost – tox #12", "icon-lost.svg", "Zuul runs the job again", "NodeLost"},
		},
		"held back": {
			build: newBuild("ci", "b1", func(b *v1alpha1.ZuulBuild) {
				b.Status = v1alpha1.ZuulBuildStatus{
					Phase: v1alpha1.PhaseStarting, Reason: "RetryDelayed", Message: "the Pod will be made at 12:05", Attempts: 3,
				}
			}),
			parts: []string{"RetryDelayed", "the Pod will be made at 12:05", `<th scope="row">Attempt</th><td>3: the infrastructure lost the builds before it</td>`},
		},
		"only asked for": {
			build: newBuild("ci", "b1", func(b *v1alpha1.ZuulBuild) {
				b.Spec.Number, b.Spec.Parameters, b.Status = 0, nil, v1alpha1.ZuulBuildStatus{}
			}),
			parts:   []string{"<title>Queued – tox – zuulbuild</title>", `<th scope="row">Waiting for</th><td>1 min 0 s</td>`, "no log yet", "icon-waiting.svg"},
			missing: []string{"#0", "log.txt?namespace=ci\">", ">Attempt<"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			objects := []client.Object{test.build}
			if test.pod != nil {
				objects = append(objects, test.pod(test.build))
			}
			server := newTestServer(t, newScriptedLogs(), objects...)
			response, body := get(t, server, http.MethodGet, "/builds/b1")
			if response.StatusCode != http.StatusOK {
				t.Errorf("got %s", response.Status)
			}
			wantParts(t, body, test.parts...)
			for _, part := range test.missing {
				if strings.Contains(body, part) {
					t.Errorf("%q is there in:\n%s", part, body)
				}
			}
		})
	}
}

func TestHostileBuild(t *testing.T) {
	const markup = `</title></td><script>alert(1)</script><img src=x onerror=alert(1)>"'`
	const unseen = "ok\u202eKO\x00\x1b[31m"
	hostile := markup + unseen
	build := newBuild("ci", "b1", complete, func(b *v1alpha1.ZuulBuild) {
		b.Spec.Job, b.Spec.Node = hostile, hostile
		b.Spec.Parameters = map[string]string{hostile: hostile, "ZUUL_PROJECT": "javascript:" + hostile, "ZUUL_CHANGE": hostile}
		b.Status.Reason, b.Status.Message, b.Status.NodeName = hostile, hostile, markup
		b.Status.Conditions = []metav1.Condition{{Type: "Complete", Status: "True", Reason: hostile, Message: hostile, LastTransitionTime: *at(1)}}
	})
	twin := build.DeepCopy()
	twin.Namespace = "other"
	for path, objects := range map[string][]client.Object{
		"/builds/b1":  {build},
		"/":           {build},
		"/builds/b1?": {build, twin},
		BuildPath("</title><script>alert(1)</script>\u202e"): nil,
		"/<script>alert(1)</script>":                         nil,
	} {
		t.Run(path, func(t *testing.T) {
			_, body := get(t, newTestServer(t, newScriptedLogs(), objects...), http.MethodGet, path)
			for _, bad := range []string{"<script>", "<img", "\u202e", "\x00", "\x1b", "javascript:</"} {
				if strings.Contains(body, bad) {
					t.Errorf("%q came through:\n%s", bad, body)
				}
			}
			if strings.Contains(body, " style=") || strings.Contains(body, "<style") || strings.Contains(body, "onclick") {
				t.Error("the policy forbids what is inline, and it is there")
			}
			if len(objects) > 0 {
				wantParts(t, body, "&lt;script&gt;", `\u202e`, `\u0000`)
			}
		})
	}
}

// TestDescription: what is in the status is shown as HTML, whoever wrote it there, and only what is harmless of it.
func TestDescription(t *testing.T) {
	const section = `<h2 id="description-title">`
	show := func(text string) string {
		t.Helper()
		build := newBuild("ci", "b1", func(b *v1alpha1.ZuulBuild) { b.Status.Description = text })
		response, body := get(t, newTestServer(t, newScriptedLogs(), build), http.MethodGet, "/builds/b1")
		policy := response.Header.Get("Content-Security-Policy")
		if response.StatusCode != http.StatusOK || !strings.Contains(policy, "script-src 'self';") || strings.Contains(policy, "unsafe") {
			t.Errorf("got %s with policy %q", response.Status, policy)
		}
		return body
	}
	body := show(`<p>Triggered by <a href="https://review.example.org/4711">4711,3</a><br/>Branch: <b>master</b></p>`)
	wantParts(t, body, section, `<p>Triggered by <a href="https://review.example.org/4711" rel="nofollow noreferrer">4711,3</a><br>Branch: <b>master</b></p></div>`)

	if body := show(""); strings.Contains(body, section) || !strings.Contains(body, `<div id="description" data-live>`) {
		t.Error("a build without a description has a section for it, or no place where one may come")
	}
	for hostile, want := range map[string]string{
		"<script>alert(1)</script>seen":                                      ">seen</div>",
		`<script src="https://x/x.js"></script>seen`:                         ">seen</div>",
		`<b onclick="alert(1)" style="position:fixed">seen</b>`:              "<b>seen</b></div>",
		`<img src=x onerror=alert(1)><svg/onload=alert(1)>seen`:              ">seen</div>",
		`<a href="javascript:alert(1)">seen</a>`:                             ">seen</div>",
		`<a href="JaVa` + "\t" + `Script&colon;alert(1)">seen</a>`:           ">seen</div>",
		`<a href="https://x/" target=_blank onmouseover=alert(1)>seen`:       `<a href="https://x/" rel="nofollow noreferrer">seen</a></div>`,
		`<iframe srcdoc="<script>alert(1)</script>"></iframe>seen`:           ">seen</div>",
		`seen</div></section></main><form action="https://x/"><input>`:       ">seen</div>",
		`<meta http-equiv=refresh content="0;url=https://x/"><b id=log>seen`: "<b>seen</b></div>",
		"se\x00en\u202e&#x202e;":                                             ">seen</div>",
	} {
		body := show(hostile)
		_, shown, found := strings.Cut(body, section)
		shown, _, _ = strings.Cut(shown, `<section id="log"`)
		if !found || !strings.Contains(shown, want) {
			t.Errorf("%q is shown as %q, want %q", hostile, shown, want)
		}
		for _, bad := range []string{"<script", "alert(1)", "javascript:", " on", "style=", "srcdoc", "<form", "\x00", "\u202e"} {
			if strings.Contains(strings.ToLower(shown), bad) {
				t.Errorf("%q let %q through: %q", hostile, bad, shown)
			}
		}
	}
	if body := show(strings.Repeat("<b>&\"", 1<<16)); len(body) > 50_000 {
		t.Errorf("a description that nobody bounded makes a page of %d bytes", len(body))
	}
}

func TestSeveralNamespaces(t *testing.T) {
	server := newTestServer(t, newScriptedLogs(), newBuild("ci", "b1"), newBuild("other", "b1", complete))
	response, body := get(t, server, http.MethodGet, "/builds/b1")
	if response.StatusCode != http.StatusMultipleChoices {
		t.Errorf("got %s", response.Status)
	}
	wantParts(t, body, `href="../builds/b1?namespace=ci"`, `href="../builds/b1?namespace=other"`)

	response, body = get(t, server, http.MethodGet, "/builds/b1?namespace=other")
	if response.StatusCode != http.StatusOK {
		t.Errorf("got %s", response.Status)
	}
	wantParts(t, body, "FAILURE", "../builds/b1/log.txt?namespace=other")

	response, body = get(t, server, http.MethodGet, "/builds/b1/log.txt")
	if response.StatusCode != http.StatusMultipleChoices {
		t.Errorf("got %s", response.Status)
	}
	wantParts(t, body, "?namespace=")
}

func TestUnknown(t *testing.T) {
	server := newTestServer(t, newScriptedLogs(), newBuild("ci", "b1"))
	for path, part := range map[string]string{
		"/builds/b2":              "deleted some time after",
		"/builds/b1?namespace=no": "deleted some time after",
		"/builds":                 "Nothing is served",
		"/a/b/c":                  `href="../../assets/`,
		"/assets/none.js":         "no asset",
		"/builds/%2e%2e%2fsecret": "secret",
	} {
		response, body := get(t, server, http.MethodGet, path)
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("%s: got %s", path, response.Status)
		}
		wantParts(t, body, part)
	}
}

func TestOverview(t *testing.T) {
	var objects []client.Object
	for i := range overviewLength + 5 {
		objects = append(objects, newBuild("ci", fmt.Sprintf("b%03d", i), func(b *v1alpha1.ZuulBuild) { b.CreationTimestamp = *at(i) }))
	}
	_, body := get(t, newTestServer(t, newScriptedLogs(), objects...), http.MethodGet, "/")
	if rows := strings.Count(body, "<tr><td>"); rows != overviewLength {
		t.Errorf("%d rows, want %d", rows, overviewLength)
	}
	wantParts(t, body, "The newest 200 of 205", `href="./builds/b204?namespace=ci"`, "4711,3")
	if newest, next := strings.Index(body, "builds/b204"), strings.Index(body, "builds/b203"); newest > next {
		t.Error("not newest first")
	}
	if strings.Contains(body, "b004") {
		t.Error("an old build is listed before newer ones")
	}
	_, body = get(t, newTestServer(t, newScriptedLogs()), http.MethodGet, "/")
	wantParts(t, body, "There are no builds")
}

func TestHeadersAndMethods(t *testing.T) {
	build := newBuild("ci", "b1", complete)
	server := newTestServer(t, newScriptedLogs(), build)
	for _, path := range []string{"/", "/builds/b1", "/builds/none", "/builds/b1/log.txt", "/assets/style.css", "/elsewhere"} {
		response, _ := get(t, server, http.MethodGet, path)
		for header, want := range map[string]string{
			"X-Content-Type-Options": "nosniff",
			"X-Frame-Options":        "DENY",
			"Referrer-Policy":        "no-referrer",
		} {
			if got := response.Header.Get(header); got != want {
				t.Errorf("%s: %s %q, want %q", path, header, got, want)
			}
		}
		policy := response.Header.Get("Content-Security-Policy")
		wantParts(t, policy, "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'")
		if strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			response, _ := get(t, server, method, path)
			if response.StatusCode != http.StatusMethodNotAllowed || response.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %s, Allow %q", method, path, response.Status, response.Header.Get("Allow"))
			}
		}
		if head, body := get(t, server, http.MethodHead, path); head.StatusCode != response.StatusCode || body != "" {
			t.Errorf("HEAD %s: %s and %q, want the status of GET, %s", path, head.Status, body, response.Status)
		}
	}
}

func TestAssets(t *testing.T) {
	server := newTestServer(t, newScriptedLogs())
	for file, kind := range map[string]string{
		"style.css": "text/css; charset=utf-8", "build.js": "text/javascript; charset=utf-8", "icon-success.svg": "image/svg+xml",
	} {
		response, body := get(t, server, http.MethodGet, "/"+assetPath(file))
		if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != kind || body == "" {
			t.Errorf("%s: %s, Content-Type %q", file, response.Status, response.Header.Get("Content-Type"))
		}
		if control := response.Header.Get("Cache-Control"); !strings.Contains(control, "immutable") {
			t.Errorf("%s: Cache-Control %q", file, control)
		}
		response, _ = get(t, server, http.MethodGet, "/assets/"+file+"?v=old")
		if control := response.Header.Get("Cache-Control"); control != "no-cache" {
			t.Errorf("%s of another version: Cache-Control %q", file, control)
		}
	}
	for _, tone := range []tone{toneNone, toneWaiting, toneRunning, toneSuccess, toneFailure, toneStopped, toneLost} {
		if assets["icon-"+string(tone)+".svg"].fingerprint == "" {
			t.Errorf("no icon for %s", tone)
		}
	}
}

func TestTrailingSlash(t *testing.T) {
	server := newTestServer(t, newScriptedLogs(), newBuild("ci", "b1"))
	response, body := get(t, server, http.MethodGet, "/builds/b1/?namespace=ci")
	if response.StatusCode != http.StatusOK || response.Request.URL.RequestURI() != "/builds/b1?namespace=ci" {
		t.Errorf("got %s at %s: %s", response.Status, response.Request.URL, body)
	}
}

func TestPagesWorkUnderAPrefix(t *testing.T) {
	build := newBuild("ci", "b1")
	pages := &Server{Builds: newReader(t, build), Logs: newScriptedLogs()}
	prefixed := http.StripPrefix("/ci/zuul", pages.Handler())
	recorder := &recorder{header: http.Header{}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/ci/zuul/builds/b1", nil)
	if err != nil {
		t.Fatal(err)
	}
	prefixed.ServeHTTP(recorder, request)
	for _, absolute := range []string{`href="/`, `src="/`, `data-url="/`} {
		if strings.Contains(recorder.body.String(), absolute) {
			t.Errorf("%s leaves the prefix", absolute)
		}
	}
	wantParts(t, recorder.body.String(), `href="../assets/style.css`)
}

type recorder struct {
	header http.Header
	body   strings.Builder
}

func (r *recorder) Header() http.Header            { return r.header }
func (r *recorder) WriteHeader(int)                {}
func (r *recorder) Write(data []byte) (int, error) { return r.body.Write(data) }
