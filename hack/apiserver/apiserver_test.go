package apiserver_test

import (
	"debug/buildinfo"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

func TestServesOurObjects(t *testing.T) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	api, err := client.New(apiserver.Config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	namespace := apiserver.Namespace(t)
	if !strings.HasPrefix(namespace, "testservesourobjects-") {
		t.Errorf("namespace is named %s, not after the test", namespace)
	}
	for _, object := range []client.Object{
		&v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Name: "job", Namespace: namespace}, Spec: v1alpha1.ZuulJobSpec{Image: "image", Script: "true"}},
		&v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Name: "build", Namespace: namespace}, Spec: v1alpha1.ZuulBuildSpec{Job: "job"}},
		&v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
	} {
		if err := api.Create(t.Context(), object); err != nil {
			t.Error(err)
		}
	}
}

// The server is of the version that was asked for, and so are the modules it is made of, which is more than the name it was given.
func TestVersion(t *testing.T) {
	server, err := discovery.NewDiscoveryClientForConfig(apiserver.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	named, err := server.ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	built, err := buildinfo.ReadFile(filepath.Join(localcluster.AssetsDir(), "kube-apiserver"))
	if err != nil {
		t.Fatal(err)
	}
	wanted := localcluster.KubernetesVersion()
	if named.GitVersion != wanted || built.Main.Path != "k8s.io/kubernetes" || built.Main.Version != wanted {
		t.Errorf("the server is named %s and built from %s %s, want %s", named.GitVersion, built.Main.Path, built.Main.Version, wanted)
	}
	staging := 0
	for _, module := range built.Deps {
		if module.Replace == nil {
			continue
		}
		staging++
		if want := "v0" + strings.TrimPrefix(wanted, "v1"); module.Replace.Version != want {
			t.Errorf("it has %s %s, want %s", module.Replace.Path, module.Replace.Version, want)
		}
	}
	if staging == 0 {
		t.Error("it has none of the modules that Kubernetes is made of")
	}
	t.Log("this is Kubernetes", wanted)
}
