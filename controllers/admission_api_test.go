package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
)

// most is how many builds of each group had a slot at once at most: their Pod had been made and they were not complete, or their Pod had not ended.
func (p *history) most(groups func(*v1alpha1.ZuulBuild) []string) map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortFunc(p.changes, func(a, b change) int { return a.version - b.version })
	type state struct {
		build       *v1alpha1.ZuulBuild
		made, ended bool
	}
	states, now, most := map[string]*state{}, map[string]int{}, map[string]int{}
	for _, c := range p.changes {
		s := states[c.key]
		if s == nil {
			s = &state{ended: true}
			states[c.key] = s
		}
		has := func() bool { return s.made && (!s.ended || !s.build.Complete()) }
		before := s.build != nil && has()
		if c.build != nil {
			s.build = c.build
		} else {
			s.made, s.ended = true, c.deleted || podTerminal(c.pod)
		}
		if after := has(); after && !before {
			for _, group := range groups(s.build) {
				now[group]++
				most[group] = max(most[group], now[group])
			}
		} else if before && !after {
			for _, group := range groups(s.build) {
				now[group]--
			}
		}
	}
	return most
}

// TestNoLimitIsExceeded: many builds at once, under every kind of limit, over restarts of the operator. At no moment of the API server's own history
// more builds have a slot than may, and all end.
func TestNoLimitIsExceeded(t *testing.T) {
	h := newHarness(t)
	h.maxBuilds = 20
	past, end := h.record()
	h.playKubelet()
	class := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: h.namespace}, Spec: v1alpha1.ZuulNodeClassSpec{MaxBuilds: 5}}
	if err := h.api.Create(t.Context(), class); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.api.Delete(context.Background(), class) })
	h.job("free")
	h.job("limited", func(spec *v1alpha1.ZuulJobSpec) { spec.MaxBuilds = 2 })
	groups := func(build *v1alpha1.ZuulBuild) []string {
		all := []string{"all"}
		if build.Spec.Node != "" {
			all = append(all, "class")
		}
		if build.Spec.Job == "limited" {
			all = append(all, "job")
		}
		return all
	}
	const builds = 300
	var stop func()
	for i := range builds {
		build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("b-%d", i)}, Spec: v1alpha1.ZuulBuildSpec{Job: "free", Number: int64(i + 1)}}
		if i%2 == 0 { // from Zuul, beyond what the bridge would grab
			build.Labels = map[string]string{v1alpha1.LabelGearmanServer: "zuul"}
			build.Spec.JobRef = &v1alpha1.JobReference{Name: "free"}
		}
		if i%4 == 1 {
			build.Spec.Node = class.Name
		}
		if i%10 < 2 {
			build.Spec.Job = "limited"
			if build.Spec.JobRef != nil {
				build.Spec.JobRef.Name = "limited"
			}
		}
		h.create(build)
		if i%75 == 74 {
			if stop != nil { // the first ones wait together, so that every limit is reached however slow the API server is
				stop()
			}
			stop, _ = h.start()
		}
	}
	complete := func() int {
		past.mu.Lock()
		defer past.mu.Unlock()
		complete := map[string]bool{}
		for _, c := range past.changes {
			if c.build != nil && c.build.Complete() {
				complete[c.key] = true
			}
		}
		return len(complete)
	}
	for _, half := range []int{builds / 2, builds * 3 / 4, builds} {
		h.eventually(func() string {
			if n := complete(); n < half {
				return fmt.Sprintf("%d of %d builds are complete", n, builds)
			}
			return ""
		})
		if half < builds {
			stop()
			stop, _ = h.start()
		}
	}
	end()
	most := past.most(groups)
	t.Logf("at most: %v", most)
	for group, limit := range map[string]int{"all": 20, "class": 5, "job": 2} {
		if most[group] > limit {
			t.Errorf("%d builds of group %s had a slot at once, %d may", most[group], group, limit)
		} else if 2*most[group] < limit { // whether the last slot is ever used is for chance to decide
			t.Errorf("only %d of %d slots of group %s were ever used: the test shows nothing", most[group], limit, group)
		}
	}
	past.mu.Lock()
	defer past.mu.Unlock()
	for _, c := range past.changes {
		if c.build != nil && c.build.Complete() && c.build.Status.Phase != v1alpha1.PhaseSucceeded {
			t.Errorf("build %s ended %s: %s", c.key, c.build.Status.Phase, c.build.Status.Message)
		}
	}
}

// awaitWaiting waits until a build says that it waits for a slot, and returns it.
func (h *harness) awaitWaiting(name, says string) {
	h.Helper()
	h.eventually(func() string {
		status := h.build(name).Status
		if status.Phase == v1alpha1.PhaseQueued && status.Reason == ReasonCapacityReached && strings.Contains(status.Message, says) {
			return ""
		}
		return fmt.Sprintf("build %s is %s: %s: %s, not waiting for %q", name, status.Phase, status.Reason, status.Message, says)
	})
	if h.pod(name) != nil {
		h.Errorf("build %s waits and has a Pod", name)
	}
}

// TestWaitingBuilds: one that waits says for what, can be stopped at once, and gets its Pod when its turn comes or a limit is raised.
func TestWaitingBuilds(t *testing.T) {
	h := newHarness(t)
	h.maxBuilds = 3
	_, writes := h.start()
	h.job("limited", func(spec *v1alpha1.ZuulJobSpec) { spec.MaxBuilds = 1 })
	h.job("free")
	h.request("a", "limited", numbered(1))
	h.awaitPod("a")
	h.request("b", "limited", numbered(2))
	h.awaitWaiting("b", "at most 1 builds at once of ZuulJob limited")
	h.request("c", "limited", numbered(3))
	h.awaitWaiting("c", "ZuulJob limited")
	h.request("d", "free", numbered(4)) // younger, under another limit
	h.awaitPod("d")

	h.stopBuild("b")
	h.awaitVerdict("b", v1alpha1.PhaseAborted, "ABORTED", "Aborted")
	h.run("a")
	h.report("a", withPhase(podSucceeded), ended("build", 0, "Completed"))
	h.awaitPod("c")
	h.run("c")
	h.eventually(func() string {
		if status := h.build("c").Status; status.Reason == ReasonCapacityReached {
			return "build c runs and says that it waits: " + status.Message
		}
		return ""
	})
	if slices.Contains(writes.all(), "DELETE pods") {
		t.Error("the build that was stopped while it waited had a Pod")
	}

	h.request("e", "limited", numbered(5))
	h.awaitWaiting("e", "ZuulJob limited")
	job := &v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: h.namespace, Name: "limited"}}
	if err := h.api.Patch(t.Context(), job, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"maxBuilds":2}}`))); err != nil {
		t.Fatal(err)
	}
	h.awaitPod("e")
	h.request("f", "free", numbered(6))
	h.awaitWaiting("f", "at most 3 builds at once (--max-builds")
	if err := h.api.Delete(t.Context(), h.build("d")); err != nil {
		t.Fatal(err)
	}
	h.awaitPod("f")
}

// TestCeilingIsMoved: a build that waits gets its Pod when --max-builds is raised, and none begins above one that was lowered.
func TestCeilingIsMoved(t *testing.T) {
	h := newHarness(t)
	h.maxBuilds = 1
	h.start()
	h.job("job")
	h.request("a", "job", numbered(1))
	h.awaitPod("a")
	h.request("b", "job", numbered(2))
	h.awaitWaiting("b", "at most 1 builds at once (--max-builds")
	h.ceiling.Set(2)
	h.awaitPod("b")
	h.ceiling.Set(1)
	h.run("a")
	h.report("a", withPhase(podSucceeded), ended("build", 0, "Completed"))
	h.awaitVerdict("a", v1alpha1.PhaseSucceeded, "SUCCESS", "Succeeded")
	h.request("c", "job", numbered(3))
	h.awaitWaiting("c", "at most 1 builds at once (--max-builds")
}

// TestQuotaGivesTheSlotBack: a build that the namespace has no room for keeps no other from trying.
func TestQuotaGivesTheSlotBack(t *testing.T) {
	h := newHarness(t)
	h.maxBuilds = 1
	h.quota(0, true)
	h.job("job")
	h.start()
	for i, name := range []string{"a", "b"} {
		h.request(name, "job", numbered(int64(i+1)))
		if status := h.awaitPhase(name, v1alpha1.PhaseStarting).Status; status.Reason != ReasonQuotaExceeded {
			t.Errorf("build %s: %s: %s", name, status.Reason, status.Message)
		}
	}
}

// TestAdmissionBegins: a new operator, whose cache is late, knows the Pods that were made and the order of the builds that wait.
func TestAdmissionBegins(t *testing.T) {
	for name, hasPod := range map[string]bool{"with a Pod the cache does not show": true, "with an older build": false} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			builds := capacity.NewBuilds()
			r := &ZuulBuildReconciler{Client: h.api, Live: h.api, Builds: builds, Pods: &PodMemory{}, MaxBuilds: capacity.NewCeiling(1), Clock: clock.RealClock{}}
			var scopes []*scope
			for _, name := range []string{"first", "new"} {
				h.request(name, "job", numbered(1))
				build := h.build(name)
				builds.SetBuild(build)
				scopes = append(scopes, &scope{build: build, now: time.Now()})
			}
			if hasPod {
				pod, _, err := buildPod(scopes[0].build, scriptJob(), nil, "")
				if err != nil {
					t.Fatal(err)
				}
				h.create(pod)
			}
			for _, asks := range []struct {
				*scope
				may bool
			}{{scopes[1], false}, {scopes[0], true}} {
				if waits, err := r.admit(t.Context(), asks.scope); err != nil || waits == asks.may {
					t.Errorf("build %s waits: %t, error %v", asks.build.Name, waits, err)
				}
			}
		})
	}
}

// TestWaitIsExplained: a build that waits for a slot says so when it has waited for a while.
func TestWaitIsExplained(t *testing.T) {
	h := newHarness(t)
	h.request("a", "job", numbered(1))
	builds := capacity.NewBuilds()
	builds.SetBuild(h.build("a"))
	r := &ZuulBuildReconciler{Client: h.api, Live: h.api, Builds: builds, Pods: &PodMemory{}, MaxBuilds: capacity.NewCeiling(0), Clock: clock.RealClock{}}
	for wait, want := range map[time.Duration]string{0: "", explainWait - time.Second: "", explainWait: ReasonCapacityReached} {
		s := &scope{build: h.build("a")}
		s.now = s.build.CreationTimestamp.Add(wait)
		waits, err := r.admit(t.Context(), s)
		if err != nil || !waits || !s.waits {
			t.Fatalf("after %v it waits: %t, error %v", wait, waits, err)
		}
		if got := s.build.Status.Reason; got != want {
			t.Errorf("after %v it says %q, want %q", wait, got, want)
		}
		if next := s.build.CreationTimestamp.Add(explainWait).Sub(s.now); want == "" && s.after != next {
			t.Errorf("after %v it is looked at again in %v, want %v", wait, s.after, next)
		}
	}
}

// TestQuotaClockStandsWhileASlotIsWaitedFor: none of its clocks runs for a build that waits for a slot.
func TestQuotaClockStandsWhileASlotIsWaitedFor(t *testing.T) {
	h := newHarness(t)
	h.request("a", "job", numbered(1))
	builds := capacity.NewBuilds()
	builds.SetBuild(h.build("a"))
	r := &ZuulBuildReconciler{Client: h.api, Live: h.api, Builds: builds, Pods: &PodMemory{}, MaxBuilds: capacity.NewCeiling(0), Clock: clock.RealClock{}}
	job := &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{Timeouts: &v1alpha1.Timeouts{Unscheduled: duration(time.Minute)}}}
	s := &scope{build: h.build("a"), job: job, now: time.Now()}
	s.forbidden("Pod", forbiddenPod(saysNoRoom))
	s.now = s.now.Add(time.Hour)
	if waits, err := r.admit(t.Context(), s); err != nil || !waits || s.build.Status.Reason != ReasonCapacityReached {
		t.Fatalf("it waits for a slot: %t, error %v, %s", waits, err, s.build.Status.Reason)
	}
	s.now = s.now.Add(time.Hour)
	if s.forbidden("Pod", forbiddenPod(saysNoRoom)); s.build.Complete() {
		t.Errorf("refused for the second time it ended: %s", s.build.Status.Message)
	}
}

// TestLostPodIsNotTakenForTheNext: what counts the slots has not heard yet that the lost Pod is gone.
func TestLostPodIsNotTakenForTheNext(t *testing.T) {
	h := newHarness(t)
	h.request("a", "job", numbered(1))
	build := h.build("a")
	pod, _, err := buildPod(build, scriptJob(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	builds := capacity.NewBuilds()
	builds.SetBuild(build)
	builds.SetPod(pod)
	r := &ZuulBuildReconciler{Client: h.api, Live: h.api, Builds: builds, Pods: &PodMemory{}, MaxBuilds: capacity.NewCeiling(1), Clock: clock.RealClock{}}
	for _, gone := range []bool{false, true} {
		if gone {
			builds.DeletePod(client.ObjectKeyFromObject(pod))
		}
		s := &scope{build: build, now: time.Now()}
		waits, err := r.admit(t.Context(), s)
		if err != nil || waits == gone || waits && s.after != shortestRequeue {
			t.Errorf("gone %t: it waits %t, error %v, again in %s", gone, waits, err, s.after)
		}
	}
}

// TestLeftPodCounts: a Pod whose build was deleted tells by itself what it counts for.
func TestLeftPodCounts(t *testing.T) {
	build := newBuild()
	build.Spec.Node = "arm"
	pod, _, err := buildPod(build, scriptJob(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	builds := capacity.NewBuilds()
	builds.SetPod(pod)
	key := types.NamespacedName{Namespace: build.Namespace, Name: "object"}
	limits := capacity.Limits{All: 1, Classes: map[string]int{"arm": 1}, Jobs: map[types.NamespacedName]int{key: 1}}.
		WithNames(map[types.NamespacedName]types.NamespacedName{{Namespace: build.Namespace, Name: build.Spec.Job}: key})
	if got := builds.Occupied(&limits).Of(capacity.Scope{Class: "arm", Job: key}); got != (capacity.Counts{All: 1, Class: 1, Job: 1}) {
		t.Errorf("%+v", got)
	}
}

// TestSameNameAgain: a build that is deleted and made again under its name, by hand as often as one likes, has the only slot each time.
func TestSameNameAgain(t *testing.T) {
	h := newHarness(t)
	h.job("job", func(spec *v1alpha1.ZuulJobSpec) { spec.MaxBuilds = 1 })
	h.start()
	for range 3 {
		h.request("manual", "job")
		h.succeed("manual")
		if err := h.api.Delete(t.Context(), h.build("manual")); err != nil {
			t.Fatal(err)
		}
		h.awaitNoPod("manual")
	}
}
