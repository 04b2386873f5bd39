package buildpages

import (
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func TestBuildPath(t *testing.T) {
	for name, want := range map[string]string{
		"zb-1234": "/builds/zb-1234",
		"a b/c?d": "/builds/a%20b%2Fc%3Fd",
		"größe":   "/builds/gr%C3%B6%C3%9Fe",
	} {
		got := BuildPath(name)
		if got != want {
			t.Errorf("BuildPath(%q) = %q, want %q", name, got, want)
		}
		if parsed, err := url.Parse(got); err != nil || parsed.Path != "/builds/"+name {
			t.Errorf("%q reads as %v, %v", got, parsed, err)
		}
	}
}

func TestVisible(t *testing.T) {
	for text, want := range map[string]string{
		"plain\ttext\n":    "plain\ttext\n",
		"NUL\x00":          `NUL\u0000`,
		"\u202egnp.exe":    `\u202egnp.exe`,
		"a\u2066b\u2069":   `a\u2066b\u2069`,
		"\x1b[31mred":      `\u001b[31mred`,
		"bad\xff":          `bad\xff`,
		"own \uFFFD stays": "own \uFFFD stays",
		"שלום":             "שלום",
	} {
		if got := visible(text); got != want {
			t.Errorf("visible(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for length, want := range map[time.Duration]string{
		-time.Second:                   "0 s",
		59 * time.Second:               "59 s",
		90 * time.Second:               "1 min 30 s",
		2*time.Hour + 5*time.Minute:    "2 h 5 min",
		50*time.Hour + 59*time.Minute:  "2 d 2 h",
		59*time.Second + 600*1000*1000: "1 min 0 s",
	} {
		if got := duration(length); got != want {
			t.Errorf("duration(%v) = %q, want %q", length, got, want)
		}
	}
}

func TestStateOf(t *testing.T) {
	for phase, want := range map[v1alpha1.BuildPhase][2]string{
		"":                      {"Queued", "waiting"},
		v1alpha1.PhaseQueued:    {"Queued", "waiting"},
		v1alpha1.PhaseStarting:  {"Starting", "waiting"},
		v1alpha1.PhaseRunning:   {"Running", "running"},
		v1alpha1.PhaseAborting:  {"Aborting", "stopped"},
		v1alpha1.PhaseSucceeded: {"Succeeded", "success"},
		v1alpha1.PhaseFailed:    {"Failed", "failure"},
		v1alpha1.PhaseAborted:   {"Aborted", "stopped"},
		v1alpha1.PhaseLost:      {"Lost", "lost"},
	} {
		build := &v1alpha1.ZuulBuild{Status: v1alpha1.ZuulBuildStatus{Phase: phase}}
		state, stateTone := stateOf(build)
		if got := [2]string{state, string(stateTone)}; got != want {
			t.Errorf("%q: got %v, want %v", phase, got, want)
		}
		// Asked to stop: Aborting until it is complete, and then as it ended.
		if !build.Complete() {
			want = [2]string{"Aborting", "stopped"}
		}
		build.Spec.Abort = true
		state, stateTone = stateOf(build)
		if got := [2]string{state, string(stateTone)}; got != want {
			t.Errorf("%q, abort: got %v, want %v", phase, got, want)
		}
	}
}

func TestEventsOfATagBuild(t *testing.T) {
	build := newBuild("ci", "b1", complete, func(b *v1alpha1.ZuulBuild) {
		b.Status.ScheduledTime = nil
		b.Spec.Parameters = map[string]string{"ZUUL_PROJECT": "tools/widget", "ZUUL_REFNAME": "refs/tags/1.0", "ZUUL_NEWREV": "abc"}
	})
	view := describe(build, start)
	wantEvents := []event{{"Queued", at(0).Time, ""}, {"Started", at(14).Time, "14 s"}, {"Completed", at(317).Time, "5 min 3 s"}}
	if difference := cmp.Diff(wantEvents, view.Events); difference != "" {
		t.Errorf("events (-want +got):\n%s", difference)
	}
	wantFacts := []fact{{"Project", "tools/widget"}, {"Ref name", "refs/tags/1.0"}, {"New revision", "abc"}}
	if difference := cmp.Diff(wantFacts, view.Facts); difference != "" {
		t.Errorf("facts (-want +got):\n%s", difference)
	}
}

func TestLongParametersAreShownInPart(t *testing.T) {
	long := strings.Repeat("é", 100_000)
	build := newBuild("ci", "b1", func(b *v1alpha1.ZuulBuild) {
		b.Spec.Parameters = map[string]string{"LONG": long, "SHORT": long[:maxShown], "ZUUL_CHANGE": long, "ZUUL_PROJECT": long}
	})
	row := describeRow(build, start)
	cut := long[:maxShown] + "… (200000 bytes in all)"
	want := []fact{{"LONG", cut}, {"SHORT", long[:maxShown]}, {"ZUUL_CHANGE", cut}, {"ZUUL_PROJECT", cut}}
	if difference := cmp.Diff(want, row.Parameters); difference != "" {
		t.Errorf("parameters (-want +got):\n%.1000s", difference)
	}
	if difference := cmp.Diff([]fact{{"Project", cut}, {"Change", cut}}, row.Facts); difference != "" {
		t.Errorf("facts (-want +got):\n%.1000s", difference)
	}
	if row.Project != cut || row.Change != cut {
		t.Errorf("a row shows a project of %d bytes and a change of %d", len(row.Project), len(row.Change))
	}
	if got := beginning("x" + long); !utf8.ValidString(got) {
		t.Error("a character is cut in two")
	}
}

func TestLogStateOf(t *testing.T) {
	live, ended := newBuild("ci", "b1"), newBuild("ci", "b1", complete)
	asked := newBuild("ci", "b1", func(b *v1alpha1.ZuulBuild) { b.Status = v1alpha1.ZuulBuildStatus{} })
	neverStarted := newBuild("ci", "b1", complete, func(b *v1alpha1.ZuulBuild) { b.Status.StartTime = nil })
	for name, test := range map[string]struct {
		build *v1alpha1.ZuulBuild
		pod   *corev1.Pod
		want  logState
	}{
		"no Pod yet":              {asked, nil, logWaiting},
		"container waits":         {asked, newPod(asked, corev1.ContainerState{}), logWaiting},
		"container runs":          {live, newPod(live, running()), logLive},
		"container ended":         {live, newPod(live, terminated()), logEnded},
		"complete, node is lost":  {ended, newPod(ended, running()), logEnded},
		"complete":                {ended, newPod(ended, terminated()), logEnded},
		"Pod gone while running":  {live, nil, logGone},
		"Pod gone after the end":  {ended, nil, logGone},
		"never started":           {neverStarted, nil, logNone},
		"never started, Pod left": {neverStarted, newPod(neverStarted, corev1.ContainerState{}), logNone},
	} {
		if got := logStateOf(test.build, test.pod); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

func TestMainContainer(t *testing.T) {
	for want, names := range map[string][]string{
		"":      nil,
		"first": {"first", "second"},
		"build": {"helper", "build"},
	} {
		var pod corev1.Pod
		for _, name := range names {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: name})
		}
		if got := mainContainer(&pod); got != want {
			t.Errorf("%v: got %q, want %q", names, got, want)
		}
	}
}
