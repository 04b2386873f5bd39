//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiwait "k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/hack/programs"
	"zuulbuild.dev/zuulbuild/test/e2e/auditlog"
)

const (
	// helmUpgradeVariable has TestHelmUpgrade run, with so many builds that run through the whole of it.
	helmUpgradeVariable = "ZUULBUILD_HELM_UPGRADE"
	// helmUpgrades is how often the release is upgraded, and lookEvery how often the functions of the Gearman server are looked at meanwhile.
	helmUpgrades, lookEvery = 3, 20 * time.Millisecond
	// Builds of lastingJob run until they are told to end. Those of arrivingJob run for a time between the two.
	lastingJob, arrivingJob           = "upgrade-lasting", "upgrade-arriving"
	shortestArriving, longestArriving = time.Second, 5 * time.Second
	// besideLasting is how many builds may be at work beside those that last.
	besideLasting = 100
	// drainPatience is how long the builds that the leader took before the drain may last: a busy machine is slow to make their Pods.
	drainPatience = 5 * time.Minute
	// leaderLease is the Lease that names the replica that leads: by its Pod, "_", and something random.
	leaderLease = "zuulbuild.zuulbuild.dev"
	// The chart gives the Pods of all replicas this label.
	componentLabel, replicaComponent = "app.kubernetes.io/component", "operator"
)

// helmUpgrade is a release of the chart that takes builds from a Gearman server outside of the cluster, and a Zuul.
type helmUpgrade struct {
	*testing.T
	ctx     context.Context
	geard   bool
	images  []string // tags: of the release that is installed, and of each upgrade
	gearman string
	zuul    *zuulclient.Client
	helm    func(verb string, arguments ...string)
	folder  string                       // of logs
	logs    map[string]*programs.Program // what follows the log of each replica, by its Pod

	arrived, others []*zuulclient.Build // all that were asked for: those that arrived all the time, and the others
	failed          []*zuulclient.Build // of the others, those that geard failed because the leader was killed
	seen            helmUpgradeFigures
}

// helmUpgradeFigures are what a run showed.
type helmUpgradeFigures struct {
	looks gearmantest.Looks
	// upgrades are how long each `helm upgrade --wait` took, stops how long the answer to each stop: after them.
	upgrades, stops []time.Duration
	// nextLeader is how long after the begin of the drain another replica led, and drained after how long the replica that led was gone.
	nextLeader, drained time.Duration
	// nextStart is how long after the death of the leader Zuul heard of the start of the next build.
	nextStart time.Duration
	// lost are builds that did not end as they should, twice those with more than one Pod, refused those that Zuul would call NOT_REGISTERED.
	lost, twice, refused int
}

// TestHelmUpgrade: while builds run and more arrive, the release is upgraded to another image three times, and the node of the leader is drained. No
// build is lost or runs twice, and at no moment does the Gearman server show one of our functions without a worker: Zuul would call the job
// NOT_REGISTERED, which is final. When the leader is killed at last, builds go on.
func TestHelmUpgrade(t *testing.T) {
	count := countOf(t, helmUpgradeVariable)
	for _, job := range []*v1alpha1.ZuulJob{
		simulatedJob(lastingJob, time.Hour, 2*time.Hour), simulatedJob(arrivingJob, shortestArriving, longestArriving),
	} {
		if err := kubernetes.Create(t.Context(), job); client.IgnoreAlreadyExists(err) != nil {
			t.Fatal(err)
		}
	}
	var images []string
	for range helmUpgrades + 1 {
		images = append(images, buildImage(t))
	}
	t.Run("gearmand", func(t *testing.T) {
		newHelmUpgrade(t, count, images, gearmantest.StartGearmandAt(t, cluster.HostAddress())).run(count)
	})
	t.Run("geard", func(t *testing.T) {
		server := &gearman.Server{Behaviour: gearman.Geard}
		u := newHelmUpgrade(t, count, images, gearmantest.Serve(t, server, net.JoinHostPort(cluster.HostAddress(), "0")))
		u.geard = true
		u.run(count)
	})
}

// newHelmUpgrade installs the chart. The Gearman server is not that of the chart, which an upgrade to another image replaces with all its jobs.
func newHelmUpgrade(t *testing.T, count int, images []string, server string) *helmUpgrade {
	t.Helper()
	u := &helmUpgrade{T: t, images: images, gearman: server, folder: t.TempDir(), logs: map[string]*programs.Program{}}
	var cancel context.CancelFunc
	u.ctx, cancel = context.WithTimeout(t.Context(), 10*time.Minute+time.Duration(count)*time.Second)
	t.Cleanup(cancel)
	u.helm = installer(t)
	t.Cleanup(u.tellLogs)
	u.helm("install", "--wait", "--timeout=5m", "--set=crds.install=false", "--set=image.tag="+images[0],
		"--set=maxBuilds="+strconv.Itoa(count+besideLasting),
		"--set-json", fmt.Sprintf(`gearman.servers=[{"name":"zuul","address":%q}]`, server),
		"--set-json", fmt.Sprintf(`buildNamespaces=[{"name":%q,"create":false}]`, namespace))
	u.followLogs()
	u.zuul = dial(t, server, zuulclient.Zuul2)
	for _, job := range []string{lastingJob, arrivingJob} {
		awaitFunction(t, u.zuul, "build:"+job)
	}
	return u
}

func (u *helmUpgrade) run(count int) {
	u.Helper()
	lasting := u.startLasting(count)
	stopLooking := gearmantest.WatchWorkers(u, u.gearman, lookEvery, "build:"+lastingJob, "build:"+arrivingJob, "stop:zuulbuild", "set_description:zuulbuild")
	stopArrivals := u.arrive(min(2*time.Second, 20*time.Second/time.Duration(count))) // 10 a second beside 200
	for i, image := range u.images[1:] {
		u.upgrade(image)
		u.cancel(lasting[i])
	}
	u.drain(func() { u.endLasting(lasting[helmUpgrades:]) })
	stopArrivals()
	if len(u.arrived) == 0 {
		u.Fatal("no build arrived")
	}
	for _, build := range u.arrived {
		u.expect(build, zuulclient.Decided, "SUCCESS")
	}
	u.killLeader(max(2, count/10))
	u.seen.looks = stopLooking()
	u.expectStored()
	u.countPods()
	u.report(count)
}

func (u *helmUpgrade) must(err error) {
	u.Helper()
	if err != nil {
		u.Fatal(err)
	}
}

// submit has Zuul ask for a build, or returns an error that says why it would not.
func (u *helmUpgrade) submit(job string) (*zuulclient.Build, error) {
	build, err := u.zuul.Submit(u.ctx, zuulclient.Request{Job: job})
	if errors.Is(err, zuulclient.ErrNotRegistered) {
		u.seen.refused++
	}
	return build, err
}

// startLasting returns builds that run until exit.
func (u *helmUpgrade) startLasting(count int) (builds []*zuulclient.Build) {
	u.Helper()
	for range count {
		build, err := u.submit(lastingJob)
		u.must(err)
		builds = append(builds, build)
	}
	for _, build := range builds {
		await(u.T, build, "run", running)
	}
	u.others = append(u.others, builds...)
	return builds
}

// arrive has Zuul ask for a build every interval, until stop.
func (u *helmUpgrade) arrive(interval time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(u.ctx)
	var arriving sync.WaitGroup
	arriving.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
			build, err := u.submit(arrivingJob)
			if u.ctx.Err() != nil {
				return
			}
			if err != nil {
				u.Error(err)
				continue
			}
			u.arrived = append(u.arrived, build)
		}
	})
	stop = func() {
		cancel()
		arriving.Wait()
	}
	u.Cleanup(stop)
	return stop
}

// upgrade has the release run another image. Replicas that have builds go on beside the new ones until those have ended.
func (u *helmUpgrade) upgrade(tag string) {
	u.Helper()
	begun := time.Now()
	u.helm("upgrade", "--reuse-values", "--wait", "--timeout=5m", "--set=image.tag="+tag)
	u.seen.upgrades = append(u.seen.upgrades, time.Since(begun))
	u.followLogs()
	u.awaitLeader("of image "+tag, func(pod *corev1.Pod) bool { return strings.HasSuffix(pod.Spec.Containers[0].Image, ":"+tag) })
	if !slices.ContainsFunc(u.replicas(), func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil }) {
		u.Error("no replica drains, though builds run that one of the first took")
	}
}

// drain drains the node of the leader, and has meanwhile done what ends the builds that a replica of an earlier release may have there.
func (u *helmUpgrade) drain(meanwhile func()) {
	u.Helper()
	leader := u.awaitLeader("at all", func(*corev1.Pod) bool { return true })
	node := leader.Spec.NodeName
	u.Cleanup(func() { kubectl(u.T, "uncordon", node) })
	drained := make(chan error, 1)
	begun := time.Now()
	go func() {
		command := exec.CommandContext(u.ctx, cluster.Kubectl(), "--kubeconfig="+cluster.Kubeconfig(), "drain", node,
			"--pod-selector="+componentLabel+"="+replicaComponent, "--timeout=10m")
		output, err := command.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("kubectl drain: %w\n%s", err, output)
		}
		drained <- err
	}()
	u.awaitLeader("on another node", func(pod *corev1.Pod) bool { return pod.Spec.NodeName != node })
	u.seen.nextLeader = time.Since(begun)
	gearmantest.Eventually(u.T, drainPatience, "the replica that led before the drain gone", func() bool {
		return !slices.ContainsFunc(u.replicas(), func(pod corev1.Pod) bool { return pod.UID == leader.UID })
	})
	u.seen.drained = time.Since(begun)
	meanwhile()
	u.must(<-drained)
}

// endLasting ends builds that last: one is cancelled, some succeed and some fail.
func (u *helmUpgrade) endLasting(builds []*zuulclient.Build) {
	u.Helper()
	u.cancel(builds[0])
	builds = builds[1:]
	for i, build := range builds {
		u.exit(build, int32(i%2))
	}
	for i, build := range builds {
		u.expect(build, zuulclient.Decided, []string{"SUCCESS", "FAILURE"}[i%2])
	}
}

// cancel cancels a build as Zuul does, and waits for the answer.
func (u *helmUpgrade) cancel(build *zuulclient.Build) {
	u.Helper()
	asked := time.Now()
	cancellation, err := build.Cancel(u.ctx)
	u.must(err)
	if cancellation.Stop == nil {
		u.Fatalf("%s was taken from the queue, though it ran", build.State().UUID)
	}
	answer, err := cancellation.Stop.Wait(u.ctx)
	u.must(err)
	u.seen.stops = append(u.seen.stops, time.Since(asked).Round(time.Millisecond))
	if answer.Type != gearman.PacketWorkComplete {
		u.Errorf("stop: was answered with %v", answer.Type)
	}
	u.expect(build, zuulclient.Canceled, "ABORTED")
}

// exit has the containers of a simulated Pod that runs end with the code.
func (u *helmUpgrade) exit(build *zuulclient.Build, code int32) {
	u.Helper()
	pod := getPod(u.T, build.State().UUID)
	if pod == nil {
		u.Errorf("build %s has no Pod", build.State().UUID)
		return
	}
	before := pod.DeepCopy()
	now := metav1.Now()
	for i := range pod.Status.ContainerStatuses {
		status := &pod.Status.ContainerStatuses[i]
		terminated := &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: now}
		if status.State.Running != nil {
			terminated.StartedAt = status.State.Running.StartedAt
		}
		status.Ready, status.Started, status.State = false, ptr.To(false), corev1.ContainerState{Terminated: terminated}
	}
	pod.Status.Phase = corev1.PodSucceeded
	if code != 0 {
		pod.Status.Phase = corev1.PodFailed
	}
	u.must(kubernetes.Status().Patch(u.ctx, pod, client.MergeFrom(before)))
}

// expect waits for the end of a build, and that Zuul was told of one start and one end, this one.
func (u *helmUpgrade) expect(build *zuulclient.Build, outcome zuulclient.Outcome, result string) {
	u.Helper()
	state, err := build.Wait(u.ctx)
	if err != nil || state.Outcome != outcome || state.Result != result || state.Starts != 1 || endsOf(state) != 1 || len(state.Violations) > 0 {
		u.seen.lost++
		u.Errorf("build %s of %s: outcome %q, result %q, %d starts, %d ends, violations %v, error %v; want %q, %q, one, one, none and none", state.UUID,
			state.Job, state.Outcome, state.Result, state.Starts, endsOf(state), state.Violations, err, outcome, result)
	}
}

// killLeader ends the leader as the kernel does a program that takes too much memory, while builds run that it took. From gearmand another replica gets
// them, and goes on with their Pods. geard fails them, and Zuul asks anew.
func (u *helmUpgrade) killLeader(count int) {
	u.Helper()
	u.awaitTwoReplicas()
	u.followLogs()
	builds := u.startLasting(count)
	pods := map[string]types.UID{}
	for _, build := range builds {
		if pod := getPod(u.T, build.State().UUID); pod != nil {
			pods[pod.Name] = pod.UID
		}
	}
	leader := u.awaitLeader("at all", func(*corev1.Pod) bool { return true })
	begun := time.Now()
	u.killContainer(leader)
	next, err := u.submit(arrivingJob)
	u.must(err)
	u.others = append(u.others, next)
	await(u.T, next, "begin", func(state zuulclient.State) bool { return len(state.Packets) > 0 })
	u.seen.nextStart = time.Since(begun)
	if u.geard {
		for _, build := range builds {
			u.expect(build, zuulclient.Retry, "")
		}
		u.failed, builds = builds, u.startLasting(count)
	}
	for _, build := range builds {
		if pod := getPod(u.T, build.State().UUID); !u.geard && pod != nil && pod.UID != pods[pod.Name] {
			u.Errorf("build %s has another Pod", pod.Name)
		}
		u.exit(build, 0)
		u.expect(build, zuulclient.Decided, "SUCCESS")
	}
	u.expect(next, zuulclient.Decided, "SUCCESS")
}

// killContainer kills what runs in the container of a replica. A process is in the control group of its container, which has the container's name.
func (u *helmUpgrade) killContainer(pod *corev1.Pod) {
	u.Helper()
	_, container, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	u.must(err)
	killed := 0
	for _, file := range files {
		groups, err := os.ReadFile(file)
		if err != nil || container == "" || !strings.Contains(string(groups), container) {
			continue // most processes are others, and some have ended meanwhile
		}
		process, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		u.must(err)
		u.must(syscall.Kill(process, syscall.SIGKILL))
		killed++
	}
	if killed == 0 {
		u.Fatalf("no process of container %q was found", container)
	}
}

// replicas are the Pods of the operator, those that drain among them.
func (u *helmUpgrade) replicas() []corev1.Pod {
	u.Helper()
	pods := corev1.PodList{}
	u.must(kubernetes.List(u.ctx, &pods, client.InNamespace(operatorNamespace), client.MatchingLabels{componentLabel: replicaComponent}))
	return pods.Items
}

// awaitLeader waits until a replica leads that was not asked to go and is as wanted.
func (u *helmUpgrade) awaitLeader(what string, wanted func(*corev1.Pod) bool) (leader *corev1.Pod) {
	u.Helper()
	eventually(u.T, "a leader "+what, func() bool {
		lease := &coordinationv1.Lease{}
		err := kubernetes.Get(u.ctx, client.ObjectKey{Namespace: operatorNamespace, Name: leaderLease}, lease)
		u.must(client.IgnoreNotFound(err))
		name, _, _ := strings.Cut(ptr.Deref(lease.Spec.HolderIdentity, ""), "_")
		for _, pod := range u.replicas() {
			if pod.Name == name && pod.DeletionTimestamp == nil && wanted(&pod) {
				leader = &pod
			}
		}
		return leader != nil
	})
	return leader
}

// awaitTwoReplicas waits until there are two replicas, both ready, and none that drains. They must be those that were started.
func (u *helmUpgrade) awaitTwoReplicas() {
	u.Helper()
	var pods []corev1.Pod
	eventually(u.T, "two replicas that are ready, and none that drains", func() bool {
		pods = u.replicas()
		return len(pods) == 2 && !slices.ContainsFunc(pods, func(pod corev1.Pod) bool {
			return pod.DeletionTimestamp != nil || !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			})
		})
	})
	for _, pod := range pods {
		if restarts := pod.Status.ContainerStatuses[0].RestartCount; restarts > 0 {
			u.Errorf("replica %s ended by itself %d times", pod.Name, restarts)
		}
	}
}

// followLogs keeps the logs of the replicas there are now, for a Pod takes its log with it.
func (u *helmUpgrade) followLogs() {
	u.Helper()
	for _, pod := range u.replicas() {
		if u.logs[pod.Name] != nil {
			continue
		}
		follower, err := programs.StartBound(filepath.Join(u.folder, pod.Name+".log"), cluster.Kubectl(), "--kubeconfig="+cluster.Kubeconfig(),
			"--namespace="+operatorNamespace, "logs", "--follow", pod.Name)
		u.must(err)
		u.logs[pod.Name] = follower
	}
}

// tellLogs prints the ends of the logs, if the test has failed.
func (u *helmUpgrade) tellLogs() {
	for name, follower := range u.logs {
		follower.Kill()
		if log, _ := os.ReadFile(follower.LogFile); u.Failed() {
			u.Logf("end of the log of %s:\n%s", name, log[max(0, len(log)-1<<15):])
		}
	}
}

// expectStored waits until all builds are complete, and compares their results with what Zuul was told.
func (u *helmUpgrade) expectStored() {
	u.Helper()
	var stored map[string]*v1alpha1.ZuulBuild
	all := slices.Concat(u.others, u.arrived)
	err := apiwait.PollUntilContextCancel(u.ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		stored = storedBuilds(ctx, u.T)
		return !slices.ContainsFunc(all, func(build *zuulclient.Build) bool {
			object := stored[build.State().UUID]
			return object != nil && !object.Complete()
		}), nil
	})
	for _, build := range all {
		state := build.State()
		object := stored[state.UUID]
		switch {
		case object == nil:
			u.Errorf("build %s is gone", state.UUID)
		case !object.Complete() || object.Status.Result != state.Result:
			u.Errorf("build %s is %s with result %q, Zuul was told %q", object.Name, object.Status.Phase, object.Status.Result, state.Result)
		case object.Status.Result == "" && !slices.Contains(u.failed, build):
			u.Errorf("build %s has no result: %s: %s", object.Name, object.Status.Reason, object.Status.Message)
		}
	}
	u.must(err)
}

// countPods finds out from the audit log how many Pods each build had.
func (u *helmUpgrade) countPods() {
	u.Helper()
	entries, err := auditlog.Read(cluster.AuditLog())
	u.must(err)
	history, err := auditlog.Replay(entries, func(*auditlog.Pod) []string { return nil })
	u.must(err)
	pods := map[string]int{}
	for _, pod := range history.Pods {
		pods[pod.Name]++
	}
	for _, build := range slices.Concat(u.others, u.arrived) {
		number := pods[build.State().UUID]
		if number > 1 {
			u.seen.twice++
		}
		if number != 1 {
			u.Errorf("build %s had %d Pods", build.State().UUID, number)
		}
	}
}

// report prints a table.
func (u *helmUpgrade) report(count int) {
	u.Helper()
	var starts []time.Duration
	for _, build := range u.arrived {
		state := build.State()
		starts = append(starts, state.Started.Sub(state.Submitted).Round(time.Millisecond))
	}
	slices.Sort(starts)
	seconds := func(durations ...time.Duration) string {
		var texts []string
		for _, duration := range durations {
			texts = append(texts, fmt.Sprintf("%.1f s", duration.Seconds()))
		}
		return strings.Join(texts, ", ")
	}
	s := &u.seen
	logTable(u.T, [][]any{
		{"builds that ran throughout / that arrived", fmt.Sprintf("%d / %d", count, len(u.arrived))},
		{"submitted to first WORK_DATA, of those that arrived, median / max", fmt.Sprintf("%v / %v", starts[len(starts)/2], starts[len(starts)-1])},
		{"helm upgrade --wait", seconds(s.upgrades...)},
		{"stop: after each of them, and in the drain", fmt.Sprint(s.stops)},
		{"drain: another replica led after / the one before was gone after", seconds(s.nextLeader) + " / " + seconds(s.drained)},
		{"leader killed: start of the next build after", seconds(s.nextStart)},
		{"looks at status / longest time between two", fmt.Sprintf("%d / %v", s.looks.Count, s.looks.Longest.Round(time.Millisecond))},
		{"functions shown without a worker", s.looks.Without},
		{"NOT_REGISTERED", s.refused},
		{"builds lost", s.lost},
		{"builds run twice", s.twice},
	})
}
