//go:build linux

package conformance

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
	"zuulbuild.dev/zuulbuild/replicas"
)

// disconnectCases are those under "Disconnects".
func disconnectCases() []testCase {
	short := []string{"--grace-period", shortGrace.String()}
	return []testCase{
		{name: "server-down-long", on: bothKinds, own: true, flags: short, test: serverDownLong},
		{name: "operator-crash", on: bothKinds, own: true, test: operatorCrash},
		{name: "graceful", on: bothKinds, own: true, test: graceful},
		{name: "stale-handle", on: []*flavour{gearmand, oneRetry, geard}, own: true, test: staleHandle},
		{name: "G-drop", on: failing, own: true, flags: short, test: dropFails},
		{name: "C-drop-adopt", on: requeuing, own: true, test: dropAdopts},
		{name: "C-drop-finished", on: requeuing, own: true, test: dropFinished},
		{name: "two-servers", on: bothKinds, own: true, servers: 2, test: twoServers},
		{name: "two-replicas", on: bothKinds, own: true, flags: short, test: twoReplicas},
		{name: "rolling-upgrade", on: bothKinds, own: true, test: rollingUpgrade},
		{name: "drain-together", on: bothKinds, own: true, test: drainTogether},
		{name: "two-installations", on: []*flavour{gearmand}, own: true, test: twoInstallations},
		{name: "cut-off", on: bothKinds, own: true, test: cutOff},
		{name: "leader-disconnected", on: bothKinds, own: true, test: leaderDisconnected},
		{name: "zuul-gone", on: bothKinds, own: true, needs: orphanSweep, test: zuulGone},
		{name: "half-open", on: bothKinds, own: true, flags: []string{"--grace-period", halfOpenGrace.String()}, test: halfOpen},
	}
}

const (
	shortGrace    = 2 * time.Second
	halfOpenGrace = 10 * time.Second
)

// gone waits until a build that nobody waits for has ended and left nothing, and tells how long after the moment that was.
func (s *scene) gone(unique string, since time.Time, grace time.Duration) {
	s.Helper()
	build := s.awaitVerdict(unique)
	s.awaitNoPod(unique)
	if build.Status.Result != "" || build.Status.Phase != v1alpha1.PhaseLost {
		s.Errorf("the build left behind ended %s with result %q", build.Status.Phase, build.Status.Result)
	}
	if took := time.Since(since); took > grace+10*time.Second {
		s.Errorf("it took %v with a grace period of %v", took, grace)
	}
}

func dropFails(s *scene) {
	job := s.job(holds)
	build := s.submit(zuulclient.Request{Job: job})
	first, _ := s.running(build)
	cut := time.Now()
	s.proxy().Cut()
	s.expect(s.end(build), zuulclient.Retry, "")
	again := s.submit(zuulclient.Request{Job: job})
	second, pod := s.running(again)
	s.gone(first.UUID, cut, shortGrace)
	if now := s.pod(second.UUID); now == nil || now.UID != pod.UID || now.DeletionTimestamp != nil {
		s.Errorf("the Pod of the new build was touched: %v", now)
	}
	s.exit(second.UUID, 0)
	s.expect(s.end(again), zuulclient.Decided, "SUCCESS")
}

func dropAdopts(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(holds)})
	before, pod := s.running(build)
	for times := range 2 {
		s.proxy().Cut()
		s.assigned(before.UUID, times+2)
	}
	s.adopted(build, before, string(pod.UID))
}

// adopted ends a build that went through a loss, which must be the same build with the same Pod.
func (s *scene) adopted(build *zuulclient.Build, before zuulclient.State, uid string) {
	s.Helper()
	if now := s.pod(before.UUID); now == nil || string(now.UID) != uid || now.DeletionTimestamp != nil {
		s.Errorf("the Pod is another, or goes: %v", now)
	}
	s.onlyBuild(before)
	s.exit(before.UUID, 0)
	state := s.end(build)
	s.expect(state, zuulclient.Decided, "SUCCESS")
	if fmt.Sprint(state.Number) != fmt.Sprint(before.Number) {
		s.Errorf("number %v became %v", before.Number, state.Number)
	}
	if made := s.kubelet.everMade(s.namespace, before.UUID); made != 1 {
		s.Errorf("%d Pods", made)
	}
}

// onlyBuild: there is no other build of the job.
func (s *scene) onlyBuild(state zuulclient.State) {
	s.Helper()
	if builds := s.builds(state.Job); len(builds) != 1 {
		s.Errorf("%d ZuulBuilds of %s", len(builds), state.Job)
	}
}

func dropFinished(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(holds)})
	state, _ := s.running(build)
	s.proxy().Refuse(true)
	s.proxy().Cut()
	s.exit(state.UUID, 1)
	if verdict := s.awaitVerdict(state.UUID); verdict.Status.Result != "FAILURE" {
		s.Errorf("result %q", verdict.Status.Result)
	}
	if build.State().Ended() {
		s.Error("the build ended while there was no connection")
	}
	s.proxy().Refuse(false)
	s.assigned(state.UUID, 2)
	s.expect(s.end(build), zuulclient.Decided, "FAILURE")
	s.onlyBuild(state)
	if made := s.kubelet.everMade(s.namespace, state.UUID); made != 1 {
		s.Errorf("%d Pods", made)
	}
}

// staleHandle: after a restart, the server gives a new build the handle that an old one had. What becomes of the old one is nobody's business.
func staleHandle(s *scene) {
	job := s.job(lingers)
	before := s.submit(zuulclient.Request{Job: job})
	old, _ := s.running(before)
	s.servers[0].restart()
	if s.end(before); before.State().Outcome != zuulclient.Retry {
		s.Errorf("Zuul made of the old build %q", before.State().Outcome)
	}
	s.zuul = s.dial(zuulclient.Zuul2)
	s.awaitFunction("build:" + job)
	after := s.submit(zuulclient.Request{Job: job})
	state, _ := s.running(after)
	if old.Handle != state.Handle {
		s.Fatalf("handles %s and %s differ: the test shows nothing", old.Handle, state.Handle)
	}
	if build := s.build(old.UUID); build.Complete() {
		s.Fatalf("the old build has ended %s already: the test shows nothing", build.Status.Phase)
	}
	s.kubelet.lets(s.namespace, old.UUID)
	if verdict := s.awaitVerdict(old.UUID); verdict.Status.Phase != v1alpha1.PhaseLost {
		s.Errorf("the old build, which the server had forgotten, ended %s", verdict.Status.Phase)
	}
	s.run(s.job(exits)) // time for a packet that should not come, on the connection it would come on
	if now := after.State(); now.Ended() {
		s.Fatalf("the end of the old build ended the new one: %q", now.Result)
	}
	s.exit(state.UUID, 1)
	state = s.end(after)
	s.expect(state, zuulclient.Decided, "FAILURE")
	want := []gearman.PacketType{
		gearman.PacketWorkData, gearman.PacketWorkStatus, gearman.PacketWorkData, gearman.PacketWorkStatus, gearman.PacketWorkData, gearman.PacketWorkComplete,
	}
	if !slices.Equal(kinds(state), want) {
		s.Errorf("packets %v", kinds(state))
	}
	s.wire("stale-handle")
}

// serverDownLong is an outage that is long compared with the grace period. What an hour would show, the seconds of a test do not.
func serverDownLong(s *scene) {
	job := s.job(holds)
	build := s.submit(zuulclient.Request{Job: job})
	state, _ := s.running(build)
	before := s.memory()
	s.servers[0].end()
	down := time.Now()
	s.end(build)
	s.gone(state.UUID, down, shortGrace)
	s.servers[0].start()
	s.zuul = s.dial(zuulclient.Zuul2)
	s.awaitFunction("build:" + job)
	again := s.submit(zuulclient.Request{Job: job})
	second, _ := s.running(again)
	s.exit(second.UUID, 0)
	s.expect(s.end(again), zuulclient.Decided, "SUCCESS")
	if after := s.memory(); after > before+before/2 {
		s.Errorf("memory grew from %d to %d kB", before, after)
	}
}

// memory is what the operator has in memory, in kB.
func (s *scene) memory() int {
	s.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.operator.ID()))
	s.must(err)
	_, line, _ := strings.Cut(string(status), "VmRSS:")
	var kilobytes int
	_, err = fmt.Sscanf(line, "%d kB", &kilobytes)
	s.must(err)
	return kilobytes
}

// zuulGone: a server tells no worker that a client is gone.
func zuulGone(s *scene) {
	job := s.job(holds)
	zuul := s.dial(zuulclient.Zuul2)
	build := s.submitBy(zuul, zuulclient.Request{Job: job})
	state, _ := s.running(build)
	_, unharmed := s.bystander(job)
	s.must(zuul.Close())
	left := time.Now()
	s.eventuallyWithin(70*time.Second, "the end of the build that nobody waits for", func() bool {
		build := s.build(state.UUID)
		return build != nil && build.Complete() && s.pod(state.UUID) == nil
	})
	s.Logf("gone after %v", time.Since(left))
	unharmed()
}

// halfOpen: the network swallows everything and tells nobody.
func halfOpen(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(holds)})
	state, pod := s.running(build)
	connections := len(s.serving())
	silent := time.Now()
	s.proxy().HalfOpen(true)
	s.eventuallyWithin(2*time.Minute, "another attempt to connect", func() bool { return len(s.serving()) > connections })
	s.Logf("noticed after %v", time.Since(silent))
	s.proxy().HalfOpen(false)
	s.proxy().Cut() // the attempts were half open too
	if !s.flavour.geard {
		s.assigned(state.UUID, 2)
		s.adopted(build, state, string(pod.UID))
		return
	}
	s.expect(s.end(build), zuulclient.Retry, "")
	s.gone(state.UUID, time.Now(), halfOpenGrace)
}

func operatorCrash(s *scene) {
	job := s.job(holds)
	build := s.submit(zuulclient.Request{Job: job})
	state, pod := s.running(build)
	s.kill()
	if !s.flavour.geard {
		s.restartOperator()
		s.assigned(state.UUID, 2)
		s.adopted(build, state, string(pod.UID))
		return
	}
	s.expect(s.end(build), zuulclient.Retry, "")
	again := s.submit(zuulclient.Request{Job: job})
	s.restartOperator()
	second, _ := s.running(again)
	s.gone(state.UUID, time.Now(), shortGrace)
	s.exit(second.UUID, 0)
	s.expect(s.end(again), zuulclient.Decided, "SUCCESS")
	for _, unique := range []string{state.UUID, second.UUID} {
		if made := s.kubelet.everMade(s.namespace, unique); made != 1 {
			s.Errorf("%d Pods for %s", made, unique)
		}
	}
}

// graceful: SIGTERM ends no build, and takes none.
func graceful(s *scene) {
	job := s.job(holds)
	running, stopped := s.submit(zuulclient.Request{Job: job}), s.submit(zuulclient.Request{Job: job})
	state, _ := s.running(running)
	s.running(stopped)
	s.must(s.operator.Signal(syscall.SIGTERM))
	_, err := s.operator.AwaitLine("Draining", patience)
	s.must(err)
	late := s.submit(zuulclient.Request{Job: job})
	if took := s.cancel(stopped); took > atOnce {
		s.Errorf("stop: was answered after %v", took)
	}
	s.expect(s.end(stopped), zuulclient.Canceled, "ABORTED")
	s.exit(state.UUID, 0)
	s.expect(s.end(running), zuulclient.Decided, "SUCCESS")
	select {
	case <-s.operator.Ended():
	case <-time.After(patience):
		s.Fatal("the operator does not end when its builds have")
	}
	if packets := late.State().Packets; len(packets) > 0 || s.build(late.State().UUID) != nil {
		s.Errorf("a build was taken while draining: %v", packets)
	}
	s.restartOperator()
	s.exit(late.State().UUID, 0)
	s.expect(s.end(late), zuulclient.Decided, "SUCCESS")
}

// twoReplicas: one leads, the other takes over when that one dies.
func twoReplicas(s *scene) {
	s.terminate() // it was started alone
	lead := []string{"--leader-elect", "--leader-namespace", s.namespace, "--leader-lease", longLease}
	first := s.startOperator(s.T, lead...)
	_, err := first.AwaitLine(leads, patience)
	s.must(err)
	s.startOperator(s.T, lead...)
	job := s.job(holds)
	s.eventually("the functions of both", func() bool { return s.functions()["build:"+job].Workers >= 2 })
	build := s.submit(zuulclient.Request{Job: job})
	state, pod := s.running(build)
	for _, function := range []string{"build:" + job, "stop:" + manager} {
		if workers := s.functions()[function].Workers; workers < 2 {
			s.Errorf("%s has %d workers", function, workers)
		}
	}
	first.Kill()
	killed := time.Now()
	if s.flavour.geard {
		s.expect(s.end(build), zuulclient.Retry, "")
		build = s.submit(zuulclient.Request{Job: job})
		orphan := state.UUID
		state, _ = s.running(build)
		s.gone(orphan, killed, 2*replicas.Duration) // it might be alive until then, and have the connection; who did not look for a while begins anew
	} else {
		s.assigned(state.UUID, 2)
		if now := s.pod(state.UUID); now == nil || now.UID != pod.UID {
			s.Errorf("the Pod is another: %v", now)
		}
	}
	if made := s.kubelet.everMade(s.namespace, state.UUID); made != 1 {
		s.Errorf("%d Pods", made)
	}
	s.cancel(build) // by the manager that the dead replica told
	s.expect(s.end(build), zuulclient.Canceled, "ABORTED")
	s.awaitNoPod(state.UUID)
}

// twoServers give the same handle to two builds.
func twoServers(s *scene) {
	job := s.job(holds)
	builds := []*zuulclient.Build{
		s.submit(zuulclient.Request{Job: job}),
		s.submitBy(s.dialServer(s.servers[1], zuulclient.Zuul2), zuulclient.Request{Job: job}),
	}
	first, _ := s.running(builds[0])
	second, _ := s.running(builds[1])
	if first.Handle != second.Handle {
		s.Fatalf("handles %s and %s differ: the test shows nothing", first.Handle, second.Handle)
	}
	s.exit(first.UUID, 0)
	s.expect(s.end(builds[0]), zuulclient.Decided, "SUCCESS")
	s.exit(second.UUID, 1)
	s.expect(s.end(builds[1]), zuulclient.Decided, "FAILURE")
	if fmt.Sprint(first.Number) == fmt.Sprint(second.Number) {
		s.Errorf("both have number %v", first.Number)
	}
}
