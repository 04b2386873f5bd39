package controllers

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"zuulbuild.dev/zuulbuild/hack/doctable"
)

// everyMetric is a registry where each metric has a value.
func everyMetric(t *testing.T) *prometheus.Registry {
	t.Helper()
	m := newMetrics()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(m); err != nil {
		t.Fatal(err)
	}
	return registry
}

// TestMetricsConventions: names, types and help texts are what Prometheus asks for.
func TestMetricsConventions(t *testing.T) {
	problems, err := testutil.GatherAndLint(everyMetric(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

// TestMetricsAreDocumented: docs/metrics.md has each metric with its type, its labels and its help text, and an example that is about it.
func TestMetricsAreDocumented(t *testing.T) {
	families, err := everyMetric(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	free := []string{"class", "reason", "phase", "result"} // labels whose values the help need not list
	var want, got [][]string
	for _, family := range families {
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, label.GetName())
		}
		want = append(want, []string{family.GetName(), strings.ToLower(family.GetType().String()), strings.Join(labels, ", "), family.GetHelp()})
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if !slices.Contains(free, label.GetName()) && !strings.Contains(family.GetHelp(), label.GetValue()) {
					t.Errorf("the help of %s does not say what %s=%q is", family.GetName(), label.GetName(), label.GetValue())
				}
			}
		}
	}
	for _, row := range doctable.Rows(t, "metrics.md", "Metrics of the controllers") {
		name, _ := doctable.Code(row[0])
		got = append(got, []string{name, row[1], strings.ReplaceAll(row[2], "`", ""), strings.ReplaceAll(row[3], "`", "")})
		if example, ok := doctable.Code(row[4]); !ok || !strings.Contains(example, name) {
			t.Errorf("the example of %s is %s", name, row[4])
		}
	}
	if difference := cmp.Diff(want, got); difference != "" {
		t.Errorf("docs/metrics.md (-code +table):\n%s", difference)
	}
}
