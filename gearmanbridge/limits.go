package gearmanbridge

import (
	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// limits are how many builds may be unfinished at once: in all, by node class and by job. Classes and jobs without a limit are left out.
type limits struct {
	all     int
	classes map[string]int
	jobs    map[types.NamespacedName]int
	// byName finds the jobs by namespace and Gearman name, for builds made by hand that name no ZuulJob.
	byName map[types.NamespacedName]types.NamespacedName
}

// scope is what a build counts for besides the whole: its class and its job, each only if it has a limit. Functions of one scope share a pool.
type scope struct {
	class string
	job   types.NamespacedName
}

// String is for people: what the pool of the scope is called.
func (s scope) String() string {
	switch {
	case s == scope{}:
		return "default"
	case s.job.Name == "":
		return s.class
	case s.class == "":
		return s.job.String()
	default:
		return s.class + ":" + s.job.String()
	}
}

// readLimits takes the limits from the objects. Where two classes or jobs claim a name, the smaller limit, or the first job, counts.
func readLimits(all int, jobs []v1alpha1.ZuulJob, classes []v1alpha1.ZuulNodeClass) limits {
	l := limits{
		all: all, classes: map[string]int{},
		jobs: map[types.NamespacedName]int{}, byName: map[types.NamespacedName]types.NamespacedName{},
	}
	for i := range classes {
		name, limit := classes[i].GearmanName(), int(classes[i].Spec.MaxBuilds)
		if other, limited := l.classes[name]; limit > 0 && (!limited || limit < other) {
			l.classes[name] = limit
		}
	}
	for i := range jobs {
		job := &jobs[i]
		if job.Spec.MaxBuilds == 0 {
			continue
		}
		key := types.NamespacedName{Namespace: job.Namespace, Name: job.Name}
		l.jobs[key] = int(job.Spec.MaxBuilds)
		name := types.NamespacedName{Namespace: job.Namespace, Name: job.GearmanName()}
		if _, taken := l.byName[name]; !taken {
			l.byName[name] = key
		}
	}
	return l
}

// scope of a build of the ZuulJob on the class, "" for none.
func (l *limits) scope(job types.NamespacedName, class string) scope {
	s := scope{}
	if _, limited := l.classes[class]; limited {
		s.class = class
	}
	if _, limited := l.jobs[job]; limited {
		s.job = job
	}
	return s
}

// scopeOf a ZuulBuild.
func (l *limits) scopeOf(build *v1alpha1.ZuulBuild) scope {
	if build.Spec.JobRef != nil {
		return l.scope(types.NamespacedName{Namespace: build.Namespace, Name: build.Spec.JobRef.Name}, build.Spec.Node)
	}
	return l.scope(l.byName[types.NamespacedName{Namespace: build.Namespace, Name: build.Spec.Job}], build.Spec.Node)
}

// room tells whether one more build of the scope may come to those there are. What is above its limit already, because that was lowered, has none.
func (l *limits) room(used usage, s scope) bool {
	class, limitedClass := l.classes[s.class]
	job, limitedJob := l.jobs[s.job]
	return used.all < l.all && (!limitedClass || used.classes[s.class] < class) && (!limitedJob || used.jobs[s.job] < job)
}

// usage is how many builds there are, by what limits them.
type usage struct {
	all     int
	classes map[string]int
	jobs    map[types.NamespacedName]int
}

func newUsage() usage {
	return usage{classes: map[string]int{}, jobs: map[types.NamespacedName]int{}}
}

func (u *usage) add(s scope) {
	u.all++
	if s.class != "" {
		u.classes[s.class]++
	}
	if s.job.Name != "" {
		u.jobs[s.job]++
	}
}

// plan decides which function goes to which pool.
func (l *limits) plan(functions map[string]target) map[string]scope {
	planned := make(map[string]scope, len(functions))
	for name, t := range functions {
		planned[name] = l.scope(t.key, t.class)
	}
	return planned
}
