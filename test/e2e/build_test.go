//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/test/e2e/auditlog"
)

const enough = 90 * time.Second

// TestGearmanTool sends a build with Debian's own client, as a person would who tries the thing.
func TestGearmanTool(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	zuul := dial(t, address, zuulclient.Zuul2)
	awaitFunction(t, zuul, "build:environment")

	parameters := map[string]string{
		"ZUUL_UUID":    zuulclient.NewUUID(),
		"ZUUL_PROJECT": "tools/sandbox",
		"ZUUL_CHANGES": "tools/sandbox:master:refs/changes/11/4711/2",
		"DOLLARS":      "$(HOME) $HOME $$ $(ZUUL_PROJECT) $",
		"NEWLINES":     "one\ntwo\n\nfour\n",
		"QUOTES":       `"double" 'single' \back ` + "`tick`",
		"UNICODE":      "ünïcødé 漢字 🚦",
		"EMPTY":        "",
		"SPACES":       "  kept  ",
	}
	// A shell drops names that it could not use itself, so this one is looked for on the Pod.
	const notOfAShell = "lower.dots-and"
	sent := maps.Clone(parameters)
	sent[notOfAShell] = "odd name"
	payload, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(address, ":")
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	output, err := exec.CommandContext(ctx, "gearman", "-h", host, "-p", port, "-f", "build:environment", "-u", parameters["ZUUL_UUID"], string(payload)).CombinedOutput()
	if err != nil {
		t.Fatalf("gearman: %v\n%s", err, output)
	}
	if !bytes.Contains(output, []byte(`"result":"SUCCESS"`)) {
		t.Errorf("gearman printed no result SUCCESS: %s", output)
	}

	table := kubectl(t, "get", "zb", parameters["ZUUL_UUID"])
	for _, column := range []string{"environment", "tools/sandbox", "Succeeded", "SUCCESS"} {
		if !strings.Contains(table, column) {
			t.Errorf("kubectl get zb does not show %q:\n%s", column, table)
		}
	}
	got := map[string]string{}
	encoded := kubectl(t, "logs", parameters["ZUUL_UUID"])
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil {
		t.Fatalf("log of the Pod: %v\n%s", err, encoded)
	}
	for variable := range strings.SplitSeq(string(decoded), "\x00") {
		if name, value, _ := strings.Cut(variable, "="); hasKey(parameters, name) {
			got[name] = value
		}
	}
	if diff := cmp.Diff(parameters, got); diff != "" {
		t.Errorf("environment of the Pod (-sent +found):\n%s", diff)
	}
	if !slices.Contains(getPod(t, parameters["ZUUL_UUID"]).Spec.Containers[0].Env, corev1.EnvVar{Name: notOfAShell, Value: "odd name"}) {
		t.Errorf("%s is not in the Pod's environment", notOfAShell)
	}
}

// TestLongParameters: a kubelet and Linux take what docs/parameters.md promises: half a MiB of environment, and a file beside it. What an earlier build of
// the name left is cleared away.
func TestLongParameters(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	long, together := strings.Repeat("$(P0) ü\n", 50_000), ""
	parameters := map[string]any{"LONG": long}
	for i := range 5 {
		value := strings.Repeat(strconv.Itoa(i), 100_000)
		parameters["P"+strconv.Itoa(i)] = value
		together += value
	}
	unique := zuulclient.NewUUID()
	left := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: unique, Labels: map[string]string{v1alpha1.LabelBuild: unique}}}
	if err := kubernetes.Create(t.Context(), left); err != nil {
		t.Fatal(err)
	}
	state := wait(t, submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "parameters", UUID: unique, Parameters: parameters}))
	expectResult(t, state, "SUCCESS")
	want := fmt.Sprintf("%x  -\n%x  -\n", sha256.Sum256([]byte(long)), sha256.Sum256([]byte(together)))
	if diff := cmp.Diff(want, kubectl(t, "logs", state.UUID)); diff != "" {
		t.Errorf("checksums (-sent +found):\n%s", diff)
	}
	kubectl(t, "delete", "zb", state.UUID)
	eventually(t, "the garbage collector clears the ConfigMap away", func() bool {
		return kubectl(t, "get", "configmap", "--field-selector", "metadata.name="+state.UUID, "-o", "name") == ""
	})
}

func TestFailureIsAResult(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	state := wait(t, submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "fail"}))
	expectResult(t, state, "FAILURE")
	build := getBuild(t, state.UUID)
	if build.Status.Reason != "ExitCode" || !strings.Contains(build.Status.Message, "exit code 3") {
		t.Errorf("reason %q, message %q: the exit code is not told", build.Status.Reason, build.Status.Message)
	}
}

// TestBuildPage: the log of a build, byte for byte.
func TestBuildPage(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	pages := pagesOf(t, startOperator(t, address))
	state := wait(t, submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "environment"}))
	expectResult(t, state, "SUCCESS")
	status, log := get(t, "http://"+pages+"/builds/"+state.UUID+"/log.txt", "")
	if want := kubectl(t, "logs", state.UUID); status != http.StatusOK || log != want {
		t.Errorf("the page is answered with %d and %q, want the log %q", status, log, want)
	}
}

// TestCensoredLog: what a script prints of a Secret that its job has censored is in the log of its container, not on the page.
func TestCensoredLog(t *testing.T) {
	const password = "correct horse battery staple"
	basic := base64.StdEncoding.EncodeToString([]byte("zo0:" + password))
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "deploy"}, StringData: map[string]string{"PASSWORD": password + "\n"}}
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "publish"}, Spec: template(
		does(`echo "password: $PASSWORD"; echo "Authorization: Basic `+basic+`"; echo published`), func(t *corev1.PodTemplateSpec) {
			t.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: secret.Name},
			}}}
		})}
	job.Spec.Censor = []v1alpha1.CensoredSecret{{Name: secret.Name}}
	for _, object := range []client.Object{secret, job} {
		if err := kubernetes.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := kubernetes.Delete(context.Background(), object); err != nil {
				t.Error(err)
			}
		})
	}
	kubectl(t, "create", "role", "secrets", "--verb=get", "--resource=secrets", "--resource-name="+secret.Name)
	kubectl(t, "create", "rolebinding", "secrets", "--role=secrets", "--serviceaccount="+metav1.NamespaceDefault+":"+operatorAccount)
	t.Cleanup(func() { kubectl(t, "delete", "role/secrets", "rolebinding/secrets") })
	eventually(t, "the operator may read the Secret", func() bool {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User:               operatorUser,
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "get", Resource: "secrets", Name: secret.Name},
		}}
		return kubernetes.Create(t.Context(), review) == nil && review.Status.Allowed
	})

	address := gearmantest.StartGearmand(t)
	pages := pagesOf(t, startOperator(t, address))
	state := wait(t, submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: job.Name}))
	expectResult(t, state, "SUCCESS")
	if log := kubectl(t, "logs", state.UUID); !strings.Contains(log, password) || !strings.Contains(log, basic) {
		t.Fatalf("the container printed %q", log)
	}
	status, log := get(t, "http://"+pages+"/builds/"+state.UUID+"/log.txt", "")
	if status != http.StatusOK || !strings.HasPrefix(log, "password: ****\n") || !strings.HasSuffix(log, "\npublished\n") ||
		strings.Contains(log, "horse") || strings.Contains(log, basic[8:24]) {
		t.Errorf("the page is answered with %d and %q", status, log)
	}
}

// TestLists: an API server that does not begin a watch with all there is, as older ones do not, is asked for lists, to which the operator needs a right.
func TestLists(t *testing.T) {
	t.Setenv("KUBE_FEATURE_WatchListClient", "false")
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	expectResult(t, wait(t, submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "pass", Node: "bookworm"})), "SUCCESS")
}

func TestNodeClass(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	zuul := dial(t, address, zuulclient.Zuul2)
	for class, node := range map[string]string{"bookworm": "node-1", "trusty": "node-2"} {
		state := wait(t, submit(t, zuul, zuulclient.Request{Job: "pass", Node: class}))
		expectResult(t, state, "SUCCESS")
		pod := getPod(t, state.UUID)
		if pod.Spec.NodeName != node || pod.Spec.NodeSelector[v1alpha1.LabelNode] != class {
			t.Errorf("build:pass:%s ran on %s with node selector %v, want node %s", class, pod.Spec.NodeName, pod.Spec.NodeSelector, node)
		}
		if diff := cmp.Diff([]string{class}, state.NodeLabels); diff != "" || state.NodeName != node {
			t.Errorf("Zuul was told of node %q and labels %v", state.NodeName, state.NodeLabels)
		}
	}
}

// TestUserNamespace: a build whose class asks for it has a user namespace of its own or, where nodes can give none, does not start.
func TestUserNamespace(t *testing.T) {
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: "apart"}, Spec: v1alpha1.ZuulNodeClassSpec{
		NodeSelector: map[string]string{v1alpha1.LabelNode: "bookworm"}, UserNamespace: true,
	}}
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "mapped"}, Spec: script("cat /proc/self/uid_map")}
	job.Spec.Timeouts = &v1alpha1.Timeouts{Pending: &metav1.Duration{Duration: 15 * time.Second}}
	for _, object := range []client.Object{class, job} {
		if err := kubernetes.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := kubernetes.Delete(context.Background(), object); err != nil {
				t.Error(err)
			}
		})
	}
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	state := wait(t, submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: job.Name, Node: class.Name}))
	status := getBuild(t, state.UUID).Status
	if state.Outcome == zuulclient.Retry && status.Reason == "StartTimeout" {
		t.Logf("nodes here give no user namespaces: %s", status.Message)
		return
	}
	expectResult(t, state, "SUCCESS")
	// The map has a line for each range: the first user in the container, the one on the node, and how many. On the node itself it is 0 0 4294967295.
	if mapped := strings.Fields(kubectl(t, "logs", state.UUID)); len(mapped) != 3 || mapped[1] == "0" {
		t.Errorf("the users of the container are users of the node: %v", mapped)
	}
}

func TestStop(t *testing.T) {
	for _, dialect := range []zuulclient.Dialect{zuulclient.Zuul2, zuulclient.Branch} {
		t.Run(dialect.String(), func(t *testing.T) {
			address := gearmantest.StartGearmand(t)
			startOperator(t, address)
			build := submit(t, dial(t, address, dialect), zuulclient.Request{Job: "long"})
			// The branch dialect tells no phase, so the object is asked.
			eventually(t, "the build runs", func() bool {
				object := getBuild(t, build.State().UUID)
				return object != nil && object.Status.Phase == v1alpha1.PhaseRunning
			})
			asked := time.Now()
			cancellation, err := build.Cancel(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), enough)
			defer cancel()
			answer, err := cancellation.Stop.Wait(ctx)
			if err != nil || answer.Type != gearman.PacketWorkComplete {
				t.Fatalf("stop: was answered with %v, %v", answer.Type, err)
			}
			answered := time.Since(asked)
			if pod := getPod(t, build.State().UUID); pod == nil {
				t.Error("stop: was answered only when the Pod was gone")
			}
			state := wait(t, build)
			t.Logf("stop: answered after %s, the build ended after %s", answered, time.Since(asked))
			if state.Result != "ABORTED" || state.Packets[len(state.Packets)-1].Type != gearman.PacketWorkFail {
				t.Errorf("the build ended with %q and %v, want ABORTED and WORK_FAIL", state.Result, state.Packets[len(state.Packets)-1].Type)
			}
			eventually(t, "the Pod is gone", func() bool { return getPod(t, state.UUID) == nil })
		})
	}
}

func TestBadRequests(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	zuul := dial(t, address, zuulclient.Zuul2)
	for name, test := range map[string]struct {
		request zuulclient.Request
		message string
	}{
		"not JSON":         {zuulclient.Request{Payload: []byte("{ZUUL")}, "not a JSON object"},
		"an array":         {zuulclient.Request{Payload: []byte(`["ZUUL_UUID"]`)}, "not a JSON object"},
		"nothing":          {zuulclient.Request{Payload: []byte{}}, "empty"},
		"LD_PRELOAD":       {zuulclient.Request{Parameters: map[string]any{"LD_PRELOAD": "/tmp/x.so"}}, "LD_PRELOAD"},
		"a NUL":            {zuulclient.Request{Parameters: map[string]any{"X": "a\x00b"}}, "NUL"},
		"a name with =":    {zuulclient.Request{Parameters: map[string]any{"A=B": "c"}}, "A=B"},
		"3 MiB":            {zuulclient.Request{Parameters: map[string]any{"X": strings.Repeat("x", 3<<20)}}, "at most"},
		"an odd ZUUL_UUID": {zuulclient.Request{UUID: "../../etc/passwd", Payload: []byte("null")}, "null"},
	} {
		t.Run(name, func(t *testing.T) {
			test.request.Job = "pass"
			state := wait(t, submit(t, zuul, test.request))
			if state.Result != "INVALID_REQUEST" || state.Outcome != zuulclient.Decided {
				t.Errorf("result %q, outcome %q: want the definite result INVALID_REQUEST", state.Result, state.Outcome)
			}
			if len(state.Violations) > 0 {
				t.Errorf("violations: %v", state.Violations)
			}
			if told := fmt.Sprint(state.Worker.Extra["message"]); !strings.Contains(told, test.message) {
				t.Errorf("message %q does not say %q", told, test.message)
			}
		})
	}
}

// TestWritesOfABuild counts what one undisturbed build costs the API server, from its own audit log, and tells how long the end took to be told.
func TestWritesOfABuild(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	startOperator(t, address)
	state := wait(t, submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "brief"}))
	expectResult(t, state, "SUCCESS")
	eventually(t, "the build is cleared away", func() bool { return getBuild(t, state.UUID) == nil && getPod(t, state.UUID) == nil })
	writes, lastOfKubelet := auditedWrites(t, state.UUID)
	most := 6
	if slices.ContainsFunc(writes, auditlog.Write.SaysWait) { // its start took ten seconds
		most++
	}
	if len(writes) == 0 || len(writes) > most {
		t.Errorf("%d writes, want at most %d: %v", len(writes), most, writes)
	}
	t.Logf("writes: %v; from the kubelet's last status to WORK_COMPLETE: %s", writes, state.Completed.Sub(lastOfKubelet))
}

// auditedWrites are the writes of the operator on a build and its Pod, and when the kubelet wrote the Pod's status before the verdict.
func auditedWrites(t *testing.T, name string) (writes []auditlog.Write, lastOfKubelet time.Time) {
	t.Helper()
	entries, err := auditlog.Read(cluster.AuditLog())
	if err != nil {
		t.Fatalf("no audit log: %v", err)
	}
	for i := range entries {
		entry := &entries[i]
		if entry.ObjectRef.Name != name || !entry.Done() {
			continue
		}
		ended := len(writes) > 0 && strings.HasPrefix(writes[len(writes)-1].What, "delete")
		if entry.User.Username != operatorUser {
			if entry.ObjectRef.Subresource == "status" && !ended {
				lastOfKubelet = entry.StageTimestamp
			}
			continue
		}
		writes = append(writes, entry.Write())
	}
	return writes, lastOfKubelet
}

func dial(t *testing.T, address string, dialect zuulclient.Dialect) *zuulclient.Client {
	t.Helper()
	zuul, err := zuulclient.Dial(t.Context(), address, nil, dialect)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { zuul.Close() })
	return zuul
}

func awaitFunction(t *testing.T, zuul *zuulclient.Client, function string) {
	t.Helper()
	eventually(t, function+" is registered", func() bool {
		registered, err := zuul.Registered(t.Context(), function)
		return err == nil && registered
	})
}

func submit(t *testing.T, zuul *zuulclient.Client, request zuulclient.Request) *zuulclient.Build {
	t.Helper()
	function := "build:" + request.Job
	if request.Node != "" {
		function += ":" + request.Node
	}
	awaitFunction(t, zuul, function)
	build, err := zuul.Submit(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return build
}

func running(s zuulclient.State) bool { return s.Worker.Extra["phase"] == "Running" }

func await(t *testing.T, build *zuulclient.Build, what string, condition func(zuulclient.State) bool) zuulclient.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	state, err := build.Await(ctx, condition)
	if err != nil {
		t.Fatalf("build %s did not %s: %v; state %+v", state.Function, what, err, state)
	}
	return state
}

func wait(t *testing.T, build *zuulclient.Build) zuulclient.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	state, err := build.Wait(ctx)
	if err != nil {
		t.Fatalf("build %s did not end: %v; state %+v", state.Function, err, state)
	}
	return state
}

func expectResult(t *testing.T, state zuulclient.State, result string) {
	t.Helper()
	if state.Result != result || len(state.Violations) > 0 || state.Starts != 1 {
		t.Errorf("%s: result %q, %d starts, violations %v; want %s, one start, none", state.Function, state.Result, state.Starts, state.Violations, result)
	}
}

func getBuild(t *testing.T, name string) *v1alpha1.ZuulBuild {
	t.Helper()
	build := &v1alpha1.ZuulBuild{}
	return found(t, build, kubernetes.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, build))
}

func getPod(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	return found(t, pod, kubernetes.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, pod))
}

func found[T any](t *testing.T, object *T, err error) *T {
	t.Helper()
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	gearmantest.Eventually(t, enough, what, condition)
}

func kubectl(t *testing.T, arguments ...string) string {
	t.Helper()
	command := exec.Command(cluster.Kubectl(), append([]string{"--kubeconfig", cluster.Kubeconfig(), "--namespace", namespace}, arguments...)...)
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", arguments, err, output)
	}
	return string(output)
}

// get asks for a page as the owner of a token does, or as nobody. Nobody is there to vouch for the certificate.
func get(t *testing.T, url, token string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: enough}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

func hasKey(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}
