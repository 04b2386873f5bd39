package gearmanbridge

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// onEveryGearmand runs the test with the servers that give a lost worker's jobs to the next.
func onEveryGearmand(t *testing.T, test func(t *testing.T, address string)) {
	t.Run("embedded gearmand", func(t *testing.T) {
		address, _ := gearmantest.StartServer(t, gearman.Gearmand)
		test(t, address)
	})
	t.Run("real gearmand", func(t *testing.T) { test(t, gearmantest.StartGearmand(t)) })
}

// TestRequeuedIsAdopted: a job that comes back after its connection was cut is the same build, and Zuul notices nothing.
func TestRequeuedIsAdopted(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, nil)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		f.runs(build)
		first := f.awaitListener(build)
		for range 2 {
			proxy.Cut()
			first = f.awaitListener(build, first)
		}
		after := f.build(request.State().UUID)
		if builds := f.builds(); len(builds) != 1 || after.UID != build.UID || after.Spec.Number != 1 || after.Spec.Abort {
			t.Errorf("%d builds; uid %s, before %s; number %d, abort %v", len(builds), after.UID, build.UID, after.Spec.Number, after.Spec.Abort)
		}
		f.ends(after, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, request); state.Result != "SUCCESS" || state.Starts != 1 {
			t.Errorf("result %q after %d starts", state.Result, state.Starts)
		}
	})
}

// TestRequeuedIsReplayed: a build that ended while nobody listened tells its stored result and does not run again.
func TestRequeuedIsReplayed(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, nil)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		proxy.Refuse(true)
		proxy.Cut()
		f.awaitAlone()
		f.ends(build, v1alpha1.PhaseFailed, "FAILURE")
		f.awaitSeen(build, "the end of the build", (*v1alpha1.ZuulBuild).Complete)
		proxy.Refuse(false)
		if state := awaitEnd(t, request); state.Result != "FAILURE" || state.Outcome != zuulclient.Decided || state.Starts != 1 {
			t.Errorf("%s %q after %d starts", state.Outcome, state.Result, state.Starts)
		}
		if builds := f.builds(); len(builds) != 1 {
			t.Errorf("%d builds", len(builds))
		}
	})
}

// awaitAlone waits until nobody waits for the build.
func (f *fixture) awaitAlone() {
	f.t.Helper()
	gearmantest.Eventually(f.t, patience, "the end of the job", func() bool { return len(f.bridge.assignments.all()) == 0 })
}

// TestFullIsReplayed: builds that took all slots when their connection was lost cannot come back before one of them has ended. They run on for as
// long as gearmand knows them, and then tell their results.
func TestFullIsReplayed(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		const room = 2
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, func(bridge *Bridge) {
			bridge.MaxBuilds, bridge.GracePeriod = capacity.NewCeiling(room), 2*time.Second
		})
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		var requests []*zuulclient.Build
		for range room {
			request := submit(t, zuul, zuulclient.Request{Job: "unit"})
			awaitStart(t, request)
			f.runs(f.build(request.State().UUID))
			requests = append(requests, request)
		}
		queued := submit(t, zuul, zuulclient.Request{Job: "unit"})
		proxy.Cut()
		for _, request := range requests {
			// The questions are a third of a grace period apart.
			gearmantest.Eventually(t, patience, "questions for twice the grace period", func() bool { return questions(proxy, request.State().UUID) > 6 })
		}
		for _, request := range append(requests, queued) {
			build := f.awaitBuild(request.State().UUID, "to exist", func(*v1alpha1.ZuulBuild) bool { return true })
			f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		}
		for _, request := range append(requests, queued) {
			if state := awaitEnd(t, request); state.Result != "SUCCESS" || state.Starts != 1 {
				t.Errorf("result %q after %d starts", state.Result, state.Starts)
			}
			if build := f.build(request.State().UUID); build.Spec.Abort {
				t.Errorf("build %s was stopped", build.Name)
			}
		}
	})
}

// TestNotAskedIsNotAbandoned: the grace period of a build ends before the server was asked, as when the machine has stood still for a while.
func TestNotAskedIsNotAbandoned(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		const grace = 300 * time.Millisecond
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, func(bridge *Bridge) { bridge.GracePeriod = grace })
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		f.runs(build)
		proxy.Delay(time.Second)
		proxy.Cut()
		f.awaitAlone()
		time.Sleep(5 * grace) // nothing shows that nothing happens
		if f.build(build.Name).Spec.Abort {
			t.Error("the build was stopped before the server was asked about it")
		}
		proxy.Delay(0)
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, request); state.Result != "SUCCESS" || state.Starts != 1 {
			t.Errorf("result %q after %d starts", state.Result, state.Starts)
		}
	})
}

// TestVainAfterStandstill: the first question after the machine has stood still is in vain, because the network is not there yet.
func TestVainAfterStandstill(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, func(bridge *Bridge) { bridge.GracePeriod, bridge.SweepInterval = 20*time.Second, time.Hour })
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		f.runs(build)
		key := f.awaitListener(build).key
		f.bridge.Follow() // so that the job does not come back at once
		session := f.bridge.sessions[0]
		gearmantest.Eventually(t, patience, "a server that is known", func() bool { return session.settled.Load() != nil })
		proxy.Refuse(true)
		proxy.Cut()
		f.awaitAlone()
		gearmantest.Eventually(t, patience, "the grace period begun", func() bool { return f.bridge.alone.knows(key) })
		past := time.Now().Add(-time.Minute)
		f.bridge.alone.mu.Lock()
		f.bridge.alone.since[key] = past
		f.bridge.alone.mu.Unlock()
		session.settled.Store(&past)
		token(session.reconnected) // as the timer would, which is due
		gearmantest.Eventually(t, patience, "a question in vain", func() bool { return session.settled.Load().After(past) })
		f.bridge.notify(t.Context(), "zuul", key)
		time.Sleep(5 * unaskedCheck) // nothing shows that nothing happens
		if f.build(build.Name).Spec.Abort {
			t.Error("the build was stopped after one question in vain")
		}
		proxy.Refuse(false)
		f.bridge.Lead()
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, request); state.Result != "SUCCESS" || state.Starts != 1 {
			t.Errorf("result %q after %d starts", state.Result, state.Starts)
		}
	})
}

// TestFunctionOfALostJob: a job is disabled while its build runs, and the connection is lost. gearmand gives the job to nobody but who offers its function,
// so that goes on until the build is reported, be it complete before.
func TestFunctionOfALostJob(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		for name, completeFirst := range map[string]bool{"it runs": false, "it is complete": true} {
			t.Run(name, func(t *testing.T) {
				proxy := gearmantest.NewProxy(t, address)
				f := startBridge(t, proxy.Address, often)
				job := f.job("unit")
				request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
				awaitStart(t, request)
				build := f.build(request.State().UUID)
				f.runs(build)
				f.awaitListener(build)
				f.changeJob(job, func(job *v1alpha1.ZuulJob) { job.Spec.Disabled = true })
				f.awaitRegistered("unit", reasonDisabled)
				proxy.Refuse(true)
				proxy.Cut()
				f.awaitAlone()
				if completeFirst {
					f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
					f.awaitSeen(build, "the end of the build", (*v1alpha1.ZuulBuild).Complete)
				}
				proxy.Refuse(false)
				if !completeFirst {
					f.awaitListener(build)
					f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
				}
				if state := awaitEnd(t, request); state.Result != "SUCCESS" || state.Starts != 1 {
					t.Errorf("result %q after %d starts", state.Result, state.Starts)
				}
				gearmantest.Eventually(t, patience, "the function offered no more", func() bool {
					functions, err := dialAdmin(t, address).Status(testContext(t))
					must(t, err)
					return !slices.ContainsFunc(functions, func(f gearman.FunctionStatus) bool { return f.Name == "build:unit" && f.Workers > 0 })
				})
			})
		}
	})
}

// TestCutOffFromGearmandAlone: who cannot ask gearmand about its builds leaves them to the replica that leads.
func TestCutOffFromGearmandAlone(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f, _ := startReplica(t, proxy.Address, nil)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		f.runs(build)
		f.awaitListener(build)
		f.bridge.Follow()
		proxy.Refuse(true)
		proxy.Cut()
		left := f.awaitBuild(build.Name, "to be of no replica", func(build *v1alpha1.ZuulBuild) bool { return build.Labels[v1alpha1.LabelReplica] == "" })
		if left.Spec.Abort {
			t.Error("the build was stopped by who could not ask about it")
		}
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		proxy.Refuse(false)
		f.bridge.Lead()
		if state := awaitEnd(t, request); state.Result != "SUCCESS" || state.Starts != 1 {
			t.Errorf("result %q after %d starts", state.Result, state.Starts)
		}
	})
}

// questions counts how often the server was asked whether it knows a unique.
func questions(proxy *gearmantest.Proxy, unique string) (count int) {
	for _, packet := range proxy.Packets(gearmantest.ToServer) {
		if packet.Type == gearman.PacketGetStatusUnique && string(packet.Args[0]) == unique {
			count++
		}
	}
	return count
}

// TestForgottenIsAbandoned: a gearmand that was started anew has forgotten the job, so the build is stopped long before its grace period is over.
func TestForgottenIsAbandoned(t *testing.T) {
	gearmand := gearmantest.NewGearmand(t)
	f := startBridge(t, gearmand.Address, func(bridge *Bridge) { bridge.GracePeriod = time.Hour })
	f.job("unit")
	request := submit(t, dialZuul(t, gearmand.Address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	gearmand.Stop()
	gearmand.Start()
	f.ends(f.awaitAbandoned(request.State().UUID), v1alpha1.PhaseLost, "")
}

// TestLostIsAbandoned: geard fails the jobs of a lost worker, so the build is stopped at once, whatever the grace period, and the one that Zuul started
// in its place is not.
func TestLostIsAbandoned(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	proxy := gearmantest.NewProxy(t, address)
	f := startBridge(t, proxy.Address, func(bridge *Bridge) { bridge.GracePeriod = time.Hour })
	f.job("unit")
	byHand := &v1alpha1.ZuulBuild{}
	byHand.Namespace, byHand.Name, byHand.Spec.Job = f.namespace, "by-hand", "unit"
	must(t, f.api.Create(t.Context(), byHand))
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	build := f.build(request.State().UUID)
	proxy.Cut()
	if state := awaitEnd(t, request); state.Outcome != zuulclient.Retry {
		t.Errorf("Zuul made of it %s", state.Outcome)
	}
	again := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, again)
	build = f.awaitBuild(build.Spec.UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
	if build.Spec.AbortReason != v1alpha1.AbortAbandoned {
		t.Errorf("reason %s", build.Spec.AbortReason)
	}
	f.ends(build, v1alpha1.PhaseAborted, "")
	for _, unique := range []string{again.State().UUID, byHand.Name} {
		if build := f.build(unique); build.Spec.Abort {
			t.Errorf("build %s was stopped too", build.Name)
		}
	}
	f.ends(f.build(again.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
	if state := awaitEnd(t, again); state.Result != "SUCCESS" {
		t.Errorf("result %q", state.Result)
	}
}

// TestServerDownLong: when no server can be reached for longer than the grace period, the builds of it are stopped. gearmand gives the job out again
// when it can, and Zuul is told to run it again.
func TestServerDownLong(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, func(bridge *Bridge) { bridge.GracePeriod = 500 * time.Millisecond })
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		request := submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		f.runs(f.build(request.State().UUID))
		proxy.Refuse(true)
		proxy.Cut()
		f.ends(f.awaitAbandoned(request.State().UUID), v1alpha1.PhaseLost, "")
		proxy.Refuse(false)
		if state := awaitEnd(t, request); state.Outcome != zuulclient.Retry {
			t.Errorf("Zuul made of it %s", state.Outcome)
		}
		again := submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, again)
		f.ends(f.build(again.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, again); state.Result != "SUCCESS" {
			t.Errorf("result %q", state.Result)
		}
	})
}

// impatient is for tests of links that are silently gone.
func impatient(bridge *Bridge) {
	bridge.PingInterval, bridge.PingTimeout = 100*time.Millisecond, 5*time.Second
}

// TestHalfOpenIsAdopted: a link that is silently gone is given up. When gearmand notices its end too, the job comes back to the same build.
func TestHalfOpenIsAdopted(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, impatient)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		f.runs(build)
		first := f.awaitListener(build)
		proxy.HalfOpen(true)
		f.awaitAlone()
		proxy.HalfOpen(false)
		proxy.Cut() // what was lost on a connection made meanwhile would be missing for ever, as with no real network
		f.awaitListener(build, first)
		after := f.build(request.State().UUID)
		if builds := f.builds(); len(builds) != 1 || after.UID != build.UID || after.Spec.Abort {
			t.Errorf("%d builds; uid %s, before %s; abort %v", len(builds), after.UID, build.UID, after.Spec.Abort)
		}
		f.ends(after, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, request); state.Result != "SUCCESS" || state.Starts != 1 {
			t.Errorf("result %q after %d starts", state.Result, state.Starts)
		}
	})
}

// TestHalfOpenIsAbandoned: what geard had given out over a link that is silently gone never comes back, so the build is stopped, also while the server
// cannot be reached.
func TestHalfOpenIsAbandoned(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	proxy := gearmantest.NewProxy(t, address)
	f := startBridge(t, proxy.Address, func(bridge *Bridge) {
		impatient(bridge)
		bridge.GracePeriod = 500 * time.Millisecond
	})
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	f.runs(f.build(request.State().UUID))
	proxy.HalfOpen(true)
	f.ends(f.awaitAbandoned(request.State().UUID), v1alpha1.PhaseLost, "")
	proxy.HalfOpen(false)
	proxy.Cut()
	if state := awaitEnd(t, request); state.Outcome != zuulclient.Retry {
		t.Errorf("Zuul made of it %s", state.Outcome)
	}
	again := submit(t, zuul, zuulclient.Request{Job: "unit"})
	awaitStart(t, again)
	f.ends(f.build(again.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
	if state := awaitEnd(t, again); state.Result != "SUCCESS" {
		t.Errorf("result %q", state.Result)
	}
}

// TestStaleHandle: a server that restarts gives out the same handles again. The end of a build from before must not end the one that has its handle.
func TestStaleHandle(t *testing.T) {
	for _, behaviour := range []gearman.Behaviour{gearman.Gearmand, gearman.Geard} {
		t.Run("embedded "+behaviour.String(), func(t *testing.T) {
			address, server := gearmantest.StartServer(t, behaviour)
			testStaleHandle(t, address, func() {
				must(t, server.Close())
				gearmantest.Serve(t, &gearman.Server{Behaviour: behaviour}, address)
			})
		})
	}
	t.Run("real gearmand", func(t *testing.T) {
		server := gearmantest.NewGearmand(t)
		testStaleHandle(t, server.Address, func() {
			server.Kill()
			server.Start()
		})
	})
}

func testStaleHandle(t *testing.T, address string, restart func()) {
	f := startBridge(t, address, nil)
	f.job("unit")
	before := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	awaitStart(t, before)
	old := f.build(before.State().UUID)
	restart()
	f.awaitAlone()
	after := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	awaitStart(t, after)
	if before.State().Handle != after.State().Handle {
		t.Fatalf("handles %s and %s differ: the test shows nothing", before.State().Handle, after.State().Handle)
	}
	f.ends(old, v1alpha1.PhaseSucceeded, "SUCCESS")
	f.awaitSeen(old, "the end of the old build", (*v1alpha1.ZuulBuild).Complete)
	f.ends(f.build(after.State().UUID), v1alpha1.PhaseFailed, "FAILURE")
	state := awaitEnd(t, after)
	if state.Result != "FAILURE" {
		t.Errorf("result %q", state.Result)
	}
	want := []gearman.PacketType{gearman.PacketWorkData, gearman.PacketWorkStatus, gearman.PacketWorkData, gearman.PacketWorkComplete}
	if diff := cmp.Diff(want, packetTypes(state)); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}
