package auditlog

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// request is a line of a made-up log.
type request struct {
	verb, resource, name string // resource with the subresource
	agent                string
	code                 int
	answer               string
}

func (r request) String() string {
	resource, subresource, _ := strings.Cut(r.resource, "/")
	if r.code == 0 {
		r.code = 200
	}
	entry := map[string]any{
		"kind": "Event", "apiVersion": "audit.k8s.io/v1", "stage": "ResponseComplete", "stageTimestamp": "2026-11-23T10:00:00.123456Z", "verb": r.verb,
		"userAgent": r.agent, "user": map[string]any{"username": "admin"}, "responseStatus": map[string]any{"metadata": map[string]any{}, "code": r.code},
		"objectRef": map[string]any{"resource": resource, "subresource": subresource, "namespace": "builds", "name": r.name},
	}
	if r.answer != "" {
		entry["responseObject"] = json.RawMessage(r.answer)
	}
	line, err := json.Marshal(entry)
	if err != nil {
		panic(err)
	}
	return string(line) + "\n"
}

// podAt is the answer to a request about a Pod; grace is what its deletion leaves it, if it was one ("30", "0").
func podAt(revision int, name, phase, grace string) string {
	metadata := fmt.Sprintf(`"name":%q,"namespace":"builds","uid":"uid of %s","resourceVersion":"%d"`, name, name, revision)
	metadata += fmt.Sprintf(`,"labels":{"zuulbuild.dev/build":%q},"annotations":{"zuulbuild.dev/job":"unit","zuulbuild.dev/node":"arm"}`, name)
	if grace != "" {
		metadata += `,"deletionTimestamp":"2026-11-23T10:00:00Z","deletionGracePeriodSeconds":` + grace
	}
	return fmt.Sprintf(`{"kind":"Pod","apiVersion":"v1","metadata":{%s},"spec":{},"status":{"phase":%q}}`, metadata, phase)
}

func created(revision int, name string) request {
	return request{verb: "create", resource: "pods", name: name, code: 201, answer: podAt(revision, name, "Pending", "")}
}

func becomes(revision int, name, phase string) request {
	return request{verb: "patch", resource: "pods/status", name: name, answer: podAt(revision, name, phase, "")}
}

func deleted(revision int, name, phase, grace string) request {
	return request{verb: "delete", resource: "pods", name: name, answer: podAt(revision, name, phase, grace)}
}

// deletedByAnother is a deletion that found nothing to delete any more, once it had begun.
func deletedByAnother(name string) request {
	return request{verb: "delete", resource: "pods", name: name, answer: strings.Replace(podAt(0, name, "Running", "0"), `"resourceVersion":"0",`, "", 1)}
}

const refusal = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","code":500}`

func entriesOf(t *testing.T, requests []request) []Entry {
	t.Helper()
	log := &strings.Builder{}
	for _, r := range requests {
		log.WriteString(r.String())
	}
	entries, err := parse([]byte(log.String()))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestReplay(t *testing.T) {
	a, b := []string{"a"}, []string{"a", "b"}
	bound := request{verb: "create", resource: "pods/binding", name: "a", code: 201, answer: `{"kind":"Status","metadata":{},"status":"Success"}`}
	other := request{verb: "create", resource: "pods", name: "x", code: 201,
		answer: `{"kind":"Pod","metadata":{"name":"x","uid":"x","resourceVersion":"11"},"status":{"phase":"Pending"}}`}
	lost := request{verb: "create", resource: "pods", name: "b", code: 500, answer: refusal}
	closed := request{verb: "create", resource: "pods", name: "b", code: 200}
	for name, test := range map[string]struct {
		requests []request
		want     Peak
		pods     int
	}{
		"one":                        {[]request{created(10, "a"), bound, becomes(11, "a", "Running")}, Peak{1, 10, a}, 1},
		"two at once":                {[]request{created(10, "a"), created(12, "b")}, Peak{2, 12, b}, 2},
		"one after the other":        {[]request{created(10, "a"), becomes(11, "a", "Succeeded"), created(12, "b")}, Peak{1, 10, a}, 2},
		"a failed one has ended":     {[]request{created(10, "a"), becomes(11, "a", "Failed"), created(12, "b")}, Peak{1, 10, a}, 2},
		"that runs":                  {[]request{created(10, "a"), becomes(11, "a", "Running"), created(12, "b")}, Peak{2, 12, b}, 2},
		"being deleted":              {[]request{created(10, "a"), deleted(11, "a", "Running", "30"), created(12, "b")}, Peak{2, 12, b}, 2},
		"deleted":                    {[]request{created(10, "a"), deleted(11, "a", "Running", "30"), deleted(13, "a", "Running", "0"), created(14, "b")}, Peak{1, 10, a}, 2},
		"a deletion that was undone": {[]request{created(10, "a"), {verb: "delete", resource: "pods", name: "a", code: 409, answer: refusal}, created(12, "b")}, Peak{2, 12, b}, 2},
		"deleted by two":             {[]request{created(10, "a"), deletedByAnother("a"), created(11, "b"), deleted(12, "a", "Running", "0")}, Peak{2, 11, b}, 2},
		"answered in another order":  {[]request{created(12, "b"), becomes(11, "a", "Succeeded"), created(10, "a")}, Peak{1, 10, a}, 2},
		"hidden by that order":       {[]request{created(10, "a"), becomes(13, "a", "Succeeded"), created(12, "b")}, Peak{2, 12, b}, 2},
		"a patch that changed nothing": {[]request{created(10, "a"), becomes(11, "a", "Succeeded"), becomes(11, "a", "Succeeded"), created(12, "b")},
			Peak{1, 10, a}, 2},
		"of no build":                {[]request{created(10, "a"), other}, Peak{1, 10, a}, 1},
		"refused":                    {[]request{created(10, "a"), lost}, Peak{1, 10, a}, 1},
		"refused once":               {[]request{lost, created(10, "a"), becomes(11, "a", "Succeeded"), created(12, "b")}, Peak{1, 10, a}, 2},
		"created without an answer":  {[]request{created(10, "a"), lost, becomes(12, "a", "Succeeded"), becomes(14, "b", "Running")}, Peak{2, 10, b}, 2},
		"the client was gone before": {[]request{created(10, "a"), becomes(12, "a", "Succeeded"), closed, becomes(14, "b", "Running")}, Peak{1, 10, a}, 2},
		"… or just before the end":   {[]request{created(10, "a"), closed, becomes(12, "a", "Succeeded"), becomes(14, "b", "Running")}, Peak{2, 10, b}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			history, err := Replay(entriesOf(t, test.requests), func(pod *Pod) []string { return []string{pod.Job + " on " + pod.Class} })
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]Peak{"unit on arm": test.want}, history.Peaks); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			unanswered := 0
			for _, pod := range history.Pods {
				if pod.Unanswered {
					unanswered++
				}
			}
			if tells := strings.Contains(name, "without an answer") || strings.Contains(name, "before"); tells != (unanswered == 1) {
				t.Errorf("%d Pods were created without an answer", unanswered)
			}
			if len(history.Pods) != test.pods {
				t.Errorf("%d Pods, want %d", len(history.Pods), test.pods)
			}
		})
	}
}

// TestReplayGroups: each group is counted apart.
func TestReplayGroups(t *testing.T) {
	entries := entriesOf(t, []request{created(10, "a"), created(11, "b"), created(12, "c"), becomes(13, "a", "Succeeded")})
	history, err := Replay(entries, func(pod *Pod) []string {
		if pod.Name == "a" {
			return []string{"all"}
		}
		return []string{"all", "others"}
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Peak{"all": {3, 12, []string{"a", "b", "c"}}, "others": {2, 12, []string{"b", "c"}}}
	if diff := cmp.Diff(want, history.Peaks); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWrites(t *testing.T) {
	ours := func(verb, resource, name string, code int) request {
		return request{verb: verb, resource: resource, name: name, agent: "zuulbuild/v0 (linux/amd64)", code: code}
	}
	got := Writes(entriesOf(t, []request{
		ours("create", "zuulbuilds", "a", 201),
		{verb: "create", resource: "zuulbuilds", name: "b", agent: "e2e.test/v0", code: 201},
		ours("get", "zuulbuilds", "a", 200),
		ours("create", "pods", "a", 201),
		ours("create", "pods", "a", 409),
		{verb: "patch", resource: "pods/status", name: "a", agent: "kwok/v0"},
		{verb: "patch", resource: "zuulbuilds/status", name: "a", agent: "zuulbuild/v0",
			answer: `{"kind":"ZuulBuild","metadata":{"name":"a"},"status":{"phase":"Queued","reason":"CapacityReached"}}`},
		ours("create", "events", "a.17f3", 201),
		ours("delete", "pods", "b", 200),
	}), "zuulbuild/")
	want := map[string][]Write{
		"a": {{What: "create zuulbuilds"}, {What: "create pods"}, {"patch zuulbuilds/status", "Queued", "CapacityReached"}, {What: "create events"}},
		"b": {{What: "delete pods"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	started := strings.Replace(created(11, "b").String(), "ResponseComplete", "ResponseStarted", 1)
	write(created(10, "a").String() + started + `{"kind":"Ev`)
	entries, err := Read(path)
	if err != nil || len(entries) != 1 || entries[0].ObjectRef.Name != "a" || entries[0].What() != "create pods" || entries[0].StageTimestamp.Year() != 2026 {
		t.Errorf("read %+v, %v; want the creation of Pod a", entries, err)
	}
	write("{\"kind\":\"Ev\n" + created(10, "a").String())
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), path+": line 1") {
		t.Errorf("a broken line: %v", err)
	}
	if _, err := Replay(entriesOf(t, []request{{verb: "create", resource: "pods", name: "a", answer: strings.Replace(podAt(1, "a", "", ""), `"1"`, `"x"`, 1)}}),
		func(*Pod) []string { return nil }); err == nil || !strings.Contains(err.Error(), "Pod a") {
		t.Errorf("a resource version that is none: %v", err)
	}
}
