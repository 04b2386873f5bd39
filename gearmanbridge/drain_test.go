package gearmanbridge

import (
	"context"
	"strings"
	"testing"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

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
		err := f.bridge.Drain(impatient)
		if err == nil || !strings.Contains(err.Error(), "not yet reported: 2") {
			t.Errorf("two builds run, and the end of the drain tells %v", err)
		}
		for _, build := range []*zuulclient.Build{running, stopped} {
			f.awaitLine(build.State().UUID, "Not yet reported")
		}
		gearmantest.Eventually(t, patience, "no grab on its way, which could bring one build more", func() bool {
			f.bridge.slots.mu.Lock()
			defer f.bridge.slots.mu.Unlock()
			return len(f.bridge.slots.reserved) == 0
		})
		drained := make(chan error, 1)
		go func() { drained <- f.bridge.Drain(testContext(t)) }()
		late := submit(t, zuul, zuulclient.Request{Job: "unit"})
		_, err = stopped.Cancel(testContext(t))
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
