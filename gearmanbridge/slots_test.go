package gearmanbridge

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

func jobKey(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "ci", Name: name}
}

// testLimits limit class arm and job limited.
func testLimits() *capacity.Limits {
	return &capacity.Limits{All: 3, Classes: map[string]int{"arm": 2}, Jobs: map[types.NamespacedName]int{jobKey("limited"): 1}}
}

// slotsFixture are slots with builds that the test makes up.
type slotsFixture struct {
	slots
	builds []capacity.Scope
}

func newSlots(all int) *slotsFixture {
	f := &slotsFixture{}
	f.count = func(*capacity.Limits) *capacity.Usage {
		used := &capacity.Usage{}
		for _, build := range f.builds {
			used.Add(build)
		}
		return used
	}
	f.limits = *testLimits()
	f.limits.All = all
	return f
}

func newPool(s capacity.Scope) *pool { return &pool{scope: s, worker: &gearman.Worker{}} }

// brings is the answer to the grab of a pool: a build.
func (f *slotsFixture) brings(p *pool) {
	f.assigned(p, func() { f.builds = append(f.builds, p.scope) })
}

func (f *slotsFixture) ends(p *pool) {
	for i, build := range f.builds {
		if build == p.scope {
			f.builds = append(f.builds[:i:i], f.builds[i+1:]...)
			break
		}
	}
	f.wake()
}

func TestSlotsGrabForOneSlotAtATime(t *testing.T) {
	f := newSlots(1)
	a, b := newPool(capacity.Scope{}), newPool(capacity.Scope{Class: "arm"})
	if !f.reserve(a) || f.reserve(b) {
		t.Fatal("not one grab for one slot")
	}
	if !f.reserve(a) {
		t.Error("a grab that is repeated has lost its slot")
	}
	if !f.free(b) {
		t.Error("a grab on its way keeps another pool from sleeping")
	}
	f.release(a)
	if !f.reserved[b] {
		t.Error("the grab that brought nothing gave nothing back")
	}
	f.brings(b)
	if f.free(a) || f.free(b) || f.reserve(a) {
		t.Error("there is room beside the only build")
	}
}

func TestSlotsTakeTurns(t *testing.T) {
	f := newSlots(1)
	a, b, c := newPool(capacity.Scope{}), newPool(capacity.Scope{Class: "arm"}), newPool(capacity.Scope{Job: jobKey("limited")})
	for _, p := range []*pool{a, b, c} {
		f.reserve(p)
	}
	for turn, p := range []*pool{a, b, c, a, b, c} {
		if !f.reserve(p) {
			t.Fatalf("turn %d: it is not the turn of pool %s", turn, p.scope)
		}
		f.brings(p)
		f.reserve(p)
		f.ends(p)
	}
}

func TestSlotsOfAFullClassHoldUpNoOther(t *testing.T) {
	f := newSlots(3)
	arm, other := newPool(capacity.Scope{Class: "arm"}), newPool(capacity.Scope{})
	for range 2 {
		f.reserve(arm)
		f.brings(arm)
	}
	if f.reserve(arm) {
		t.Fatal("a third build in two slots")
	}
	if !f.reserve(other) {
		t.Error("the pool that waits in front holds the other one up")
	}
	f.ends(arm)
	if !f.reserved[arm] {
		t.Error("the pool is not told that a slot is free")
	}
}

// TestSlotsRefusedSleep: a pool that may not even sleep is silent, so it must be woken when there is room.
func TestSlotsRefusedSleep(t *testing.T) {
	f := newSlots(1)
	a, b := newPool(capacity.Scope{}), newPool(capacity.Scope{Class: "arm"})
	f.reserve(a)
	f.brings(a)
	if f.free(b) {
		t.Fatal("room beside the only build")
	}
	f.ends(a)
	if !f.reserved[b] {
		t.Error("the pool is not told that a slot is free")
	}
}

// TestSlotsWithoutUse: a pool that drains or lost its connection waits no more.
func TestSlotsWithoutUse(t *testing.T) {
	f := newSlots(1)
	a, b, c := newPool(capacity.Scope{}), newPool(capacity.Scope{Class: "arm"}), newPool(capacity.Scope{})
	for _, p := range []*pool{a, b, c} {
		f.reserve(p)
	}
	f.brings(a)
	f.release(b)
	f.ends(a)
	if f.reserved[b] || !f.reserved[c] {
		t.Error("the slot is not given to the pool that waits still")
	}
}

func TestSlotsLimitLoweredBelowWhatRuns(t *testing.T) {
	f := newSlots(10)
	limited := newPool(capacity.Scope{Job: jobKey("limited")})
	f.setLimits(capacity.Limits{All: 10, Jobs: map[types.NamespacedName]int{jobKey("limited"): 3}})
	for range 3 {
		if !f.reserve(limited) {
			t.Fatal("no room")
		}
		f.brings(limited)
	}
	f.setLimits(capacity.Limits{All: 10, Jobs: map[types.NamespacedName]int{jobKey("limited"): 1}})
	for left := 3; left > 0; left-- {
		if f.reserve(limited) {
			t.Fatalf("one more beside %d", left)
		}
		f.ends(limited)
	}
	if !f.reserved[limited] {
		t.Error("no room for the next")
	}
}

func TestSlotsLimitRaised(t *testing.T) {
	f := newSlots(0)
	p := newPool(capacity.Scope{})
	if f.reserve(p) {
		t.Fatal("room where there is none")
	}
	f.setLimits(capacity.Limits{All: 1})
	if !f.reserved[p] {
		t.Error("the raised limit reaches nobody")
	}
}

// TestSlotsProperties: whatever happens, no limit is exceeded by builds and grabs on their way together, and no pool waits that could grab.
func TestSlotsProperties(t *testing.T) {
	scopes := []capacity.Scope{{}, {Class: "arm"}, {Job: jobKey("limited")}, {Class: "arm", Job: jobKey("limited")}}
	rapid.Check(t, func(t *rapid.T) {
		f := newSlots(3)
		pools := make([]*pool, 0, 2*len(scopes))
		for _, s := range append(scopes, scopes...) {
			pools = append(pools, newPool(s))
		}
		anyPool := rapid.SampledFrom(pools)
		t.Repeat(map[string]func(*rapid.T){
			"reserve": func(t *rapid.T) { f.reserve(anyPool.Draw(t, "pool")) },
			"free":    func(t *rapid.T) { f.free(anyPool.Draw(t, "pool")) },
			"release": func(t *rapid.T) { f.release(anyPool.Draw(t, "pool")) },
			"assign": func(t *rapid.T) {
				if p := anyPool.Draw(t, "pool"); f.reserved[p] {
					f.brings(p)
				}
			},
			"end": func(t *rapid.T) { f.ends(anyPool.Draw(t, "pool")) },
			"": func(t *rapid.T) {
				used := f.count(&f.limits)
				for p := range f.reserved {
					used.Add(p.scope)
				}
				if counts := used.Of(scopes[3]); counts.All > 3 || counts.Class > 2 || counts.Job > 1 {
					t.Fatalf("too many: %+v", counts)
				}
				for _, p := range f.waiting {
					if f.limits.Room(used, p.scope) {
						t.Fatalf("pool %s waits beside %+v", p.scope, used)
					}
				}
			},
		})
	})
}
