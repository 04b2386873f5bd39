package localcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

func TestCluster(t *testing.T) {
	endToEnd(t)
	start := time.Now()
	c, client := upForTest(t, Options{Name: "e2e-one", Audit: true, KwokNodes: 3})
	t.Logf("up in %.1f s", time.Since(start).Seconds())

	t.Run("exit code and log of a Pod on the node its label names", func(t *testing.T) { testExitCode(t, c, client) })
	t.Run("service names and addresses", func(t *testing.T) { testServices(t, client) })
	t.Run("images from archives", func(t *testing.T) { testImport(t, c, client) })
	t.Run("simulated nodes", func(t *testing.T) { testKwok(t, client) })
	t.Run("audit log", func(t *testing.T) { testAudit(t, c) })
	t.Run("faults of a node", func(t *testing.T) { testFaults(t, c) })
	t.Run("restart of the API server", func(t *testing.T) {
		if err := c.Restart(t.Context(), "kube-apiserver"); err != nil {
			t.Fatal(err)
		}
		createPod(t, client, pod("after-restart", "exit 0"))
		awaitPhase(t, client, "after-restart", corev1.PodSucceeded)
	})
	t.Run("opened again", func(t *testing.T) {
		again, err := Open(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Running(); err != nil {
			t.Error(err)
		}
		if again.Kubeconfig() != c.Kubeconfig() || len(again.Nodes()) != 2 {
			t.Errorf("kubeconfig %s, %d nodes", again.Kubeconfig(), len(again.Nodes()))
		}
	})
	// A Pod that is still there must not survive the cluster.
	createPod(t, client, pod("left-running", "trap '' TERM; sleep 3600"))
	awaitPhase(t, client, "left-running", corev1.PodRunning)
}

func testExitCode(t *testing.T, c *Cluster, client kubernetes.Interface) {
	object := pod("exits", "id -u; echo spoken; touch /tmp/written && exit 7")
	object.Spec.NodeSelector = map[string]string{NodeLabel: "trusty"}
	createPod(t, client, object)
	ended := awaitPhase(t, client, "exits", corev1.PodFailed, corev1.PodSucceeded)
	if terminated := ended.Status.ContainerStatuses[0].State.Terminated; terminated == nil || terminated.ExitCode != 7 {
		t.Errorf("state %+v, want exit code 7", ended.Status.ContainerStatuses[0].State)
	}
	if ended.Spec.NodeName != "node-2" {
		t.Errorf("ran on %s, want node-2", ended.Spec.NodeName)
	}
	if log := kubectl(t, c, "logs", "exits"); log != "1000\nspoken\n" {
		t.Errorf("log %q", log)
	}
}

// testServices reaches a server on one node through its service's name, from both nodes, and the API server through its own.
func testServices(t *testing.T, client kubernetes.Interface) {
	server := pod("web", "cd /tmp && echo served > page && exec httpd -f -p 8080")
	server.Spec.NodeSelector = map[string]string{NodeLabel: "bookworm"}
	createPod(t, client, server)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: server.Labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
	if _, err := client.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"bookworm", "trusty"} {
		name := "client-on-" + label
		object := pod(name, `
			for attempt in $(seq 50); do [ "$(timeout 2 wget -qO- http://web/page)" = served ] && break; sleep 0.2; done
			[ "$(timeout 30 wget -qO- http://web.default.svc.cluster.local/page)" = served ] || exit 3
			nc -w 30 kubernetes.default 443 </dev/null || exit 4
			nslookup nowhere.example && exit 5
			exit 0`)
		object.Spec.NodeSelector = map[string]string{NodeLabel: label}
		createPod(t, client, object)
	}
	for _, label := range []string{"bookworm", "trusty"} {
		ended := awaitPhase(t, client, "client-on-"+label, corev1.PodSucceeded, corev1.PodFailed)
		if ended.Status.Phase != corev1.PodSucceeded {
			t.Errorf("from node %s: exit code %d (3: service, 4: API server, 5: a name outside resolved)", label, ended.Status.ContainerStatuses[0].State.Terminated.ExitCode)
		}
	}
}

func testImport(t *testing.T, c *Cluster, client kubernetes.Interface) {
	archive := filepath.Join(t.TempDir(), "extra.tar")
	program, err := os.ReadFile(c.tools.path("pause"))
	if err != nil {
		t.Fatal(err)
	}
	image := "zuulbuild.test/extra:1"
	if err := writeImage(archive, image, pauseEntries(program), v1.Config{Entrypoint: []string{"/pause"}}); err != nil {
		t.Fatal(err)
	}
	if err := c.ImportImage(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	object := pod("extra", "")
	object.Spec.Containers[0].Image, object.Spec.Containers[0].Command = image, nil
	createPod(t, client, object)
	awaitPhase(t, client, "extra", corev1.PodRunning)
	if err := c.ImportImage(t.Context(), c.Kubeconfig()); err == nil || !strings.Contains(err.Error(), c.Kubeconfig()) {
		t.Errorf("importing what is no archive: %v", err)
	}
}

func testKwok(t *testing.T, client kubernetes.Interface) {
	for name, code := range map[string]string{"simulated": "0", "simulated-failure": "3"} {
		object := pod(name, "")
		object.Annotations = map[string]string{KwokDurationAnnotation: "10ms", KwokExitCodeAnnotation: code}
		object.Spec.NodeSelector = map[string]string{NodeLabel: KwokNodeName}
		object.Spec.Tolerations = []corev1.Toleration{{Key: KwokTaint, Operator: corev1.TolerationOpExists}}
		createPod(t, client, object)
	}
	awaitPhase(t, client, "simulated", corev1.PodSucceeded)
	failed := awaitPhase(t, client, "simulated-failure", corev1.PodFailed)
	if terminated := failed.Status.ContainerStatuses[0].State.Terminated; terminated == nil || terminated.ExitCode != 3 {
		t.Errorf("state %+v, want exit code 3", failed.Status.ContainerStatuses[0].State)
	}
}

func testAudit(t *testing.T, c *Cluster) {
	content, err := os.ReadFile(c.AuditLog())
	if err != nil {
		t.Fatal(err)
	}
	created := 0
	for line := range bytes.Lines(content) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // it is being written
		}
		var event struct {
			Stage, Verb, Level string
			ObjectRef          struct{ Resource, Subresource, Name string }
			ResponseObject     struct {
				Metadata struct{ ResourceVersion string }
			}
		}
		if err := json.Unmarshal(line, &event); err != nil {
			t.Fatalf("%v in line %s", err, line)
		}
		changesPods := strings.TrimSuffix(event.ObjectRef.Resource+"/"+event.ObjectRef.Subresource, "/")
		told := (changesPods == "pods" || changesPods == "pods/status") && !slices.Contains([]string{"get", "list", "watch"}, event.Verb)
		if event.Stage == "RequestReceived" || (event.Level == "RequestResponse") != told {
			t.Fatalf("event %+v", event)
		}
		if event.Verb == "create" && changesPods == "pods" && event.ObjectRef.Name == "exits" {
			created++
			if event.ResponseObject.Metadata.ResourceVersion == "" {
				t.Error("the creation of Pod exits does not tell its resource version")
			}
		}
	}
	if created != 1 {
		t.Errorf("%d creations of Pod exits in the audit log, want 1", created)
	}
}

// testFaults cuts a node off and stops its kubelet, and sees it reachable no more, and again after.
func testFaults(t *testing.T, c *Cluster) {
	node := c.Node(2)
	reachable := func() error {
		connection, err := net.DialTimeout("tcp", net.JoinHostPort(node.Address(), "10250"), 500*time.Millisecond)
		if err == nil {
			connection.Close()
		}
		return err
	}
	check := func(what string, act func(context.Context) error, want bool) {
		t.Helper()
		if err := act(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var last error
		if poll(ctx, 100*time.Millisecond, func() (bool, error) { last = reachable(); return (last == nil) == want, nil }) != nil {
			t.Fatalf("%s: kubelet reachable %t (%v), want %t", what, !want, last, want)
		}
	}
	check("start", func(context.Context) error { return nil }, true)
	check("cut the link", node.CutLink, false)
	check("restore the link", node.RestoreLink, true)
	check("stop the kubelet", node.StopKubelet, false)
	if err := c.Running(); err == nil || !strings.Contains(err.Error(), "kubelet-node-2") {
		t.Errorf("running with a stopped kubelet: %v", err)
	}
	check("start the kubelet", node.StartKubelet, true)
}

// TestStartAfterUncleanEnd kills every process that was started, which leaves containers, mounts, namespaces, groups and
// sockets, and then starts a cluster of the same name; and once more over one that runs.
func TestStartAfterUncleanEnd(t *testing.T) {
	endToEnd(t)
	const name = "e2e-unclean"
	first, client := upForTest(t, Options{Name: name})
	createPod(t, client, pod("orphan", "sleep 3600"))
	awaitPhase(t, client, "orphan", corev1.PodRunning)
	before := observe(t, first)
	started, err := first.processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range started {
		if err := p.stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Running(); err == nil {
		t.Fatal("runs although everything was killed")
	}

	second, client := upForTest(t, Options{Name: name})
	for _, who := range before.processes {
		if who.alive() {
			t.Errorf("process %+v of the first cluster still runs", who)
		}
	}
	if _, err := client.CoreV1().Pods("default").Get(t.Context(), "orphan", metav1.GetOptions{}); err == nil {
		t.Error("the new cluster knows the old one's Pod")
	}
	createPod(t, client, pod("works", "exit 0"))
	awaitPhase(t, client, "works", corev1.PodSucceeded)

	// Over one that runs, and whose claim on the machine was deleted.
	if err := os.Remove(second.state.Slot.ownerFile()); err != nil {
		t.Fatal(err)
	}
	third, _ := upForTest(t, Options{Name: name, Nodes: 1})
	if third.state.Slot != second.state.Slot {
		t.Errorf("slot %d, want %d again", third.state.Slot, second.state.Slot)
	}
}

func TestTwoClustersAtOnce(t *testing.T) {
	endToEnd(t)
	var clients [2]*kubernetes.Clientset
	var clusters [2]*Cluster
	for index := range clusters {
		clusters[index], clients[index] = upForTest(t, Options{Name: fmt.Sprintf("e2e-pair-%d", index+1), Nodes: index + 1})
	}
	for index, client := range clients {
		createPod(t, client, pod("works", fmt.Sprintf("exit %d", index)))
	}
	for index, client := range clients {
		ended := awaitPhase(t, client, "works", corev1.PodSucceeded, corev1.PodFailed)
		if code := ended.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != int32(index) {
			t.Errorf("cluster %d: exit code %d", index+1, code)
		}
	}
	names, err := List()
	if err != nil || !strings.Contains(strings.Join(names, " "), "e2e-pair-1 e2e-pair-2") {
		t.Errorf("list: %v, %v", names, err)
	}
	downForTest(t, clusters[0])
	if err := clusters[1].Running(); err != nil {
		t.Errorf("taking one down touched the other: %v", err)
	}
	createPod(t, clients[1], pod("still-works", "nslookup kubernetes.default.svc.cluster.local"))
	awaitPhase(t, clients[1], "still-works", corev1.PodSucceeded)
}

func TestFailedStartNamesComponentAndCleansUp(t *testing.T) {
	endToEnd(t)
	const name = "e2e-failing"
	_, err := Up(t.Context(), Options{Name: name, ExtraArgs: map[string][]string{"kube-apiserver": {"--no-such-flag"}}})
	t.Cleanup(func() { _ = Down(context.Background(), name) })
	if err == nil || !strings.Contains(err.Error(), "kube-apiserver: ended ") || !strings.Contains(err.Error(), "unknown flag: --no-such-flag") {
		t.Errorf("error %v", err)
	}
	c, err := newCluster(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.logFile("kube-apiserver")); err != nil {
		t.Errorf("the log is gone: %v", err)
	}
	if claimed, err := ownedSlots(c.folder); err != nil || len(claimed) > 0 {
		t.Errorf("still claims %v, %v", claimed, err)
	}
}

func TestInterruptedStartCleansUp(t *testing.T) {
	endToEnd(t)
	const name = "e2e-interrupted"
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Up(ctx, Options{Name: name, Log: writerFunc(func(line string) {
		if strings.Contains(line, "container runtimes are ready") {
			cancel()
		}
	})})
	t.Cleanup(func() { _ = Down(context.Background(), name) })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was cancelled", err)
	}
	c, err := newCluster(name)
	if err != nil {
		t.Fatal(err)
	}
	if started, err := c.processes(); err != nil || len(started) > 0 {
		t.Errorf("processes %v, %v", started, err)
	}
	if claimed, err := ownedSlots(c.folder); err != nil || len(claimed) > 0 {
		t.Errorf("still claims %v, %v", claimed, err)
	}
}
