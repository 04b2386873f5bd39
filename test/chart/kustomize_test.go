package chart

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// components are what config/default/kustomization.yaml may be told to have beside the operator.
var components = []string{"build-namespace", "confined", "monitoring"}

// kustomization is a copy of config/default in which components are switched on, as its comment says. It returns the folder.
func kustomization(t *testing.T, chosen ...string) string {
	t.Helper()
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(root+"/config")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "default/kustomization.yaml")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for _, component := range chosen {
		for _, line := range []string{"components:", "- ../components/" + component} {
			if !strings.Contains(text, "\n"+line+"\n") && !strings.Contains(text, "\n#"+line+"\n") {
				t.Fatalf("config/default/kustomization.yaml has no line #%s", line)
			}
			text = strings.Replace(text, "\n#"+line+"\n", "\n"+line+"\n", 1)
		}
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(file)
}

// kustomized are the objects of config/default with components.
func kustomized(t *testing.T, chosen ...string) []*unstructured.Unstructured {
	t.Helper()
	text, err := kubectl(t, nil, "kustomize", kustomization(t, chosen...))
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

// config/default makes the same objects and gives the same rights as the chart, for the whole cluster or, with all components, for one namespace.
func TestKustomizeAgreesWithChart(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		components []string
		values     []string
	}{
		"whole cluster":                         {nil, []string{"scope=cluster", "buildNamespaces[0].name=zuulbuild-builds"}},
		"whole cluster and a build namespace":   {[]string{"build-namespace"}, []string{"scope=cluster"}},
		"one namespace that exists":             {[]string{"confined"}, []string{"buildNamespaces[0].name=zuulbuild-builds"}},
		"one namespace that is made, monitored": {components, []string{"metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true", "metrics.dashboard.enabled=true"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			arguments := []string{"--no-hooks", "--set", "gearman.servers[0].address=gearman.example.org"}
			for _, value := range test.values {
				arguments = append(arguments, "--set", value)
			}
			mine, theirs := kustomized(t, test.components...), render(t, "default", arguments...)
			if diff := cmp.Diff(rights(t, theirs), rights(t, mine)); diff != "" {
				t.Errorf("rights differ (-chart +config/default):\n%s", diff)
			}
			if diff := cmp.Diff(ownPod(t, theirs), ownPod(t, mine)); diff != "" {
				t.Errorf("Pods differ (-chart +config/default):\n%s", diff)
			}
			if diff := cmp.Diff(contents(t, theirs), contents(t, mine)); diff != "" {
				t.Errorf("objects differ (-chart +config/default):\n%s", diff)
			}
			if diff := cmp.Diff(optionsOf(t, theirs), optionsOf(t, mine)); diff != "" {
				t.Errorf("options differ (-chart +config/default):\n%s", diff)
			}
		})
	}
}

// ownPod is the Pod of the operator, but for what is the way of the chart or of config/default.
func ownPod(t *testing.T, all []*unstructured.Unstructured) corev1.PodSpec {
	t.Helper()
	deployment := appsv1.Deployment{}
	into(t, find(t, all, "Deployment", "zuulbuild").Object, &deployment)
	spec := deployment.Spec.Template.Spec
	// Selectors and the names of generated objects are each one's own, and what is a default needs no flag.
	spec.TopologySpreadConstraints[0].LabelSelector = nil
	spec.Volumes[0].ConfigMap.Name = ""
	spec.Containers[0].Args = nil // of which optionsOf tells
	return spec
}

// contents are what there is of the other objects beside their metadata, and of that the labels with a meaning to others, by kind and name.
func contents(t *testing.T, all []*unstructured.Unstructured) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, object := range all {
		name := object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
		switch {
		case slices.Contains([]string{"CustomResourceDefinition", "Deployment", "Role", "RoleBinding", "ClusterRoleBinding"}, object.GetKind()):
			continue // compared by other means
		case slices.Contains([]string{"ClusterRole /zuulbuild", "ClusterRole /zuulbuild-operator", "Namespace /" + namespace}, name) || strings.HasSuffix(name, "-config") || strings.Contains(name, "-config-"):
			continue // the operator's rights; and each way's own
		}
		labels := object.GetLabels()
		maps.DeleteFunc(labels, func(label, _ string) bool {
			return strings.HasPrefix(label, "helm.sh/") || strings.HasPrefix(label, "app.kubernetes.io/") && label != "app.kubernetes.io/component"
		})
		content := map[string]any{}
		into(t, object.Object, &content) // a copy with numbers of one type
		content["metadata"] = labels
		withoutInstance(content)
		if data, ok := content["data"].(map[string]any); ok {
			for key, value := range data {
				data[key] = strings.TrimSpace(value.(string))
			}
		}
		out[name] = content
	}
	return out
}

// withoutInstance takes the label that only Helm gives out of selectors.
func withoutInstance(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "app.kubernetes.io/instance")
		for _, child := range value {
			withoutInstance(child)
		}
	case []any:
		for _, child := range value {
			withoutInstance(child)
		}
	}
}

// optionsOf the operator are those of its file and its flags, but for those that have their defaults, and for the Gearman servers.
func optionsOf(t *testing.T, all []*unstructured.Unstructured) map[string]any {
	t.Helper()
	options := configurationOf(t, all)
	deployment := appsv1.Deployment{}
	into(t, find(t, all, "Deployment", "zuulbuild").Object, &deployment)
	for _, argument := range deployment.Spec.Template.Spec.Containers[0].Args {
		if namespace, ok := strings.CutPrefix(argument, "--namespace="); ok {
			options["namespace"] = []any{namespace}
		}
	}
	maps.DeleteFunc(options, func(option string, value any) bool {
		return option == "servers" || defaultsOfOptions[option] != nil && defaultsOfOptions[option] == value
	})
	return options
}

// defaultsOfOptions are those of the operator that the chart says all the same.
var defaultsOfOptions = map[string]any{
	"manager": "zuulbuild", "max-builds": 100.0, "grace-period": "60s", "pages-address": ":8080", "health-address": ":8081", "log-level": "info",
}
