package chart

import (
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// rights are lines such as `get pods` with where they are given: everywhere (*), or in a namespace.
func rights(t *testing.T, all []*unstructured.Unstructured) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, object := range all {
		if kind := object.GetKind(); kind != "ClusterRoleBinding" && kind != "RoleBinding" {
			continue
		}
		binding := rbacv1.RoleBinding{}
		into(t, object.Object, &binding)
		role := rbacv1.Role{}
		into(t, find(t, inNamespace(all, binding.Namespace), binding.RoleRef.Kind, binding.RoleRef.Name).Object, &role)
		where := binding.Namespace
		if where == "" {
			where = "*"
		}
		for _, line := range lines(role.Rules) {
			out[where+": "+line] = true
		}
	}
	return out
}

func inNamespace(all []*unstructured.Unstructured, namespace string) []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for _, object := range all {
		if object.GetNamespace() == namespace {
			out = append(out, object)
		}
	}
	return out
}

func lines(rules []rbacv1.PolicyRule) []string {
	var out []string
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					out = append(out, strings.TrimSpace(verb+" "+path.Join(group, resource)+" "+strings.Join(rule.ResourceNames, ",")))
				}
			}
		}
	}
	return out
}

// needed are the rights the markers in the code ask for, given in a namespace of builds, or everywhere where builds is "*".
func needed(t *testing.T, builds ...string) map[string]bool {
	t.Helper()
	content, err := os.ReadFile(root + "/config/rbac/role.yaml")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, object := range objects(t, string(content)) {
		role := rbacv1.Role{}
		into(t, object.Object, &role)
		for _, line := range lines(role.Rules) {
			resource := path.Base(strings.Fields(line)[1])
			switch ofNoNamespace := slices.Contains([]string{"nodes", "zuulnodeclasses", "tokenreviews", "subjectaccessreviews"}, resource); {
			case role.Kind == "Role":
				out[namespace+": "+line] = true
			case ofNoNamespace:
				out["*: "+line] = true
			default:
				for _, where := range builds {
					out[where+": "+line] = true
				}
			}
		}
	}
	return out
}

func TestRightsAreThoseTheCodeAsksFor(t *testing.T) {
	t.Parallel()
	const ownDeployment = namespace + ": get apps/deployments " // by its name
	nodeEvents := []string{"default: create events.k8s.io/events", "default: patch events.k8s.io/events"}
	reviews := []string{"*: create authentication.k8s.io/tokenreviews", "*: create authorization.k8s.io/subjectaccessreviews"}
	tests := map[string]struct {
		values []string
		want   map[string]bool
	}{
		"everywhere": {[]string{"--set", "scope=cluster"}, needed(t, "*")},
		"everywhere, but Secrets": {
			[]string{"--set", "scope=cluster", "--set", "buildNamespaces[0].name=a", "--set", "buildNamespaces[1].name=b", "--set", "buildNamespaces[1].readSecrets={*}"},
			with(needed(t, "*"), "b: get secrets"),
		},
		"in two namespaces": {[]string{"--values", valuesFiles["everything"]}, with(without(with(needed(t, "check", "gate"), nodeEvents...), ownDeployment+"zuulbuild"),
			ownDeployment+"builder", "gate: get secrets deploy-token,registry")},
		"with metrics in plain HTTP": {[]string{"--set", "metrics.secure=false"}, without(with(needed(t, "zuulbuild-builds"), nodeEvents...), reviews...)},
		"without metrics":            {[]string{"--set", "metrics.enabled=false"}, without(with(needed(t, "zuulbuild-builds"), nodeEvents...), reviews...)},
		"without cordoning":          {[]string{"--set", "rbac.cordonNodes=false"}, without(needed(t, "zuulbuild-builds"), "*: get nodes", "*: patch nodes")},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, rights(t, render(t, "default", test.values...))); diff != "" {
				t.Errorf("rights differ (-needed +given):\n%s", diff)
			}
		})
	}
}

func with(set map[string]bool, more ...string) map[string]bool {
	for _, line := range more {
		set[line] = true
	}
	return set
}

func without(set map[string]bool, lines ...string) map[string]bool {
	for _, line := range lines {
		delete(set, line)
	}
	return set
}
