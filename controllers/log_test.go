package controllers

import (
	"log/slog"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog/buildlogtest"
)

// Every test with a harness checks that no line about a build lacks the keys of package buildlog. This one has such lines written.

// awaitLine waits for a line about the build of a uuid, and gives its values without what is another each time.
func (h *harness) awaitLine(uuid, message string) map[string]any {
	h.Helper()
	var found map[string]any
	h.eventually(func() string {
		lines := h.log.Of(uuid, slog.LevelDebug)
		at := slices.IndexFunc(lines, func(line buildlogtest.Line) bool { return line.Message() == message })
		if at < 0 {
			return "no line " + message
		}
		found = maps.Clone(lines[at].Values)
		return ""
	})
	for _, key := range []string{"time", "level", "reconcileID", "err"} {
		delete(found, key)
	}
	return found
}

// TestLogOfABuild: the line of a build's end says how it ended. Those of what goes wrong say which build it is, also when there is none any more.
func TestLogOfABuild(t *testing.T) {
	const uuid = "0123456789abcdef0123456789abcdef"
	h := newHarness(t)
	h.start()
	h.job("job")
	failing := "POST pods"
	h.fails.Store(&failing)
	h.request(uuid, "job", numbered(1), func(spec *v1alpha1.ZuulBuildSpec) { spec.UUID = uuid })
	h.run(uuid)
	h.report(uuid, withPhase(podFailed), ended("build", 3, "Error"))
	h.awaitVerdict(uuid, v1alpha1.PhaseFailed, "FAILURE", ReasonExitCode)

	about := func(message string, more map[string]any) map[string]any {
		more["msg"], more["uuid"], more["job"], more["build"] = message, uuid, "job", h.namespace+"/"+uuid
		return more
	}
	round := func(message string, more map[string]any) map[string]any {
		more["controller"] = "zuulbuild"
		return about(message, more)
	}
	check := func(want map[string]any) {
		t.Helper()
		if diff := cmp.Diff(want, h.awaitLine(uuid, want["msg"].(string))); diff != "" {
			t.Errorf("the line (-want +got):\n%s", diff)
		}
	}
	check(round("Reconciler error", map[string]any{}))
	check(round("Pod made", map[string]any{"pod": uuid, "class": ""}))
	check(round("Build complete", map[string]any{"phase": "Failed", "result": "FAILURE", "reason": "ExitCode", "node": "node-1"}))
	informed := slices.DeleteFunc(h.log.Of(uuid, slog.LevelInfo), func(line buildlogtest.Line) bool { return line.Message() == "Reconciler error" })
	if len(informed) != 1 {
		t.Errorf("lines beside that of the error: %v", informed)
	}

	if err := h.api.Delete(t.Context(), h.build(uuid), client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	check(about("Deleted a Pod without a build", map[string]any{"pod": uuid, "cause": orphanDeleted}))
}
