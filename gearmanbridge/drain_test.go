package gearmanbridge

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
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
		f.awaitNoGrab()
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

// TestStopOnItsWay: a stop: that the server has given out when the drain is over is answered, although the operator ends then. geard would fail it.
func TestStopOnItsWay(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f, _ := startReplica(t, proxy.Address, nil)
		f.job("unit")
		gearmantest.Eventually(t, patience, "everything registered", f.bridge.Ready)
		build := &v1alpha1.ZuulBuild{
			ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: zuulclient.NewUUID(), Labels: map[string]string{
				v1alpha1.LabelGearmanServer: "zuul", v1alpha1.LabelReplica: "other",
			}},
			Spec: v1alpha1.ZuulBuildSpec{Job: "unit", JobRef: &v1alpha1.JobReference{Name: "unit"}, Number: 7},
		}
		build.Spec.UUID = build.Name
		must(t, f.api.Create(t.Context(), build))
		f.awaitSeen(build, "the build", func(*v1alpha1.ZuulBuild) bool { return true })

		zuul := dialZuul(t, address, zuulclient.Zuul2)
		awaitAnswer(t, zuul) // so that the bridge serves
		given := func() bool {
			return slices.ContainsFunc(proxy.Packets(gearmantest.FromServer), func(p gearman.Packet) bool {
				return p.Type == gearman.PacketJobAssignUniq && strings.Contains(p.String(), build.Name)
			})
		}
		proxy.Delay(200 * time.Millisecond)
		stop, err := zuul.Gearman.Submit(testContext(t), gearman.PriorityHigh, "stop:"+testManager, zuulclient.NewUUID(), []byte(build.Name))
		must(t, err)
		gearmantest.Eventually(t, patience, "the server to give out the stop:", given)
		must(t, f.bridge.Drain(testContext(t)))
		f.stop()
		answer, err := stop.Wait(testContext(t))
		must(t, err)
		if answer.Type != gearman.PacketWorkComplete {
			t.Errorf("stop: was answered with %v", answer.Type)
		}
		f.awaitBuild(build.Name, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
	})
}

// TestDrainWithoutServer: a server that is away, or mute, holds up the end of a drain for a moment at most.
func TestDrainWithoutServer(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	for name, fail := range map[string]func(*gearmantest.Proxy){
		"away": func(proxy *gearmantest.Proxy) { proxy.Refuse(true); proxy.Cut() },
		"mute": func(proxy *gearmantest.Proxy) { proxy.HalfOpen(true) },
	} {
		t.Run(name, func(t *testing.T) {
			proxy := gearmantest.NewProxy(t, address)
			f := startBridge(t, proxy.Address, nil)
			gearmantest.Eventually(t, patience, "everything registered", f.bridge.Ready)
			fail(proxy)
			begun := time.Now()
			must(t, f.bridge.Drain(testContext(t)))
			if took := time.Since(begun); took > drainCommands+5*time.Second {
				t.Errorf("the drain took %v", took)
			}
		})
	}
}

// awaitNoGrab waits until no grab is on its way, which could bring one build more.
func (f *fixture) awaitNoGrab() {
	f.t.Helper()
	gearmantest.Eventually(f.t, patience, "no grab on its way", func() bool {
		f.bridge.slots.mu.Lock()
		defer f.bridge.slots.mu.Unlock()
		return len(f.bridge.slots.reserved) == 0
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
