// Package chart tests what installs the operator: the Helm chart and config/default, against a real API server that knows nothing of zuulbuild. It
// needs the programs that `localcluster assets` and `localcluster tools helm helm-unittest promtool` build. ZUULBUILD_KUBERNETES says of which Kubernetes they are.
package chart

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"zuulbuild.dev/zuulbuild/hack"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

const (
	root      = "../.."
	chartPath = root + "/charts/zuulbuild"
	namespace = "zuulbuild-system"
)

// valuesFiles are sets of values that must work, by name: those of the chart's ci folder, and the defaults, whose path is empty.
var valuesFiles = func() map[string]string {
	const ending = "-values.yaml"
	files := map[string]string{"default": ""}
	found, _ := filepath.Glob(chartPath + "/ci/*" + ending) // which errs on wrong patterns alone
	for _, file := range found {
		files[strings.TrimSuffix(filepath.Base(file), ending)] = file
	}
	return files
}()

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	code := m.Run()
	if server.environment != nil {
		if err := server.environment.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the API server:", err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// require skips the test where a program is missing, or fails it where ZUULBUILD_REQUIRE_APISERVER is set.
func require(t *testing.T, program, built string) string {
	t.Helper()
	if os.Getenv("ZUULBUILD_SKIP_APISERVER") != "" {
		t.Skip("ZUULBUILD_SKIP_APISERVER is set")
	}
	if _, err := os.Stat(program); err != nil {
		message := fmt.Sprintf("%s is missing: `go run ./hack/localcluster/cmd %s` builds it", program, built)
		if os.Getenv("ZUULBUILD_REQUIRE_APISERVER") != "" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	return program
}

// helm runs helm without the settings of whoever runs the test.
func helm(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	return command(t, nil, require(t, localcluster.Tool("helm"), "tools helm"), arguments...)
}

// kubectl runs kubectl.
func kubectl(t *testing.T, input []byte, arguments ...string) (string, error) {
	t.Helper()
	return command(t, input, require(t, filepath.Join(localcluster.AssetsDir(), "kubectl"), "assets"), arguments...)
}

func command(t *testing.T, input []byte, program string, arguments ...string) (string, error) {
	t.Helper()
	home := t.TempDir()
	c := exec.CommandContext(t.Context(), program, arguments...)
	c.Stdin = bytes.NewReader(input)
	c.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + filepath.Join(home, "none")}
	var output, problems bytes.Buffer
	c.Stdout, c.Stderr = &output, &problems
	if err := c.Run(); err != nil {
		return output.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(arguments, " "), err, problems.String())
	}
	return output.String(), nil
}

// template renders the chart as `helm template` does, for the Kubernetes that the tests run on.
func template(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	usual := []string{"template", "zuulbuild", chartPath, "--namespace", namespace, "--kube-version", localcluster.KubernetesVersion()}
	return helm(t, append(usual, arguments...)...)
}

// render is the chart's objects, hooks included, for one of valuesFiles.
func render(t *testing.T, values string, arguments ...string) []*unstructured.Unstructured {
	t.Helper()
	if file := valuesFiles[values]; file != "" {
		arguments = append(arguments, "--values", file)
	}
	text, err := template(t, arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

// objects reads a stream of documents.
func objects(t *testing.T, text string) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for reader := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(text), 4096); ; {
		object := &unstructured.Unstructured{}
		switch err := reader.Decode(&object.Object); {
		case errors.Is(err, io.EOF):
			return out
		case err != nil:
			t.Fatal(err)
		case len(object.Object) > 0:
			out = append(out, object)
		}
	}
}

// find is the object of a kind and name.
func find(t *testing.T, all []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for _, object := range all {
		if object.GetKind() == kind && object.GetName() == name {
			return object
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

// into reads an object as a type.
func into(t *testing.T, from, to any) {
	t.Helper()
	text, err := json.Marshal(from)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// server is the API server of all tests. It has the definitions of Prometheus Operator and Gateway API, but none of ours.
var server struct {
	once        sync.Once
	environment *envtest.Environment
	err         error
}

func config(t *testing.T) *rest.Config {
	t.Helper()
	require(t, filepath.Join(localcluster.AssetsDir(), "kube-apiserver"), "assets")
	require(t, filepath.Join(localcluster.AssetsDir(), "etcd"), "assets")
	server.once.Do(func() {
		var definitions []string
		if definitions, server.err = foreignDefinitions(); server.err != nil {
			return
		}
		server.environment = &envtest.Environment{
			BinaryAssetsDirectory: localcluster.AssetsDir(), CRDDirectoryPaths: definitions, ErrorIfCRDPathMissing: true, UseExistingCluster: ptr.To(false),
			CRDInstallOptions:        envtest.CRDInstallOptions{MaxTime: 2 * time.Minute},
			ControlPlaneStartTimeout: 2 * time.Minute, ControlPlaneStopTimeout: time.Minute,
		}
		_, server.err = server.environment.Start()
	})
	if server.err != nil {
		t.Fatalf("start the API server: %v", server.err)
	}
	configuration := rest.CopyConfig(server.environment.Config)
	configuration.QPS = -1
	return configuration
}

// foreignDefinitions are the files with the definitions of others' kinds that the chart makes objects of, out of their modules.
func foreignDefinitions() ([]string, error) {
	versions, err := hack.Versions()
	if err != nil {
		return nil, err
	}
	var files []string
	for module, names := range map[string][]string{
		"github.com/prometheus-operator/prometheus-operator@" + versions["PROMETHEUS_OPERATOR_VERSION"]: {
			"example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml", "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"},
		"sigs.k8s.io/gateway-api@" + versions["GATEWAY_API_VERSION"]: {"config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"},
	} {
		output, err := exec.Command("go", "mod", "download", "-json", module).Output()
		if err != nil {
			return nil, fmt.Errorf("go mod download %s: %w\n%s", module, err, output)
		}
		downloaded := struct{ Dir string }{}
		if err := json.Unmarshal(output, &downloaded); err != nil {
			return nil, err
		}
		for _, name := range names {
			files = append(files, filepath.Join(downloaded.Dir, name))
		}
	}
	return files, nil
}

// kubeconfig is the path of an administrator's access to the server.
func kubeconfig(t *testing.T) string {
	t.Helper()
	from := config(t)
	access := clientcmdapi.NewConfig()
	access.Clusters["test"] = &clientcmdapi.Cluster{Server: from.Host, CertificateAuthorityData: from.CAData}
	access.AuthInfos["test"] = &clientcmdapi.AuthInfo{ClientCertificateData: from.CertData, ClientKeyData: from.KeyData}
	access.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	access.CurrentContext = "test"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*access, path); err != nil {
		t.Fatal(err)
	}
	return path
}
