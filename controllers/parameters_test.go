package controllers

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/doctable"
)

// seenBy gives the environment of a container, in which a reference is to what comes before it.
func seenBy(container *corev1.Container) map[string]string {
	seen := map[string]string{}
	for _, variable := range container.Env {
		seen[variable.Name] = expand(variable.Value, seen)
	}
	return seen
}

// Parameters as rapid makes them: names that get in each other's way, values that are more than they seem.
var (
	anyName = rapid.OneOf(
		rapid.SampledFrom([]string{
			"A", "A_FILE", "A_FILE_FILE", "B", "B_FILE", "HOME", "JOB_NAME", "JOB_NAME_FILE", "parameter-0", "..", "../../etc/passwd", "a/b", "dotted.name", "two words", "1digit",
		}),
		rapid.StringMatching(`[A-Z_]{1,12}`), rapid.StringMatching(`[ -~]{1,20}`),
	)
	anyValue = rapid.Custom(func(t *rapid.T) string {
		piece := rapid.OneOf(rapid.SampledFrom([]string{"$", "$$", "$(A)", "$(HOME)", "$(", ")", "x", "\n", "\"'\\", "Ä"}), rapid.String()).Draw(t, "piece")
		times := rapid.OneOf(rapid.IntRange(0, 3), rapid.SampledFrom([]int{1, 30_000, 131_071, 200_000})).Draw(t, "times")
		return strings.Repeat(piece, times)
	})
)

// TestParametersArriveOrAreRefused: whatever the parameters and the job, each container gets them all, byte for byte, as variable or file, within
// what Linux and Kubernetes take, or the request is told what is wrong with it.
func TestParametersArriveOrAreRefused(t *testing.T) {
	arrived := 0
	rapid.Check(t, func(t *rapid.T) {
		build := newBuild()
		build.Spec.Parameters = rapid.MapOfN(anyName, anyValue, 0, 12).Draw(t, "parameters")
		job := scriptJob()
		if n := rapid.IntRange(0, 4).Draw(t, "containers"); n > 0 {
			spec := corev1.PodSpec{InitContainers: []corev1.Container{{Name: "init"}}}
			for i := range n {
				spec.Containers = append(spec.Containers, corev1.Container{Name: strconv.Itoa(i), Env: []corev1.EnvVar{{Name: "A", Value: "template's"}, {Name: "MINE", Value: "mine"}}})
			}
			job = templateJob(spec)
		}
		pod, files, err := buildPod(build, job, nil, "https://example.org")
		if err != nil {
			var request *requestError
			if !errors.As(err, &request) || !utf8.ValidString(err.Error()) || len(err.Error()) > 500 {
				t.Fatalf("refused with %q", err)
			}
			return
		}
		arrived++
		size := 0
		for container := range allContainers(&pod.Spec) {
			checkDelivery(t, build, container, files)
			for _, variable := range container.Env {
				size += len(variable.Name) + len(variable.Value)
			}
		}
		if size > 600_000 {
			t.Errorf("the Pod has %d bytes of variables", size)
		}
		if files != nil && files.Name != pod.Spec.Volumes[len(pod.Spec.Volumes)-1].ConfigMap.Name {
			t.Errorf("the Pod mounts %v", pod.Spec.Volumes)
		}
	})
	if arrived == 0 {
		t.Error("all requests were refused")
	}
}

func checkDelivery(t *rapid.T, build *v1alpha1.ZuulBuild, container *corev1.Container, files *corev1.ConfigMap) {
	seen := seenBy(container)
	if len(seen) != len(container.Env) {
		t.Errorf("container %s has a variable twice", container.Name)
	}
	size := 0
	for name, value := range seen {
		if length := len(name) + 1 + len(value); length > 131_071 {
			t.Errorf("variable %q has %d bytes", name, length)
		} else {
			size += length
		}
	}
	if size > 600_000 {
		t.Errorf("the environment has %d bytes", size)
	}
	own := []string{"BUILD_ID", "BUILD_NUMBER", "BUILD_TAG", "BUILD_URL", "EXECUTOR_NUMBER", "JOB_NAME", "NODE_LABELS", "NODE_NAME", "WORKSPACE"}
	if container.WorkingDir != "" {
		own = append(own, "HOME")
	}
	opened := 0
	for name, value := range build.Spec.Parameters {
		if slices.Contains(own, name) {
			continue
		}
		got, isVariable := seen[name]
		if !isVariable {
			file, ok := strings.CutPrefix(seen[name+"_FILE"], "/zuulbuild/parameters/")
			if !ok || files == nil || strings.ContainsAny(file, "/.") {
				t.Fatalf("parameter %q is neither variable nor file %q", name, seen[name+"_FILE"])
			}
			got = string(files.BinaryData[file])
			delete(seen, name+"_FILE")
			opened++
		}
		if got != value {
			t.Errorf("parameter %q (variable: %t) has %d bytes, of %d sent", name, isVariable, len(got), len(value))
		}
		delete(seen, name)
	}
	if files != nil && opened != len(files.BinaryData) {
		t.Errorf("%d files for %d parameters", len(files.BinaryData), opened)
	}
	for _, name := range append(own, "MINE", "A") { // A is then the template's
		delete(seen, name)
	}
	if len(seen) > 0 {
		t.Errorf("container %s sees as well %q", container.Name, slices.Sorted(maps.Keys(seen)))
	}
}

// TestLimitsOfLinux: what the limits rest on.
func TestLimitsOfLinux(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the limits are Linux's")
	}
	run := func(environment ...string) error {
		command := exec.Command("/bin/true")
		command.Env = environment
		return command.Run()
	}
	longest := "A=" + strings.Repeat("x", maxEnvironmentString-len("A="))
	if err := run(longest); err != nil {
		t.Errorf("a variable at the limit: %v", err)
	}
	if err := run(longest + "x"); !errors.Is(err, syscall.E2BIG) {
		t.Errorf("a variable above the limit: %v", err)
	}
	var many []string
	for i := range 6 { // 786,426 bytes: parameters, a script and room to spare
		many = append(many, strconv.Itoa(i)+longest[1:])
	}
	if err := run(many...); err != nil {
		t.Errorf("an environment of %d bytes: %v", len(many)*maxEnvironmentString, err)
	}
}

// shell runs a script in a shell with one variable set besides PATH.
func shell(t *testing.T, variable, script string, shell ...string) (output string, err error) {
	t.Helper()
	program, err := exec.LookPath(shell[0])
	if err != nil {
		t.Skipf("no %s here", shell[0])
	}
	command := exec.Command(program, append(shell[1:], "-c", script)...)
	command.Env = []string{"PATH=" + os.Getenv("PATH"), variable}
	text, err := command.CombinedOutput()
	return string(text), err
}

// TestWhatRefusedNamesWouldDo shows what docs/parameters.md says of each refused name that a shell or loader reads.
func TestWhatRefusedNamesWouldDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "forged")
	if err := os.WriteFile(file, []byte("echo forged\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct{ variable, shell, script, says string }{
		"PATH":       {"PATH=" + filepath.Dir(file), "sh", "forged", "forged\n"},
		"BASH_ENV":   {"BASH_ENV=" + file, "bash", "true", "forged\n"},
		"SHELLOPTS":  {"SHELLOPTS=xtrace", "bash", "true", "+ true\n"},
		"BASHOPTS":   {"BASHOPTS=nocasematch", "bash", "[[ a == A ]] && echo forged", "forged\n"},
		"BASH_FUNC_": {"BASH_FUNC_ls%%=() { echo forged; }", "bash", "ls", "forged\n"},
		"LD_":        {"LD_PRELOAD=/forged.so", "sh", "true", "/forged.so"},
	}
	for _, name := range slices.Concat(refusedNames, refusedPrefixes) {
		c, known := cases[name]
		if !known && name != "KUBERNETES_" { // which clients of the cluster read
			t.Errorf("nothing shows what %s would do", name)
		}
		if !known {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if output, _ := shell(t, c.variable, c.script, c.shell); !strings.Contains(output, c.says) {
				t.Errorf("with %s, %s says %q, not %q", c.variable, c.shell, output, c.says)
			}
			variable, value, _ := strings.Cut(c.variable, "=")
			if err := checkParameter(variable, value); err == nil {
				t.Errorf("%s is taken", variable)
			}
		})
	}
	if _, err := shell(t, "SHELLOPTS=noexec", "exit 3", "bash"); err != nil {
		t.Errorf("under noexec a script that fails ended with %v: it was run", err)
	}
}

// TestWhatAcceptedNamesDoNot shows that non-interactive shells do not read what docs/parameters.md says they do not.
func TestWhatAcceptedNamesDoNot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "forged")
	if err := os.WriteFile(file, []byte("echo forged\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, program := range [][]string{{"sh"}, {"dash"}, {"bash"}, {"bash", "--posix"}, {"busybox", "sh"}} {
		t.Run(strings.Join(program, " "), func(t *testing.T) {
			if output, err := shell(t, "ENV="+file, "echo run", program...); output != "run\n" {
				t.Errorf("with ENV: %q (%v)", output, err)
			}
			if output, err := shell(t, "IFS=x", "v=axb; echo $v", program...); output != "axb\n" {
				t.Errorf("with IFS: %q (%v)", output, err)
			}
			for _, name := range []string{"ENV", "IFS", "PYTHONPATH", "PERL5LIB", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "GIT_SSH_COMMAND", "http_proxy", "PYTHONSTARTUP"} {
				if err := checkParameter(name, "x"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDocumentationOfRefusedNames(t *testing.T) {
	var documented []string
	for _, row := range doctable.Rows(t, "parameters.md", "Refused names") {
		name, _ := doctable.Code(row[0])
		documented = append(documented, name)
	}
	code := slices.Clone(refusedNames)
	for _, prefix := range refusedPrefixes {
		code = append(code, prefix+"…")
	}
	slices.Sort(documented)
	slices.Sort(code)
	if diff := cmp.Diff(code, documented); diff != "" {
		t.Errorf("docs/parameters.md (-code +docs):\n%s", diff)
	}
}

func TestDocumentationOfOwnVariables(t *testing.T) {
	var documented []string
	for _, row := range doctable.Rows(t, "parameters.md", "Variables of zuulbuild's own") {
		name, _ := doctable.Code(row[0])
		documented = append(documented, name)
	}
	build := newBuild()
	build.Spec.Parameters = nil
	var code []string
	for _, variable := range mustBuildPod(t, build, scriptJob(), nil).Spec.Containers[0].Env {
		code = append(code, variable.Name)
	}
	if diff := cmp.Diff(code, documented); diff != "" {
		t.Errorf("docs/parameters.md (-code +docs):\n%s", diff)
	}
}

func TestDocumentationOfSizes(t *testing.T) {
	rows := doctable.Rows(t, "parameters.md", "Sizes")
	for i, limit := range []int{maxParameterName, maxEnvironmentString, maxPodParameters, maxFiles} {
		number := strconv.Itoa(limit)
		if len(number) > 3 {
			number = number[:len(number)-3] + "," + number[len(number)-3:]
		}
		if len(number) > 7 {
			number = number[:len(number)-7] + "," + number[len(number)-7:]
		}
		if !strings.Contains(rows[i][1], number) {
			t.Errorf("%s: docs/parameters.md says %q, the code %s", rows[i][0], rows[i][1], number)
		}
	}
}

func TestAsksForOffline(t *testing.T) {
	ran := v1alpha1.ZuulBuildStatus{StartTime: new(after(0)), NodeName: "node-1"}
	cases := []struct {
		value  string
		status v1alpha1.ZuulBuildStatus
		want   bool
	}{
		{"1", ran, true}, {"true", ran, true}, {"True", ran, true}, {"TRUE", ran, true},
		{"", ran, false}, {"0", ran, false}, {"false", ran, false}, {"yes", ran, false}, {" 1", ran, false},
		{"1", v1alpha1.ZuulBuildStatus{NodeName: "node-1"}, false}, // was there, but nothing ran
		{"1", v1alpha1.ZuulBuildStatus{StartTime: ran.StartTime}, false},
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%q", c.value), func(t *testing.T) {
			build := newBuild()
			build.Spec.Parameters[offlineParameter], build.Status = c.value, c.status
			if got := asksForOffline(build); got != c.want {
				t.Errorf("%t", got)
			}
		})
	}
}
