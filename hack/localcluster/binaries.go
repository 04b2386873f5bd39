package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/hack"
)

const module = "zuulbuild.dev/zuulbuild"

// KubernetesVariable is the environment variable that says of which Kubernetes the assets are, and so on which API server tests run: a minor
// version of hack/versions.env, as 1.36, or any release, as 1.36.3. Clusters are always of KUBERNETES_VERSION.
const KubernetesVariable = "ZUULBUILD_KUBERNETES"

// program is one program the cluster is made of and how it is built. Nothing is downloaded ready-made.
type program struct {
	name   string
	folder string // inside the tools folder; carries the version, so that a new version is a new folder
	// modulePath is the folder, inside this repository, of the module that pins the program; empty for a program that
	// `go install` builds as target@version.
	modulePath string
	// staging says that the program is of a release of Kubernetes that no module here pins: one is written for it, because `go install` refuses
	// modules that replace others, as Kubernetes does those it is made of.
	staging bool
	target  string // package path
	version string
	ldflags string
	tags    string
}

// toolset is every program, by name.
type toolset struct {
	folder   string
	programs map[string]program
}

// Names of programs that are built only when something needs them.
var (
	assetBinaries   = []string{"etcd", "kube-apiserver", "kubectl"}
	clusterBinaries = []string{
		"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
		"containerd", "containerd-shim-runc-v2", "ctr", "coredns", "pause",
	}
	kwokBinaries = []string{"kwok"}
	testBinaries = []string{"helm", "helm-unittest", "promtool", "prometheus"}
)

func newToolset() (*toolset, error) { return newToolsetOf("") }

// newAssets is newToolset with the Kubernetes that KubernetesVariable says.
func newAssets() (*toolset, error) { return newToolsetOf(os.Getenv(KubernetesVariable)) }

func newToolsetOf(wanted string) (*toolset, error) {
	versions, err := hack.Versions()
	if err != nil {
		return nil, err
	}
	kubernetes, err := hack.KubernetesVersion(versions, wanted)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", KubernetesVariable, err)
	}
	return planTools(filepath.Join(cacheFolder(), "tools"), versions, kubernetes)
}

// planTools says where each program lives and how it is built; those of Kubernetes are of the release named, as v1.37.2.
func planTools(folder string, versions map[string]string, kubernetes string) (*toolset, error) {
	for _, name := range []string{"KUBERNETES_VERSION", "ETCD_VERSION", "CONTAINERD_VERSION", "COREDNS_VERSION", "KWOK_VERSION", "HELM_VERSION",
		"HELM_UNITTEST_VERSION", "PROMETHEUS_VERSION"} {
		if !strings.HasPrefix(versions[name], "v") {
			return nil, fmt.Errorf("hack/versions.env: %s is %q, want a version starting with v", name, versions[name])
		}
	}
	etcd := versions["ETCD_VERSION"]
	// etcd shares the folder of Kubernetes because envtest looks for etcd, kube-apiserver and kubectl in one place.
	assets := "kubernetes-" + kubernetes + "-etcd-" + etcd
	tools := &toolset{folder: folder, programs: map[string]program{}}
	add := func(p program) { tools.programs[p.name] = p }

	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"} {
		p := program{name: name, folder: assets, target: "k8s.io/kubernetes/cmd/" + name, version: kubernetes, ldflags: kubernetesFlags(kubernetes)}
		if kubernetes == versions["KUBERNETES_VERSION"] {
			p.modulePath = "hack/tools/kubernetes"
		} else {
			p.staging = true
		}
		add(p)
	}
	add(program{name: "etcd", folder: assets, modulePath: "hack/tools/etcd", target: "go.etcd.io/etcd/server/v3", version: etcd})
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		add(program{name: name, folder: "containerd-" + versions["CONTAINERD_VERSION"],
			target: "github.com/containerd/containerd/v2/cmd/" + name, version: versions["CONTAINERD_VERSION"],
			ldflags: "-X github.com/containerd/containerd/v2/version.Version=" + versions["CONTAINERD_VERSION"]})
	}
	add(program{name: "coredns", folder: "coredns-" + versions["COREDNS_VERSION"], target: "github.com/coredns/coredns", version: versions["COREDNS_VERSION"]})
	add(program{name: "kwok", folder: "kwok-" + versions["KWOK_VERSION"], target: "sigs.k8s.io/kwok/cmd/kwok", version: versions["KWOK_VERSION"],
		ldflags: "-X sigs.k8s.io/kwok/pkg/consts.Version=" + versions["KWOK_VERSION"]})
	add(program{name: "helm", folder: "helm-" + versions["HELM_VERSION"], target: "helm.sh/helm/v4/cmd/helm", version: versions["HELM_VERSION"],
		ldflags: "-X helm.sh/helm/v4/internal/version.version=" + versions["HELM_VERSION"]})
	add(program{name: "helm-unittest", folder: "helm-unittest-" + versions["HELM_UNITTEST_VERSION"], modulePath: "hack/tools/helm-unittest",
		target: "github.com/helm-unittest/helm-unittest/cmd/helm-unittest", version: versions["HELM_UNITTEST_VERSION"]})
	for _, name := range []string{"promtool", "prometheus"} {
		add(program{name: name, folder: name + "-" + versions["PROMETHEUS_VERSION"], target: "github.com/prometheus/prometheus/cmd/" + name,
			version: versions["PROMETHEUS_VERSION"], tags: "remove_all_sd"}) // without the clouds it could discover servers in
	}
	add(program{name: "pause", folder: "pause-" + pauseVersion, modulePath: ".", target: module + "/hack/localcluster/pause", version: pauseVersion})
	return tools, nil
}

// kubernetesFlags stamps the version the way a release build does; without it every component reports v0.0.0.
func kubernetesFlags(version string) string {
	major, minor, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	const variable = "-X k8s.io/component-base/version."
	return variable + "gitVersion=" + version + " " + variable + "gitMajor=" + major + " " + variable + "gitMinor=" + minor + " " +
		variable + "gitTreeState=clean"
}

func (t *toolset) path(name string) string {
	return filepath.Join(t.folder, t.programs[name].folder, name)
}

// AssetsDir is the folder that holds etcd, kube-apiserver and kubectl once BuildAssets has run, or Up if they are of KUBERNETES_VERSION;
// KUBEBUILDER_ASSETS for envtest. It builds nothing. It panics where KubernetesVariable is no version.
func AssetsDir() string { return filepath.Dir(assets().path("etcd")) }

// KubernetesVersion is the release that the assets are of, as v1.37.2. It panics as AssetsDir does.
func KubernetesVersion() string { return assets().programs["kube-apiserver"].version }

func assets() *toolset {
	tools, err := newAssets()
	if err != nil {
		panic(err) // of KubernetesVariable: versions.env is compiled in, so a test has seen it
	}
	return tools
}

// Tool is the path of a program once BuildTools has built it. It builds nothing.
func Tool(name string) string {
	tools, err := newToolset()
	if err != nil {
		panic(err) // as in assets
	}
	return tools.path(name)
}

// BuildTools builds programs where they are missing: those of a cluster, helm, helm-unittest, promtool and prometheus.
func BuildTools(ctx context.Context, log io.Writer, names ...string) error {
	tools, err := newToolset()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, known := tools.programs[name]; !known {
			return fmt.Errorf("there is no tool %q: it is one of %s", name, strings.Join(slices.Sorted(maps.Keys(tools.programs)), ", "))
		}
	}
	return tools.ensure(ctx, log, names...)
}

// BuildAssets builds what AssetsDir promises, where it is missing, and returns that folder.
func BuildAssets(ctx context.Context, log io.Writer) (string, error) {
	tools, err := newAssets()
	if err != nil {
		return "", err
	}
	return filepath.Dir(tools.path("etcd")), tools.ensure(ctx, log, assetBinaries...)
}

// BuildAll builds every program an `up` may need, kwok among them, where it is missing.
func BuildAll(ctx context.Context, log io.Writer) error {
	tools, err := newToolset()
	if err != nil {
		return err
	}
	return tools.ensure(ctx, log, slices.Concat(clusterBinaries, kwokBinaries)...)
}

// ensure builds the programs that are missing, one at a time: each is a build that fills the machine by itself. A file
// that exists is whole, because it is renamed into place.
func (t *toolset) ensure(ctx context.Context, log io.Writer, names ...string) error {
	if len(t.missing(names)) == 0 {
		return nil
	}
	unlock, err := lock(filepath.Join(t.folder, "lock"), func() { fmt.Fprintln(log, "waiting for another build of the tools") })
	if err != nil {
		return err
	}
	defer unlock()
	missing := t.missing(names) // the one before us may have built them
	for index, name := range missing {
		fmt.Fprintf(log, "building %s %s (%d of %d)\n", name, t.programs[name].version, index+1, len(missing))
		start := time.Now()
		if err := t.build(ctx, t.programs[name]); err != nil {
			return fmt.Errorf("build %s %s: %w", name, t.programs[name].version, err)
		}
		fmt.Fprintf(log, "built %s in %s\n", name, time.Since(start).Round(time.Second))
	}
	return nil
}

func (t *toolset) missing(names []string) []string {
	var missing []string
	for _, name := range names {
		if _, err := os.Stat(t.path(name)); err != nil {
			missing = append(missing, name)
		}
	}
	return missing
}

func (t *toolset) build(ctx context.Context, p program) error {
	destination := t.path(p.name)
	if err := os.MkdirAll(filepath.Dir(destination), 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(t.folder, ".build-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)

	command := exec.CommandContext(ctx, "go", "install", "-tags", p.tags, "-ldflags", linkerFlags(p), p.target+"@"+p.version)
	command.Dir = temporary // outside any module, so that only the named version decides
	switch {
	case p.modulePath != "":
		root, err := repositoryRoot(ctx)
		if err != nil {
			return err
		}
		command = exec.CommandContext(ctx, "go", "build", "-tags", p.tags, "-ldflags", linkerFlags(p), "-o", filepath.Join(temporary, p.name), p.target)
		command.Dir = filepath.Join(root, p.modulePath)
	case p.staging:
		if err := writeStagingModule(ctx, temporary, p.version); err != nil {
			return err
		}
		// -mod=mod adds the checksums, which `go` has from the checksum database.
		command = exec.CommandContext(ctx, "go", "build", "-mod=mod", "-tags", p.tags, "-ldflags", linkerFlags(p), "-o", p.name, p.target)
		command.Dir = temporary
	}
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOBIN="+temporary)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(command.Args, " "), err, lastLines(string(output), 20))
	}
	return os.Rename(filepath.Join(temporary, p.name), destination)
}

// writeStagingModule makes a folder a module that programs of a release of Kubernetes are built in.
func writeStagingModule(ctx context.Context, folder, version string) error {
	command := exec.CommandContext(ctx, "go", "mod", "download", "-json", "k8s.io/kubernetes@"+version)
	command.Dir = folder
	command.Env = append(os.Environ(), "GOWORK=off")
	var problems strings.Builder
	command.Stderr = &problems
	output, err := command.Output()
	downloaded := struct{ GoMod, Error string }{}
	switch unreadable := json.Unmarshal(output, &downloaded); {
	case downloaded.Error != "": // which tells more than that the command failed
		return errors.New(downloaded.Error)
	case err != nil || unreadable != nil:
		return fmt.Errorf("%s: %w\n%s", strings.Join(command.Args, " "), errors.Join(err, unreadable), lastLines(problems.String(), 20))
	}
	theirs, err := os.ReadFile(downloaded.GoMod)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, "go.mod"), []byte(stagingModule(string(theirs), version)), 0o644)
}

var stagingReplacement = regexp.MustCompile(`(?m)=> \./staging/src/(\S+)$`)

// stagingModule is the go.mod of a module that requires a release of Kubernetes, with the versions that this release's own go.mod (theirs) has of all
// else. That one takes the modules Kubernetes is made of from a folder, which the release as a module lacks: 1.37.2 has published them as 0.37.2.
func stagingModule(theirs, version string) string {
	ours := stagingReplacement.ReplaceAllString(theirs, "=> $1 v0"+strings.TrimPrefix(version, "v1"))
	ours = strings.Replace(ours, "\nmodule k8s.io/kubernetes\n", "\nmodule "+module+"/hack/tools/kubernetes\n", 1)
	return ours + "\nrequire k8s.io/kubernetes " + version + "\n"
}

func linkerFlags(p program) string { return strings.TrimSpace("-s -w " + p.ldflags) }

// repositoryRoot is the folder of this project's go.mod. The module files of the tools live below it and cannot be
// embedded, since a module's files never include another module's.
func repositoryRoot(ctx context.Context) (string, error) {
	output, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find the folder of module %s (run this inside a checkout): %w", module, err)
	}
	return strings.TrimSpace(string(output)), nil
}

// lastLines returns at most the last count lines of a text.
func lastLines(text string, count int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > count {
		lines = lines[len(lines)-count:]
	}
	return strings.Join(lines, "\n")
}
