package gearmanbridge

import (
	"context"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// watchUnfinished notes the most builds that were ever unfinished at once. The function it returns ends that.
func (f *fixture) watchUnfinished() (most func() int) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	watch, err := f.api.Watch(ctx, &v1alpha1.ZuulBuildList{}, client.InNamespace(f.namespace))
	must(f.t, err)
	result := make(chan int)
	go func() {
		highest := 0
		unfinished := map[string]bool{}
		for event := range watch.ResultChan() {
			if build, is := event.Object.(*v1alpha1.ZuulBuild); is {
				delete(unfinished, build.Name)
				if !build.Complete() {
					unfinished[build.Name] = true
				}
				highest = max(highest, len(unfinished))
			}
		}
		result <- highest
	}()
	return func() int {
		watch.Stop()
		cancel()
		return <-result
	}
}

// TestCapacity: never more unfinished builds than there may be, and the next comes when one has ended.
func TestCapacity(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, func(bridge *Bridge) { bridge.MaxBuilds = 2 })
		most := f.watchUnfinished()
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		var requests []*zuulclient.Build
		for range 5 {
			requests = append(requests, submit(t, zuul, zuulclient.Request{Job: "unit"}))
		}
		f.job("unit")
		for ended := range requests {
			var next *v1alpha1.ZuulBuild
			gearmantest.Eventually(t, patience, "the next builds", func() bool {
				builds := f.builds()
				for i := range builds {
					if !builds[i].Complete() {
						next = &builds[i]
					}
				}
				return len(builds) == min(ended+2, len(requests))
			})
			f.ends(next, v1alpha1.PhaseSucceeded, "SUCCESS")
		}
		for _, request := range requests {
			if state := awaitEnd(t, request); state.Result != "SUCCESS" {
				t.Errorf("result %q", state.Result)
			}
		}
		if most := most(); most != 2 {
			t.Errorf("%d builds were unfinished at once", most)
		}
	})
}

// TestCapacityAfterDelete: a build that nobody waits for takes a slot too, and gives it back also when it is deleted.
func TestCapacityAfterDelete(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, func(bridge *Bridge) { bridge.MaxBuilds = 1 })
		f.job("unit")
		f.awaitRegistered("unit", reasonRegistered)
		byHand := &v1alpha1.ZuulBuild{}
		byHand.Namespace, byHand.Name, byHand.Spec.Job = f.namespace, "by-hand", "unit"
		must(t, f.api.Create(t.Context(), byHand))
		f.awaitSeen(byHand, "the build in the cache", func(*v1alpha1.ZuulBuild) bool { return true })
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		request := submit(t, zuul, zuulclient.Request{Job: "unit"})
		// What a worker does about a request it may not grab, nobody sees. stop: is answered after it had the chance.
		awaitAnswer(t, zuul)
		if builds := f.builds(); len(builds) != 1 {
			t.Errorf("%d builds in one slot", len(builds))
		}
		must(t, f.api.Delete(t.Context(), byHand))
		f.ends(f.build(request.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		awaitEnd(t, request)
	})
}

// TestDrain: nothing new is taken, what runs is reported, and stop: is served meanwhile.
func TestDrain(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		running, stopped := submit(t, zuul, zuulclient.Request{Job: "unit"}), submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, running)
		awaitStart(t, stopped)

		impatient, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.bridge.Drain(impatient); err == nil {
			t.Error("drained with two builds running")
		}
		drained := make(chan error, 1)
		go func() { drained <- f.bridge.Drain(testContext(t)) }()
		late := submit(t, zuul, zuulclient.Request{Job: "unit"})
		_, err := stopped.Cancel(testContext(t))
		must(t, err)
		build := f.awaitBuild(stopped.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
		f.ends(build, v1alpha1.PhaseAborted, "ABORTED")
		awaitEnd(t, stopped)
		f.ends(f.build(running.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, running); state.Result != "SUCCESS" {
			t.Errorf("result %q", state.Result)
		}
		must(t, <-drained)
		if len(f.builds()) != 2 || len(late.State().Packets) != 0 {
			t.Errorf("%d builds; the one submitted last had %d packets", len(f.builds()), len(late.State().Packets))
		}
	})
}

// awaitAnswer goes once to the bridge and back.
func awaitAnswer(t *testing.T, zuul *zuulclient.Client) {
	t.Helper()
	task, err := zuul.Gearman.Submit(testContext(t), 0, "stop:"+testManager, zuulclient.NewUUID(), []byte("nothing"))
	must(t, err)
	_, err = task.Wait(testContext(t))
	must(t, err)
}
