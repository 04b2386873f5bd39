package gearmanbridge

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// mates are other replicas as a test has them.
type mates struct {
	mu     sync.Mutex
	alive  map[string]bool
	unseen time.Duration
}

func (m *mates) Unseen() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unseen
}

// cutOff has the API server be silent for so long; 0: it answers.
func (m *mates) cutOff(unseen time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unseen = unseen
}

func (m *mates) set(identity string, alive bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alive[identity] = alive
}

func (m *mates) Alive(identity string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.alive[identity]
}

func (m *mates) Others() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.alive) > 0
}

// startReplica runs a bridge that is replica "self" beside "other", which lives.
func startReplica(t *testing.T, address string, change func(*Bridge)) (*fixture, *mates) {
	t.Helper()
	others := &mates{alive: map[string]bool{"other": true}}
	return startBridge(t, address, func(bridge *Bridge) {
		bridge.Identity, bridge.Replicas, bridge.GracePeriod = "self", others, 500*time.Millisecond
		if change != nil {
			change(bridge)
		}
	}), others
}

// TestStandby: a replica that does not lead offers everything and takes nothing, until it leads.
func TestStandby(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f, _ := startReplica(t, address, nil)
		f.job("unit")
		gearmantest.Eventually(t, patience, "everything registered", f.bridge.Ready)
		f.bridge.Follow()
		f.awaitNoGrab()
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		request := submit(t, zuul, zuulclient.Request{Job: "unit"})
		job := f.job("later") // registered, though only the leader writes that down
		admin, err := gearman.DialAdmin(testContext(t), address, nil)
		must(t, err)
		defer func() { _ = admin.Close() }()
		gearmantest.Eventually(t, patience, "the function of a job made later", func() bool {
			functions, err := admin.Status(testContext(t))
			must(t, err)
			for _, function := range functions {
				if function.Name == "build:later" && function.Workers == 1 {
					return true
				}
			}
			return false
		})
		must(t, f.api.Get(t.Context(), client.ObjectKeyFromObject(job), job))
		if len(job.Status.Conditions) > 0 || len(f.builds()) > 0 || len(request.State().Packets) > 0 {
			t.Errorf("conditions %v, %d builds, packets %v", job.Status.Conditions, len(f.builds()), packetTypes(request.State()))
		}
		f.bridge.Lead()
		awaitStart(t, request)
		f.awaitRegistered("later", "Registered")
		if replica := f.build(request.State().UUID).Labels[v1alpha1.LabelReplica]; replica != "self" {
			t.Errorf("the build is labelled as that of replica %q", replica)
		}
		f.bridge.Follow()
		f.ends(f.build(request.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, request); state.Result != "SUCCESS" {
			t.Errorf("who leads no more reported %q", state.Result)
		}
	})
}

// TestBuildOfAnotherReplica: nobody calls a build abandoned whose replica lives; when that one is gone, the leader does.
func TestBuildOfAnotherReplica(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f, others := startReplica(t, address, often)
		f.job("unit")
		build := &v1alpha1.ZuulBuild{
			ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: zuulclient.NewUUID(), Labels: map[string]string{
				v1alpha1.LabelGearmanServer: "zuul", v1alpha1.LabelReplica: "other",
			}},
			Spec: v1alpha1.ZuulBuildSpec{Job: "unit", JobRef: &v1alpha1.JobReference{Name: "unit"}, UUID: "strange", Number: 7},
		}
		build.Spec.UUID = build.Name
		must(t, f.api.Create(t.Context(), build))
		f.awaitSeen(build, "the build", func(*v1alpha1.ZuulBuild) bool { return true })
		f.bridge.Follow()
		others.set("other", false)
		time.Sleep(3 * f.bridge.GracePeriod) // nothing shows that nothing happens
		others.set("other", true)
		f.bridge.Lead()
		time.Sleep(3 * f.bridge.GracePeriod)
		if f.build(build.Name).Spec.Abort {
			t.Fatal("the build of another replica was called abandoned by one that does not lead, or while the other lives")
		}
		others.set("other", false)
		f.awaitAbandoned(build.Name)
	})
}

// TestReplicaIsLookedForAgain: a build whose replica lives is looked at again, whatever its server can be asked, for that replica may die.
func TestReplicaIsLookedForAgain(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	f, _ := startReplica(t, address, nil)
	build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: "anonymous", Labels: map[string]string{
		v1alpha1.LabelGearmanServer: "zuul", v1alpha1.LabelReplica: "other",
	}}}
	again, err := f.bridge.reporters["zuul"].abandon(t.Context(), build, false)
	must(t, err)
	if again.RequeueAfter != strangerCheck {
		t.Errorf("looked at again after %v", again.RequeueAfter)
	}
}

// TestClaim: a build whose job comes to another replica is that one's from then on.
func TestClaim(t *testing.T) {
	onEveryGearmand(t, func(t *testing.T, address string) {
		proxy := gearmantest.NewProxy(t, address)
		f, _ := startReplica(t, proxy.Address, nil)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		f.awaitListener(build)
		before := build.DeepCopy()
		build.Labels[v1alpha1.LabelReplica] = "other"
		must(t, f.api.Patch(t.Context(), build, client.MergeFrom(before)))
		f.awaitSeen(build, "the label", func(seen *v1alpha1.ZuulBuild) bool { return seen.Labels[v1alpha1.LabelReplica] == "other" })
		proxy.Cut()
		f.awaitBuild(build.Name, "to be claimed", func(build *v1alpha1.ZuulBuild) bool { return build.Labels[v1alpha1.LabelReplica] == "self" })
	})
}

// lateCache shows no ZuulBuilds in the next few lists of them.
type lateCache struct {
	client.Client
	late atomic.Int32
}

func (c *lateCache) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	if _, builds := list.(*v1alpha1.ZuulBuildList); builds && c.late.Add(-1) >= 0 {
		return nil
	}
	return c.Client.List(ctx, list, options...)
}

// TestStopOfBuildJustMadeElsewhere: the cache learns a moment late of a build that another replica made, and its stop: is for this one.
func TestStopOfBuildJustMadeElsewhere(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	cache := &lateCache{}
	f, _ := startReplica(t, address, func(bridge *Bridge) { cache.Client, bridge.Client = bridge.Client, cache })
	f.job("unit")
	zuul := dialZuul(t, address, zuulclient.Zuul2)
	unique := zuulclient.NewUUID()
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.namespace, Name: unique, Labels: map[string]string{
			v1alpha1.LabelGearmanServer: "zuul", v1alpha1.LabelReplica: "other",
		}},
		Spec: v1alpha1.ZuulBuildSpec{Job: "unit", JobRef: &v1alpha1.JobReference{Name: "unit"}, UUID: unique, Number: 7},
	}
	must(t, f.api.Create(t.Context(), build))
	f.awaitSeen(build, "the build", func(*v1alpha1.ZuulBuild) bool { return true })
	cache.late.Store(2)
	if answer := askStop(t, zuul, unique); answer != gearman.PacketWorkComplete {
		t.Errorf("stop: was answered with %v", answer)
	}
	f.awaitBuild(unique, "to be stopped", func(build *v1alpha1.ZuulBuild) bool { return build.Spec.Abort })
	if answer := askStop(t, zuul, zuulclient.NewUUID()); answer != gearman.PacketWorkFail {
		t.Errorf("stop: of an unknown build was answered with %v", answer)
	}
}

// TestCutOffLeavesCommands: a replica that led and is cut off from the API server leaves stop: to others, who know the builds that were taken since, until
// the API server answers again.
func TestCutOffLeavesCommands(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f, others := startReplica(t, address, func(bridge *Bridge) { bridge.behindFor = time.Second })
		f.job("unit")
		gearmantest.Eventually(t, patience, "everything registered", f.bridge.Ready)
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		others.cutOff(time.Hour)
		if answer := askStop(t, zuul, zuulclient.NewUUID()); answer != gearman.PacketWorkFail {
			t.Errorf("who leads answered stop: with %v", answer)
		}
		f.bridge.Follow()
		task, err := zuul.Gearman.Submit(testContext(t), gearman.PriorityHigh, stopFunction+testManager, "", []byte(zuulclient.NewUUID()))
		must(t, err)
		silence, cancel := context.WithTimeout(t.Context(), 2*strangeBuilds) // nothing shows that nothing happens
		defer cancel()
		if event, err := task.Next(silence); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("who is cut off answered stop: with %v, %v", event.Type, err)
		}
		others.cutOff(0)
		answer, err := task.Wait(testContext(t))
		must(t, err)
		if answer.Type != gearman.PacketWorkFail {
			t.Errorf("stop: was answered with %v", answer.Type)
		}
	})
}

// TestCutOffGivesJobsBack: on gearmand the builds of a replica that is cut off from the API server are another one's, here itself once it is cut off no
// more; on geard they would be lost, and stay.
func TestCutOffGivesJobsBack(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f, others := startReplica(t, address, nil)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		build := f.build(request.State().UUID)
		before := f.awaitListener(build)
		behaviour := &f.bridge.sessions[0].behaviour
		gearmantest.Eventually(t, patience, "the server known", func() bool { return behaviour.value.Load() != nil })
		f.bridge.Follow()
		others.cutOff(time.Hour)
		if behaviour.forgets() {
			time.Sleep(3 * cutOffCheck) // nothing shows that nothing happens
			if err := before.job.Err(); err != nil {
				t.Errorf("the job ended: %v", err)
			}
		} else {
			gearmantest.Eventually(t, patience, "the job given back", func() bool { return errors.Is(before.job.Err(), gearman.ErrHandleLost) })
		}
		others.cutOff(0)
		f.bridge.Lead()
		f.awaitListener(build)
		f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
		if state := awaitEnd(t, request); state.Outcome != zuulclient.Decided || state.Result != "SUCCESS" {
			t.Errorf("the build ended %q with %q", state.Outcome, state.Result)
		}
	})
}

// unreachable is an API server that answers no request to make something.
type unreachable struct {
	client.Client
	asked chan struct{} // closed by the first one
}

func (u unreachable) Create(context.Context, client.Object, ...client.CreateOption) error {
	select {
	case <-u.asked:
	default:
		close(u.asked)
	}
	return errors.New("connection refused")
}

// TestCutOffKeepsNoRequest: a job that was taken just before the lead was lost, and whose build could not be made, is another replica's on gearmand; on
// geard Zuul asks again.
func TestCutOffKeepsNoRequest(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		asked := make(chan struct{})
		f, others := startReplica(t, address, func(bridge *Bridge) { bridge.Client = unreachable{bridge.Client, asked} })
		f.job("unit")
		behaviour := &f.bridge.sessions[0].behaviour
		gearmantest.Eventually(t, patience, "the server known", func() bool { return behaviour.value.Load() != nil })
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		<-asked
		f.bridge.Follow()
		others.cutOff(time.Hour)
		if behaviour.forgets() {
			if state := awaitEnd(t, request); state.Outcome != zuulclient.Retry {
				t.Errorf("the request ended %q with %q", state.Outcome, state.Result)
			}
		}
		gearmantest.Eventually(t, patience, "the job given up", func() bool { return len(f.bridge.assignments.all()) == 0 })
		if state := request.State(); behaviour.requeues() && len(state.Packets) > 0 {
			t.Errorf("the request that waits in gearmand was answered: %v", packetTypes(state))
		}
	})
}

// TestBehind: after a cut the cache may be old for a while, and only who leads answers commands meanwhile.
func TestBehind(t *testing.T) {
	others := &mates{}
	b := &Bridge{Replicas: others}
	check := func(when string, answers bool) {
		t.Helper()
		if b.answersCommands() != answers {
			t.Errorf("%s: it answers commands: %t", when, !answers)
		}
	}
	check("before it has led", false)
	b.leads.Store(true)
	b.led.Store(true)
	check("while it leads", true)
	b.leads.Store(false)
	check("when it leads no more", true)
	others.cutOff(time.Hour)
	check("while it is cut off", false)
	others.cutOff(0)
	b.lastCut.Store(new(time.Now().Add(-behindFor / 2)))
	check("half a minute after", false)
	b.leads.Store(true)
	check("half a minute after, while it leads", true)
	b.leads.Store(false)
	b.lastCut.Store(new(time.Now().Add(-behindFor)))
	check("a minute after", true)
}
