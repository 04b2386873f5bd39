package gearmanbridge

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
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

// onEveryMode runs the test with geard's behaviour and with the real gearmand in every mode that changes who is woken or served.
func onEveryMode(t *testing.T, test func(t *testing.T, address string)) {
	t.Run("embedded geard", func(t *testing.T) {
		address, _ := gearmantest.StartServer(t, gearman.Geard)
		test(t, address)
	})
	for _, mode := range []string{"", "--round-robin", "--worker-wakeup=1", "--job-retries=1"} {
		t.Run("real gearmand "+mode, func(t *testing.T) { test(t, gearmantest.StartGearmand(t, strings.Fields(mode)...)) })
	}
}

// class creates a ZuulNodeClass with a limit, 0 for none, for the time of the test.
func (f *fixture) class(name string, maxBuilds int32) *v1alpha1.ZuulNodeClass {
	f.t.Helper()
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ZuulNodeClassSpec{MaxBuilds: maxBuilds}}
	must(f.t, f.api.Create(f.t.Context(), class))
	f.t.Cleanup(func() { must(f.t, f.api.Delete(context.Background(), class)) })
	return class
}

// awaitWorkers waits until so many connections offer a function.
func awaitWorkers(t *testing.T, address, function string, workers int) {
	t.Helper()
	admin, err := gearman.DialAdmin(testContext(t), address, nil)
	must(t, err)
	defer func() { _ = admin.Close() }()
	gearmantest.Eventually(t, patience, fmt.Sprintf("%d workers for %s", workers, function), func() bool {
		functions, err := admin.Status(testContext(t))
		must(t, err)
		return slices.ContainsFunc(functions, func(status gearman.FunctionStatus) bool {
			return status.Name == function && status.Workers == workers
		})
	})
}

// awaitUnfinished waits for so many builds in all, and returns the unfinished ones.
func (f *fixture) awaitUnfinished(total int) []v1alpha1.ZuulBuild {
	f.t.Helper()
	var builds []v1alpha1.ZuulBuild
	gearmantest.Eventually(f.t, patience, fmt.Sprintf("%d builds", total), func() bool {
		builds = f.builds()
		return len(builds) == total
	})
	return slices.DeleteFunc(builds, func(build v1alpha1.ZuulBuild) bool { return build.Complete() })
}

// TestCapacity: never more unfinished builds than there may be, whichever limit it is, and the next comes when one has ended.
func TestCapacity(t *testing.T) {
	const room, total = 3, 10
	tests := map[string]func(*fixture) zuulclient.Request{
		"in all": func(f *fixture) zuulclient.Request {
			f.job("unit")
			return zuulclient.Request{Job: "unit"}
		},
		"of a class": func(f *fixture) zuulclient.Request {
			f.class("arm", room)
			f.job("unit")
			return zuulclient.Request{Job: "unit", Node: "arm"}
		},
		"of a job": func(f *fixture) zuulclient.Request {
			f.limitedJob("unit", room)
			return zuulclient.Request{Job: "unit"}
		},
	}
	for name, setup := range tests {
		t.Run(name, func(t *testing.T) {
			onEveryMode(t, func(t *testing.T, address string) {
				f := startBridge(t, address, func(bridge *Bridge) {
					if name == "in all" {
						bridge.MaxBuilds = capacity.NewCeiling(room)
					}
				})
				most := f.watchUnfinished()
				request := setup(f)
				zuul := dialZuul(t, address, zuulclient.Zuul2)
				var requests []*zuulclient.Build
				for range total {
					requests = append(requests, submit(t, zuul, request))
				}
				for ended := range total {
					next := f.awaitUnfinished(min(ended+room, total))
					f.ends(&next[0], v1alpha1.PhaseSucceeded, "SUCCESS")
				}
				for _, request := range requests {
					if state := awaitEnd(t, request); state.Result != "SUCCESS" {
						t.Errorf("result %q", state.Result)
					}
				}
				if most := most(); most != room {
					t.Errorf("%d builds were unfinished at once", most)
				}
			})
		})
	}
}

// limitedJob creates a ZuulJob with a limit.
func (f *fixture) limitedJob(name string, maxBuilds int32) *v1alpha1.ZuulJob {
	f.t.Helper()
	job := &v1alpha1.ZuulJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: name},
		Spec:       v1alpha1.ZuulJobSpec{Image: "image", Script: "true", MaxBuilds: maxBuilds},
	}
	must(f.t, f.api.Create(f.t.Context(), job))
	return job
}

// TestFullClassHoldsUpNothing: neither another class, nor builds for any node, nor stop:.
func TestFullClassHoldsUpNothing(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.class("full", 1)
		f.class("other", 1)
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		running := submit(t, zuul, zuulclient.Request{Job: "unit", Node: "full"})
		awaitStart(t, running)
		waiting := submit(t, zuul, zuulclient.Request{Job: "unit", Node: "full"})
		awaitStart(t, submit(t, zuul, zuulclient.Request{Job: "unit", Node: "other"}))
		awaitStart(t, submit(t, zuul, zuulclient.Request{Job: "unit"}))
		begun := time.Now()
		_, err := running.Cancel(testContext(t))
		must(t, err)
		stopped := f.awaitBuild(running.State().UUID, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
		if took := time.Since(begun); took > 15*time.Second { // the machine may be busy; what waits for a slot or a poll takes 30 s or for ever
			t.Errorf("stop: took %v", took)
		}
		if len(waiting.State().Packets) > 0 {
			t.Error("the full class took one more")
		}
		f.ends(stopped, v1alpha1.PhaseAborted, "ABORTED")
		awaitStart(t, waiting)
	})
}

// buildingPackets are those the bridge sent on the connection that offers a function, by type.
func buildingPackets(proxy *gearmantest.Proxy, function string) map[gearman.PacketType]int {
	streams := map[int]*bytes.Buffer{}
	for _, chunk := range proxy.Recording() {
		if chunk.Direction == gearmantest.ToServer {
			if streams[chunk.Connection] == nil {
				streams[chunk.Connection] = &bytes.Buffer{}
			}
			streams[chunk.Connection].Write(chunk.Bytes)
		}
	}
	for _, stream := range streams {
		types, offers := map[gearman.PacketType]int{}, false
		for {
			packet, err := gearman.ReadPacket(stream, 0)
			if err != nil {
				break
			}
			types[packet.Type]++
			offers = offers || packet.Type == gearman.PacketCanDo && string(packet.Args[0]) == function
		}
		if offers {
			return types
		}
	}
	return nil
}

// TestFullIsSilent: at capacity there is neither GRAB_JOB_UNIQ nor PRE_SLEEP, and when a slot frees there is one within a second.
func TestFullIsSilent(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f := startBridge(t, proxy.Address, func(bridge *Bridge) { bridge.MaxBuilds = capacity.NewCeiling(2) })
		f.limitedJob("unit", 2)
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		first, second := submit(t, zuul, zuulclient.Request{Job: "unit"}), submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, first)
		awaitStart(t, second)
		asked := func() int {
			packets := buildingPackets(proxy, "build:unit")
			return packets[gearman.PacketGrabJobUniq] + packets[gearman.PacketPreSleep]
		}
		full := asked()
		late := submit(t, zuul, zuulclient.Request{Job: "unit"})
		f.runs(f.build(first.State().UUID))
		f.awaitSeen(f.build(first.State().UUID), "the running build", func(build *v1alpha1.ZuulBuild) bool { return build.Status.StartTime != nil })
		awaitAnswer(t, zuul)
		if more := asked() - full; more > 0 {
			t.Errorf("a full pool sent %d grabs and sleeps", more)
		}
		f.ends(f.build(first.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		freed := time.Now()
		awaitStart(t, late)
		if took := time.Since(freed); took > 15*time.Second { // likewise
			t.Errorf("the slot was empty for %v", took)
		}
	})
}

// TestPrecedence: of the requests that wait in a pool, the one Zuul gave the highest precedence comes first.
func TestPrecedence(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.limitedJob("unit", 1)
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		running := submit(t, zuul, zuulclient.Request{Job: "unit"})
		awaitStart(t, running)
		low := submit(t, zuul, zuulclient.Request{Job: "unit", Precedence: gearman.PriorityLow})
		normal := submit(t, zuul, zuulclient.Request{Job: "unit"})
		high := submit(t, zuul, zuulclient.Request{Job: "unit", Precedence: gearman.PriorityHigh})
		for _, next := range []*zuulclient.Build{high, normal, low} {
			f.ends(f.build(running.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
			awaitStart(t, next)
			running = next
		}
	})
}

// TestPoolsTakeTurns: two pools compete for the only slot. There are never two builds, and each pool has its turn.
func TestPoolsTakeTurns(t *testing.T) {
	onEveryMode(t, func(t *testing.T, address string) {
		const each = 3
		f := startBridge(t, address, func(bridge *Bridge) { bridge.MaxBuilds = capacity.NewCeiling(1) })
		most := f.watchUnfinished()
		inTheWay := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: "in-the-way"}, Spec: v1alpha1.ZuulBuildSpec{Job: "other"}}
		must(t, f.api.Create(t.Context(), inTheWay))
		f.occupies(inTheWay)
		f.class("arm", 5)
		f.job("unit")
		awaitWorkers(t, address, "build:unit", 1)
		awaitWorkers(t, address, "build:unit:arm", 1)
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		for range each {
			submit(t, zuul, zuulclient.Request{Job: "unit", Node: "arm"})
			submit(t, zuul, zuulclient.Request{Job: "unit"})
		}
		f.ends(inTheWay, v1alpha1.PhaseSucceeded, "SUCCESS")
		var nodes []string
		for turn := range 2 * each {
			build := f.awaitUnfinished(turn + 2)[0]
			nodes = append(nodes, build.Spec.Node)
			f.ends(&build, v1alpha1.PhaseSucceeded, "SUCCESS")
		}
		for i := range len(nodes) - 1 {
			if nodes[i] == nodes[i+1] {
				t.Errorf("a pool had two turns of %q", nodes)
			}
		}
		if most := most(); most != 1 {
			t.Errorf("%d builds were unfinished at once", most)
		}
	})
}

// TestCapacityAfterDelete: a build that nobody waits for takes a slot too, and gives it back also when it is deleted.
func TestCapacityAfterDelete(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, func(bridge *Bridge) { bridge.MaxBuilds = capacity.NewCeiling(1) })
		f.job("unit")
		f.awaitRegistered("unit", reasonRegistered)
		byHand := &v1alpha1.ZuulBuild{}
		byHand.Namespace, byHand.Name, byHand.Spec.Job = f.namespace, "by-hand", "unit"
		must(t, f.api.Create(t.Context(), byHand))
		waits := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: "waits"}, Spec: v1alpha1.ZuulBuildSpec{Job: "unit"}}
		must(t, f.api.Create(t.Context(), waits)) // without a Pod it takes none
		f.occupies(byHand)
		f.awaitNoGrab()
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		request := submit(t, zuul, zuulclient.Request{Job: "unit"})
		// What a worker does about a request it may not grab, nobody sees. stop: is answered after it had the chance.
		awaitAnswer(t, zuul)
		if builds := f.builds(); len(builds) != 2 {
			t.Errorf("%d builds in one slot", len(builds)-1)
		}
		must(t, f.api.Delete(t.Context(), byHand))
		f.ends(f.build(request.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		awaitEnd(t, request)
	})
}

// occupies gives a build that was made by hand a Pod, and waits until it takes a slot.
func (f *fixture) occupies(build *v1alpha1.ZuulBuild) {
	f.t.Helper()
	before := build.DeepCopy()
	build.Status.Phase, build.Status.PodName = v1alpha1.PhaseRunning, build.Name
	must(f.t, f.api.Status().Patch(f.t.Context(), build, client.MergeFrom(before)))
	gearmantest.Eventually(f.t, patience, "a slot taken", func() bool { return f.used() == 1 })
}

// used is how many builds have a slot.
func (f *fixture) used() int {
	f.bridge.slots.mu.Lock()
	defer f.bridge.slots.mu.Unlock()
	return f.bridge.slots.count(&f.bridge.slots.limits).Of(capacity.Scope{}).All
}

// lateBuilds knows of no build while it is late.
type lateBuilds struct {
	Builds
	late  atomic.Bool
	asked atomic.Int32 // for a build while late
}

func (b *lateBuilds) Knows(key types.NamespacedName) bool {
	if b.late.Load() {
		b.asked.Add(1)
		return false
	}
	return b.Builds.Knows(key)
}

func (b *lateBuilds) Claimed(l *capacity.Limits) *capacity.Usage {
	if b.late.Load() {
		return &capacity.Usage{}
	}
	return b.Builds.Claimed(l)
}

// TestLostBeforeSeen: a build whose connection is lost before the cache shows it has its slot all the while.
func TestLostBeforeSeen(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	proxy := gearmantest.NewProxy(t, address)
	objects := &lateBuilds{}
	f := startBridge(t, proxy.Address, func(bridge *Bridge) {
		objects.Builds = bridge.Builds
		bridge.Builds, bridge.countedWithin = objects, patience
	})
	f.job("unit")
	f.awaitRegistered("unit", reasonRegistered)
	objects.late.Store(true)
	request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
	awaitStart(t, request)
	proxy.Refuse(true)
	proxy.Cut()
	awaitEnd(t, request)
	before := objects.asked.Load()
	gearmantest.Eventually(t, patience, "a look for the build", func() bool { return objects.asked.Load() > before+1 })
	if n := f.used(); n != 1 {
		t.Errorf("%d builds are counted before the cache has it", n)
	}
	objects.late.Store(false)
	f.awaitAlone()
	if n := f.used(); n != 1 {
		t.Errorf("%d builds are counted after", n)
	}
}
