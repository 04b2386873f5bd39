// Package apiserver gives tests a real Kubernetes API: etcd and kube-apiserver with the CustomResourceDefinitions of this project, and nothing else.
// No scheduler, kubelet or garbage collector runs, so that a test plays their parts: a Pod stays as it was made until the test changes its status,
// and a Pod with a node that is deleted stays until the test deletes it with grace period 0.
//
// One server serves all tests of a test binary. It starts with the first test that asks for it:
//
//	func TestMain(m *testing.M) { apiserver.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		config := apiserver.Config(t)
//		namespace := apiserver.Namespace(t)
//
// It is of the Kubernetes that the environment variable ZUULBUILD_KUBERNETES says (see localcluster.KubernetesVariable), else of KUBERNETES_VERSION
// in hack/versions.env.
package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

// Environment variables that say what becomes of tests that need a server; localcluster.KubernetesVariable says which.
const (
	skipVariable    = "ZUULBUILD_SKIP_APISERVER"    // not empty: they are skipped
	requireVariable = "ZUULBUILD_REQUIRE_APISERVER" // not empty: they fail where the programs are missing, rather than being skipped
)

var (
	start   sync.Once
	server  *envtest.Environment // nil: none was started
	failure error
	stops   bool // when the tests are over
)

// Main runs the tests of a package, stops the server if one was started, and exits. It is all a TestMain needs.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has more to do than that: it returns the code to exit with.
func Run(m *testing.M) (code int) {
	stops = true
	code = m.Run()
	if server == nil {
		return code
	}
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the API server:", err)
		code = max(code, 1)
	}
	return code
}

// Config is an administrator's access to the server, a copy for each caller and without limits of its own. The test is skipped where
// ZUULBUILD_SKIP_APISERVER is set, or the programs are missing and ZUULBUILD_REQUIRE_APISERVER is not set.
func Config(t testing.TB) *rest.Config {
	t.Helper()
	if !stops {
		t.Fatal("nothing would stop the API server: the package wants a TestMain that calls apiserver.Main")
	}
	if os.Getenv(skipVariable) != "" {
		t.Skipf("%s is set", skipVariable)
	}
	if missing := missingProgram(); missing != "" {
		message := fmt.Sprintf("%s is missing: `go run ./hack/localcluster/cmd assets` builds it", missing)
		if os.Getenv(requireVariable) != "" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	start.Do(startServer)
	if failure != nil {
		t.Fatalf("start the API server: %v", failure)
	}
	config := rest.CopyConfig(server.Config)
	config.QPS = -1
	return config
}

// Kubeconfig is the path of a file that gives a program an administrator's access to the server, for as long as the test runs.
func Kubeconfig(t testing.TB) string {
	t.Helper()
	config := Config(t)
	access := clientcmdapi.NewConfig()
	access.Clusters["test"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	access.AuthInfos["test"] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	access.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	access.CurrentContext = "test"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*access, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Namespace makes a namespace for one test, named after it. It stays until the server stops: nothing is there to empty it.
func Namespace(t testing.TB) string {
	t.Helper()
	clientset, err := kubernetes.NewForConfig(Config(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: namespacePrefix(t.Name())}}
	made, err := clientset.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.Name
}

// namespacePrefix turns a test's name into the beginning of a DNS label.
func namespacePrefix(test string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(test))
	return strings.Trim(name[:min(len(name), 40)], "-") + "-"
}

func missingProgram() string {
	for _, name := range []string{"etcd", "kube-apiserver"} {
		path := filepath.Join(localcluster.AssetsDir(), name)
		if _, err := os.Stat(path); err != nil {
			return path
		}
	}
	return ""
}

func startServer() {
	environment := &envtest.Environment{
		BinaryAssetsDirectory:    localcluster.AssetsDir(),
		CRDDirectoryPaths:        []string{definitions()},
		ErrorIfCRDPathMissing:    true,
		CRDInstallOptions:        envtest.CRDInstallOptions{MaxTime: 2 * time.Minute},
		UseExistingCluster:       ptr.To(false), // whatever the environment says: tests must not reach a cluster that people use
		ControlPlaneStartTimeout: 2 * time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
	}
	if _, failure = environment.Start(); failure == nil {
		server = environment
	} else {
		_ = environment.Stop() // etcd may be up though the API server is not
	}
}

// definitions is the folder of the CustomResourceDefinitions, found from this file wherever the test runs.
func definitions() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", "config", "crd")
}
