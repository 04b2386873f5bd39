package controllers

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
)

// admissionFixture is an admission beside an API server that the test makes up, and a cache that is as late as the test wants.
type admissionFixture struct {
	admission
	cache  *capacity.Builds
	builds map[string]*v1alpha1.ZuulBuild
	made   int
	pods   map[string]*corev1.Pod // those that were made
	events [2][]func()            // of builds and of Pods, which the cache has not seen; it learns of both in their order, but of each by itself
	called map[string]bool
	now    time.Time
}

func newAdmission(all int) *admissionFixture {
	f := &admissionFixture{
		cache: capacity.NewBuilds(), builds: map[string]*v1alpha1.ZuulBuild{}, pods: map[string]*corev1.Pod{}, called: map[string]bool{},
		now: after(time.Hour).Time,
	}
	f.limits = &capacity.Limits{All: all, Classes: map[string]int{"arm": 2}, Jobs: map[types.NamespacedName]int{{Namespace: "ci", Name: "limited"}: 1}}
	f.call = func(request reconcile.Request) { f.called[request.Name] = true }
	f.cache.OnFreed(func() { f.callNext(f.cache, f.now) })
	return f
}

// create makes a build named JOB-NODE-…: by hand, or if it begins with "zuul" grabbed. It was made so long after the first ones.
func (f *admissionFixture) create(name, job, node string, later time.Duration) {
	f.made++
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: name, UID: types.UID(fmt.Sprint("uid ", f.made)), CreationTimestamp: after(later)},
		Spec:       v1alpha1.ZuulBuildSpec{Job: job, JobRef: &v1alpha1.JobReference{Name: job}, Node: node},
	}
	if strings.HasPrefix(name, "zuul") {
		build.Labels = map[string]string{v1alpha1.LabelGearmanServer: "zuul"}
	}
	f.builds[name] = build
	f.cache.SetBuild(build) // which is why it is looked at
}

// round looks at a build, as the reconciler does, and tells whether it has its Pod.
func (f *admissionFixture) round(name string) bool {
	delete(f.called, name)
	build := f.builds[name]
	defer f.settle(f.cache, build.UID)
	if build.Complete() || f.hasPod(name) {
		return f.hasPod(name)
	}
	if full, _ := f.ask(f.cache, build, f.now); full != "" {
		return false
	}
	if f.pods[name] != nil { // of an earlier build of the name: the round comes again
		f.called[name] = true
		return false
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ci", Name: name, Labels: map[string]string{v1alpha1.LabelBuild: name},
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(build, v1alpha1.GroupVersion.WithKind("ZuulBuild"))},
	}}
	f.pods[name] = pod
	f.events[1] = append(f.events[1], func() { f.cache.SetPod(pod) })
	return true
}

// hasPod tells whether a build has its Pod, and not one that an earlier build of its name has left behind.
func (f *admissionFixture) hasPod(name string) bool {
	return f.pods[name] != nil && ownedBy(f.pods[name], f.builds[name])
}

// replace deletes a build and makes it again, as the cache shows at once. Its Pod is there still.
func (f *admissionFixture) replace(name string, later time.Duration) {
	for len(f.events[0]) > 0 {
		f.see(0)
	}
	old := f.builds[name]
	f.cache.DeleteBuild(client.ObjectKeyFromObject(old))
	f.create(name, old.Spec.Job, old.Spec.Node, later)
}

// collect deletes the Pod that a deleted build has left behind.
func (f *admissionFixture) collect(name string) {
	if f.pods[name] == nil || f.hasPod(name) {
		return
	}
	delete(f.pods, name)
	f.events[1] = append(f.events[1], func() { f.cache.DeletePod(types.NamespacedName{Namespace: "ci", Name: name}) })
}

// ends completes a build.
func (f *admissionFixture) ends(name string) {
	build := f.builds[name].DeepCopy()
	build.Status.Phase = v1alpha1.PhaseSucceeded
	f.builds[name] = build
	f.events[0] = append(f.events[0], func() { f.cache.SetBuild(build) })
}

// seen brings the cache up to date.
func (f *admissionFixture) seen() {
	for kind := range f.events {
		for len(f.events[kind]) > 0 {
			f.see(kind)
		}
	}
}

// see has the cache learn of the next event of a kind.
func (f *admissionFixture) see(kind int) {
	event := f.events[kind][0]
	f.events[kind] = f.events[kind][1:]
	event()
}

// admitted are the builds that get their Pods when all of those are looked at, which is then so.
func (f *admissionFixture) admitted(names ...string) []string {
	var admitted []string
	for _, name := range names {
		if f.round(name) {
			admitted = append(admitted, name)
		}
	}
	return admitted
}

// next completes a build and returns who gets a Pod then.
func (f *admissionFixture) next(ends string) []string {
	f.ends(ends)
	f.seen()
	admitted := f.admitted(slices.Sorted(maps.Keys(f.called))...)
	f.seen()
	return admitted
}

func TestAdmissionOrder(t *testing.T) {
	f := newAdmission(1)
	f.create("first", "free", "", 0)
	f.create("young", "free", "", 3*time.Minute)
	f.create("b", "free", "", time.Minute)
	f.create("a", "free", "", time.Minute)
	f.create("zuul-2", "free", "", 5*time.Minute)
	f.create("zuul-1", "free", "", 4*time.Minute)
	if diff := cmp.Diff([]string{"first"}, f.admitted("first", "young", "b", "a", "zuul-2", "zuul-1")); diff != "" {
		t.Fatalf("admitted (-want +got):\n%s", diff)
	}
	f.seen()
	var order []string
	for ended := "first"; len(order) < 5; ended = order[len(order)-1] {
		admitted := f.next(ended)
		if len(admitted) != 1 {
			t.Fatalf("after the end of %s: %q", ended, admitted)
		}
		order = append(order, admitted[0])
	}
	if diff := cmp.Diff([]string{"zuul-1", "zuul-2", "a", "b", "young"}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

// TestAdmissionTakesTurns: a slot goes to the build made by hand that waits for it, the next to the one that the bridge grabs meanwhile.
func TestAdmissionTakesTurns(t *testing.T) {
	f := newAdmission(1)
	f.create("zuul-0", "free", "", 0)
	f.round("zuul-0")
	f.seen()
	for i := range 3 {
		name := fmt.Sprintf("hand-%d", i+1)
		f.create(name, "free", "", time.Duration(i)*time.Second)
		f.round(name)
	}
	var order []string
	grabbed := 0
	room := func() bool { return f.limits.Room(f.cache.Claimed(f.limits), capacity.Scope{}) }
	for ended := "zuul-0"; len(order) < 6; ended = order[len(order)-1] {
		f.ends(ended)
		f.seen()
		bridge := room() // it looks before any Pod is made
		admitted := f.admitted(slices.Sorted(maps.Keys(f.called))...)
		if bridge {
			grabbed++
			name := fmt.Sprintf("zuul-%d", grabbed)
			f.create(name, "free", "", time.Hour)
			admitted = append(admitted, f.admitted(name)...)
		}
		f.seen()
		if room() {
			t.Fatal("the bridge would grab for a slot that is taken")
		}
		order = append(order, admitted...)
	}
	if diff := cmp.Diff([]string{"hand-1", "zuul-1", "hand-2", "zuul-2", "hand-3", "zuul-3"}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestAdmissionHoldsUpNobodyUnderAnotherLimit(t *testing.T) {
	f := newAdmission(4)
	for i, node := range []string{"arm", "arm", "arm", "", ""} {
		f.create(fmt.Sprintf("b-%d", i), "free", node, time.Duration(i)*time.Second)
	}
	if diff := cmp.Diff([]string{"b-0", "b-1", "b-3", "b-4"}, f.admitted("b-0", "b-1", "b-2", "b-3", "b-4")); diff != "" {
		t.Errorf("admitted (-want +got):\n%s", diff)
	}
}

// TestAdmissionLeavesRoom: a younger build that is looked at first does not overtake one that waits.
func TestAdmissionLeavesRoom(t *testing.T) {
	f := newAdmission(1)
	f.create("first", "free", "", 0)
	f.create("waits", "free", "", time.Second)
	f.admitted("first", "waits")
	f.seen()
	f.ends("first")
	f.seen()
	f.create("young", "free", "", time.Minute)
	if f.round("young") || !f.round("waits") {
		t.Error("the slot does not go to the build that waits")
	}
}

// TestAssumedUnknown: a Pod that neither the cache nor anybody else knows of does not keep a slot for ever.
func TestAssumedUnknown(t *testing.T) {
	f := newAdmission(1)
	f.create("gone", "free", "", 0)
	f.create("waits", "free", "", 0)
	f.admitted("gone", "waits")
	f.cache.DeleteBuild(types.NamespacedName{Namespace: "ci", Name: "gone"})
	if f.round("waits") {
		t.Fatal("a slot for two: the Pod may be on its way into the cache")
	}
	f.now = f.now.Add(assumedUnknown)
	if !f.round("waits") {
		t.Error("the slot is lost")
	}
}

// TestReplacedBuild: a build that is made again under its name gets the slot that the first one had.
func TestReplacedBuild(t *testing.T) {
	tests := map[string]struct {
		first func(f *admissionFixture) // what becomes of it when it was admitted
		stays bool                      // its Pod, until the second has asked
		waits time.Duration             // the second, when that Pod is gone
	}{
		"ended and looked at":           {func(f *admissionFixture) { f.seen(); f.ends("b"); f.seen(); f.round("b") }, false, 0},
		"looked at as it ran":           {func(f *admissionFixture) { f.seen(); f.round("b") }, false, 0},
		"its Pod is shown":              {(*admissionFixture).seen, true, 0},
		"its Pod was shown":             {(*admissionFixture).seen, false, assumedUnknown},
		"its Pod was never shown":       {func(*admissionFixture) {}, false, assumedUnknown},
		"never shown, but it is old":    {func(f *admissionFixture) { f.now = f.now.Add(assumedUnknown) }, false, 0},
		"its Pod is shown when it goes": {func(*admissionFixture) {}, true, assumedUnknown},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := newAdmission(1)
			f.create("b", "free", "", 0)
			f.round("b")
			test.first(f)
			f.replace("b", time.Minute)
			if test.stays && f.round("b") {
				t.Error("a slot for two")
			}
			f.collect("b")
			f.seen()
			if has := f.round("b"); has != (test.waits == 0) {
				t.Errorf("at once it has its Pod: %t; assumed %v", has, f.assumed)
			}
			f.now = f.now.Add(test.waits)
			if !f.round("b") {
				t.Errorf("the slot is lost; assumed %v", f.assumed)
			}
		})
	}
}

// TestReplacedWhileItWaits: a build that is made again while it waits does not wait for the first one.
func TestReplacedWhileItWaits(t *testing.T) {
	f := newAdmission(1)
	f.create("first", "free", "", 0)
	f.create("b", "free", "", time.Second)
	f.admitted("first", "b")
	f.seen()
	f.ends("first")
	f.seen()
	f.replace("b", time.Minute)
	if !f.round("b") {
		t.Error("it waits, though there is room")
	}
}

// TestForgottenSlotIsTold: who may have the slot of an assumption that is given up is called, also where the first that waits may not.
func TestForgottenSlotIsTold(t *testing.T) {
	f := newAdmission(4)
	f.create("arm-1", "free", "arm", 0)
	f.create("arm-2", "free", "arm", 0)
	f.create("limited", "limited", "", 0)
	f.admitted("arm-1", "arm-2", "limited")
	f.seen()
	f.create("gone", "free", "", 0)
	f.round("gone")
	f.create("head", "free", "arm", time.Second)
	f.create("second", "free", "", time.Minute)
	f.admitted("head", "second")
	f.cache.DeleteBuild(types.NamespacedName{Namespace: "ci", Name: "gone"})
	clear(f.called)
	f.now = f.now.Add(assumedUnknown)
	f.round("head")
	if diff := cmp.Diff(map[string]bool{"second": true}, f.called); diff != "" {
		t.Errorf("called (-want +got):\n%s", diff)
	}
}

// TestAdmissionProperties: however late the cache is and in whatever order builds are looked at, no limit is exceeded; and when the cache has caught
// up and who was called was looked at, nobody waits who has room.
func TestAdmissionProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newAdmission(3)
		var names []string
		endedBefore := map[string]bool{} // the build that the Pod is of, which was deleted since
		replaced := false
		jobs, nodes := rapid.SampledFrom([]string{"free", "limited"}), rapid.SampledFrom([]string{"", "arm"})
		occupied := func() *capacity.Usage {
			used := &capacity.Usage{}
			for name := range f.pods {
				if build := f.builds[name]; !build.Complete() && !endedBefore[name] {
					used.Add(f.limits.ScopeOf(build))
				}
			}
			return used
		}
		waiting := func() (waiting []string) {
			for _, name := range names {
				if !f.hasPod(name) && !f.builds[name].Complete() {
					waiting = append(waiting, name)
				}
			}
			return waiting
		}
		collect := func(name string) {
			f.collect(name)
			if f.pods[name] == nil {
				delete(endedBefore, name)
			}
		}
		settle := func() {
			for _, name := range names {
				collect(name)
			}
			f.seen()
			for looks := 0; len(f.called) > 0; looks++ {
				if looks > 1000 {
					t.Fatalf("called again and again: %v", f.called)
				}
				f.round(slices.Min(slices.Collect(maps.Keys(f.called))))
				f.seen()
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				name := fmt.Sprintf("%s-%d", rapid.SampledFrom([]string{"zuul", "hand"}).Draw(t, "from"), len(names))
				names = append(names, name)
				f.create(name, jobs.Draw(t, "job"), nodes.Draw(t, "node"), time.Duration(len(names))*time.Second)
				f.round(name)
			},
			"look": func(t *rapid.T) {
				if waiting := waiting(); len(waiting) > 0 {
					f.round(rapid.SampledFrom(waiting).Draw(t, "name"))
				}
			},
			"end": func(t *rapid.T) {
				if len(names) > 0 {
					if name := rapid.SampledFrom(names).Draw(t, "name"); f.hasPod(name) {
						f.ends(name)
					}
				}
			},
			"abort": func(t *rapid.T) {
				if waiting := waiting(); len(waiting) > 0 {
					name := rapid.SampledFrom(waiting).Draw(t, "name")
					f.ends(name)
					f.waiting.remove(types.NamespacedName{Namespace: "ci", Name: name})
					f.callNext(f.cache, f.now)
				}
			},
			"replace": func(t *rapid.T) {
				if len(names) > 0 {
					name := rapid.SampledFrom(names).Draw(t, "name")
					replaced = true
					endedBefore[name] = f.pods[name] != nil && (endedBefore[name] || f.builds[name].Complete())
					f.replace(name, time.Duration(len(names)+f.made)*time.Second)
					f.round(name)
				}
			},
			"collect": func(t *rapid.T) {
				if len(names) > 0 {
					collect(rapid.SampledFrom(names).Draw(t, "name"))
				}
			},
			"see": func(t *rapid.T) {
				if kind := rapid.IntRange(0, 1).Draw(t, "kind"); len(f.events[kind]) > 0 {
					f.see(kind)
				}
			},
			"settle": func(t *rapid.T) {
				settle()
				if replaced { // a Pod may have come and gone unseen, which a minute later the first that waits finds out
					replaced = false
					f.now = f.now.Add(assumedUnknown)
					if len(f.waiting.order) > 0 {
						f.round(f.waiting.order[0].Name)
					}
					settle()
				}
				for _, name := range waiting() {
					if f.limits.Room(occupied(), f.limits.ScopeOf(f.builds[name])) {
						t.Fatalf("%s waits beside %+v", name, occupied().Of(f.limits.ScopeOf(f.builds[name])))
					}
				}
				if f.used(f.cache, f.now); len(f.assumed) > 0 {
					t.Fatalf("assumed for ever: %v", f.assumed)
				}
			},
			"": func(t *rapid.T) {
				limited := capacity.Scope{Class: "arm", Job: types.NamespacedName{Namespace: "ci", Name: "limited"}}
				if counts := occupied().Of(limited); counts.All > 3 || counts.Class > 2 || counts.Job > 1 {
					t.Fatalf("too many: %+v", counts)
				}
			},
		})
	})
}
