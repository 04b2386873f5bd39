package gearmanbridge

import (
	"context"
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// TestStopRunning: stop: is answered before the build ends, marks it, and the build then ends on its own job.
func TestStopRunning(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, func(bridge *Bridge) { bridge.MaxBuilds = capacity.NewCeiling(1) }) // so that there is no free slot for stop: either
		f.job("unit")
		for _, dialect := range []zuulclient.Dialect{zuulclient.Zuul2, zuulclient.Branch} {
			t.Run(dialect.String(), func(t *testing.T) {
				request := submit(t, dialZuul(t, address, dialect), zuulclient.Request{Job: "unit"})
				awaitStart(t, request)
				build := f.build(request.State().UUID)
				f.runs(build)
				for range 2 { // Zuul often asks more than once
					cancellation, err := request.Cancel(testContext(t))
					must(t, err)
					answer, err := cancellation.Stop.Wait(testContext(t))
					must(t, err)
					if answer.Type != gearman.PacketWorkComplete || len(answer.Data) > 0 {
						t.Errorf("stop: answered with %v %q", answer.Type, answer.Data)
					}
				}
				build = f.awaitBuild(request.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
				if build.Spec.AbortReason != v1alpha1.AbortStopped || request.State().Ended() {
					t.Errorf("reason %q, ended %v after stop:", build.Spec.AbortReason, request.State().Ended())
				}
				f.ends(build, v1alpha1.PhaseAborted, "ABORTED")
				state := awaitEnd(t, request)
				if state.Outcome != zuulclient.Canceled || state.Result != "ABORTED" {
					t.Errorf("Zuul made of it %s %q", state.Outcome, state.Result)
				}
				if types := packetTypes(state); types[len(types)-1] != gearman.PacketWorkFail {
					t.Errorf("packets %v", types)
				}
			})
		}
	})
}

// slowPatches is a client whose patches of ZuulBuilds wait until it is opened.
type slowPatches struct {
	client.Client
	asked, open chan struct{}
}

func (c slowPatches) Patch(ctx context.Context, object client.Object, patch client.Patch, options ...client.PatchOption) error {
	if _, is := object.(*v1alpha1.ZuulBuild); is {
		c.asked <- struct{}{}
		select {
		case <-c.open:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.Client.Patch(ctx, object, patch, options...)
}

// TestStopDoesNotWaitForTheAPI: where the API server is slow, stop: is answered before the stop is written down, which a SIGTERM does not prevent.
func TestStopDoesNotWaitForTheAPI(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	slow := slowPatches{asked: make(chan struct{}, 10), open: make(chan struct{})}
	f := startBridge(t, address, func(bridge *Bridge) {
		slow.Client = bridge.Client
		bridge.Client = slow
	})
	f.job("unit")
	request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	cancellation, err := request.Cancel(testContext(t))
	must(t, err)
	answer, err := cancellation.Stop.Wait(testContext(t))
	must(t, err)
	if answer.Type != gearman.PacketWorkComplete || len(answer.Data) > 0 {
		t.Errorf("stop: answered with %v %q", answer.Type, answer.Data)
	}
	if f.build(request.State().UUID).Spec.Abort {
		t.Error("the build was marked although no patch came through")
	}
	<-slow.asked
	f.stop()
	close(slow.open)
	f.awaitBuild(request.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
}

// TestStopOthers: every stop: is answered, and stops the build it names and no other.
func TestStopOthers(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		finished := submit(t, zuul, zuulclient.Request{Job: "unit"})
		f.ends(f.build(finished.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		awaitEnd(t, finished)
		running := submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, running)
		build := f.build(running.State().UUID)

		stops := map[string]struct {
			argument string
			answer   gearman.PacketType
		}{
			"finished":                {fmt.Sprintf(`{"name": "unit", "number": %d}`, build.Spec.Number-1), gearman.PacketWorkComplete},
			"finished, by its unique": {finished.State().UUID, gearman.PacketWorkComplete},
			"wrong number":            {fmt.Sprintf(`{"name": "unit", "number": %d}`, build.Spec.Number+1), gearman.PacketWorkFail},
			"wrong name":              {fmt.Sprintf(`{"name": "other", "number": %d}`, build.Spec.Number), gearman.PacketWorkFail},
			"name in capitals":        {fmt.Sprintf(`{"name": "UNIT", "number": %d}`, build.Spec.Number), gearman.PacketWorkFail},
			"unknown unique":          {zuulclient.NewUUID(), gearman.PacketWorkFail},
			"part of a unique":        {build.Spec.UUID[:31], gearman.PacketWorkFail},
			"JSON null":               {"null", gearman.PacketWorkFail},
		}
		for name, argument := range malformedStops() {
			stops[name] = struct {
				argument string
				answer   gearman.PacketType
			}{argument, gearman.PacketWorkFail}
		}
		for name, stop := range stops {
			task, err := zuul.Gearman.Submit(testContext(t), gearman.PriorityHigh, "stop:"+testManager, zuulclient.NewUUID(), []byte(stop.argument))
			must(t, err)
			answer, err := task.Wait(testContext(t))
			must(t, err)
			if answer.Type != stop.answer {
				t.Errorf("%s: answered with %v, want %v", name, answer.Type, stop.answer)
			}
		}
		if build := f.build(running.State().UUID); build.Spec.Abort {
			t.Error("the running build was stopped")
		}
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, running); state.Result != "SUCCESS" {
			t.Errorf("result %q", state.Result)
		}
	})
}

// gate lets no number out until it is opened.
type gate struct {
	Numbers
	open chan struct{}
}

func (g gate) Next(ctx context.Context, job types.NamespacedName, name string) (int64, error) {
	select {
	case <-g.open:
		return g.Numbers.Next(ctx, job, name)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// TestStopBeforeBuild: a stop: that comes while the build is on its way has it come into being aborted.
func TestStopBeforeBuild(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		open := make(chan struct{})
		f := startBridge(t, address, func(bridge *Bridge) { bridge.Numbers = gate{bridge.Numbers, open} })
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Branch)
		request := submit(t, zuul, zuulclient.Request{Job: "unit"})
		gearmantest.Eventually(t, patience, "the request", func() bool { return len(f.bridge.assignments.all()) == 1 })
		stop, err := zuul.Gearman.Submit(testContext(t), gearman.PriorityHigh, "stop:"+testManager, zuulclient.NewUUID(), []byte(request.State().UUID))
		must(t, err)
		answer, err := stop.Wait(testContext(t))
		must(t, err)
		if answer.Type != gearman.PacketWorkComplete {
			t.Errorf("answered with %v", answer.Type)
		}
		close(open)
		build := f.awaitBuild(request.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
		f.ends(build, v1alpha1.PhaseAborted, "ABORTED")
		awaitEnd(t, request)
	})
}
