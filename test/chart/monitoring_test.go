package chart

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/hack/doctable"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type ruleGroup struct {
	Name  string `json:"name"`
	Rules []rule `json:"rules"`
}

type ruleGroups struct {
	Groups []ruleGroup `json:"groups"`
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
	listed := map[string][]string{}
	for _, row := range doctable.Rows(t, "metrics.md", "Alerts") {
		listed[regexp.MustCompile(`\[(\w+)\]`).FindStringSubmatch(row[0])[1]] = row[1:3]
	}
	for _, alert := range alerts(t) {
		if want := "https://zuulbuild.dev/docs/runbooks/" + alert.Alert + ".md"; alert.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url is %q rather than %q", alert.Alert, alert.Annotations["runbook_url"], want)
		}
		if !pages[alert.Alert] {
			t.Errorf("%s has no page in docs/runbooks", alert.Alert)
		}
		if diff := cmp.Diff([]string{alert.Labels["severity"], alert.For}, listed[alert.Alert]); diff != "" {
			t.Errorf("%s in the table of docs/metrics.md (-alert +table):\n%s", alert.Alert, diff)
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

// panel is one of the dashboard.
type panel struct {
	ID      int    `json:"id"`
	Title   string `json:"title"`
	Type    string `json:"type"`
	Targets []struct {
		Expr string `json:"expr"`
	} `json:"targets"`
}

func panels(t *testing.T) []panel {
	t.Helper()
	content, err := os.ReadFile(chartPath + "/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	dashboard := struct {
		Panels []panel `json:"panels"`
	}{}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	return dashboard.Panels
}

// Alerts and dashboard ask for metrics there are, with labels they have.
func TestQueriesAskForMetricsThereAre(t *testing.T) {
	known := map[string]bool{}
	var rows [][]string
	for _, part := range []string{"program", "Gearman bridge", "controllers"} {
		rows = append(rows, doctable.Rows(t, "metrics.md", "Metrics of the "+part)...)
	}
	for _, row := range rows {
		name, _ := doctable.Code(row[0])
		known[name] = true
		if row[1] == "histogram" {
			known[name+"_bucket"], known[name+"_sum"] = true, true
		}
	}
	queries, ids := map[string]string{}, map[int]bool{}
	for _, alert := range alerts(t) {
		queries[alert.Alert] = alert.Expr
	}
	for _, panel := range panels(t) {
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

// Each metric that the dashboard asks for is that of the namespaces that were chosen, and Prometheus takes what it asks.
func TestDashboardIsOfANamespace(t *testing.T) {
	t.Parallel()
	group := ruleGroup{Name: "dashboard"}
	for _, panel := range panels(t) {
		for _, target := range panel.Targets {
			for _, metric := range regexp.MustCompile(`\b(zuulbuild|process|rest_client|workqueue)_\w+`).FindAllStringIndex(target.Expr, -1) {
				if !strings.HasPrefix(target.Expr[metric[1]:], `{namespace=~"$namespace"`) {
					t.Errorf("panel %q: %s is of all namespaces", panel.Title, target.Expr[metric[0]:metric[1]])
				}
			}
			group.Rules = append(group.Rules, rule{Alert: panel.Title, Expr: target.Expr})
		}
	}
	checkRules(t, ruleGroups{[]ruleGroup{group}})
}

func TestRuleSaysWhereRunbooksAre(t *testing.T) {
	t.Parallel()
	spec := ruleGroups{}
	into(t, find(t, render(t, "everything"), "PrometheusRule", "builder").Object["spec"], &spec)
	checkRules(t, spec)
	if got := len(spec.Groups[0].Rules); got != len(alerts(t)) {
		t.Errorf("%d rules, not %d", got, len(alerts(t)))
	}
	for _, rule := range spec.Groups[0].Rules {
		if want := "https://wiki.example.org/zuulbuild/" + rule.Alert + ".md"; rule.Annotations["runbook_url"] != want {
			t.Errorf("%s: %s rather than %s", rule.Alert, rule.Annotations["runbook_url"], want)
		}
	}
}

// checkRules has Prometheus read the rules.
func checkRules(t *testing.T, groups ruleGroups) {
	t.Helper()
	content, err := yaml.Marshal(groups)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := command(t, nil, require(t, localcluster.Tool("promtool"), "tools promtool"), "check", "rules", file); err != nil {
		t.Error(output, err)
	}
}

// testdata/alerts.yaml says which alerts fire when.
func TestAlerts(t *testing.T) {
	t.Parallel()
	if output, err := command(t, nil, require(t, localcluster.Tool("promtool"), "tools promtool"), "test", "rules", "testdata/alerts.yaml"); err != nil {
		t.Error(output, err)
	}
}

// Metrics are served by HTTPS to who may get them, or in plain HTTP, and Prometheus is told which.
func TestMetricsAreSecure(t *testing.T) {
	t.Parallel()
	type monitor struct {
		Spec struct {
			Endpoints []struct {
				Scheme          string         `json:"scheme"`
				BearerTokenFile string         `json:"bearerTokenFile"`
				TLSConfig       map[string]any `json:"tlsConfig"`
			} `json:"endpoints"`
		} `json:"spec"`
	}
	tests := map[string]struct {
		values  []string
		options map[string]any // of the operator that are about it
		scheme  string
		tls     map[string]any
		readers []string // of a role that is there
	}{
		"as it is": {options: map[string]any{"metrics-secure": true}, scheme: "https", tls: map[string]any{"insecureSkipVerify": true}},
		"with a certificate": {
			values:  []string{"metrics.certSecret=metrics-tls", "metrics.readers[0].name=prometheus", "metrics.readers[0].namespace=monitoring"},
			options: map[string]any{"metrics-secure": true, "metrics-cert-dir": "/etc/zuulbuild/metrics"}, scheme: "https",
			tls: map[string]any{
				"serverName": "zuulbuild-metrics.zuulbuild-system.svc",
				"ca":         map[string]any{"secret": map[string]any{"name": "metrics-tls", "key": "ca.crt"}},
			},
			readers: []string{"monitoring/prometheus"},
		},
		"in plain HTTP": {values: []string{"metrics.secure=false"}, options: map[string]any{"metrics-secure": false}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			arguments := []string{"--set", "metrics.serviceMonitor.enabled=true"}
			for _, value := range test.values {
				arguments = append(arguments, "--set", value)
			}
			all := render(t, "default", arguments...)
			deployment, scraper := appsv1.Deployment{}, monitor{}
			into(t, find(t, all, "Deployment", "zuulbuild").Object, &deployment)
			into(t, find(t, all, "ServiceMonitor", "zuulbuild").Object, &scraper)
			pod := deployment.Spec.Template.Spec
			options := configurationOf(t, all)
			maps.DeleteFunc(options, func(option string, _ any) bool { return option != "metrics-secure" && option != "metrics-cert-dir" })
			if diff := cmp.Diff(test.options, options); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
			endpoint := scraper.Spec.Endpoints[0]
			if diff := cmp.Diff(test.tls, endpoint.TLSConfig); diff != "" || endpoint.Scheme != test.scheme || (endpoint.BearerTokenFile != "") != (test.scheme != "") {
				t.Errorf("Prometheus is told %+v", endpoint)
			}
			mounted := slices.ContainsFunc(pod.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/etc/zuulbuild/metrics" })
			if mounted != (len(test.options) == 2) || mounted != (len(pod.Volumes) == 2) {
				t.Errorf("mounts %v of %v", pod.Containers[0].VolumeMounts, pod.Volumes)
			}
			var roles, readers []string
			for _, object := range all {
				switch {
				case !strings.HasSuffix(object.GetName(), "-metrics-reader"):
				case object.GetKind() == "ClusterRole":
					roles = append(roles, object.GetName())
				default:
					binding := rbacv1.ClusterRoleBinding{}
					into(t, object.Object, &binding)
					for _, subject := range binding.Subjects {
						readers = append(readers, subject.Namespace+"/"+subject.Name)
					}
				}
			}
			if diff := cmp.Diff(test.readers, readers); diff != "" || (len(roles) == 1) != (test.scheme != "") {
				t.Errorf("roles %v, readers %v", roles, readers)
			}
		})
	}
}

// A replica that is to go counts until it has reported its builds, so its address stays in the Service by which it is scraped.
func TestReplicasAreScrapedToTheirEnd(t *testing.T) {
	t.Parallel()
	for name, all := range map[string][]*unstructured.Unstructured{"chart": render(t, "default"), "config/default": kustomized(t)} {
		service := corev1.Service{}
		into(t, find(t, all, "Service", "zuulbuild-metrics").Object, &service)
		if !service.Spec.PublishNotReadyAddresses {
			t.Errorf("%s: the Service has ready Pods alone", name)
		}
	}
}
