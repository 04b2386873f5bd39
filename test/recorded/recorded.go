// Package recorded has what became of Pods on a real cluster: test/e2e made each case happen, asked for by a Zuul behind a real gearmand, and wrote
// down the Pods as the API server showed them (`make record`). The tests of controllers ask for a verdict on each of them again.
package recorded

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Case is what was made to happen, and what came of it.
type Case struct {
	Name string `json:"name"`
	// Order is its place in the table, from 0.
	Order int `json:"order"`
	// Group and What say for people what happened.
	Group string `json:"group"`
	What  string `json:"what"`

	Kubernetes string `json:"kubernetes"` // the version of the kubelet
	// Timeouts are those of the job; all four are given.
	Timeouts v1alpha1.Timeouts `json:"timeouts"`

	// Told is the result Zuul was told, "" for none. Outcome is what it made of that, and Packet the last one it got.
	Told    string `json:"told"`
	Outcome string `json:"outcome"`
	Packet  string `json:"packet"`

	Phase    v1alpha1.BuildPhase `json:"phase"`
	Reason   string              `json:"reason"`
	Message  string              `json:"message,omitempty"`
	LostPods int                 `json:"lostPods,omitempty"`

	// Pods are the build's, in the order they were made. There are none for builds that were aborted, or never had one.
	Pods []History `json:"pods,omitempty"`
}

// History is a Pod up to the verdict on it.
type History struct {
	// Moments are the last three at which it was seen to change before the verdict, or fewer.
	Moments []Moment `json:"moments"`
	Verdict Verdict  `json:"verdict"`
	// Time is when the verdict was seen.
	Time metav1.MicroTime `json:"time"`
}

// Moment is a Pod as it was from a time on; nil if it was gone.
type Moment struct {
	Time metav1.MicroTime `json:"time"`
	Pod  *corev1.Pod      `json:"pod,omitempty"`
}

// Verdict is as in the status of a ZuulBuild.
type Verdict struct {
	Phase   v1alpha1.BuildPhase `json:"phase"`
	Result  string              `json:"result,omitempty"`
	Reason  string              `json:"reason"`
	Message string              `json:"message,omitempty"`
}

// Load reads all cases, in their order.
func Load() ([]Case, error) {
	folder, _ := paths()
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return nil, err
	}
	all := make([]Case, len(files))
	for i, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if err := yaml.UnmarshalStrict(text, &all[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	sortCases(all)
	return all, nil
}

func sortCases(all []Case) {
	slices.SortFunc(all, func(a, b Case) int { return a.Order - b.Order })
}

// Write puts these in the place of the recordings of their names, clears those of other names than known away, and writes the page of docs/.
func Write(came []Case, known []string) error {
	folder, page := paths()
	all, err := Load()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(old Case) bool {
		return !slices.Contains(known, old.Name) || slices.ContainsFunc(came, func(c Case) bool { return c.Name == old.Name })
	})
	all = append(all, came...)
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	for i := range all {
		all[i].Order = slices.Index(known, all[i].Name)
	}
	sortCases(all)
	for _, c := range all {
		text, err := yaml.Marshal(c)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, c.Name+".yaml"), text, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(page, []byte(Page(all)), 0o644)
}

// paths are the folder of the recordings and the page of docs/.
func paths() (folder, page string) {
	_, file, _, _ := runtime.Caller(0)
	here := filepath.Dir(file)
	return filepath.Join(here, "cases"), filepath.Join(here, "..", "..", "docs", "cases.md")
}

const head = `# What Zuul is told of each case

Each of these was made to happen on a real cluster (two nodes with kubelet and containerd %s), to a build that a Zuul had asked for
through gearmand; ` + "`make record`" + ` does so again and writes this page. [reasons.md](reasons.md) says what the reasons mean.

“Nothing” is a build without a result: Zuul runs the job again.
`

// Page is docs/cases.md.
func Page(all []Case) string {
	var page strings.Builder
	version := ""
	if len(all) > 0 {
		version = all[0].Kubernetes
	}
	fmt.Fprintf(&page, head, version)
	group := ""
	for _, c := range all {
		if c.Group != group {
			group = c.Group
			fmt.Fprintf(&page, "\n## %s\n\n| what happened | Zuul is told | last packet | reason | message |\n|---|---|---|---|---|\n", group)
		}
		told := c.Told
		if told == "" {
			told = "nothing"
		}
		message := strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;").Replace(c.Message)
		fmt.Fprintf(&page, "| %s | %s | %s | %s | %s |\n", c.What, told, c.Packet, c.Reason, message)
	}
	return page.String()
}

// Trim leaves away what no verdict asks for and what makes recordings long.
func Trim(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	pod.ManagedFields = nil
	pod.Spec.Volumes, pod.Spec.Tolerations = nil, nil
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			containers[i].Env, containers[i].VolumeMounts = nil, nil
		}
	}
	return pod
}
