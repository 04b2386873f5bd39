package localcluster

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/clientcmd"

	"zuulbuild.dev/zuulbuild/hack"
)

func TestOptionsDefaults(t *testing.T) {
	bookworm, trusty := map[string]string{NodeLabel: "bookworm"}, map[string]string{NodeLabel: "trusty"}
	precise := map[string]string{NodeLabel: "precise", "disk": "fast"}
	tests := map[string]struct {
		options    Options
		wantLabels map[string]map[string]string
		wantErr    string
	}{
		"zero value":       {wantLabels: map[string]map[string]string{"node-1": bookworm, "node-2": trusty}},
		"one node labeled": {options: Options{NodeLabels: map[string]map[string]string{"node-1": precise}}, wantLabels: map[string]map[string]string{"node-1": precise, "node-2": trusty}},
		"no labels wanted": {options: Options{NodeLabels: map[string]map[string]string{"node-1": {}}}, wantLabels: map[string]map[string]string{"node-1": {}, "node-2": trusty}},
		"three nodes":      {options: Options{Nodes: 3}, wantLabels: map[string]map[string]string{"node-1": bookworm, "node-2": trusty, "node-3": nil}},
		"one node":         {options: Options{Nodes: 1}, wantLabels: map[string]map[string]string{"node-1": bookworm}},
		"unknown node":     {options: Options{NodeLabels: map[string]map[string]string{"node-9": precise}}, wantErr: `node "node-9"`},
		"bad name":         {options: Options{Name: "../x"}, wantErr: `cluster name "../x"`},
		"too many nodes":   {options: Options{Nodes: 101}, wantErr: "101 nodes"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := test.options.withDefaults()
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Fatalf("error %v, want one with %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.wantLabels, got.NodeLabels); diff != "" {
				t.Errorf("labels differ (-want +got):\n%s", diff)
			}
		})
	}
}

// Ensure compares what is asked for with what was written to a file by the command that started the cluster.
func TestOptionsEqualAfterReading(t *testing.T) {
	options, err := Options{Nodes: 3, Audit: true, NodeLabels: map[string]map[string]string{"node-1": {}}, Log: io.Discard}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	c, err := newCluster(options.Name)
	if err != nil {
		t.Fatal(err)
	}
	c.state = state{Slot: 3, Options: options, Starting: true}
	if err := c.saveState(); err != nil {
		t.Fatal(err)
	}
	read, err := Open(options.Name)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := options.equal(read.options); err != nil || !same {
		t.Errorf("options differ after reading: %+v and %+v, %v", options, read.options, err)
	}
	options.KwokNodes++
	if same, err := options.equal(read.options); err != nil || same {
		t.Errorf("other options count as the same: %+v and %+v, %v", options, read.options, err)
	}
	if err := c.remember(process{Name: "etcd"}); err != nil {
		t.Fatal(err)
	}
	if err := read.Running(); err == nil || !strings.Contains(err.Error(), "did not finish") {
		t.Errorf("a cluster whose start was cut off: %v", err)
	}
}

func TestPlanTools(t *testing.T) {
	versions, err := hack.Versions()
	if err != nil {
		t.Fatal(err)
	}
	kubernetes := versions["KUBERNETES_VERSION"]
	tools, err := planTools("/tools", versions, kubernetes)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(clusterBinaries, kwokBinaries, testBinaries) {
		p, found := tools.programs[name]
		if !found || p.target == "" || !strings.Contains(tools.path(name), p.version) {
			t.Errorf("%s: plan %+v, path %s", name, p, tools.path(name))
		}
	}
	for _, name := range assetBinaries {
		if filepath.Dir(tools.path(name)) != filepath.Dir(tools.path("etcd")) {
			t.Errorf("%s is in %s, not beside etcd", name, tools.path(name))
		}
	}
	older, err := planTools("/tools", versions, "v1.30.1")
	if err != nil {
		t.Fatal(err)
	}
	if p := older.programs["kube-apiserver"]; p.version != "v1.30.1" || !p.staging || p.modulePath != "" {
		t.Errorf("an API server of another version is built as %+v", p)
	}
	for _, name := range assetBinaries {
		if folder := filepath.Dir(older.path(name)); folder != filepath.Dir(older.path("etcd")) || folder == filepath.Dir(tools.path("etcd")) {
			t.Errorf("%s of another version is in %s", name, folder)
		}
	}
	delete(versions, "KWOK_VERSION")
	if _, err := planTools("/tools", versions, kubernetes); err == nil || !strings.Contains(err.Error(), "KWOK_VERSION") {
		t.Errorf("a missing version gives error %v", err)
	}
	flags := "-X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 " +
		"-X k8s.io/component-base/version.gitMinor=37 -X k8s.io/component-base/version.gitTreeState=clean"
	if diff := cmp.Diff(flags, kubernetesFlags("v1.37.2")); diff != "" {
		t.Errorf("flags differ (-want +got):\n%s", diff)
	}
}

// What is built is of the Kubernetes that the environment says; a cluster is not.
func TestAssetsOfAnotherKubernetes(t *testing.T) {
	t.Setenv(KubernetesVariable, "")
	usual, wanted := AssetsDir(), KubernetesVersion()
	t.Setenv(KubernetesVariable, "1.30.1")
	if AssetsDir() == usual || !strings.Contains(AssetsDir(), "v1.30.1") || KubernetesVersion() != "v1.30.1" {
		t.Errorf("the assets are of %s, in %s", KubernetesVersion(), AssetsDir())
	}
	cluster, err := newToolset()
	if err != nil {
		t.Fatal(err)
	}
	if got := cluster.programs["kubelet"].version; got != wanted {
		t.Errorf("a cluster is of %s", got)
	}
	t.Setenv(KubernetesVariable, "newest")
	if _, err := BuildAssets(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), KubernetesVariable) {
		t.Errorf("no version gives error %v", err)
	}
}

func TestStagingModule(t *testing.T) {
	theirs := `// Generated.

module k8s.io/kubernetes

go 1.25.0

godebug default=go1.25

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/client-go => ./staging/src/k8s.io/client-go
)

require (
	github.com/google/go-cmp v0.7.0
	k8s.io/api v0.0.0
)
`
	want := `// Generated.

module zuulbuild.dev/zuulbuild/hack/tools/kubernetes

go 1.25.0

godebug default=go1.25

replace (
	k8s.io/api => k8s.io/api v0.36.3
	k8s.io/client-go => k8s.io/client-go v0.36.3
)

require (
	github.com/google/go-cmp v0.7.0
	k8s.io/api v0.0.0
)

require k8s.io/kubernetes v1.36.3
`
	if diff := cmp.Diff(want, stagingModule(theirs, "v1.36.3")); diff != "" {
		t.Errorf("go.mod differs (-want +got):\n%s", diff)
	}
}

func testNode(t *testing.T) *Node {
	c := &Cluster{name: "test", folder: t.TempDir(), options: Options{Nodes: 2}}
	c.state.Slot, c.state.APIServerPort = 3, 4711
	return c.Node(2)
}

func TestNodeFiles(t *testing.T) {
	ca, err := newAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	files, err := testNode(t).files(ca, "https://10.67.0.1:4711")
	if err != nil {
		t.Fatal(err)
	}
	contains := map[string][]string{
		"containerd.toml":       {`sandbox = "zuulbuild.test/pause:1"`, `conf_dir = "/var/lib/zuulbuild/cni"`, "restrict_oom_score_adj = true"},
		"cni/10-pods.conflist":  {`"subnet": "10.67.130.0/24"`},
		"kubelet.yaml":          {`cgroupRoot: "/zuulbuild-3/node-2"`, `clusterDNS: ["10.96.0.10"]`},
		"kube-proxy.yaml":       {`clusterCIDR: "10.67.128.0/17"`, `hostnameOverride: "node-2"`},
		"kubelet.kubeconfig":    {"server: https://10.67.0.1:4711", "system:node:node-2"},
		"kube-proxy.kubeconfig": {"system:kube-proxy"},
	}
	for name, wanted := range contains {
		for _, want := range wanted {
			if !strings.Contains(string(files[name]), want) {
				t.Errorf("%s lacks %s:\n%s", name, want, files[name])
			}
		}
	}
	if !json.Valid(files["cni/10-pods.conflist"]) {
		t.Error("the CNI configuration is not JSON")
	}
	for _, name := range []string{"kubelet.yaml", "kube-proxy.yaml"} {
		var object map[string]any
		if err := yaml.Unmarshal(files[name], &object); err != nil || object["kind"] == nil {
			t.Errorf("%s: %v, kind %v", name, err, object["kind"])
		}
	}
	if _, err := tls.X509KeyPair(files["kubelet.crt"], files["kubelet.key"]); err != nil {
		t.Errorf("kubelet's serving certificate: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	c := testNode(t).cluster
	ca, err := newAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.writeCredentials(ca); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.parsed)
	pair, err := tls.LoadX509KeyPair(c.controlPlaneFile("kube-apiserver.crt"), c.controlPlaneFile("kube-apiserver.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"10.67.0.1", "10.96.0.1", "kubernetes.default.svc.cluster.local"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host}); err != nil {
			t.Errorf("API server as %s: %v", host, err)
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "10.67.0.2"}); err == nil {
		t.Error("the API server's certificate is good for an address that is not its own")
	}

	config, err := clientcmd.LoadFromFile(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	admin, err := tls.X509KeyPair(config.AuthInfos["admin"].ClientCertificateData, config.AuthInfos["admin"].ClientKeyData)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"system:masters"}, admin.Leaf.Subject.Organization); diff != "" {
		t.Errorf("administrator's groups differ (-want +got):\n%s", diff)
	}
	if _, err := admin.Leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("the administrator's certificate could serve")
	}
	if info, err := os.Stat(c.Kubeconfig()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig: %v, %v", info, err)
	}
	restConfig, err := c.RESTConfig()
	if err != nil || restConfig.Host != "https://10.67.0.1:4711" {
		t.Errorf("REST configuration for %v, %v", restConfig, err)
	}
}

func TestAPIServerArguments(t *testing.T) {
	c := testNode(t).cluster
	for _, audit := range []bool{false, true} {
		c.options.Audit = audit
		arguments, err := c.apiServerArguments("http://127.0.0.1:2379")
		if err != nil {
			t.Fatal(err)
		}
		line := strings.Join(arguments, " ")
		if strings.Contains(line, "--audit-log-path="+c.AuditLog()) != audit {
			t.Errorf("audit %t: %s", audit, line)
		}
		if !strings.Contains(line, "--authorization-mode=Node,RBAC") || !strings.Contains(line, "--bind-address=10.67.0.1") {
			t.Errorf("arguments %s", line)
		}
	}
}

func TestRender(t *testing.T) {
	if _, err := render("Corefile", map[string]any{"DNSPort": 53}); err == nil {
		t.Error("no error for a value that is missing")
	}
	config, err := render("kwok.yaml", map[string]any{"HostAddress": "10.67.0.1", "Architecture": "amd64", "PodsPerNode": 110,
		"DurationAnnotation": KwokDurationAnnotation, "LongestAnnotation": KwokLongestAnnotation, "ExitCodeAnnotation": KwokExitCodeAnnotation})
	if err != nil {
		t.Fatal(err)
	}
	decoder, documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(config), 1000), 0
	for {
		var object map[string]any
		if err := decoder.Decode(&object); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		documents++
	}
	if documents != 5 {
		t.Errorf("%d documents, want 5", documents)
	}
}

func TestDNSObjects(t *testing.T) {
	service, slice := dnsObjects("10.67.0.1", 4711)
	if len(service.Spec.Ports) != 2 || len(slice.Ports) != 2 {
		t.Fatalf("ports %v and %v", service.Spec.Ports, slice.Ports)
	}
	targets := map[string]corev1.Protocol{}
	for _, port := range slice.Ports {
		if *port.Port != 4711 {
			t.Errorf("endpoint port %d", *port.Port)
		}
		targets[*port.Name] = *port.Protocol
	}
	for _, port := range service.Spec.Ports {
		if port.Port != 53 || targets[port.Name] != port.Protocol {
			t.Errorf("port %+v has no endpoint of its name and protocol in %v", port, targets)
		}
	}
}

func TestWriteImage(t *testing.T) {
	var digests []string
	for range 2 {
		path := filepath.Join(t.TempDir(), "image.tar")
		entries := busyboxEntries([]byte("program"), []string{"busybox", "sh", "ls"})
		if err := writeImage(path, BusyboxImage, entries, v1.Config{Cmd: []string{"/bin/sh"}}); err != nil {
			t.Fatal(err)
		}
		image, err := tarball.ImageFromPath(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest.String())
		layers, err := image.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v; want 1", len(layers), err)
		}
		content, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		checkBusybox(t, content)
	}
	if digests[0] != digests[1] {
		t.Errorf("the same content made two images, %s and %s", digests[0], digests[1])
	}
}

func checkBusybox(t *testing.T, layer io.Reader) {
	t.Helper()
	headers := map[string]*tar.Header{}
	for reader := tar.NewReader(layer); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if headers[header.Name] != nil {
			t.Errorf("%s is there twice", header.Name)
		}
		headers[header.Name] = header
	}
	if tmp := headers["tmp/"]; tmp == nil || tmp.Mode != 0o1777 || tmp.Typeflag != tar.TypeDir {
		t.Errorf("/tmp is %+v", tmp)
	}
	if shell := headers["bin/sh"]; shell == nil || shell.Linkname != "busybox" {
		t.Errorf("/bin/sh is %+v", shell)
	}
	if program := headers["bin/busybox"]; program == nil || program.Mode != 0o755 || program.Typeflag != tar.TypeReg {
		t.Errorf("/bin/busybox is %+v", program)
	}
}

func TestNodeReady(t *testing.T) {
	condition := func(status corev1.ConditionStatus) []corev1.NodeCondition {
		return []corev1.NodeCondition{{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse}, {Type: corev1.NodeReady, Status: status, Message: "starting"}}
	}
	tests := map[string]struct {
		node corev1.Node
		want string // part of the reason; empty = ready
	}{
		"ready":        {node: corev1.Node{Status: corev1.NodeStatus{Conditions: condition(corev1.ConditionTrue)}}},
		"not ready":    {node: corev1.Node{Status: corev1.NodeStatus{Conditions: condition(corev1.ConditionFalse)}}, want: "starting"},
		"no condition": {want: "not reported"},
		"still tainted": {node: corev1.Node{Status: corev1.NodeStatus{Conditions: condition(corev1.ConditionTrue)},
			Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "node.kubernetes.io/not-ready", Effect: corev1.TaintEffectNoSchedule}}}}, want: "tainted"},
		"mild taint": {node: corev1.Node{Status: corev1.NodeStatus{Conditions: condition(corev1.ConditionTrue)},
			Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectPreferNoSchedule}}}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := nodeReady(&test.node)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
