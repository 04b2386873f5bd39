package controllers

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// expand does to a value what the kubelet does, by the words of the API reference of EnvVar.value: "Variable references $(VAR_NAME) are expanded
// using the previously defined environment variables in the container and any service environment variables. If a variable cannot be resolved, the
// reference in the input string will be unchanged. Double $$ are reduced to a single $, which allows for escaping the $(VAR_NAME) syntax".
func expand(value string, known map[string]string) string {
	var out strings.Builder
	for i := 0; i < len(value); i++ {
		rest := value[i:]
		switch {
		case strings.HasPrefix(rest, "$$"):
			out.WriteByte('$')
			i++
		case strings.HasPrefix(rest, "$(") && strings.Contains(rest, ")"):
			end := strings.IndexByte(rest, ')')
			if replacement, ok := known[rest[2:end]]; ok {
				out.WriteString(replacement)
			} else {
				out.WriteString(rest[:end+1])
			}
			i += end
		default:
			out.WriteByte(value[i])
		}
	}
	return out.String()
}

func TestParametersArriveByteForByte(t *testing.T) {
	parameters := map[string]string{
		"A_FIRST":           "set before all others, so that a reference to it could be expanded",
		"AT_LIMIT":          strings.Repeat("x", maxEnvironmentString-len("AT_LIMIT=")),
		"BACKSLASH":         `a\$b\\$(A_FIRST)`,
		"DOLLARS":           "$ $$ $$$ $$$$ $$(A_FIRST) $",
		"EMPTY":             "",
		"NEWLINE":           "first\nsecond\r\n\ttabbed\n",
		"QUOTES":            `'single' "double" ` + "`id` ; rm -rf / #",
		"REFERENCE":         "$(A_FIRST) $(HOME) $(NOT_SET) $(",
		"SHELL_REFERENCE":   "$HOME ${HOME} $((1+1))",
		"UNICODE":           "Ωmega – 変更 \u2028 \u0001",
		"ZUUL_CHANGES":      "a:master:refs/changes/1^b:master:refs/changes/2",
		"lower.dotted-name": "x",
		"name with spaces":  "x",
		"1digit":            "x",
	}
	variables, err := parameterVariables(parameters, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(variables, func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the variables are not sorted")
	}
	got := map[string]string{}
	for _, variable := range variables {
		known := maps.Clone(got)
		known["HOME"] = "expanded"
		got[variable.Name] = expand(variable.Value, known)
	}
	if diff := cmp.Diff(parameters, got); diff != "" {
		t.Errorf("what the container sees (-sent +seen):\n%s", diff)
	}
}

func TestParametersRefused(t *testing.T) {
	cases := []struct {
		description, name, value string
		says                     string
	}{
		{"empty name", "", "x", "empty name"},
		{"equals sign", "A=B", "x", "'='"},
		{"newline in the name", "A\nB", "x", `"A\nB" cannot be an environment variable`},
		{"letter outside ASCII", "Ä", "x", "printable ASCII"},
		{"DEL", "A\x7f", "x", "printable ASCII"},
		{"search path", "PATH", "/tmp", `"PATH" is refused`},
		{"shell start file", "BASH_ENV", "/tmp/x", "refused"},
		{"shell options", "SHELLOPTS", "xtrace", "refused"},
		{"word splitting", "IFS", "/", "refused"},
		{"loader", "LD_PRELOAD", "/tmp/x.so", "refused"},
		{"exported function", "BASH_FUNC_ls%%", "() { id; }", "refused"},
		{"cluster's address", "KUBERNETES_SERVICE_HOST", "example.org", "refused"},
		{"NUL byte", "A", "a\x00b", "NUL byte"},
		{"too long", "A", strings.Repeat("x", maxEnvironmentString-1), "has 131070 bytes; an environment variable carries at most 131071 with its name"},
		{"long name is shortened", strings.Repeat("Ä", 500), "x", "…"},
	}
	for _, c := range cases {
		t.Run(c.description, func(t *testing.T) {
			_, err := parameterVariables(map[string]string{c.name: c.value, "Z": "fine"}, nil)
			var request *requestError
			if !errors.As(err, &request) {
				t.Fatalf("error %v, want one that blames the request", err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
			if len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestOperatorsVariablesWin(t *testing.T) {
	build := &v1alpha1.ZuulBuild{Spec: v1alpha1.ZuulBuildSpec{Job: "job-$(HOME)", Node: "big$", Number: 42}}
	own := buildVariables(build, "https://builds.example.org/?a=$(HOME)")
	parameters := map[string]string{"BUILD_NUMBER": "1", "JOB_NAME": "forged", "NODE_NAME": "x", "WORKSPACE": "/", "ZUUL_PROJECT": "p"}
	variables, err := parameterVariables(parameters, own)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]corev1.EnvVar{{Name: "ZUUL_PROJECT", Value: "p"}}, variables); diff != "" {
		t.Errorf("parameters (-want +got):\n%s", diff)
	}
	seen := map[string]string{}
	for _, variable := range own {
		seen[variable.Name] = expand(variable.Value, map[string]string{"HOME": "expanded"})
	}
	want := map[string]string{
		"BUILD_ID": "42", "BUILD_NUMBER": "42", "BUILD_TAG": "zuulbuild-job-$(HOME)-42", "BUILD_URL": "https://builds.example.org/?a=$(HOME)",
		"EXECUTOR_NUMBER": "0", "JOB_NAME": "job-$(HOME)", "NODE_LABELS": "big$", "NODE_NAME": "", "WORKSPACE": "/workspace",
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("the operator's variables (-want +seen):\n%s", diff)
	}
}

func TestRefusedThoughTheOperatorSetsItself(t *testing.T) {
	_, err := parameterVariables(map[string]string{"BUILD_URL": "a\x00b"}, []corev1.EnvVar{{Name: "BUILD_URL"}})
	if err == nil {
		t.Error("a NUL byte is accepted in a parameter that is left out")
	}
}
