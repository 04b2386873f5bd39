// Package capacity tells whether there is room for one more build: limits.go is how many there may be, builds.go how many there are. It has a room of
// its own because both halves of the operator keep to the limits, the bridge by not grabbing and the controllers by not making Pods, and neither may
// call the other.
package capacity

import (
	"cmp"
	"fmt"

	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// Limits are how many builds there may be at once: in all, by node class and by job. Classes and jobs without a limit are left out. They are not
// changed once they are made.
type Limits struct {
	All     int
	Classes map[string]int
	Jobs    map[types.NamespacedName]int
	// Named finds the jobs by namespace and Gearman name, for builds made by hand that name no ZuulJob.
	Named map[types.NamespacedName]types.NamespacedName

	names map[types.NamespacedName]types.NamespacedName // the other way round
}

// Scope is what a build counts for besides the whole: its class and its job, each only if it has a limit.
type Scope struct {
	Class string
	Job   types.NamespacedName
}

// String is for people: what the builds of the scope are called.
func (s Scope) String() string {
	switch {
	case s == Scope{}:
		return "default"
	case s.Job.Name == "":
		return s.Class
	case s.Class == "":
		return s.Job.String()
	default:
		return s.Class + ":" + s.Job.String()
	}
}

// NewLimits takes the limits from the objects. Where two classes claim a name the smaller limit counts, where two jobs do, the limit of the oldest,
// which is the one that builds of that name run.
func NewLimits(all int, jobs []v1alpha1.ZuulJob, classes []v1alpha1.ZuulNodeClass) Limits {
	l := Limits{All: all, Classes: map[string]int{}, Jobs: map[types.NamespacedName]int{}}
	for i := range classes {
		name, limit := classes[i].GearmanName(), int(classes[i].Spec.MaxBuilds)
		if other, limited := l.Classes[name]; limit > 0 && (!limited || limit < other) {
			l.Classes[name] = limit
		}
	}
	oldest := map[types.NamespacedName]*v1alpha1.ZuulJob{} // by Gearman name
	for i := range jobs {
		job := &jobs[i]
		if job.Spec.MaxBuilds > 0 {
			l.Jobs[types.NamespacedName{Namespace: job.Namespace, Name: job.Name}] = int(job.Spec.MaxBuilds)
		}
		name := types.NamespacedName{Namespace: job.Namespace, Name: job.GearmanName()}
		if other := oldest[name]; other == nil || older(job, other) {
			oldest[name] = job
		}
	}
	named := map[types.NamespacedName]types.NamespacedName{}
	for name, job := range oldest {
		if job.Spec.MaxBuilds > 0 {
			named[name] = types.NamespacedName{Namespace: job.Namespace, Name: job.Name}
		}
	}
	return l.WithNames(named)
}

func older(a, b *v1alpha1.ZuulJob) bool {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name)) < 0
}

// WithNames are the limits with the jobs found by these names.
func (l Limits) WithNames(named map[types.NamespacedName]types.NamespacedName) Limits {
	l.Named, l.names = named, make(map[types.NamespacedName]types.NamespacedName, len(named))
	for name, job := range named {
		l.names[job] = name
	}
	return l
}

// Scope of a build of the ZuulJob on the class, "" for none.
func (l *Limits) Scope(job types.NamespacedName, class string) Scope {
	s := Scope{}
	if _, limited := l.Classes[class]; limited {
		s.Class = class
	}
	if _, limited := l.Jobs[job]; limited {
		s.Job = job
	}
	return s
}

// ScopeOf a ZuulBuild.
func (l *Limits) ScopeOf(build *v1alpha1.ZuulBuild) Scope {
	if build.Spec.JobRef != nil {
		return l.Scope(types.NamespacedName{Namespace: build.Namespace, Name: build.Spec.JobRef.Name}, build.Spec.Node)
	}
	return l.Scope(l.Named[types.NamespacedName{Namespace: build.Namespace, Name: build.Spec.Job}], build.Spec.Node)
}

// Room tells whether one more build of the scope may come to those there are. What is above its limit already, because that was lowered, has none.
func (l *Limits) Room(used *Usage, s Scope) bool { return l.reached(used, s) == noLimit }

// Full names the limit that leaves no room for a build of the scope, with its figure, for people; "" if there is room.
func (l *Limits) Full(used *Usage, s Scope) string {
	switch l.reached(used, s) {
	case limitOfAll:
		return fmt.Sprintf("at most %d builds at once (--max-builds of the operator)", l.All)
	case limitOfClass:
		return fmt.Sprintf("at most %d builds at once on node class %s (maxBuilds of its ZuulNodeClass)", l.Classes[s.Class], s.Class)
	case limitOfJob:
		return fmt.Sprintf("at most %d builds at once of ZuulJob %s (its maxBuilds)", l.Jobs[s.Job], s.Job.Name)
	default:
		return ""
	}
}

type limitKind int8

const (
	noLimit limitKind = iota
	limitOfAll
	limitOfClass
	limitOfJob
)

// reached is the limit that leaves no room, the narrowest if there are several: it is the one that will hold the longest.
func (l *Limits) reached(used *Usage, s Scope) limitKind {
	counts := used.Of(s)
	if limit, limited := l.Jobs[s.Job]; limited && counts.Job >= limit {
		return limitOfJob
	}
	if limit, limited := l.Classes[s.Class]; limited && counts.Class >= limit {
		return limitOfClass
	}
	if counts.All >= l.All {
		return limitOfAll
	}
	return noLimit
}

// Counts are how many builds count for each limit of a scope; 0 for one that it has not.
type Counts struct{ All, Class, Job int }

// Usage is how many builds there are, by what limits them: those that are counted when they are asked for, and those that were added. The zero value
// is for none.
type Usage struct {
	counted func(Scope) Counts
	all     int
	classes map[string]int
	jobs    map[types.NamespacedName]int
}

// Add one build.
func (u *Usage) Add(s Scope) {
	if u.classes == nil {
		u.classes, u.jobs = map[string]int{}, map[types.NamespacedName]int{}
	}
	u.all++
	if s.Class != "" {
		u.classes[s.Class]++
	}
	if s.Job.Name != "" {
		u.jobs[s.Job]++
	}
}

// Of a scope.
func (u *Usage) Of(s Scope) Counts {
	counts := Counts{}
	if u.counted != nil {
		counts = u.counted(s)
	}
	counts.All += u.all
	counts.Class += u.classes[s.Class]
	counts.Job += u.jobs[s.Job]
	return counts
}
