package gearmanbridge

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

func TestOutdated(t *testing.T) {
	type planned = map[string]capacity.Scope
	arm, limited := capacity.Scope{Class: "arm"}, capacity.Scope{Job: jobKey("limited")}
	tests := map[string]struct {
		before, after planned
		want          map[capacity.Scope]bool
	}{
		"nothing yet":           {nil, planned{"f": {}}, map[capacity.Scope]bool{}},
		"nothing new":           {planned{"f": {}, "g": arm}, planned{"f": {}, "g": arm}, map[capacity.Scope]bool{}},
		"one more":              {planned{"f": {}}, planned{"f": {}, "g": {}}, map[capacity.Scope]bool{}},
		"one of two gone":       {planned{"f": {}, "g": {}}, planned{"f": {}}, map[capacity.Scope]bool{}},
		"the last gone":         {planned{"f": {}, "g": arm}, planned{"f": {}}, map[capacity.Scope]bool{arm: true}},
		"all gone":              {planned{"f": {}, "g": arm}, nil, map[capacity.Scope]bool{{}: true, arm: true}},
		"a limit is new":        {planned{"f": {}, "g": {}}, planned{"f": {}, "g": arm}, map[capacity.Scope]bool{{}: true}},
		"a limit is taken away": {planned{"f": {}, "g": arm}, planned{"f": {}, "g": {}}, map[capacity.Scope]bool{arm: true}},
		"one limit for another": {planned{"f": limited, "g": {}}, planned{"f": arm, "g": {}}, map[capacity.Scope]bool{limited: true}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, outdated(test.before, test.after)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestPoolsComeAndGo: what is active, and how often a pool was made, after each plan.
func TestPoolsComeAndGo(t *testing.T) {
	arm := capacity.Scope{Class: "arm"}
	made := map[capacity.Scope]int{}
	all := pools{create: func(s capacity.Scope) *pool {
		made[s]++
		return &pool{scope: s, worker: &gearman.Worker{}, retired: make(chan struct{})}
	}}
	step := func(name string, planned map[string]capacity.Scope, wantMade map[capacity.Scope]int) {
		t.Helper()
		must(t, all.set(planned))
		active := map[capacity.Scope]bool{}
		for s := range all.active {
			active[s] = true
		}
		want := map[capacity.Scope]bool{}
		for s := range byScope(planned) {
			want[s] = true
		}
		if diff := cmp.Diff(want, active); diff != "" {
			t.Errorf("%s: active (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(wantMade, made); diff != "" {
			t.Errorf("%s: made (-want +got):\n%s", name, diff)
		}
	}
	step("one", map[string]capacity.Scope{"f": {}, "g": {}}, map[capacity.Scope]int{{}: 1})
	first := all.active[capacity.Scope{}]
	step("two", map[string]capacity.Scope{"f": {}, "g": {}, "h": arm}, map[capacity.Scope]int{{}: 1, arm: 1})
	step("a function goes to the other", map[string]capacity.Scope{"f": {}, "g": arm, "h": arm}, map[capacity.Scope]int{{}: 2, arm: 1})
	select {
	case <-first.retired:
	default:
		t.Error("the first pool has not retired")
	}
	step("and back", map[string]capacity.Scope{"f": {}, "g": {}}, map[capacity.Scope]int{{}: 2, arm: 1})
	step("nothing", nil, map[capacity.Scope]int{{}: 2, arm: 1})

	step("again", map[string]capacity.Scope{"f": {}, "g": {}}, map[capacity.Scope]int{{}: 3, arm: 1})
	if running := all.drain(); len(running) != 0 {
		t.Errorf("%d pools run that were never started", len(running))
	}
	must(t, all.set(map[string]capacity.Scope{"f": {}, "g": arm}))
	if diff := cmp.Diff(map[capacity.Scope]int{{}: 3, arm: 2}, made); diff != "" {
		t.Errorf("a draining pool was parted (-want +got):\n%s", diff)
	}
}

func TestByScope(t *testing.T) {
	got := byScope(map[string]capacity.Scope{"a": {}, "b": {}, "c": {Class: "arm"}})
	for _, functions := range got {
		slices.Sort(functions)
	}
	if diff := cmp.Diff(map[capacity.Scope][]string{{}: {"a", "b"}, {Class: "arm"}: {"c"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPlanPools(t *testing.T) {
	functions := map[string]target{
		"build:unit":        {key: jobKey("unit"), job: "unit"},
		"build:unit:any":    {key: jobKey("unit"), job: "unit", class: "any"},
		"build:unit:arm":    {key: jobKey("unit"), job: "unit", class: "arm"},
		"build:limited":     {key: jobKey("limited"), job: "limited"},
		"build:limited:any": {key: jobKey("limited"), job: "limited", class: "any"},
		"build:limited:arm": {key: jobKey("limited"), job: "limited", class: "arm"},
	}
	want := map[string]capacity.Scope{
		"build:unit":        {},
		"build:unit:any":    {},
		"build:unit:arm":    {Class: "arm"},
		"build:limited":     {Job: jobKey("limited")},
		"build:limited:any": {Job: jobKey("limited")},
		"build:limited:arm": {Class: "arm", Job: jobKey("limited")},
	}
	if diff := cmp.Diff(want, planPools(functions, testLimits())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPoolID(t *testing.T) {
	long := jobKey("a-job-with-quite-a-long-name-as-zuul-has-them-and-some-more-that-no-server-takes-as-the-name-of-a-worker-any-more")
	tests := map[string]struct {
		scope capacity.Scope
		want  string
	}{
		"default":      {capacity.Scope{}, "m_builds"},
		"class":        {capacity.Scope{Class: "arm"}, "m_builds:arm"},
		"job":          {capacity.Scope{Job: jobKey("unit")}, "m_builds:ci/unit"},
		"both":         {capacity.Scope{Class: "arm", Job: jobKey("unit")}, "m_builds:arm:ci/unit"},
		"cut to fit":   {capacity.Scope{Class: "arm", Job: long}, ("m_builds:arm:" + long.String())[:127]},
		"not too much": {capacity.Scope{Class: "arm", Job: jobKey(long.Name[:111])}, "m_builds:arm:ci/" + long.Name[:111]},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := poolID("m", test.scope); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
