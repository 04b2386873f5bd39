package gearmanbridge

import (
	"net"
	"slices"
	"testing"
	"time"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// often is a SweepInterval for tests that wait for what a sweep does.
func often(bridge *Bridge) { bridge.SweepInterval = 200 * time.Millisecond }

// never is a SweepInterval for tests of what is found without one.
func never(bridge *Bridge) { bridge.SweepInterval = time.Hour }

// awaitAbandoned waits until the build of a unique is to be stopped because nobody waits for it.
func (f *fixture) awaitAbandoned(unique string) *v1alpha1.ZuulBuild {
	f.t.Helper()
	build := f.awaitBuild(unique, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
	if build.Spec.AbortReason != v1alpha1.AbortAbandoned {
		f.t.Errorf("stopped for the reason %q", build.Spec.AbortReason)
	}
	return build
}

// finals counts the finishing packets that went through the proxy for a handle.
func finals(proxy *gearmantest.Proxy, handle string) map[gearman.PacketType]int {
	count := map[gearman.PacketType]int{}
	for _, packet := range proxy.Packets(gearmantest.ToServer) {
		switch packet.Type {
		case gearman.PacketWorkComplete, gearman.PacketWorkFail, gearman.PacketWorkException:
			if string(packet.Args[0]) == handle {
				count[packet.Type]++
			}
		default:
		}
	}
	return count
}

// checkFailedOnce looks for the one WORK_FAIL of a handle, also after its build has ended.
func (f *fixture) checkFailedOnce(proxy *gearmantest.Proxy, build *v1alpha1.ZuulBuild, handle string) {
	f.t.Helper()
	gearmantest.Eventually(f.t, patience, "the end of "+handle, func() bool { return len(finals(proxy, handle)) > 0 })
	f.ends(build, v1alpha1.PhaseLost, "")
	f.awaitSeen(build, "the end of the build", (*v1alpha1.ZuulBuild).Complete)
	if got := finals(proxy, handle); len(got) != 1 || got[gearman.PacketWorkFail] != 1 {
		f.t.Errorf("finishing packets %v", got)
	}
}

func dialAdmin(t testing.TB, address string) *gearman.Admin {
	t.Helper()
	admin, err := gearman.DialAdmin(testContext(t), address, nil)
	must(t, err)
	t.Cleanup(func() { _ = admin.Close() })
	return admin
}

// checkNoJobs looks that gearmand has no job any more: one that it ignores and keeps would swallow a new one with the same unique.
func checkNoJobs(t *testing.T, address string) {
	t.Helper()
	gearmantest.Eventually(t, patience, "a gearmand without jobs", func() bool {
		jobs, err := dialAdmin(t, address).ShowJobs(testContext(t))
		must(t, err)
		return len(jobs) == 0
	})
}

// TestCancelledIsSwept: gearmand takes the cancellation of a running job and tells no worker (early-cancel). The build is stopped, whether it exists
// already or is on its way.
func TestCancelledIsSwept(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		for _, early := range []bool{true, false} {
			t.Run(map[bool]string{true: "before the start", false: "after the start"}[early], func(t *testing.T) {
				proxy := gearmantest.NewProxy(t, address)
				open := make(chan struct{})
				f := startBridge(t, proxy.Address, func(bridge *Bridge) {
					often(bridge)
					bridge.Numbers = gate{bridge.Numbers, open}
				})
				f.job("unit")
				request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
				gearmantest.Eventually(t, patience, "the request", func() bool { return len(f.bridge.assignments.all()) == 1 })
				cancel := func() {
					must(t, dialAdmin(t, address).CancelJob(testContext(t), request.State().Handle))
				}
				if early {
					cancel()
					sweeps := proxy.Accepted()
					gearmantest.Eventually(t, patience, "sweeps", func() bool { return proxy.Accepted() > sweeps+1 })
				}
				close(open)
				if !early {
					awaitStart(t, request)
					cancel()
				}
				build := f.awaitAbandoned(request.State().UUID)
				f.checkFailedOnce(proxy, build, request.State().Handle)
				checkNoJobs(t, address)
			})
		}
	})
}

// TestZuulGoneIsSwept: the builds of a Zuul that is gone are stopped (zuul-gone), those of another Zuul go on.
func TestZuulGoneIsSwept(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, often)
		f.job("unit")
		zuul, other := dialZuul(t, address, zuulclient.Zuul2), dialZuul(t, address, zuulclient.Zuul2)
		requests := []*zuulclient.Build{submit(t, zuul, zuulclient.Request{Job: "unit"}), submit(t, zuul, zuulclient.Request{Job: "unit"})}
		stays := submit(t, other, zuulclient.Request{Job: "unit"})
		for _, request := range append(slices.Clone(requests), stays) {
			awaitStart(t, request)
		}
		f.runs(f.build(requests[0].State().UUID)) // the other is on its way still
		must(t, zuul.Close())
		for _, request := range requests {
			f.checkFailedOnce(proxy, f.awaitAbandoned(request.State().UUID), request.State().Handle)
		}
		build := f.build(stays.State().UUID)
		if build.Spec.Abort {
			t.Error("the build of the other Zuul was stopped too")
		}
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, stays); state.Result != "SUCCESS" {
			t.Errorf("result %q", state.Result)
		}
	})
}

// TestHealthyIsNotSwept: sweeps without end stop no build that somebody waits for, also while jobs begin and end under them.
func TestHealthyIsNotSwept(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, func(bridge *Bridge) { bridge.SweepInterval = time.Millisecond })
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		long := submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, long)
		f.runs(f.build(long.State().UUID))
		for range 10 {
			short := submit(t, zuul, zuulclient.Request{Job: "unit"})
			f.ends(f.build(short.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
			if state := awaitEnd(t, short); state.Result != "SUCCESS" {
				t.Errorf("result %q", state.Result)
			}
		}
		f.awaitQuestions(proxy, long.State().Handle, 50)
		build := f.build(long.State().UUID)
		if build.Spec.Abort {
			t.Fatal("a build that Zuul waits for was stopped")
		}
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, long); state.Result != "SUCCESS" {
			t.Errorf("result %q", state.Result)
		}
	})
}

// awaitQuestions waits until so many GET_STATUS for the handle, at least, went through the proxy.
func (f *fixture) awaitQuestions(proxy *gearmantest.Proxy, handle string, least int) {
	f.t.Helper()
	gearmantest.Eventually(f.t, patience, "sweeps", func() bool {
		asked := 0
		for _, packet := range proxy.Packets(gearmantest.ToServer) {
			if packet.Type == gearman.PacketGetStatus && string(packet.Args[0]) == handle {
				asked++
			}
		}
		return asked >= least
	})
}

// TestBackgroundJobIsNotSwept: a job that was submitted in the background never had a client, and runs to its end. geard knows no such jobs.
func TestBackgroundJobIsNotSwept(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, func(bridge *Bridge) { bridge.SweepInterval = 10 * time.Millisecond })
		f.job("unit")
		unique := zuulclient.NewUUID()
		submitter, err := net.Dial("tcp", address)
		must(t, err)
		must(t, gearman.WritePacket(submitter, gearman.Packet{
			Type: gearman.PacketSubmitJobBackground, Args: [][]byte{[]byte("build:unit"), []byte(unique), []byte("{}")},
		}))
		listener := f.awaitListener(f.build(unique))
		must(t, submitter.Close())
		f.awaitQuestions(proxy, listener.job.Handle(), 20)
		build := f.build(unique)
		if build.Spec.Abort {
			t.Fatal("stopped")
		}
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		gearmantest.Eventually(t, patience, "the end", func() bool { return len(finals(proxy, listener.job.Handle())) > 0 })
		if got := finals(proxy, listener.job.Handle()); got[gearman.PacketWorkComplete] != 1 || len(got) != 1 {
			t.Errorf("finishing packets %v", got)
		}
	})
}

// TestSweepKeepsServersApart: two servers give out the same handle. The job that one of them ignores is not mistaken for that of the other.
func TestSweepKeepsServersApart(t *testing.T) {
	servers := map[string]func(t *testing.T) string{
		"embedded gearmand": func(t *testing.T) string {
			address, _ := gearmantest.StartServer(t, gearman.Gearmand)
			return address
		},
		"real gearmand": func(t *testing.T) string { return gearmantest.StartGearmand(t) },
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			addresses := []string{start(t), start(t)}
			proxies := []*gearmantest.Proxy{gearmantest.NewProxy(t, addresses[0]), gearmantest.NewProxy(t, addresses[1])}
			f := startBridge(t, "", func(bridge *Bridge) {
				never(bridge)
				bridge.Servers = []Server{{Name: "zero", Address: proxies[0].Address}, {Name: "one", Address: proxies[1].Address}}
			})
			f.job("unit")
			var requests []*zuulclient.Build
			for _, address := range addresses {
				request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
				awaitStart(t, request)
				requests = append(requests, request)
			}
			handle := requests[0].State().Handle
			if other := requests[1].State().Handle; handle != other {
				t.Fatalf("handles %s and %s differ: the test shows nothing", handle, other)
			}
			must(t, dialAdmin(t, addresses[0]).CancelJob(testContext(t), handle))
			for _, server := range f.bridge.Servers {
				f.bridge.sweep(t.Context(), f.bridge.assignments.from(server.Name), f.bridge.ignored(t.Context(), server))
			}
			f.checkFailedOnce(proxies[0], f.awaitAbandoned(requests[0].State().UUID), handle)
			build := f.build(requests[1].State().UUID)
			if build.Spec.Abort {
				t.Error("the build of the other server was stopped")
			}
			f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
			if state := awaitEnd(t, requests[1]); state.Result != "SUCCESS" {
				t.Errorf("result %q", state.Result)
			}
		})
	}
}

// TestIgnoredIsNotJoinedForLong: who asks gearmand for the unique of a job it ignores is joined to that job, and is told at once to ask again.
func TestIgnoredIsNotJoinedForLong(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		f := startBridge(t, address, never)
		f.job("unit")
		gone := dialZuul(t, address, zuulclient.Zuul2)
		first := submit(t, gone, zuulclient.Request{Job: "unit"})
		unique := first.State().UUID
		awaitStart(t, first)
		must(t, gone.Close())
		admin := dialAdmin(t, address)
		gearmantest.Eventually(t, patience, "an ignored job", func() bool {
			jobs, err := admin.ShowJobs(testContext(t))
			must(t, err)
			return len(jobs) == 1 && jobs[0].Ignored
		})
		joined := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit", UUID: unique})
		if joined.State().Handle != first.State().Handle {
			t.Fatalf("not joined: handles %s and %s", joined.State().Handle, first.State().Handle)
		}
		server := f.bridge.Servers[0]
		f.bridge.sweep(testContext(t), f.bridge.assignments.from(server.Name), f.bridge.ignored(testContext(t), server))
		if state, err := joined.Wait(testContext(t)); err != nil || state.Outcome != zuulclient.Retry {
			t.Errorf("outcome %s, %v", state.Outcome, err)
		}
		f.awaitAbandoned(unique)
	})
}

// TestSameUniqueTwice: geard takes the same unique twice. The build goes on while one of the two who asked is there.
func TestSameUniqueTwice(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	proxy := gearmantest.NewProxy(t, address)
	f := startBridge(t, proxy.Address, often)
	f.job("unit")
	leaves, stays := dialZuul(t, address, zuulclient.Zuul2), dialZuul(t, address, zuulclient.Zuul2)
	first := submit(t, leaves, zuulclient.Request{Job: "unit"})
	awaitStart(t, first)
	second := submit(t, stays, zuulclient.Request{Job: "unit", UUID: first.State().UUID})
	awaitStart(t, second)
	must(t, leaves.Close())
	gearmantest.Eventually(t, patience, "the end of the first", func() bool { return finals(proxy, first.State().Handle)[gearman.PacketWorkFail] == 1 })
	build := f.build(first.State().UUID)
	if build.Spec.Abort {
		t.Fatal("stopped")
	}
	f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
	if state := awaitEnd(t, second); state.Result != "SUCCESS" {
		t.Errorf("result %q", state.Result)
	}
}

// TestGhostIsSwept: a job that nobody waits for when it is assigned (geard 0.4) is found without waiting for a sweep.
func TestGhostIsSwept(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	proxy := gearmantest.NewProxy(t, address)
	open := make(chan struct{})
	f := startBridge(t, proxy.Address, func(bridge *Bridge) {
		never(bridge)
		bridge.Numbers = gate{bridge.Numbers, open}
	})
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	request := submit(t, zuul, zuulclient.Request{Job: "unit"})
	gearmantest.Eventually(t, patience, "the request", func() bool { return len(f.bridge.assignments.all()) == 1 })
	must(t, zuul.Close())
	admin := dialAdmin(t, address)
	gearmantest.Eventually(t, patience, "no job on the server", func() bool {
		functions, err := admin.Status(testContext(t))
		must(t, err)
		return !slices.ContainsFunc(functions, func(function gearman.FunctionStatus) bool { return function.Running > 0 })
	})
	close(open)
	f.checkFailedOnce(proxy, f.awaitAbandoned(request.State().UUID), request.State().Handle)
}

func TestNextSweep(t *testing.T) {
	for interval, want := range map[time.Duration][2]time.Duration{
		0:                {15 * time.Second, 25 * time.Second},
		12 * time.Second: {6 * time.Second, 10 * time.Second},
		1:                {0, 1},
	} {
		bridge := &Bridge{SweepInterval: interval}
		for range 100 {
			if got := bridge.nextSweep(); got < want[0] || got > want[1] {
				t.Fatalf("interval %v: next sweep after %v", interval, got)
			}
		}
	}
}
