// Command chart writes those files of the Helm chart that follow from other files: the definitions, the operator's rights and the schema of the values. And
// those of config/components that follow from the chart's, because kustomize reads no file of another folder: rights, alerts and the dashboard.
// It is run at the root of the checkout, by `make manifests`, after config/ was generated.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

const (
	chart      = "charts/zuulbuild"
	components = "config/components"
	// written begins files that people are not to change.
	written = "# Written by make manifests.\n"
)

func main() {
	for _, step := range []func() error{copyDefinitions, splitRoles, writeSchema, writeMonitoring} {
		if err := step(); err != nil {
			fmt.Fprintln(os.Stderr, "chart:", err)
			os.Exit(1)
		}
	}
}

func copyDefinitions() error {
	files, err := filepath.Glob("config/crd/zuulbuild.dev_*.yaml")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no definitions in config/crd: is this the root of the checkout? %w", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(chart, "files/crds", filepath.Base(file)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// roles are the operator's rights by where they are needed.
type roles struct {
	Cluster []rbacv1.PolicyRule `json:"cluster"` // on what is of no namespace
	Builds  []rbacv1.PolicyRule `json:"builds"`  // in namespaces with jobs and builds
	Leader  []rbacv1.PolicyRule `json:"leader"`  // in the operator's own namespace
}

// splitRoles takes the generated ClusterRole apart, so that the chart and the component confined can give the greater part of it by namespace.
func splitRoles() error {
	content, err := os.ReadFile("config/rbac/role.yaml")
	if err != nil {
		return err
	}
	split, err := split(content)
	if err != nil {
		return fmt.Errorf("config/rbac/role.yaml: %w", err)
	}
	return errors.Join(
		writeObject(chart+"/files/role.yaml", split),
		writeObject(components+"/confined/clusterrole.yaml", newRole("ClusterRole", metadata{Name: "zuulbuild-operator"}, split.Cluster)),
		writeObject(components+"/confined/role.yaml", newRole("Role", metadata{Name: "zuulbuild-builds", Namespace: "zuulbuild-builds"}, split.Builds)),
	)
}

type metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
}

// newRole is a Role or a ClusterRole, without the empty fields that the types of the API have.
func newRole(kind string, named metadata, rules []rbacv1.PolicyRule) map[string]any {
	return map[string]any{"apiVersion": rbacv1.SchemeGroupVersion.String(), "kind": kind, "metadata": named, "rules": rules}
}

func writeObject(file string, object any) error {
	out, err := yaml.Marshal(object)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append([]byte(written), out...), 0o644)
}

func split(content []byte) (roles, error) {
	var out roles
	for document := range bytes.SplitSeq(content, []byte("\n---\n")) {
		var role struct {
			Kind  string              `json:"kind"`
			Rules []rbacv1.PolicyRule `json:"rules"`
		}
		if err := yaml.UnmarshalStrict(dropMetadata(document), &role); err != nil {
			return out, err
		}
		if role.Kind == "Role" {
			out.Leader = append(out.Leader, role.Rules...)
			continue
		}
		for _, rule := range role.Rules {
			switch ofNoNamespace := slices.ContainsFunc(rule.Resources, clusterScoped); {
			case !ofNoNamespace:
				out.Builds = append(out.Builds, rule)
			default: // controller-gen puts resources with the same verbs into one rule
				inside, outside := rule, rule
				inside.Resources = slices.DeleteFunc(slices.Clone(rule.Resources), clusterScoped)
				outside.Resources = slices.DeleteFunc(slices.Clone(rule.Resources), func(r string) bool { return !clusterScoped(r) })
				out.Cluster = append(out.Cluster, outside)
				if len(inside.Resources) > 0 {
					out.Builds = append(out.Builds, inside)
				}
			}
		}
	}
	return out, nil
}

// dropMetadata leaves of a document what split reads strictly.
func dropMetadata(document []byte) []byte {
	object := map[string]any{}
	if err := yaml.Unmarshal(document, &object); err != nil {
		return document
	}
	delete(object, "metadata")
	delete(object, "apiVersion")
	out, err := yaml.Marshal(object)
	if err != nil {
		return document
	}
	return out
}

func clusterScoped(resource string) bool {
	return slices.Contains([]string{"nodes", "zuulnodeclasses", "tokenreviews", "subjectaccessreviews"}, resource)
}

// writeMonitoring gives the component monitoring the chart's alerts and its dashboard. They are texts, so that the alerts keep their comments and lines.
func writeMonitoring() error {
	alerts, err := os.ReadFile(chart + "/files/alerts.yaml")
	if err != nil {
		return err
	}
	dashboard, err := os.ReadFile(chart + "/files/dashboard.json")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(components+"/monitoring/prometheusrule.yaml", []byte(written+prometheusRule(string(alerts))), 0o644),
		os.WriteFile(components+"/monitoring/zuulbuild.json", dashboard, 0o644),
	)
}

// prometheusRule is the object whose spec the alerts are. Where nothing is scraped, only what the ServiceMonitor beside it scrapes counts.
func prometheusRule(alerts string) string {
	const anything = "absent(zuulbuild_requests_total)"
	alerts = strings.ReplaceAll(alerts, anything, strings.Replace(anything, ")", `{namespace="zuulbuild-system", job="zuulbuild-metrics"})`, 1))
	var text strings.Builder
	text.WriteString("apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: zuulbuild\n  namespace: zuulbuild-system\nspec:\n")
	for line := range strings.Lines(alerts) {
		if strings.TrimSpace(line) != "" {
			text.WriteString("  ")
		}
		text.WriteString(line)
	}
	return text.String()
}

func writeSchema() error {
	content, err := os.ReadFile("hack/chart/values.schema.yaml")
	if err != nil {
		return err
	}
	schema := map[string]any{}
	if err := yaml.UnmarshalStrict(content, &schema); err != nil {
		return err
	}
	definitions, err := definitions()
	if err != nil {
		return err
	}
	maps.Copy(schema["$defs"].(map[string]any), definitions)
	closeObjects(schema)
	out, err := json.MarshalIndent(schema, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(chart, "values.schema.json"), append(out, '\n'), 0o644)
}

// definitions are schemas out of the CustomResourceDefinitions.
func definitions() (map[string]any, error) {
	job, err := specOf("zuuljobs")
	if err != nil {
		return nil, err
	}
	nodeClass, err := specOf("zuulnodeclasses")
	if err != nil {
		return nil, err
	}
	for _, spec := range []map[string]any{job, nodeClass} {
		if err := sayRules(spec, "spec"); err != nil {
			return nil, err
		}
	}
	pod := within(job, "template", "spec")
	return map[string]any{
		"job": job, "nodeClass": nodeClass,
		"affinity": within(pod, "affinity"), "tolerations": within(pod, "tolerations"), "imagePullSecrets": within(pod, "imagePullSecrets"),
		"topologySpreadConstraints": within(pod, "topologySpreadConstraints"), "resources": within(nodeClass, "resources"),
		"quantities":    within(nodeClass, "resources", "limits"),
		"labelSelector": within(within(pod, "topologySpreadConstraints")["items"].(map[string]any), "labelSelector"),
	}, nil
}

// specOf is the schema of the spec of a kind.
func specOf(resource string) (map[string]any, error) {
	content, err := os.ReadFile("config/crd/zuulbuild.dev_" + resource + ".yaml")
	if err != nil {
		return nil, err
	}
	definition := apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal(content, &definition); err != nil {
		return nil, err
	}
	spec := definition.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	return out, json.Unmarshal(text, &out)
}

// within is the schema of a property of a property …; it is there, or the program ends.
func within(schema map[string]any, path ...string) map[string]any {
	for _, name := range path {
		schema = schema["properties"].(map[string]any)[name].(map[string]any)
	}
	return schema
}

// closeObjects has each object with properties refuse others, and drops what is for the API server alone.
func closeObjects(schema map[string]any) {
	for _, key := range slices.Collect(maps.Keys(schema)) {
		if strings.HasPrefix(key, "x-") || key == "description" || key == "default" || key == "format" {
			delete(schema, key)
		}
	}
	_, isObject := schema["properties"]
	if _, open := schema["additionalProperties"]; isObject && !open && schema["type"] == "object" {
		schema["additionalProperties"] = false
	}
	for _, key := range []string{"properties", "$defs"} {
		if children, ok := schema[key].(map[string]any); ok {
			for _, child := range children {
				closeObjects(child.(map[string]any))
			}
		}
	}
	for _, key := range []string{"items", "additionalProperties"} {
		if child, ok := schema[key].(map[string]any); ok {
			closeObjects(child)
		}
	}
}
