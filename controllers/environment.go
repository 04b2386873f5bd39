package controllers

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// docs/parameters.md tells users all that follows; a test keeps the two together.
const (
	// maxEnvironmentString is Linux's MAX_ARG_STRLEN less its terminating NUL: execve refuses a longer NAME=VALUE.
	maxEnvironmentString = 128*1024 - 1
	// maxPodParameters is how many bytes parameters may add to a Pod, all its containers counted. execve takes a quarter of the stack limit, 2 MiB
	// by default, for arguments and environment together, of which a script may be 120,000 bytes; etcd takes 1.5 MiB for the whole Pod.
	maxPodParameters = 512 * 1024
	// variableOverhead is about what a variable costs a Pod beside its value and twice its name, which managedFields repeats.
	variableOverhead = 64
	// maxParameterName is the longest key of a ConfigMap, and nearly the longest name of a file (255).
	maxParameterName = 253
	// maxFiles is how many bytes the values of a ConfigMap may have together.
	maxFiles = 1 << 20
	// parametersPath is where values are found that no variable can carry, and fileSuffix makes the name of the variable that says so.
	parametersPath = "/zuulbuild/parameters"
	fileSuffix     = "_FILE"
)

// refusedNames and refusedPrefixes are parameters that act on each program, or on each shell, before a job's first line, and that no job takes its
// input from. A request that carries one is refused, because a job that silently runs without a parameter is worse than one that says why it does
// not run. They guard against accidents: the names of parameters are chosen by who runs Zuul, and only values come from authors of changes.
var (
	refusedNames    = []string{"BASHOPTS", "BASH_ENV", "PATH", "SHELLOPTS"}
	refusedPrefixes = []string{"BASH_FUNC_", "KUBERNETES_", "LD_"}
)

// delivery is how build parameters reach the containers of a Pod.
type delivery struct {
	variables []corev1.EnvVar   // sorted by name; among them NAME_FILE for each parameter that is a file
	files     map[string][]byte // values by the name of their file in parametersPath
	unset     []string          // names of the parameters that are files: no container has a variable of that name
}

// deliverParameters turns build parameters into environment variables that reach a container byte for byte, and into files where a value is longer
// than a variable can be, or all of them are more than the Pod of so many containers can hold: then the longest go first. The names in `reserved`
// are left out: the operator sets those itself. The error is the request's fault and names the first parameter that cannot be carried and why.
func deliverParameters(parameters map[string]string, reserved []corev1.EnvVar, containers int) (delivery, error) {
	names := make([]string, 0, len(parameters))
	for name := range parameters {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := checkParameter(name, parameters[name]); err != nil {
			return delivery{}, err
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return hasVariable(reserved, name) })
	asFile, err := chooseFiles(parameters, names, maxPodParameters/max(containers, 1))
	if err != nil {
		return delivery{}, err
	}

	d := delivery{files: map[string][]byte{}}
	size := 0
	for i, name := range names {
		if !asFile[name] {
			d.variables = append(d.variables, corev1.EnvVar{Name: name, Value: literal(parameters[name])})
			continue
		}
		if _, taken := parameters[name+fileSuffix]; taken {
			return delivery{}, refuse("parameter %q is too long for an environment variable, and the variable to tell its file by, %q, is a parameter of the request itself",
				shorten(name), shorten(name+fileSuffix))
		}
		file := fileName(name, i)
		d.variables = append(d.variables, corev1.EnvVar{Name: name + fileSuffix, Value: path.Join(parametersPath, file)})
		d.files[file] = []byte(parameters[name])
		d.unset = append(d.unset, name)
		size += len(parameters[name])
	}
	if size > maxFiles {
		return delivery{}, refuse("the parameters too long for environment variables have %d bytes together; at most %d can be delivered as files", size, maxFiles)
	}
	slices.SortFunc(d.variables, func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) })
	return d, nil
}

// chooseFiles picks the parameters that cannot be variables: those that are too long, and the longest until the rest fits the budget in bytes.
func chooseFiles(parameters map[string]string, names []string, budget int) (map[string]bool, error) {
	variableCost := func(name string) int { return 2*len(name) + len(literal(parameters[name])) + variableOverhead }
	fileCost := func(name string) int {
		return 2*len(name+fileSuffix) + len(path.Join(parametersPath, fileName(name, len(names)))) + variableOverhead
	}
	length := func(name string) int { return len(name) + len("=") + len(parameters[name]) }
	longest := slices.Clone(names)
	slices.SortStableFunc(longest, func(a, b string) int { return cmp.Compare(length(b), length(a)) })
	total := 0
	for _, name := range names {
		total += variableCost(name)
	}
	asFile := map[string]bool{}
	for _, name := range longest {
		saved := variableCost(name) - fileCost(name)
		_, taken := parameters[name+fileSuffix]
		if length(name) > maxEnvironmentString || total > budget && saved > 0 && !taken {
			asFile[name] = true
			total -= saved
		}
	}
	if total > budget {
		return nil, refuse("the parameters need %d bytes in each container, even with long values in files; the Pod has room for %d", total, budget)
	}
	return asFile, nil
}

// plainName is a variable a shell can use, which is also a key of a ConfigMap and the name of a file that leads nowhere else.
var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// fileName is the name of a parameter's file: the parameter's where that is a plain name, else one that no parameter's can be.
func fileName(name string, index int) string {
	if plainName.MatchString(name) {
		return name
	}
	return "parameter-" + strconv.Itoa(index)
}

// requestError is the fault of whoever asked for the build, not of the job.
type requestError struct{ error }

func refuse(text string, arguments ...any) error {
	return &requestError{fmt.Errorf(text, arguments...)}
}

func checkParameter(name, value string) error {
	switch {
	case name == "":
		return refuse("a parameter has an empty name")
	case len(name) > maxParameterName:
		return refuse("the name of parameter %q has %d bytes; at most %d are taken", shorten(name), len(name), maxParameterName)
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == '=' }):
		return refuse("parameter %q cannot be an environment variable: names are printable ASCII without '='", shorten(name))
	case slices.Contains(refusedNames, name) || slices.ContainsFunc(refusedPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }):
		return refuse("parameter %q is refused: it would change how the container's programs run, or which cluster they talk to", shorten(name))
	case strings.ContainsRune(value, 0):
		return refuse("the value of parameter %q holds a NUL byte, which no environment variable can", shorten(name))
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
