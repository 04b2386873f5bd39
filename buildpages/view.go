package buildpages

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// tone is the mood of a state: it chooses colour and icon, and names the class in the style sheet and the file of the icon.
type tone string

const (
	toneNone    tone = "none"
	toneWaiting tone = "waiting"
	toneRunning tone = "running"
	toneSuccess tone = "success"
	toneFailure tone = "failure"
	toneStopped tone = "stopped" // aborted, or about to be
	toneLost    tone = "lost"
)

// fact is a label and a value.
type fact struct{ Label, Value string }

// event is a point in a build's life.
type event struct {
	Label string
	Time  time.Time
	After string // since the event before; empty for the first
}

// buildView is what the page of a build says. Its strings are as untrusted as the build.
type buildView struct {
	Name, Namespace string
	Job             string
	Number          int64
	Node            string // asked for
	State           string // the phase, or Aborting
	StateTone       tone
	Complete        bool
	Result          string // empty in a complete build: Zuul runs the job again
	Reason, Message string
	Facts           []fact
	Parameters      []fact // all of them, by name
	PodName, OnNode string
	Conditions      []metav1.Condition
	Events          []event
	Attempt         string // which of those at the same change; empty for the first
	Took            fact   // how long it ran, or has been running or waiting; empty where that is not known
}

// describe says what a page tells of a build at the moment now.
func describe(build *v1alpha1.ZuulBuild, now time.Time) buildView {
	state, stateTone := stateOf(build)
	view := buildView{
		Name: build.Name, Namespace: build.Namespace,
		Job: build.Spec.Job, Number: build.Spec.Number, Node: build.Spec.Node,
		State: state, StateTone: stateTone, Complete: build.Complete(),
		Result: build.Status.Result, Reason: build.Status.Reason, Message: build.Status.Message,
		Facts:   zuulFacts(build.Spec.Parameters),
		PodName: build.Status.PodName, OnNode: build.Status.NodeName,
		Conditions: build.Status.Conditions,
		Events:     events(build),
		Took:       took(build, now),
	}
	if attempt := build.Status.Attempts; attempt > 1 {
		view.Attempt = fmt.Sprintf("%d: the infrastructure lost the builds before it", attempt)
	}
	if view.Reason == view.State { // a plain phase says no more than it did
		view.Reason = ""
	}
	for _, name := range slices.Sorted(maps.Keys(build.Spec.Parameters)) {
		view.Parameters = append(view.Parameters, fact{beginning(name), beginning(build.Spec.Parameters[name])})
	}
	return view
}

// stateOf is the phase in a word for people, and its tone. A build that is to stop is Aborting from the moment it was asked to.
func stateOf(build *v1alpha1.ZuulBuild) (string, tone) {
	if build.Spec.Abort && !build.Complete() {
		return string(v1alpha1.PhaseAborting), toneStopped
	}
	switch phase := build.Status.Phase; phase {
	case "":
		return string(v1alpha1.PhaseQueued), toneWaiting
	case v1alpha1.PhaseRunning:
		return string(phase), toneRunning
	case v1alpha1.PhaseSucceeded:
		return string(phase), toneSuccess
	case v1alpha1.PhaseFailed:
		return string(phase), toneFailure
	case v1alpha1.PhaseAborting, v1alpha1.PhaseAborted:
		return string(phase), toneStopped
	case v1alpha1.PhaseLost:
		return string(phase), toneLost
	default:
		return string(phase), toneWaiting
	}
}

// zuulFacts picks the parameters that say what is tested. A ref-updated event has a ref name and revisions where a change has a branch and a
// patch set (Zuul 2.5, launcher/gearman.py).
func zuulFacts(parameters map[string]string) []fact {
	change := parameters["ZUUL_CHANGE"]
	if patchSet := parameters["ZUUL_PATCHSET"]; change != "" && patchSet != "" {
		change += ", patch set " + patchSet
	}
	var facts []fact
	for _, candidate := range []fact{
		{"Project", parameters["ZUUL_PROJECT"]},
		{"Change", change},
		{"Branch", parameters["ZUUL_BRANCH"]},
		{"Ref name", parameters["ZUUL_REFNAME"]},
		{"Pipeline", parameters["ZUUL_PIPELINE"]},
		{"Ref", parameters["ZUUL_REF"]},
		{"Commit", parameters["ZUUL_COMMIT"]},
		{"Old revision", parameters["ZUUL_OLDREV"]},
		{"New revision", parameters["ZUUL_NEWREV"]},
	} {
		if candidate.Value != "" {
			facts = append(facts, fact{candidate.Label, beginning(candidate.Value)})
		}
	}
	return facts
}

// events are the points in time that are known, with what lay between them.
func events(build *v1alpha1.ZuulBuild) []event {
	var known []event
	add := func(label string, at *metav1.Time) {
		if at.IsZero() {
			return
		}
		next := event{Label: label, Time: at.Time}
		if len(known) > 0 {
			next.After = duration(at.Sub(known[len(known)-1].Time))
		}
		known = append(known, next)
	}
	add("Queued", &build.CreationTimestamp)
	add("Scheduled", build.Status.ScheduledTime)
	add("Started", build.Status.StartTime)
	add("Completed", build.Status.CompletionTime)
	return known
}

// took says how long a build ran, has been running or has been waiting; empty where that is not known.
func took(build *v1alpha1.ZuulBuild, now time.Time) fact {
	start, end := build.Status.StartTime, build.Status.CompletionTime
	switch {
	case !start.IsZero() && !end.IsZero():
		return fact{"Ran for", duration(end.Sub(start.Time))}
	case build.Complete():
		return fact{}
	case !start.IsZero():
		return fact{"Running for", duration(now.Sub(start.Time))}
	case !build.CreationTimestamp.IsZero():
		return fact{"Waiting for", duration(now.Sub(build.CreationTimestamp.Time))}
	default:
		return fact{}
	}
}

// overviewRow is a build in a list.
type overviewRow struct {
	buildView
	Path    string // relative to /
	Project string
	Change  string
	Created time.Time
}

func describeRow(build *v1alpha1.ZuulBuild, now time.Time) overviewRow {
	row := overviewRow{
		buildView: describe(build, now),
		Path:      strings.TrimPrefix(BuildPath(build.Name), "/") + "?namespace=" + url.QueryEscape(build.Namespace),
		Project:   beginning(build.Spec.Parameters["ZUUL_PROJECT"]),
		Created:   build.CreationTimestamp.Time,
	}
	row.Change = build.Spec.Parameters["ZUUL_CHANGE"]
	if patchSet := build.Spec.Parameters["ZUUL_PATCHSET"]; row.Change != "" && patchSet != "" {
		row.Change += "," + patchSet
	}
	if row.Change == "" {
		row.Change = build.Spec.Parameters["ZUUL_REFNAME"]
	}
	row.Change = beginning(row.Change)
	return row
}

// pageTitle tells the outcome first: a browser's tab has little room.
func pageTitle(view buildView) string {
	title := cmp.Or(view.Result, view.State) + " – " + visible(view.Job)
	if view.Number > 0 {
		title += fmt.Sprintf(" #%d", view.Number)
	}
	return title
}

// visible replaces what cannot be seen, or makes text look like other text (control characters, overrides of the writing direction), by its
// number, as in \u202e. Tabs and ends of lines stay.
func visible(text string) string {
	var out strings.Builder
	for position, char := range text {
		switch {
		case char == '\t' || char == '\n':
			out.WriteRune(char)
		case char == utf8.RuneError && !strings.HasPrefix(text[position:], "\uFFFD"):
			fmt.Fprintf(&out, `\x%02x`, text[position])
		case unicode.Is(unicode.Bidi_Control, char) || unicode.IsControl(char):
			fmt.Fprintf(&out, `\u%04x`, char)
		default:
			out.WriteRune(char)
		}
	}
	return out.String()
}

// maxShown is how many bytes of a parameter a page shows: one may have a MiB, which the ZuulBuild tells whole.
const maxShown = 4096

// beginning is a text, or as much of it as a page shows and how long it is.
func beginning(text string) string {
	if len(text) <= maxShown {
		return text
	}
	return fmt.Sprintf("%s… (%d bytes in all)", strings.ToValidUTF8(text[:maxShown], ""), len(text))
}

// duration is a length of time for people: its two largest units. Clocks of different machines may make it negative; then it is 0 s.
func duration(d time.Duration) string {
	seconds := max(int64(d.Round(time.Second)/time.Second), 0)
	switch {
	case seconds < 60:
		return fmt.Sprintf("%d s", seconds)
	case seconds < 60*60:
		return fmt.Sprintf("%d min %d s", seconds/60, seconds%60)
	case seconds < 24*60*60:
		return fmt.Sprintf("%d h %d min", seconds/3600, seconds/60%60)
	default:
		return fmt.Sprintf("%d d %d h", seconds/86400, seconds/3600%24)
	}
}

func moment(at time.Time) string      { return at.UTC().Format("2006-01-02 15:04:05 UTC") }
func machineTime(at time.Time) string { return at.UTC().Format(time.RFC3339) }
