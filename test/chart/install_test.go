package chart

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

var definitionNames = []string{"zuulbuilds.zuulbuild.dev", "zuuljobs.zuulbuild.dev", "zuulnodeclasses.zuulbuild.dev"}

func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(config(t), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually asks until there is no error.
func eventually(t *testing.T, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// awaitServed waits until the API server serves the kinds of those of our definitions that it has, and is to keep, from its cache. A definition that is deleted earlier
// stays for minutes: the API server cannot list what there is of the kind, writes that down in the status, and a changed definition has it begin with
// the cache once more. It begins with it when the kind is asked for first.
func awaitServed(t *testing.T, c client.Client) {
	t.Helper()
	for _, name := range definitionNames {
		eventually(t, func() error {
			definition := &apiextensionsv1.CustomResourceDefinition{}
			if err := c.Get(t.Context(), client.ObjectKey{Name: name}, definition); err != nil || definition.DeletionTimestamp != nil {
				return client.IgnoreNotFound(err)
			}
			list := &unstructured.UnstructuredList{}
			list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(definition.Spec.Names.ListKind))
			if err := c.List(t.Context(), list); err != nil {
				return fmt.Errorf("%w: %s", err, describeDefinitions(t.Context(), c))
			}
			return nil
		})
	}
}

// withoutDefinitions takes our definitions out of the API server.
func withoutDefinitions(t *testing.T, c client.Client) {
	t.Helper()
	awaitServed(t, c)
	for _, name := range definitionNames {
		definition := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := c.Delete(t.Context(), definition); client.IgnoreNotFound(err) != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(definition), definition); err != nil {
				return client.IgnoreNotFound(err)
			}
			return fmt.Errorf("definition %s is still there: %s", name, describeDefinitions(t.Context(), c))
		})
	}
}

// hasten has the API server look again whether there is anything left of a kind whose definition is going. Where it could not list that at first, it waits
// longer each time, for minutes in the end.
func hasten(t *testing.T, c client.Client, definition *apiextensionsv1.CustomResourceDefinition) {
	t.Helper()
	const hastened, every = "example.org/hastened", 5 * time.Second
	if last, err := time.Parse(time.RFC3339, definition.Annotations[hastened]); err == nil && time.Since(last) < every {
		return
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(definition.Spec.Names.ListKind))
	_ = c.List(t.Context(), list) // so that the kind is served
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, hastened, time.Now().Format(time.RFC3339))
	if err := c.Patch(t.Context(), definition, client.RawPatch(types.MergePatchType, patch)); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
}

// withDefinitions has our definitions in the API server. Those that an earlier test had deleted may still be going, and would take the new ones with them.
func withDefinitions(t *testing.T) {
	t.Helper()
	c, access := newClient(t), kubeconfig(t)
	for _, name := range definitionNames {
		eventually(t, func() error {
			definition := &apiextensionsv1.CustomResourceDefinition{}
			if err := c.Get(t.Context(), client.ObjectKey{Name: name}, definition); err != nil || definition.DeletionTimestamp == nil {
				return client.IgnoreNotFound(err)
			}
			if time.Since(definition.DeletionTimestamp.Time) > 10*time.Second {
				hasten(t, c, definition)
			}
			return fmt.Errorf("definition %s is still going: %s", name, describeDefinitions(t.Context(), c))
		})
	}
	if _, err := kubectl(t, nil, "--kubeconfig", access, "apply", "--kustomize", root+"/config/crd"); err != nil {
		t.Fatal(err)
	}
	awaitServed(t, c)
}

func makeNamespace(t *testing.T, c client.Client, name string, labels map[string]string) {
	t.Helper()
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if err := c.Create(t.Context(), object); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
}

// Every object that the chart makes of any of the values, and every one of config/default, is what the API server takes: server-side apply
// refuses fields it does not know.
func TestObjectsAreAccepted(t *testing.T) {
	c := newClient(t)
	withDefinitions(t)
	sets := map[string][]*unstructured.Unstructured{"config/default": kustomized(t), "config/default with components": kustomized(t, components...)}
	for name := range valuesFiles {
		sets[name] = render(t, name)
	}
	for name, all := range sets {
		t.Run(name, func(t *testing.T) {
			for _, object := range all {
				if object.GetNamespace() != "" {
					makeNamespace(t, c, object.GetNamespace(), nil)
				}
				err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(object), client.DryRunAll, client.ForceOwnership, client.FieldOwner("test"))
				if err != nil {
					t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
				}
			}
		})
	}
}

// Pods of the chart may run where Pod Security is restricted.
func TestPodsAreRestricted(t *testing.T) {
	c := newClient(t)
	makeNamespace(t, c, "restricted", map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
	count := 0
	for _, object := range slices.Concat(render(t, "everything"), kustomized(t)) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod"}}
		switch object.GetKind() {
		case "Deployment":
			deployment := appsv1.Deployment{}
			into(t, object.Object, &deployment)
			pod.Spec = deployment.Spec.Template.Spec
		case "Pod":
			into(t, object.Object["spec"], &pod.Spec)
		default:
			continue
		}
		count++
		pod.Namespace, pod.Spec.ServiceAccountName, pod.Spec.RuntimeClassName = "restricted", "", nil
		for _, container := range pod.Spec.Containers {
			if !*container.SecurityContext.ReadOnlyRootFilesystem {
				t.Errorf("container %s may write to its image", container.Name)
			}
		}
		// The account is made by a controller, and there is none here: that alone may be missing.
		if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil && !strings.Contains(err.Error(), "serviceaccount") {
			t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
		}
	}
	if count != 4 {
		t.Errorf("%d Pods were looked at, not 4", count)
	}
}

// `helm template | kubectl apply` and `kubectl apply --kustomize`, with all components, work in one go on a cluster that knows nothing of zuulbuild.
func TestApply(t *testing.T) {
	c := newClient(t)
	access := kubeconfig(t)
	text, err := template(t, "--no-hooks")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		apply []string
		input string
		made  []*unstructured.Unstructured
	}{
		"helm template": {[]string{"--filename", "-"}, text, objects(t, text)},
		"kustomize":     {[]string{"--kustomize", kustomization(t, components...)}, "", kustomized(t, components...)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			withoutDefinitions(t, c)
			makeNamespace(t, c, namespace, nil) // which the chart leaves to its caller
			if output, err := kubectl(t, []byte(test.input), append([]string{"--kubeconfig", access, "apply"}, test.apply...)...); err != nil {
				t.Fatal(output, err)
			}
			awaitServed(t, c)
			for _, object := range test.made {
				if object.GetKind() == "Namespace" { // which nobody here would empty
					continue
				}
				if err := c.Delete(t.Context(), object); err != nil {
					t.Errorf("after apply: %v", err)
				}
			}
		})
	}
}

// The definitions in the chart are those of config/crd, and marked to be kept.
func TestDefinitions(t *testing.T) {
	t.Parallel()
	all := render(t, "default")
	for _, name := range definitionNames {
		content, err := os.ReadFile(root + "/config/crd/zuulbuild.dev_" + strings.TrimSuffix(name, ".zuulbuild.dev") + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		var want apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(content, &want); err != nil {
			t.Fatal(err)
		}
		var got apiextensionsv1.CustomResourceDefinition
		into(t, find(t, all, "CustomResourceDefinition", name).Object, &got)
		if diff := cmp.Diff(want.Spec, got.Spec); diff != "" {
			t.Errorf("%s differs (-config/crd +chart):\n%s", name, diff)
		}
		if got.Annotations["helm.sh/resource-policy"] != "keep" {
			t.Errorf("%s would go with the chart", name)
		}
	}
}

// A release with jobs and node classes is installed on a cluster that does not know their kinds yet, upgraded, and uninstalled.
func TestRelease(t *testing.T) {
	c := newClient(t)
	access := kubeconfig(t)
	values := func(script string, more ...string) []string {
		return append([]string{"--kubeconfig", access, "--namespace", namespace, "--set-json", `buildNamespaces=[{"name":"team"}]`, "--set-json",
			fmt.Sprintf(`jobs={"unit-tests":{"spec":{"image":"i","script":%q}}}`, script)}, more...)
	}
	makeNamespace(t, c, "team", nil)
	helmRun := func(arguments ...string) {
		t.Helper()
		if output, err := helm(t, arguments...); err != nil {
			t.Fatal(output, err)
		}
	}
	// The jobs are made by hooks when all else is. Without --wait, which nothing here would end, that may be before the API server serves their kind.
	install := func(values []string) {
		t.Helper()
		eventually(t, func() error {
			withoutDefinitions(t, c)
			output, err := helm(t, append([]string{"install", "zuulbuild", chartPath, "--create-namespace"}, values...)...)
			switch {
			case err == nil:
				return nil
			case !strings.Contains(err.Error(), "no matches for kind"):
				t.Fatal(output, err)
			}
			awaitServed(t, c)
			helmRun("uninstall", "zuulbuild", "--kubeconfig", access, "--namespace", namespace)
			return fmt.Errorf("%w: %s", err, output)
		})
	}
	job := &v1alpha1.ZuulJob{}
	key := client.ObjectKey{Namespace: "team", Name: "unit-tests"}
	uid := func(want string) string {
		t.Helper()
		if err := c.Get(t.Context(), key, job); err != nil {
			t.Fatal(err)
		}
		if job.Spec.Script != want {
			t.Errorf("the job's script is %q rather than %q", job.Spec.Script, want)
		}
		return string(job.UID)
	}

	install(values("first", "--set-json", `nodeClasses={"large":{"maxBuilds":3}}`))
	first := uid("first")
	helmRun(append([]string{"upgrade", "zuulbuild", chartPath}, values("second", "--set-json", `nodeClasses={"large":{"maxBuilds":4}}`)...)...)
	if second := uid("second"); second != first {
		t.Error("the upgrade made the job anew: its functions were gone meanwhile")
	}
	helmRun(append([]string{"upgrade", "zuulbuild", chartPath}, values("third")...)...)
	class := &v1alpha1.ZuulNodeClass{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "large"}, class); !apierrors.IsNotFound(err) {
		t.Errorf("a node class that was taken out of the values is still there: %v", err)
	}
	if uid("third") != first {
		t.Error("the second upgrade made the job anew")
	}
	helmRun("rollback", "zuulbuild", "2", "--kubeconfig", access, "--namespace", namespace)
	if uid("second") != first {
		t.Error("the rollback made the job anew")
	}
	helmRun("rollback", "zuulbuild", "1", "--kubeconfig", access, "--namespace", namespace)
	uid("first") // made anew: Helm does not know it as part of the first revision
	helmRun(append([]string{"upgrade", "zuulbuild", chartPath}, values("fourth")...)...)
	uid("fourth")

	helmRun("uninstall", "zuulbuild", "--kubeconfig", access, "--namespace", namespace)
	if err := c.Get(t.Context(), key, job); !apierrors.IsNotFound(err) {
		t.Errorf("the job outlives the release: %v", err)
	}
	if diff := cmp.Diff([]string{"CustomResourceDefinition", "CustomResourceDefinition", "CustomResourceDefinition"}, remains(t.Context(), t, c)); diff != "" {
		t.Errorf("what an uninstall leaves (-wanted +there):\n%s", diff)
	}

	install(values("first", "--set-json", `nodeClasses={"large":{"maxBuilds":3}}`))
	helmRun("uninstall", "zuulbuild", "--kubeconfig", access, "--namespace", namespace)
	for key, object := range map[client.ObjectKey]client.Object{key: job, {Name: "large"}: class} {
		if err := c.Get(t.Context(), key, object); !apierrors.IsNotFound(err) {
			t.Errorf("%T %s outlives a release that was never upgraded: %v", object, key.Name, err)
		}
	}

	install(values("first", "--set", "crds.keep=false"))
	awaitServed(t, c)
	helmRun("uninstall", "zuulbuild", "--kubeconfig", access, "--namespace", namespace)
	eventually(t, func() error {
		if left := remains(t.Context(), t, c); len(left) > 0 {
			return fmt.Errorf("an uninstall without crds.keep leaves %s; the definitions: %s", left, describeDefinitions(t.Context(), c))
		}
		return nil
	})
}

// An upgrade that would take a namespace with its builds, or the definitions with all objects, says so and does nothing.
func TestUpgradeTakesNoBuilds(t *testing.T) {
	c := newClient(t)
	access := []string{"--kubeconfig", kubeconfig(t), "--namespace", namespace}
	run := func(arguments ...string) error {
		t.Helper()
		_, err := helm(t, append(arguments, access...)...)
		return err
	}
	defer func() {
		if err := run("uninstall", "zuulbuild"); err != nil {
			t.Error(err)
		}
		awaitServed(t, c)
	}()
	const made = `buildNamespaces=[{"name":"made","create":true},{"name":"made-too","create":true}]` // which nobody here ever takes away
	withoutDefinitions(t, c)
	if err := run("install", "zuulbuild", chartPath, "--create-namespace", "--set=crds.keep=false", "--set-json", made); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ arguments, want []string }{
		"without the entry":    {[]string{"--set-json", `buildNamespaces=[{"name":"made-too","create":true}]`}, []string{"namespace made,", "every build"}},
		"as one that is there": {[]string{"--set-json", `buildNamespaces=[{"name":"made"},{"name":"made-too","create":true}]`}, []string{"namespace made,", "create: true"}},
		"with others alone":    {[]string{"--set-json", `buildNamespaces=[{"name":"other","create":true}]`}, []string{"namespace made", "every build"}},
		"without definitions":  {[]string{"--set-json", made, "--set=crds.install=false"}, []string{"crds.install", "crds.keep=true first"}},
	} {
		err := run(append([]string{"upgrade", "zuulbuild", chartPath, "--set=crds.keep=false"}, test.arguments...)...)
		if err == nil {
			t.Fatalf("%s: the upgrade went through", name)
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, without %q", name, err, want)
			}
		}
	}
	without := []string{"upgrade", "zuulbuild", chartPath, "--set=crds.keep=false", "--set-json", `buildNamespaces=[{"name":"made-too","create":true}]`}
	advice := regexp.MustCompile("`kubectl (.*?)`").FindAllStringSubmatch(fmt.Sprint(run(without...)), -1)
	if len(advice) != 2 {
		t.Fatalf("an upgrade that is refused advises %q", advice)
	}
	for _, command := range advice {
		if output, err := kubectl(t, nil, append(strings.Fields(command[1]), access[:2]...)...); err != nil {
			t.Fatal(output, err)
		}
	}
	if err := run(without...); err != nil {
		t.Error("with the namespace kept:", err)
	}
	stays(t, c, "made")

	// A rollback, which refuses nothing, leaves a namespace alone that is to be kept.
	later := []string{"--set=crds.keep=false", "--set-json", `buildNamespaces=[{"name":"made-too","create":true},{"name":"later","create":true,"keep":true}]`}
	if err := run(append([]string{"upgrade", "zuulbuild", chartPath}, later...)...); err != nil {
		t.Fatal(err)
	}
	if err := run("rollback", "zuulbuild"); err != nil {
		t.Fatal(err)
	}
	stays(t, c, "later")
}

// stays fails the test if a namespace of builds is gone, or what bounds and closes it. Then it takes them away, for other tests look for what a release leaves.
func stays(t *testing.T, c client.Client, name string) {
	t.Helper()
	for _, kept := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "builds"}},
		&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "builds"}},
	} {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(kept), kept); err != nil || kept.GetDeletionTimestamp() != nil {
			t.Errorf("%T %s of the namespace %s is gone: %v", kept, kept.GetName(), name, err)
		} else if err := c.Delete(t.Context(), kept); err != nil {
			t.Error(err)
		}
	}
}

// describeDefinitions tells how far the API server is with taking our definitions away.
func describeDefinitions(ctx context.Context, c client.Client) string {
	var all strings.Builder
	for _, name := range definitionNames {
		definition := &apiextensionsv1.CustomResourceDefinition{}
		if err := c.Get(ctx, client.ObjectKey{Name: name}, definition); err != nil {
			fmt.Fprintln(&all, err)
			continue
		}
		fmt.Fprintf(&all, "%s: deleted %v, finalizers %v, conditions %+v\n", name, definition.DeletionTimestamp, definition.Finalizers, definition.Status.Conditions)
	}
	return all.String()
}

// remains are the kinds of what Helm made for the release and is still there.
func remains(ctx context.Context, t *testing.T, c client.Client) []string {
	t.Helper()
	var kinds []string
	for _, kind := range []string{"apiextensions.k8s.io/v1/CustomResourceDefinition", "rbac.authorization.k8s.io/v1/ClusterRole",
		"rbac.authorization.k8s.io/v1/ClusterRoleBinding", "rbac.authorization.k8s.io/v1/Role", "rbac.authorization.k8s.io/v1/RoleBinding",
		"apps/v1/Deployment", "v1/Service", "v1/ServiceAccount", "v1/ConfigMap", "v1/Secret", "networking.k8s.io/v1/NetworkPolicy",
		"policy/v1/PodDisruptionBudget"} {
		list := &unstructured.UnstructuredList{}
		at := strings.LastIndex(kind, "/")
		list.SetAPIVersion(kind[:at])
		list.SetKind(kind[at+1:] + "List")
		if err := c.List(ctx, list, client.MatchingLabels{"app.kubernetes.io/instance": "zuulbuild"}); err != nil {
			t.Fatal(err)
		}
		for range list.Items {
			kinds = append(kinds, kind[at+1:])
		}
	}
	return kinds
}
