//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
	"zuulbuild.dev/zuulbuild/test/e2e/auditlog"
)

const (
	operatorNamespace = "zuulbuild-system"
	chartNamespace    = "zuulbuild-builds"
)

// TestChart installs the chart with the image that is built here, under the restricted level of Pod Security and with no rights but the chart's:
// `helm test` sends a build through Gearman, another limit replaces no Pod, an upgrade while a build runs loses nothing, metrics are told to those who may get
// them, and a build may have its node cordoned.
func TestChart(t *testing.T) {
	begun := time.Now()
	tag := buildImage(t)
	helm := installer(t)
	reader := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: operatorNamespace, Name: "default"}}
	helm("install", "--wait", "--timeout=3m", "--set=crds.install=false", "--set=gearman.embedded.enabled=true", "--set=image.tag="+tag,
		"--set-json", `jobs={"slow":{"spec":{"image":"zuulbuild.test/busybox:1","script":"sleep 10"}}}`,
		"--set-json", `nodeClasses={"trusty":{"cordonWhenComplete":true}}`,
		"--set-json", fmt.Sprintf(`metrics.readers=[{"name":%q,"namespace":%q}]`, reader.Name, reader.Namespace))
	helm("test", "--logs", "--timeout=2m")

	replicas := podsOf(t, "operator")
	helm("upgrade", "--reuse-values", "--wait", "--timeout=3m", "--set=maxBuilds=50") // which replaces no Pod

	token, err := tokenOf(t.Context(), reader)
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]int{token: http.StatusOK, "": http.StatusUnauthorized} {
		if status, body := get(t, "https://"+podOf(t, "operator")+":9090/metrics", token); status != want || strings.Contains(body, "zuulbuild_") != (want == http.StatusOK) {
			t.Errorf("metrics are answered with %d, want %d:\n%.200s", status, want, body)
		}
	}

	eventually(t, "the leader to keep to another limit", func() bool {
		return slices.ContainsFunc(podsOf(t, "operator"), func(pod corev1.Pod) bool {
			_, body := get(t, "https://"+pod.Status.PodIP+":9090/metrics", token)
			return strings.Contains(body, "\nzuulbuild_slots_limit 50\n")
		})
	})
	for _, pod := range podsOf(t, "operator") {
		if !slices.ContainsFunc(replicas, func(before corev1.Pod) bool { return before.UID == pod.UID }) || len(replicas) != 2 {
			t.Errorf("replica %s came for another limit", pod.Name)
		}
	}

	zuul := dial(t, podOf(t, "gearman")+":4730", zuulclient.Zuul2)
	build := submit(t, zuul, zuulclient.Request{Job: "slow"})
	await(t, build, "run", running)
	helm("upgrade", "--reuse-values", "--wait", "--timeout=3m", "--set=gracePeriodSeconds=50")
	expectResult(t, wait(t, build), "SUCCESS")

	t.Cleanup(func() { kubectl(t, "uncordon", secondNode) })
	build = submit(t, zuul, zuulclient.Request{Job: "slow", Node: "trusty", Parameters: map[string]any{"OFFLINE_NODE_WHEN_COMPLETE": "1"}})
	expectResult(t, wait(t, build), "SUCCESS")
	if unschedulable := kubectl(t, "get", "node", secondNode, "-o", "jsonpath={.spec.unschedulable}"); unschedulable != "true" {
		t.Errorf("%s was not cordoned", secondNode)
	}
	eventually(t, "an event of the node tells of it", func() bool {
		return kubectl(t, "get", "events", "--namespace", metav1.NamespaceDefault, "--field-selector", "reason=NodeCordoned", "-o", "name") != ""
	})

	use, err := auditlog.ReadUse(cluster.AuditLog(), chartUser, begun)
	if err != nil {
		t.Fatal(err)
	}
	for _, refused := range use.Refused {
		t.Errorf("the chart gives the operator no right to %s", refused)
	}
}

// buildImage builds the image, puts it on the nodes and returns its tag.
func buildImage(t *testing.T) string {
	t.Helper()
	tag := fmt.Sprintf("e2e-%d", time.Now().UnixNano())
	archive := filepath.Join(t.TempDir(), "image.tar")
	command := exec.CommandContext(t.Context(), "go", "run", "./hack/image", "--platforms=linux/"+runtime.GOARCH, "--version="+tag, "--output="+archive)
	command.Dir = "../.."
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v\n%s", err, output)
	}
	if err := cluster.ImportImage(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	return tag
}

// installer returns what runs helm on the release of the test, and sees to it that nothing of it is left at the end.
func installer(t *testing.T) func(verb string, arguments ...string) {
	t.Helper()
	if err := localcluster.BuildTools(t.Context(), os.Stdout, "helm"); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	run := func(ctx context.Context, verb string, arguments ...string) error {
		named := []string{verb, "zuulbuild"}
		if verb == "install" || verb == "upgrade" {
			named = append(named, "../../charts/zuulbuild")
		}
		command := exec.CommandContext(ctx, localcluster.Tool("helm"), append(named, append(arguments, "--namespace="+operatorNamespace, "--kubeconfig="+cluster.Kubeconfig())...)...)
		command.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("helm %s: %w\n%s", verb, err, output)
		}
		return nil
	}
	eventually(t, "the namespace of an earlier release gone", func() bool {
		namespace := &corev1.Namespace{}
		err := kubernetes.Get(t.Context(), client.ObjectKey{Name: operatorNamespace}, namespace)
		return apierrors.IsNotFound(err) || err == nil && namespace.DeletionTimestamp == nil
	})
	own := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: operatorNamespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	if err := kubernetes.Create(t.Context(), own); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := run(ctx, "uninstall"); err != nil {
			t.Error(err)
		}
		expectNoLeases(ctx, t)
		if err := kubernetes.Delete(ctx, own); err != nil {
			t.Error(err)
		}
		// Jobs in a namespace that is about to go are jobs still, to the operator of the next test.
		for !apierrors.IsNotFound(kubernetes.Get(ctx, client.ObjectKey{Name: chartNamespace}, &corev1.Namespace{})) {
			if ctx.Err() != nil {
				t.Errorf("namespace %s outlives the release", chartNamespace)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	return func(verb string, arguments ...string) {
		t.Helper()
		if err := run(t.Context(), verb, arguments...); err != nil {
			t.Fatal(err)
		}
	}
}

// expectNoLeases waits until the garbage collector has deleted the Leases of the release's replicas, who lost their rights before they ended.
func expectNoLeases(ctx context.Context, t *testing.T) {
	t.Helper()
	leases := &coordinationv1.LeaseList{}
	for ; ; time.Sleep(100 * time.Millisecond) {
		err := kubernetes.List(ctx, leases, client.InNamespace(operatorNamespace))
		switch {
		case err != nil:
			t.Errorf("the Leases that outlive the release: %v", err)
		case len(leases.Items) > 0 && ctx.Err() == nil:
			continue
		}
		return
	}
}

// podsOf are the Pods of the release that have an address and are not about to end: of the embedded Gearman server, or the replicas of the operator.
func podsOf(t *testing.T, component string) []corev1.Pod {
	t.Helper()
	pods := &corev1.PodList{}
	if err := kubernetes.List(t.Context(), pods, client.InNamespace(operatorNamespace), client.MatchingLabels{componentLabel: component}); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil || pod.Status.PodIP == "" })
}

// podOf is the address of one of them, which this machine reaches as it does every Pod.
func podOf(t *testing.T, component string) string {
	t.Helper()
	pods := podsOf(t, component)
	if len(pods) == 0 {
		t.Fatalf("no Pod of the component %s runs", component)
	}
	return pods[0].Status.PodIP
}
