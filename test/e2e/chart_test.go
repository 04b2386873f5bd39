//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
)

const (
	operatorNamespace = "zuulbuild-system"
	chartNamespace    = "zuulbuild-builds"
)

// TestChart installs the chart with the image that is built here, under the restricted level of Pod Security and with no rights but the chart's:
// `helm test` sends a build through Gearman, and an upgrade while a build runs loses nothing.
func TestChart(t *testing.T) {
	tag := buildImage(t)
	helm := installer(t)
	helm("install", "--wait", "--timeout=3m", "--set=crds.install=false", "--set=gearman.embedded.enabled=true", "--set=image.tag="+tag, "--set-json",
		`jobs={"slow":{"spec":{"image":"zuulbuild.test/busybox:1","script":"sleep 10"}}}`)
	helm("test", "--logs", "--timeout=2m")

	build := submit(t, dial(t, gearmanPod(t)+":4730", zuulclient.Zuul2), zuulclient.Request{Job: "slow"})
	await(t, build, "run", running)
	helm("upgrade", "--reuse-values", "--wait", "--timeout=3m", "--set=maxBuilds=50")
	expectResult(t, wait(t, build), "SUCCESS")

	if refused := refusals(t); len(refused) > 0 {
		t.Errorf("the operator was refused what it asked for:\n%s", strings.Join(refused, "\n"))
	}
}

// buildImage builds the image, puts it on the nodes and returns its tag.
func buildImage(t *testing.T) string {
	t.Helper()
	tag := fmt.Sprintf("e2e-%d", time.Now().Unix())
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

// gearmanPod is the address of the embedded Gearman server, which this machine reaches as it does every Pod.
func gearmanPod(t *testing.T) string {
	t.Helper()
	pods := &corev1.PodList{}
	if err := kubernetes.List(t.Context(), pods, client.InNamespace(operatorNamespace), client.MatchingLabels{"app.kubernetes.io/component": "gearman"}); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 || pods.Items[0].Status.PodIP == "" {
		t.Fatalf("%d Gearman servers run, not one", len(pods.Items))
	}
	return pods.Items[0].Status.PodIP
}

// refusals are the requests of the chart's service account that the API server forbade.
func refusals(t *testing.T) []string {
	t.Helper()
	log, err := os.Open(cluster.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var refused []string
	for reader := bufio.NewReader(log); ; {
		line, err := reader.ReadBytes('\n')
		if err == io.EOF {
			return refused
		}
		if err != nil {
			t.Fatal(err)
		}
		event := struct {
			RequestURI, Verb string
			User             struct{ Username string }
			ResponseStatus   struct{ Code int }
		}{}
		if err := json.Unmarshal(line, &event); err != nil {
			t.Fatal(err)
		}
		if event.User.Username == "system:serviceaccount:"+operatorNamespace+":zuulbuild" && event.ResponseStatus.Code == 403 {
			refused = append(refused, event.Verb+" "+event.RequestURI)
		}
	}
}
