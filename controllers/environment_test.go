package controllers

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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
	delivered, err := deliverParameters(parameters, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	variables := delivered.variables
	if len(delivered.files) > 0 {
		t.Errorf("%d files, though all fits", len(delivered.files))
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
		{"bash's options", "BASHOPTS", "extdebug", "refused"},
		{"loader", "LD_PRELOAD", "/tmp/x.so", "refused"},
		{"exported function", "BASH_FUNC_ls%%", "() { id; }", "refused"},
		{"cluster's address", "KUBERNETES_SERVICE_HOST", "example.org", "refused"},
		{"NUL byte", "A", "a\x00b", "NUL byte"},
		{"name too long", strings.Repeat("A", 254), "x", "has 254 bytes; at most 253 are taken"},
		{"long name is shortened", strings.Repeat("Ä", 100), "x", "printable ASCII"},
		{"too long for files", "A", strings.Repeat("x", 1<<20+1), "have 1048577 bytes together; at most 1048576"},
	}
	for _, c := range cases {
		t.Run(c.description, func(t *testing.T) {
			_, err := deliverParameters(map[string]string{c.name: c.value, "Z": "fine"}, nil, 1)
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
	parameters := map[string]string{"BUILD_NUMBER": "1", "JOB_NAME": "forged", "NODE_NAME": "x", "WORKSPACE": strings.Repeat("x", maxEnvironmentString), "ZUUL_PROJECT": "p"}
	delivered, err := deliverParameters(parameters, own, 1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]corev1.EnvVar{{Name: "ZUUL_PROJECT", Value: "p"}}, delivered.variables); diff != "" {
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
	_, err := deliverParameters(map[string]string{"BUILD_URL": "a\x00b"}, []corev1.EnvVar{{Name: "BUILD_URL"}}, 1)
	if err == nil {
		t.Error("a NUL byte is accepted in a parameter that is left out")
	}
}

func TestLongParametersBecomeFiles(t *testing.T) {
	long := func(n int) string { return strings.Repeat("$", n) }
	const limit = maxEnvironmentString - len("A=")
	cases := map[string]struct {
		parameters map[string]string
		containers int
		variables  map[string]string // but those whose value is a parameter's
		files      map[string]string // parameter by file
	}{
		"at the limit":    {map[string]string{"A": long(limit)}, 1, nil, nil},
		"above the limit": {map[string]string{"A": long(limit + 1), "B": "b"}, 1, map[string]string{"A_FILE": "/zuulbuild/parameters/A"}, map[string]string{"A": "A"}},
		"names that are no plain words": {
			map[string]string{"..": long(limit), "../etc": long(limit), "a b": long(limit), "parameter-0": long(limit)}, 1,
			map[string]string{
				".._FILE": "/zuulbuild/parameters/parameter-0", "../etc_FILE": "/zuulbuild/parameters/parameter-1", "a b_FILE": "/zuulbuild/parameters/parameter-2",
				"parameter-0_FILE": "/zuulbuild/parameters/parameter-3",
			},
			map[string]string{"parameter-0": "..", "parameter-1": "../etc", "parameter-2": "a b", "parameter-3": "parameter-0"},
		},
		"as many as fit": {map[string]string{"A": long(100_000), "B": long(100_000)}, 1, nil, nil},
		"the longest of too many": {
			map[string]string{"A": long(100_000), "B": long(100_001), "C": long(100_000)}, 1, map[string]string{"B_FILE": "/zuulbuild/parameters/B"}, map[string]string{"B": "B"},
		},
		"each container has its own": {
			map[string]string{"A": long(100_000), "B": long(60_000)}, 3, map[string]string{"A_FILE": "/zuulbuild/parameters/A"}, map[string]string{"A": "A"},
		},
		"a NAME_FILE in the way of one that need not be a file": {
			map[string]string{"A": long(100_000), "B": long(100_001), "B_FILE": "b", "C": long(100_000)}, 1,
			map[string]string{"A_FILE": "/zuulbuild/parameters/A"}, map[string]string{"A": "A"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			delivered, err := deliverParameters(c.parameters, nil, c.containers)
			if err != nil {
				t.Fatal(err)
			}
			variables, files := maps.Clone(c.parameters), map[string]string{}
			for _, name := range c.files {
				delete(variables, name)
			}
			maps.Copy(variables, c.variables)
			got := map[string]string{}
			for _, variable := range delivered.variables {
				got[variable.Name] = expand(variable.Value, nil)
			}
			if diff := cmp.Diff(variables, got); diff != "" {
				t.Errorf("variables (-want +got):\n%.2000s", diff)
			}
			for file, name := range c.files {
				files[file] = c.parameters[name]
			}
			got = map[string]string{}
			for file, content := range delivered.files {
				got[file] = string(content)
			}
			if diff := cmp.Diff(files, got); diff != "" {
				t.Errorf("files (-want +got):\n%.2000s", diff)
			}
			if diff := cmp.Diff(slices.Sorted(maps.Values(c.files)), slices.Sorted(slices.Values(delivered.unset)), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("not to be set (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLongParametersRefused(t *testing.T) {
	names := map[string]string{}
	for i := range 1000 {
		names[fmt.Sprintf("%0253d", i)] = "x"
	}
	cases := map[string]struct {
		parameters map[string]string
		says       string
	}{
		"NAME_FILE is taken": {map[string]string{"A": strings.Repeat("x", maxEnvironmentString), "A_FILE": ""}, `by, "A_FILE", is a parameter of the request itself`},
		"names are too much": {names, "even with long values in files; the Pod has room for 524288"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := deliverParameters(c.parameters, nil, 1)
			var request *requestError
			if !errors.As(err, &request) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v does not blame the request and say %q", err, c.says)
			}
		})
	}
}
