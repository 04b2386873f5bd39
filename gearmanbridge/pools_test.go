package gearmanbridge

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

func TestOutdated(t *testing.T) {
	type planned = map[string]scope
	arm, limited := scope{class: "arm"}, scope{job: jobKey("limited")}
	tests := map[string]struct {
		before, after planned
		want          map[scope]bool
	}{
		"nothing yet":           {nil, planned{"f": {}}, map[scope]bool{}},
		"nothing new":           {planned{"f": {}, "g": arm}, planned{"f": {}, "g": arm}, map[scope]bool{}},
		"one more":              {planned{"f": {}}, planned{"f": {}, "g": {}}, map[scope]bool{}},
		"one of two gone":       {planned{"f": {}, "g": {}}, planned{"f": {}}, map[scope]bool{}},
		"the last gone":         {planned{"f": {}, "g": arm}, planned{"f": {}}, map[scope]bool{arm: true}},
		"all gone":              {planned{"f": {}, "g": arm}, nil, map[scope]bool{{}: true, arm: true}},
		"a limit is new":        {planned{"f": {}, "g": {}}, planned{"f": {}, "g": arm}, map[scope]bool{{}: true}},
		"a limit is taken away": {planned{"f": {}, "g": arm}, planned{"f": {}, "g": {}}, map[scope]bool{arm: true}},
		"one limit for another": {planned{"f": limited, "g": {}}, planned{"f": arm, "g": {}}, map[scope]bool{limited: true}},
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
	arm := scope{class: "arm"}
	made := map[scope]int{}
	all := pools{create: func(s scope) *pool {
		made[s]++
		return &pool{scope: s, worker: &gearman.Worker{}, retired: make(chan struct{})}
	}}
	step := func(name string, planned map[string]scope, wantMade map[scope]int) {
		t.Helper()
		must(t, all.set(planned))
		active := map[scope]bool{}
		for s := range all.active {
			active[s] = true
		}
		want := map[scope]bool{}
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
	step("one", map[string]scope{"f": {}, "g": {}}, map[scope]int{{}: 1})
	first := all.active[scope{}]
	step("two", map[string]scope{"f": {}, "g": {}, "h": arm}, map[scope]int{{}: 1, arm: 1})
	step("a function goes to the other", map[string]scope{"f": {}, "g": arm, "h": arm}, map[scope]int{{}: 2, arm: 1})
	select {
	case <-first.retired:
	default:
		t.Error("the first pool has not retired")
	}
	step("and back", map[string]scope{"f": {}, "g": {}}, map[scope]int{{}: 2, arm: 1})
	step("nothing", nil, map[scope]int{{}: 2, arm: 1})

	step("again", map[string]scope{"f": {}, "g": {}}, map[scope]int{{}: 3, arm: 1})
	if running := all.drain(); len(running) != 0 {
		t.Errorf("%d pools run that were never started", len(running))
	}
	must(t, all.set(map[string]scope{"f": {}, "g": arm}))
	if diff := cmp.Diff(map[scope]int{{}: 3, arm: 2}, made); diff != "" {
		t.Errorf("a draining pool was parted (-want +got):\n%s", diff)
	}
}

func TestByScope(t *testing.T) {
	got := byScope(map[string]scope{"a": {}, "b": {}, "c": {class: "arm"}})
	for _, functions := range got {
		slices.Sort(functions)
	}
	if diff := cmp.Diff(map[scope][]string{{}: {"a", "b"}, {class: "arm"}: {"c"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
