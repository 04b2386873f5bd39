package gearmanbridge

import (
	"errors"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/tracing"
)

// assignment is a Gearman job that was assigned to us and is not finished: somebody waits for a build. It ends with the job, which ends with its
// connection at the latest.
type assignment struct {
	job    *gearman.Job
	server string
	target target
	key    types.NamespacedName // of the ZuulBuild
	unique string

	mu      sync.Mutex          // of the five below; never held while sending
	build   *v1alpha1.ZuulBuild // as created or adopted; nil until then
	taken   time.Time           // when that was
	adopted bool                // the build was there before
	stop    bool                // stop: came before the build existed
	// completed is when the cache learned that the build is complete; zero until then, and for one that was complete when it was asked for.
	completed time.Time

	sending sync.Mutex // orders what is sent, and guards the two below
	started bool       // the first WORK_DATA was sent
	running bool       // the WORK_DATA that tells the node was sent
}

// logValues are for lines about the build, which may still be on its way.
func (a *assignment) logValues() []any {
	return buildlog.Values(storable(a.unique), a.target.job, a.key)
}

// logValuesOf a build that the cache does not show: somebody may wait for it all the same.
func (b *Bridge) logValuesOf(key types.NamespacedName) []any {
	if listeners := b.assignments.of(key); len(listeners) > 0 {
		return listeners[0].logValues()
	}
	return buildlog.Values("", "", key)
}

// has notes the build, and tells whether somebody asked to stop it before it was there.
func (a *assignment) has(build *v1alpha1.ZuulBuild) (stop bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.build, a.taken = build, time.Now()
	return a.stop
}

// adopts notes that the build was there before the job was assigned.
func (a *assignment) adopts() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.adopted = true
}

// existing is the build, or nil while it is on its way.
func (a *assignment) existing() *v1alpha1.ZuulBuild {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.build
}

// stopOnArrival has the build stopped as soon as it is there; false if it is there already, or if none will come because the request was refused.
func (a *assignment) stopOnArrival() bool {
	if errors.Is(a.job.Err(), gearman.ErrFinished) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.build != nil {
		return false
	}
	a.stop = true
	return true
}

// completes notes that the cache has just learned that the build is complete.
func (a *assignment) completes() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.completed = time.Now()
}

// completedAt is when the cache learned that the build is complete, or zero.
func (a *assignment) completedAt() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.completed
}

// reported is the end of the build, which was sent just now.
func (a *assignment) reported(build *v1alpha1.ZuulBuild) tracing.Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	return tracing.Report{Build: build, Assigned: a.job.Assigned, Taken: a.taken, Adopted: a.adopted, Learned: a.completed, Sent: time.Now()}
}

// assignments is the table of them. It says who listens; what they listen to is told by the builds.
type assignments struct {
	mu    sync.Mutex
	byKey map[types.NamespacedName][]*assignment
	// fresh are those whose build the cache has not been found to show. Whatever becomes of that build later, the cache shows it.
	fresh map[types.NamespacedName]bool
}

func (t *assignments) add(a *assignment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey == nil {
		t.byKey, t.fresh = map[types.NamespacedName][]*assignment{}, map[types.NamespacedName]bool{}
	}
	t.fresh[a.key] = true
	t.byKey[a.key] = append(t.byKey[a.key], a)
}

func (t *assignments) remove(a *assignment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.DeleteFunc(t.byKey[a.key], func(other *assignment) bool { return other == a })
	if len(left) == 0 {
		delete(t.byKey, a.key)
		delete(t.fresh, a.key)
	} else {
		t.byKey[a.key] = left
	}
}

// of a build: usually one, none for a build nobody waits for, and two where geard was given the same unique twice.
func (t *assignments) of(key types.NamespacedName) []*assignment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.byKey[key])
}

func (t *assignments) all() []*assignment {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*assignment
	for _, some := range t.byKey {
		all = append(all, some...)
	}
	return all
}

// from a Gearman server, by its name.
func (t *assignments) from(server string) []*assignment {
	return slices.DeleteFunc(t.all(), func(a *assignment) bool { return a.server != server })
}

// each calls do for each build that somebody waits for.
func (t *assignments) each(do func(of target)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, some := range t.byKey {
		do(some[0].target)
	}
}

// unseen calls do for each build that somebody waits for and that is not shown yet. There are few of them, however many builds there are.
func (t *assignments) unseen(shown func(types.NamespacedName) bool, do func(of target)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.fresh {
		if shown(key) {
			delete(t.fresh, key)
		} else {
			do(t.byKey[key][0].target)
		}
	}
}

// has tells whether somebody waits for a build.
func (t *assignments) has(key types.NamespacedName) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byKey[key]) > 0
}
