package gearmanbridge

import (
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// TestLimitsComeAndGo: a function that goes to another connection with what limits it always has a worker. To Zuul it would be NOT_REGISTERED.
func TestLimitsComeAndGo(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		job := f.job("unit")
		awaitWorkers(t, address, "build:unit", 1)
		admin, err := gearman.DialAdmin(testContext(t), address, nil)
		must(t, err)
		defer func() { _ = admin.Close() }()
		for change := range 4 {
			f.limit(job, int32(change+1)%2)
			for begun := time.Now(); time.Since(begun) < 200*time.Millisecond; {
				functions, err := admin.Status(testContext(t))
				must(t, err)
				for _, status := range functions {
					if status.Name == "build:unit" && status.Workers == 0 {
						t.Fatalf("no worker %v after change %d", time.Since(begun), change)
					}
				}
			}
		}
		awaitWorkers(t, address, "build:unit", 1) // the others have gone
	})
}

// TestCeilingIsMoved: when --max-builds is raised, a request that waits is taken; when it is lowered, none is until there is room again.
func TestCeilingIsMoved(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		ceiling := capacity.NewCeiling(1)
		f := startBridge(t, address, func(bridge *Bridge) { bridge.MaxBuilds = ceiling })
		f.job("unit")
		most := f.watchUnfinished()
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		var requests []*zuulclient.Build
		for range 4 {
			requests = append(requests, submit(t, zuul, zuulclient.Request{Job: "unit"}))
		}
		awaitStart(t, requests[0])
		ceiling.Set(2)
		awaitStart(t, requests[1])
		ceiling.Set(1)
		gearmantest.Eventually(t, patience, "the lower limit", func() bool {
			f.bridge.slots.mu.Lock()
			defer f.bridge.slots.mu.Unlock()
			return f.bridge.slots.limits.All == 1
		})
		for i, request := range requests[:3] {
			f.ends(f.build(request.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
			awaitAnswer(t, zuul)
			if i > 0 {
				awaitStart(t, requests[i+1])
			} else if requests[2].State().Starts > 0 {
				t.Error("a request was taken above the lower limit")
			}
		}
		if most := most(); most != 2 {
			t.Errorf("there were %d builds at once, not 2", most)
		}
	})
}

// TestLimitLowered below what runs: nothing is stopped, and nothing more is taken until there are fewer.
func TestLimitLowered(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		job := f.limitedJob("unit", 3)
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		for range 4 {
			submit(t, zuul, zuulclient.Request{Job: "unit"})
		}
		running := f.awaitUnfinished(3)
		f.limit(job, 1)
		for i := range running {
			awaitAnswer(t, zuul)
			for _, build := range f.builds() {
				if build.Spec.Abort {
					t.Errorf("build %s is stopped", build.Name)
				}
			}
			if builds := f.builds(); len(builds) != 3 {
				t.Fatalf("%d builds with %d unfinished and room for 1", len(builds), 3-i)
			}
			f.ends(&running[i], v1alpha1.PhaseSucceeded, "SUCCESS")
			f.awaitSeen(&running[i], "the end of a build", (*v1alpha1.ZuulBuild).Complete)
		}
		f.awaitUnfinished(4)
	})
}

// limit changes the limit of a job, and waits until the bridge keeps to it.
func (f *fixture) limit(job *v1alpha1.ZuulJob, maxBuilds int32) {
	f.t.Helper()
	before := job.DeepCopy()
	job.Spec.MaxBuilds = maxBuilds
	must(f.t, f.api.Patch(f.t.Context(), job, client.MergeFrom(before)))
	f.awaitLimit(func(l *capacity.Limits) bool { return l.Jobs[client.ObjectKeyFromObject(job)] == int(maxBuilds) })
}

func (f *fixture) awaitLimit(condition func(*capacity.Limits) bool) {
	f.t.Helper()
	gearmantest.Eventually(f.t, patience, "the changed limit", func() bool {
		f.bridge.slots.mu.Lock()
		defer f.bridge.slots.mu.Unlock()
		return condition(&f.bridge.slots.limits)
	})
}

// TestLimitIsNew: a class gets a limit while more builds of it run. They run on as they are, their connection holds up nothing else, and it closes
// after the last of them.
func TestLimitIsNew(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		class := f.class("arm", 0)
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		arm := zuulclient.Request{Job: "unit", Node: "arm"}
		running := []*zuulclient.Build{submit(t, zuul, arm), submit(t, zuul, arm)}
		for _, build := range running {
			awaitStart(t, build)
		}
		before := class.DeepCopy()
		class.Spec.MaxBuilds = 1
		must(t, f.api.Patch(t.Context(), class, client.MergeFrom(before)))
		awaitWorkers(t, address, "build:unit:arm", 2)
		waiting := submit(t, zuul, arm)
		awaitStart(t, submit(t, zuul, zuulclient.Request{Job: "unit"}))
		for _, build := range running {
			if len(waiting.State().Packets) > 0 {
				t.Error("the full class took one more")
			}
			f.ends(f.build(build.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
			if state := awaitEnd(t, build); state.Result != "SUCCESS" || state.Starts != 1 {
				t.Errorf("result %q after %d starts", state.Result, state.Starts)
			}
		}
		awaitStart(t, waiting)
		awaitWorkers(t, address, "build:unit:arm", 1)
		awaitWorkers(t, address, "build:unit", 1)
	})
}
