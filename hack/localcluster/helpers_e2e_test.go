package localcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// endToEnd skips a test that starts real clusters unless ZUULBUILD_E2E=1.
func endToEnd(t *testing.T) {
	if os.Getenv("ZUULBUILD_E2E") != "1" {
		t.Skip("starts real clusters; set ZUULBUILD_E2E=1 to run it")
	}
}

// upForTest starts a cluster, says how long that took, and takes it down at the end and looks for remains.
func upForTest(t *testing.T, options Options) (*Cluster, *kubernetes.Clientset) {
	t.Helper()
	options.Log = testLog{t}
	c, err := Up(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { downForTest(t, c) })
	client, err := c.client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.disconnect)
	return c, client
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func downForTest(t *testing.T, c *Cluster) {
	t.Helper()
	before := observe(t, c)
	start := time.Now()
	if err := Down(context.WithoutCancel(t.Context()), c.name); err != nil { // by name, as another program would
		t.Fatalf("down: %v", err)
	}
	t.Logf("cluster %s: down in %.1f s", c.name, time.Since(start).Seconds())
	before.checkGone(t, c)
}

// footprint is what a cluster has on the machine.
type footprint struct {
	processes  []identity
	namespaces map[string]bool // as /proc/PID/ns/* names them
	seen       uint64          // when that was, as the start time of a process is told
}

func observe(t *testing.T, c *Cluster) footprint {
	t.Helper()
	groups, err := controlGroups()
	if err != nil {
		t.Fatal(err)
	}
	members, err := groups.members(c.state.Slot.group())
	if err != nil {
		t.Fatal(err)
	}
	seen := footprint{namespaces: map[string]bool{}, seen: clock(t)}
	own := map[string]bool{}
	for _, kind := range []string{"net", "mnt", "pid", "ipc"} {
		name, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		own[name] = true
		for _, pid := range members {
			if name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil && !own[name] {
				seen.namespaces[name] = true
			}
		}
	}
	for _, pid := range members {
		if who, err := identify(pid); err == nil {
			seen.processes = append(seen.processes, who)
		}
	}
	return seen
}

// clock is the time since boot in clock ticks, of which the kernel tells users a hundred a second.
func clock(t *testing.T) uint64 {
	t.Helper()
	content, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	var seconds float64
	if _, err := fmt.Sscan(string(content), &seconds); err != nil {
		t.Fatal(err)
	}
	return uint64(seconds * 100)
}

func (f footprint) checkGone(t *testing.T, c *Cluster) {
	t.Helper()
	// Processes end and namespaces go moments after they are let go of.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	var left []string
	if poll(ctx, 100*time.Millisecond, func() (bool, error) { left = f.remains(c); return len(left) == 0, nil }) != nil {
		t.Errorf("cluster %s left behind:\n%s", c.name, strings.Join(left, "\n"))
	}
}

// later tells whether the process of a path below /proc began after the look: the kernel gives the number of a namespace that is gone to the next one.
func (f footprint) later(path string) bool {
	pid, err := strconv.Atoi(strings.Split(path, "/")[2])
	if err != nil {
		return false
	}
	who, err := identify(pid)
	return err != nil || who.StartTime > f.seen
}

func (f footprint) remains(c *Cluster) []string {
	var left []string
	for _, who := range f.processes {
		if who.alive() {
			left = append(left, fmt.Sprintf("process %+v", who))
		}
	}
	all, _ := filepath.Glob("/proc/[0-9]*/ns/*")
	for _, path := range all {
		if name, err := os.Readlink(path); err == nil && f.namespaces[name] && !f.later(path) {
			left = append(left, path+" is "+name)
		}
	}
	folders := []string{c.folder}
	owner, err := c.state.Slot.owner()
	if err != nil {
		left = append(left, err.Error())
	}
	if owner == c.folder {
		left = append(left, c.state.Slot.ownerFile())
	}
	reclaimed := owner != "" && owner != c.folder // another cluster may have the slot by now
	if !reclaimed {
		folders = append(folders, c.state.Slot.folder())
	}
	for _, folder := range folders {
		mounts, err := mountsBelow(folder)
		if err != nil {
			left = append(left, err.Error())
		}
		left = append(left, mounts...)
		if _, err := os.Stat(folder); err == nil {
			left = append(left, folder)
		}
	}
	if reclaimed {
		return left
	}
	groups, _ := controlGroups()
	for _, mount := range groups.all {
		if _, err := os.Stat(filepath.Join(mount, c.state.Slot.group())); err == nil {
			left = append(left, filepath.Join(mount, c.state.Slot.group()))
		}
	}
	interfaces, _ := net.Interfaces()
	for _, link := range interfaces {
		if c.state.Slot.owns(link.Name) {
			left = append(left, "interface "+link.Name)
		}
	}
	return left
}

func pod(name string, script string) *corev1.Pod {
	no, user := false, int64(1000)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			RestartPolicy:                corev1.RestartPolicyNever,
			AutomountServiceAccountToken: &no,
			SecurityContext:              &corev1.PodSecurityContext{RunAsUser: &user},
			Containers:                   []corev1.Container{{Name: "main", Image: BusyboxImage, Command: []string{"/bin/sh", "-c", script}}},
		},
	}
}

func createPod(t *testing.T, client kubernetes.Interface, object *corev1.Pod) {
	t.Helper()
	if _, err := client.CoreV1().Pods("default").Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// awaitPhase waits for the Pod to reach a phase; on failure it says where it stands.
func awaitPhase(t *testing.T, client kubernetes.Interface, name string, phases ...corev1.PodPhase) *corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var current corev1.Pod
	err := poll(ctx, 200*time.Millisecond, func() (bool, error) {
		object, err := client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		current = *object
		phase := current.Status.Phase
		if slices.Contains(phases, phase) {
			return true, nil
		}
		if phase == corev1.PodSucceeded || phase == corev1.PodFailed {
			return false, fmt.Errorf("phase is %s, and will stay so", phase)
		}
		return false, nil
	})
	if err != nil {
		status, _ := json.Marshal(current.Status)
		t.Fatalf("Pod %s: waiting for %v: %v; status %s", name, phases, err, status)
	}
	return &current
}

func kubectl(t *testing.T, c *Cluster, arguments ...string) string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), c.Kubectl(), append([]string{"--kubeconfig=" + c.Kubeconfig()}, arguments...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return string(output)
}

type writerFunc func(string)

func (f writerFunc) Write(p []byte) (int, error) { f(string(p)); return len(p), nil }
