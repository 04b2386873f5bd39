package chart

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/hack/doctable"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type ruleGroups struct {
	Groups []struct {
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

func alerts(t *testing.T) []rule {
	t.Helper()
	content, err := os.ReadFile(chartPath + "/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := ruleGroups{}
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	return file.Groups[0].Rules
}

// Each alert has a runbook, each runbook an alert, and docs/metrics.md a line for each.
func TestRunbooks(t *testing.T) {
	entries, err := os.ReadDir(root + "/docs/runbooks")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]bool{}
	for _, entry := range entries {
		pages[strings.TrimSuffix(entry.Name(), ".md")] = true
	}
	listed := map[string]bool{}
	for _, row := range doctable.Rows(t, "metrics.md", "Alerts") {
		listed[regexp.MustCompile(`\[(\w+)\]`).FindStringSubmatch(row[0])[1]] = true
	}
	for _, alert := range alerts(t) {
		if want := "https://zuulbuild.dev/docs/runbooks/" + alert.Alert + ".md"; alert.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url is %q rather than %q", alert.Alert, alert.Annotations["runbook_url"], want)
		}
		if !pages[alert.Alert] {
			t.Errorf("%s has no page in docs/runbooks", alert.Alert)
		}
		if !listed[alert.Alert] {
			t.Errorf("%s is not in the table of docs/metrics.md", alert.Alert)
		}
		if alert.Annotations["summary"] == "" || alert.Annotations["description"] == "" || alert.Labels["severity"] == "" {
			t.Errorf("%s lacks a summary, a description or a severity", alert.Alert)
		}
		delete(pages, alert.Alert)
		delete(listed, alert.Alert)
	}
	for name := range pages {
		t.Errorf("docs/runbooks/%s.md is of no alert", name)
	}
	for name := range listed {
		t.Errorf("docs/metrics.md tells of %s, which is no alert", name)
	}
}

// Alerts and dashboard ask for metrics there are, with labels they have.
func TestQueriesAskForMetricsThereAre(t *testing.T) {
	known := map[string]bool{}
	for _, row := range doctable.Rows(t, "metrics.md", "Metrics of the Gearman bridge") {
		name, _ := doctable.Code(row[0])
		known[name] = true
		if row[1] == "histogram" {
			known[name+"_bucket"] = true
		}
	}
	content, err := os.ReadFile(chartPath + "/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	dashboard := struct {
		Panels []struct {
			ID      int    `json:"id"`
			Title   string `json:"title"`
			Type    string `json:"type"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}{}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	queries, ids := map[string]string{}, map[int]bool{}
	for _, alert := range alerts(t) {
		queries[alert.Alert] = alert.Expr
	}
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] {
			t.Errorf("panel %q has the id of another", panel.Title)
		}
		ids[panel.ID] = true
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("panel %q shows nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			queries[panel.Title] += target.Expr + "\n"
		}
	}
	for where, query := range queries {
		for _, name := range regexp.MustCompile(`zuulbuild_\w+`).FindAllString(query, -1) {
			if !known[name] {
				t.Errorf("%s asks for %s, which docs/metrics.md does not know", where, name)
			}
		}
	}
}

func TestRuleSaysWhereRunbooksAre(t *testing.T) {
	t.Parallel()
	spec := ruleGroups{}
	into(t, find(t, render(t, "everything"), "PrometheusRule", "builder").Object["spec"], &spec)
	if got := len(spec.Groups[0].Rules); got != len(alerts(t)) {
		t.Errorf("%d rules, not %d", got, len(alerts(t)))
	}
	for _, rule := range spec.Groups[0].Rules {
		if want := "https://wiki.example.org/zuulbuild/" + rule.Alert + ".md"; rule.Annotations["runbook_url"] != want {
			t.Errorf("%s: %s rather than %s", rule.Alert, rule.Annotations["runbook_url"], want)
		}
	}
}

// testdata/alerts.yaml says which alerts fire when.
func TestAlerts(t *testing.T) {
	t.Parallel()
	if output, err := command(t, nil, require(t, localcluster.Tool("promtool"), "tools promtool"), "test", "rules", "testdata/alerts.yaml"); err != nil {
		t.Error(output, err)
	}
}
