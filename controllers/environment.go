package controllers

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// maxEnvironmentString is Linux's MAX_ARG_STRLEN less its terminating NUL: execve refuses a longer NAME=VALUE.
const maxEnvironmentString = 128*1024 - 1

// refusedNames and refusedPrefixes are parameters that would change what a container executes rather than inform it. A request that carries one is
// refused, because a job that silently runs without a parameter is worse than one that says why it does not run.
var (
	refusedNames    = []string{"PATH", "BASH_ENV", "SHELLOPTS", "BASHOPTS", "IFS"}
	refusedPrefixes = []string{"LD_", "BASH_FUNC_", "KUBERNETES_"}
)

// parameterVariables turns build parameters into environment variables that reach the container byte for byte, sorted by name. The names in
// `reserved` are left out: the operator sets those itself. The error names the first parameter that cannot be carried and why.
func parameterVariables(parameters map[string]string, reserved []corev1.EnvVar) ([]corev1.EnvVar, error) {
	names := make([]string, 0, len(parameters))
	for name := range parameters {
		names = append(names, name)
	}
	slices.Sort(names)

	variables := make([]corev1.EnvVar, 0, len(names))
	for _, name := range names {
		value := parameters[name]
		if err := checkParameter(name, value); err != nil {
			return nil, err
		}
		if !hasVariable(reserved, name) {
			variables = append(variables, corev1.EnvVar{Name: name, Value: literal(value)})
		}
	}
	return variables, nil
}

// requestError is the fault of whoever asked for the build, not of the job.
type requestError struct{ error }

func checkParameter(name, value string) error {
	refuse := func(text string, arguments ...any) error { return &requestError{fmt.Errorf(text, arguments...)} }
	switch {
	case name == "":
		return refuse("a parameter has an empty name")
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == '=' }):
		return refuse("parameter %q cannot be an environment variable: names are printable ASCII without '='", shorten(name))
	case slices.Contains(refusedNames, name) || slices.ContainsFunc(refusedPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }):
		return refuse("parameter %q is refused: it would change how the container runs programs", shorten(name))
	case strings.ContainsRune(value, 0):
		return refuse("the value of parameter %q holds a NUL byte, which no environment variable can", shorten(name))
	case len(name)+1+len(value) > maxEnvironmentString:
		return refuse("the value of parameter %q has %d bytes; an environment variable carries at most %d with its name",
			shorten(name), len(value), maxEnvironmentString)
	}
	return nil
}

// buildVariables are the variables the operator sets itself: those that job scripts written for Jenkins rely on. Parameters cannot override them.
func buildVariables(build *v1alpha1.ZuulBuild, url string) []corev1.EnvVar {
	number := strconv.FormatInt(build.Spec.Number, 10)
	return []corev1.EnvVar{
		{Name: "BUILD_ID", Value: number},
		{Name: "BUILD_NUMBER", Value: number},
		{Name: "BUILD_TAG", Value: literal("zuulbuild-" + build.Spec.Job + "-" + number)},
		{Name: "BUILD_URL", Value: literal(url)},
		{Name: "EXECUTOR_NUMBER", Value: "0"},
		{Name: "JOB_NAME", Value: literal(build.Spec.Job)},
		{Name: "NODE_LABELS", Value: literal(build.Spec.Node)},
		{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}},
		{Name: "WORKSPACE", Value: workspacePath},
	}
}

// literal keeps Kubernetes from expanding $(NAME) and $$ in a value, a command or an argument
// (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/).
func literal(value string) string { return strings.ReplaceAll(value, "$", "$$") }

func hasVariable(variables []corev1.EnvVar, name string) bool {
	return slices.ContainsFunc(variables, func(v corev1.EnvVar) bool { return v.Name == name })
}

// shorten keeps a stranger's name from filling a message.
func shorten(name string) string {
	if len(name) > 80 {
		return strings.ToValidUTF8(name[:80], "") + "…"
	}
	return name
}
