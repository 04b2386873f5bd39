//go:build linux

// Package e2e runs zuulbuild as its users do: the real program, a real cluster with real containers, the real gearmand. `make e2e` runs it. TestScale
// and TestHelmUpgrade, of many builds on simulated nodes, are for `make scale` and `make helm-upgrade`.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/hack/localcluster"
	"zuulbuild.dev/zuulbuild/hack/parallel"
	"zuulbuild.dev/zuulbuild/hack/programs"
)

const (
	namespace = "builds"
	// programVariable names a program to test instead of this tree's: another release, or one without the race detector, to measure.
	programVariable = "ZUULBUILD_PROGRAM"
)

// What all tests share: the cluster, a client of it with all rights, the program under test, and the kubeconfig that this has (see operatorUser).
var (
	cluster            *localcluster.Cluster
	kubernetes         client.Client
	program            string
	operatorKubeconfig string
)

// sideBySide is how many tests run at once: containers that start need a core, and then they mostly wait.
const sideBySide = 12

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	parallel.Tests(sideBySide)
	if os.Getenv("ZUULBUILD_E2E") == "" {
		fmt.Println("end-to-end tests are left out: set ZUULBUILD_E2E=1 or run make e2e")
		return
	}
	code, err := runWithCluster(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// runWithCluster starts a cluster of the tests' own, or uses the one ZUULBUILD_E2E_CLUSTER names, which has been started with an audit log, and for
// TestScale and TestHelmUpgrade with simulated nodes.
func runWithCluster(m *testing.M) (code int, err error) {
	ctx, begun := context.Background(), time.Now()
	folder, err := os.MkdirTemp("", "zuulbuild-e2e-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	if program = os.Getenv(programVariable); program == "" {
		program = filepath.Join(folder, "zuulbuild")
		if output, err := exec.Command("go", "build", "-race", "-buildvcs=false", "-o", program, "zuulbuild.dev/zuulbuild").CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build the program: %w\n%s", err, output)
		}
	}
	if name := os.Getenv("ZUULBUILD_E2E_CLUSTER"); name != "" {
		cluster, err = localcluster.Open(name)
	} else {
		options := localcluster.Options{
			Name: clusterPrefix + strconv.Itoa(os.Getpid()), Audit: true, ExtraArgs: apiServerArguments, KwokNodes: simulatedNodes(), Log: os.Stdout,
		}
		clearAway(ctx)
		cluster, err = localcluster.Up(ctx, options)
		if err == nil {
			defer func() {
				err = errors.Join(err, cluster.Down(ctx))
			}()
		}
	}
	if err != nil {
		return 0, err
	}
	operatorKubeconfig = filepath.Join(folder, "operator.kubeconfig")
	if err := prepare(ctx); err != nil {
		return 0, err
	}
	if err := prepareOperatorUser(ctx, operatorKubeconfig); err != nil {
		return 0, err
	}
	code = m.Run()
	return code, checkRights(begun, code == 0 && !filtered())
}

// clusterPrefix and the id of the process that runs the tests make the name of their cluster.
const clusterPrefix = "e2e-"

// clearAway takes down what is left of runs that were killed, whose clusters would take this one's processors.
func clearAway(ctx context.Context) {
	names, err := localcluster.List()
	for _, name := range names {
		pid, notOurs := strconv.Atoi(strings.TrimPrefix(name, clusterPrefix))
		if notOurs != nil || !strings.HasPrefix(name, clusterPrefix) || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		fmt.Println("taking down", name, "of an earlier run")
		err = errors.Join(err, localcluster.Down(ctx, name))
	}
	if err != nil {
		fmt.Println("what an earlier run left could not all be taken down:", err)
	}
}

// simulatedNodes is how many of them the tests need that are asked for. Each takes 110 Pods.
func simulatedNodes() (nodes int) {
	if os.Getenv(scaleVariable) != "" {
		nodes = 2
	}
	if lasting, err := strconv.Atoi(os.Getenv(helmUpgradeVariable)); err == nil {
		nodes = max(nodes, (lasting+besideLasting)/100+1)
	}
	return nodes
}

// prepare puts our definitions, the rights of the operator, the namespace and the jobs into the cluster.
func prepare(ctx context.Context) error {
	run := func(arguments ...string) error {
		command := exec.CommandContext(ctx, cluster.Kubectl(), append([]string{"--kubeconfig", cluster.Kubeconfig()}, arguments...)...)
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl %v: %w\n%s", arguments, err, output)
		}
		return nil
	}
	for _, folder := range []string{"../../config/crd", "./rights"} {
		if err := run("apply", "-k", folder); err != nil {
			return err
		}
	}
	// kubectl wait fails at once on a definition so new that it has no conditions, and kubectl get on one that is not told of yet.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		err := run("wait", "--for=condition=Established", "--timeout=60s",
			"crd/zuulbuilds.zuulbuild.dev", "crd/zuuljobs.zuulbuild.dev", "crd/zuulnodeclasses.zuulbuild.dev")
		if err == nil {
			err = run("get", "zuulbuilds,zuuljobs,zuulnodeclasses", "--all-namespaces")
		}
		if err == nil {
			break
		} else if time.Now().After(deadline) {
			return err
		}
	}
	config, err := cluster.RESTConfig()
	if err != nil {
		return err
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	if kubernetes, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	objects := []client.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}}
	for name, script := range map[string]string{
		"pass":        `sleep "${SLEEP:-0}"`,
		"fail":        `exit 3`,
		"environment": `env -0 | base64 | tr -d '\n'`,
		"long":        deaf,
		"brief":       `true`,
		"parameters":  `[ -z "${LONG+set}" ] && sha256sum <"$LONG_FILE" && printf %s "$P0$P1$P2$P3$P4" | sha256sum`,
	} {
		job := &v1alpha1.ZuulJob{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: v1alpha1.ZuulJobSpec{Image: "zuulbuild.test/busybox:1", Script: script,
				Timeouts: &v1alpha1.Timeouts{Abort: &metav1.Duration{Duration: 2 * time.Second}}},
		}
		if name == "long" { // whose Pod is to be there a while after stop:
			job.Spec.Timeouts.Abort.Duration = 10 * time.Second
		}
		if name == "brief" {
			job.Spec.Retention = &v1alpha1.Retention{Pod: &metav1.Duration{}, Build: &metav1.Duration{Duration: 2 * time.Second}}
		}
		objects = append(objects, job)
	}
	for _, object := range objects {
		if err := kubernetes.Create(ctx, object); client.IgnoreAlreadyExists(err) != nil {
			return err
		}
	}
	return nil
}

// startOperator starts the program under test on a Gearman server.
func startOperator(t *testing.T, gearman string, flags ...string) *programs.Program {
	t.Helper()
	operator, err := programs.StartBound(filepath.Join(t.TempDir(), "operator.log"), program, operatorArguments(gearman, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A second signal ends the drain.
		_ = operator.Signal(os.Interrupt)
		operator.Stop(20 * time.Second)
		if t.Failed() {
			log, _ := os.ReadFile(operator.LogFile)
			t.Logf("log of the operator:\n%s", log)
		}
	})
	return operator
}

// pagesOf is the address at which an operator serves its pages. It chose the port, and its log tells.
func pagesOf(t *testing.T, operator *programs.Program) string {
	t.Helper()
	line, err := operator.AwaitLine("serving build pages", enough)
	if err != nil {
		t.Fatal(err)
	}
	var said struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal([]byte(line), &said); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return said.Address
}

func operatorArguments(gearman string, flags ...string) []string {
	return append([]string{"operator", "--kubeconfig", operatorKubeconfig, "--gearman-server", gearman, "--pages-address", "127.0.0.1:0",
		"--health-address", "0", "--leader-elect=false", "--grace-period", "5s"}, flags...)
}
