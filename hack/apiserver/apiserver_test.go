package apiserver_test

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/apiserver"
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
