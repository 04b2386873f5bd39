package chart

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
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
	"k8s.io/client-go/util/cert"
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

func withDefinitions(t *testing.T) {
	t.Helper()
	access := kubeconfig(t)
	if _, err := kubectl(t, nil, "--kubeconfig", access, "apply", "--kustomize", root+"/config/crd"); err != nil {
		t.Fatal(err)
	}
	for _, name := range definitionNames {
		if _, err := kubectl(t, nil, "--kubeconfig", access, "wait", "--for=condition=Established", "--timeout=60s", "crd/"+name); err != nil {
			t.Fatal(err)
		}
	}
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
	kept := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "made"}}
	if err := c.Patch(t.Context(), kept, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"helm.sh/resource-policy":"keep"}}}`))); err != nil {
		t.Fatal(err)
	}
	if err := run("upgrade", "zuulbuild", chartPath, "--set=crds.keep=false", "--set-json", `buildNamespaces=[{"name":"made-too","create":true}]`); err != nil {
		t.Error("with the namespace kept:", err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(kept), kept); err != nil || kept.DeletionTimestamp != nil {
		t.Errorf("the namespace that was kept is gone: %v", err)
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

// components are what config/default/kustomization.yaml may be told to have beside the operator.
var components = []string{"build-namespace", "confined", "monitoring"}

// kustomization is a copy of config/default in which components are switched on, as its comment says. It returns the folder.
func kustomization(t *testing.T, chosen ...string) string {
	t.Helper()
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(root+"/config")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(folder, "default/kustomization.yaml")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	for _, component := range chosen {
		for _, line := range []string{"components:", "- ../components/" + component} {
			if !strings.Contains(text, "\n"+line+"\n") && !strings.Contains(text, "\n#"+line+"\n") {
				t.Fatalf("config/default/kustomization.yaml has no line #%s", line)
			}
			text = strings.Replace(text, "\n#"+line+"\n", "\n"+line+"\n", 1)
		}
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(file)
}

// kustomized are the objects of config/default with components.
func kustomized(t *testing.T, chosen ...string) []*unstructured.Unstructured {
	t.Helper()
	text, err := kubectl(t, nil, "kustomize", kustomization(t, chosen...))
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, text)
}

// config/default makes the same objects and gives the same rights as the chart, for the whole cluster or, with all components, for one namespace.
func TestKustomizeAgreesWithChart(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		components []string
		values     []string
	}{
		"whole cluster":                         {nil, []string{"scope=cluster", "buildNamespaces[0].name=zuulbuild-builds"}},
		"whole cluster and a build namespace":   {[]string{"build-namespace"}, []string{"scope=cluster"}},
		"one namespace that exists":             {[]string{"confined"}, []string{"buildNamespaces[0].name=zuulbuild-builds"}},
		"one namespace that is made, monitored": {components, []string{"metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true", "metrics.dashboard.enabled=true"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			arguments := []string{"--no-hooks", "--set", "gearman.servers[0].address=gearman.example.org"}
			for _, value := range test.values {
				arguments = append(arguments, "--set", value)
			}
			mine, theirs := kustomized(t, test.components...), render(t, "default", arguments...)
			if diff := cmp.Diff(rights(t, theirs), rights(t, mine)); diff != "" {
				t.Errorf("rights differ (-chart +config/default):\n%s", diff)
			}
			if diff := cmp.Diff(ownPod(t, theirs), ownPod(t, mine)); diff != "" {
				t.Errorf("Pods differ (-chart +config/default):\n%s", diff)
			}
			if diff := cmp.Diff(contents(t, theirs), contents(t, mine)); diff != "" {
				t.Errorf("objects differ (-chart +config/default):\n%s", diff)
			}
			if diff := cmp.Diff(optionsOf(t, theirs), optionsOf(t, mine)); diff != "" {
				t.Errorf("options differ (-chart +config/default):\n%s", diff)
			}
		})
	}
}

// ownPod is the Pod of the operator, but for what is the way of the chart or of config/default.
func ownPod(t *testing.T, all []*unstructured.Unstructured) corev1.PodSpec {
	t.Helper()
	deployment := appsv1.Deployment{}
	into(t, find(t, all, "Deployment", "zuulbuild").Object, &deployment)
	spec := deployment.Spec.Template.Spec
	// Selectors and the names of generated objects are each one's own, and what is a default needs no flag.
	spec.TopologySpreadConstraints[0].LabelSelector = nil
	spec.Volumes[0].ConfigMap.Name = ""
	spec.Containers[0].Args = nil // of which optionsOf tells
	return spec
}

// contents are what there is of the other objects beside their metadata, and of that the labels with a meaning to others, by kind and name.
func contents(t *testing.T, all []*unstructured.Unstructured) map[string]any {
	t.Helper()
	out := map[string]any{}
	for _, object := range all {
		name := object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
		switch {
		case slices.Contains([]string{"CustomResourceDefinition", "Deployment", "Role", "RoleBinding", "ClusterRoleBinding"}, object.GetKind()):
			continue // compared by other means
		case slices.Contains([]string{"ClusterRole /zuulbuild", "ClusterRole /zuulbuild-operator", "Namespace /" + namespace}, name) || strings.HasSuffix(name, "-config") || strings.Contains(name, "-config-"):
			continue // the operator's rights; and each way's own
		}
		labels := object.GetLabels()
		maps.DeleteFunc(labels, func(label, _ string) bool {
			return strings.HasPrefix(label, "helm.sh/") || strings.HasPrefix(label, "app.kubernetes.io/") && label != "app.kubernetes.io/component"
		})
		content := map[string]any{}
		into(t, object.Object, &content) // a copy with numbers of one type
		content["metadata"] = labels
		withoutInstance(content)
		if data, ok := content["data"].(map[string]any); ok {
			for key, value := range data {
				data[key] = strings.TrimSpace(value.(string))
			}
		}
		out[name] = content
	}
	return out
}

// withoutInstance takes the label that only Helm gives out of selectors.
func withoutInstance(value any) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, "app.kubernetes.io/instance")
		for _, child := range value {
			withoutInstance(child)
		}
	case []any:
		for _, child := range value {
			withoutInstance(child)
		}
	}
}

// optionsOf the operator are those of its file and its flags, but for those that have their defaults, and for the Gearman servers.
func optionsOf(t *testing.T, all []*unstructured.Unstructured) map[string]any {
	t.Helper()
	options := configurationOf(t, all)
	deployment := appsv1.Deployment{}
	into(t, find(t, all, "Deployment", "zuulbuild").Object, &deployment)
	for _, argument := range deployment.Spec.Template.Spec.Containers[0].Args {
		if namespace, ok := strings.CutPrefix(argument, "--namespace="); ok {
			options["namespace"] = []any{namespace}
		}
	}
	maps.DeleteFunc(options, func(option string, value any) bool {
		return option == "servers" || defaultsOfOptions[option] != nil && defaultsOfOptions[option] == value
	})
	return options
}

// defaultsOfOptions are those of the operator that the chart says all the same.
var defaultsOfOptions = map[string]any{
	"manager": "zuulbuild", "max-builds": 100.0, "grace-period": "60s", "pages-address": ":8080", "health-address": ":8081", "log-level": "info",
}

// configurationText is the file of options that the operator of these objects is given.
func configurationText(t *testing.T, all []*unstructured.Unstructured) string {
	t.Helper()
	for _, object := range all {
		if text, _, _ := unstructured.NestedString(object.Object, "data", "zuulbuild.yaml"); text != "" {
			return text
		}
	}
	t.Fatal("there is no zuulbuild.yaml")
	return ""
}

func configurationOf(t *testing.T, all []*unstructured.Unstructured) map[string]any {
	t.Helper()
	options := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(configurationText(t, all)), &options); err != nil {
		t.Fatal(err)
	}
	return options
}

// The program takes the arguments and the file of options that the chart and config/default give it: it gets as far as looking for a cluster.
func TestProgramTakesItsArguments(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the program")
	}
	program := filepath.Join(t.TempDir(), "zuulbuild")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", program, "zuulbuild.dev/zuulbuild") // as make build does, which may have compiled it
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	sets := map[string][]*unstructured.Unstructured{"config/default": kustomized(t), "config/default with components": kustomized(t, components...)}
	for name := range valuesFiles {
		sets[name] = render(t, name)
	}
	for name, all := range sets {
		t.Run(name, func(t *testing.T) {
			folder, arguments := t.TempDir(), []string(nil)
			for _, object := range all {
				if object.GetKind() == "Deployment" && !strings.HasSuffix(object.GetName(), "-gearman") {
					deployment := appsv1.Deployment{}
					into(t, object.Object, &deployment)
					arguments = deployment.Spec.Template.Spec.Containers[0].Args
				}
			}
			certificate, key, err := cert.GenerateSelfSignedCertKey("zuulbuild-metrics", nil, nil)
			if err == nil {
				options := strings.ReplaceAll(configurationText(t, all), "/etc/zuulbuild", folder)
				err = errors.Join(os.Mkdir(filepath.Join(folder, "metrics"), 0o700), os.Mkdir(filepath.Join(folder, "config"), 0o700),
					os.WriteFile(filepath.Join(folder, "config/zuulbuild.yaml"), []byte(options), 0o600),
					os.WriteFile(filepath.Join(folder, "metrics/tls.crt"), certificate, 0o600), os.WriteFile(filepath.Join(folder, "metrics/tls.key"), key, 0o600))
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range arguments {
				arguments[i] = strings.ReplaceAll(arguments[i], "/etc/zuulbuild", folder)
			}
			if _, err := command(t, nil, program, arguments...); err == nil || !strings.Contains(err.Error(), "no cluster to work on") {
				t.Errorf("with %s: %v", strings.Join(arguments, " "), err)
			}
		})
	}
}

// Names of objects, and what else is made of several values.
func TestRenderedDetails(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		values []string
		want   []string // in the options, the image or the seconds of the operator
	}{
		"defaults":      {nil, []string{"zuulbuild.dev/zuulbuild:0.1.0", "pages-url: http://zuulbuild.zuulbuild-system.svc", "- zuulbuild-builds", "3660"}},
		"an address":    {[]string{"pages.url=https://a.example.org/ci", "pages.ingress.enabled=true", "pages.ingress.host=b"}, []string{"pages-url: https://a.example.org/ci"}},
		"plain ingress": {[]string{"pages.ingress.enabled=true", "pages.ingress.host=b"}, []string{"pages-url: http://b"}},
		"traces":        {[]string{"tracing.endpoint=http://collector:4318"}, []string{"trace-endpoint: http://collector:4318"}},
		"a short drain": {[]string{"drainTimeoutSeconds=5", "image.tag=x"}, []string{"drain-timeout: 5s", "65", ":x"}},
		"many builds":   {[]string{"maxBuilds=2000000"}, []string{"max-builds: 2000000"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			arguments := []string{}
			for _, value := range test.values {
				arguments = append(arguments, "--set", value)
			}
			all := render(t, "default", arguments...)
			deployment := appsv1.Deployment{}
			into(t, find(t, all, "Deployment", "zuulbuild").Object, &deployment)
			pod := deployment.Spec.Template.Spec
			told := fmt.Sprintf("%s%s\n%d\n", configurationText(t, all), pod.Containers[0].Image, *pod.TerminationGracePeriodSeconds)
			for _, want := range test.want {
				if !strings.Contains(told, want+"\n") {
					t.Errorf("no %q in\n%s", want, told)
				}
			}
		})
	}
}

// Pods are replaced for what they read at their start, and not for what they follow while they run.
func TestWhatReplacesPods(t *testing.T) {
	t.Parallel()
	pod := func(arguments ...string) corev1.PodTemplateSpec {
		deployment := appsv1.Deployment{}
		into(t, find(t, render(t, "default", arguments...), "Deployment", "zuulbuild").Object, &deployment)
		return deployment.Spec.Template
	}
	before := pod()
	for setting, replaces := range map[string]bool{
		"maxBuilds=300": false, "logLevel=debug": false, "buildNamespaces[0].keep=true": false,
		"manager=other": true, "gracePeriodSeconds=61": true, "gearman.servers[0].address=gearman.example.org": true, "pages.url=https://a.example.org": true,
	} {
		arguments := []string{"--set", setting}
		if strings.HasPrefix(setting, "buildNamespaces") {
			arguments = append(arguments, "--set", "buildNamespaces[0].name=zuulbuild-builds,buildNamespaces[0].create=true")
		}
		if after := pod(arguments...); cmp.Equal(before, after) == replaces {
			t.Errorf("%s replaces Pods: %v", setting, !replaces)
		}
	}
}

// The operator may speak to the collector of traces, at its port, and to none where there is none.
func TestCollectorIsReachable(t *testing.T) {
	t.Parallel()
	tests := map[string]int32{
		"": 0, "http://collector": 80, "https://collector/otlp": 443, "http://collector:4318": 4318, "http://[2001:db8::1]:4319/": 4319, "https://[2001:db8::1]": 443,
	}
	ports := func(endpoint string) []int32 {
		policy := networkingv1.NetworkPolicy{}
		into(t, find(t, render(t, "default", "--set", "tracing.endpoint="+endpoint), "NetworkPolicy", "zuulbuild").Object, &policy)
		var out []int32
		for _, rule := range policy.Spec.Egress {
			for _, port := range rule.Ports {
				out = append(out, port.Port.IntVal)
			}
		}
		return out
	}
	without := ports("")
	for endpoint, port := range tests {
		want := without
		if port != 0 {
			want = append(slices.Clone(without), port)
		}
		if diff := cmp.Diff(want, ports(endpoint)); diff != "" {
			t.Errorf("%q: ports of egress (-want +got):\n%s", endpoint, diff)
		}
	}
}
