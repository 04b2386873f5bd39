package gearmanbridge

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// target is what a Gearman function means: a job and, where Zuul asks for one, a node class. A table of them is kept rather than names taken apart,
// because job names may hold colons (protocol section 4).
type target struct {
	key   types.NamespacedName // of the ZuulJob
	job   string               // its Gearman name
	class string               // "" for build:JOB
}

// function is the name Zuul submits under.
func (t target) function() string {
	if t.class == "" {
		return "build:" + t.job
	}
	return "build:" + t.job + ":" + t.class
}

// registration is what becomes of one ZuulJob.
type registration struct {
	functions []string // sorted
	reason    string   // of the condition Registered
	message   string
}

func (r registration) registered() bool { return len(r.functions) > 0 }

// Reasons of the condition Registered.
const (
	reasonRegistered  = "Registered"
	reasonDisabled    = "Disabled"
	reasonInvalidName = "InvalidName"
	reasonNameTaken   = "NameTaken"
)

// plan decides which functions are registered for which job, and why others are not: `build:JOB` for each enabled job and `build:JOB:CLASS` for each
// class it may use, which without a list is every class there is. Where two jobs claim a function, the older keeps it and the other gets none.
func plan(jobs []v1alpha1.ZuulJob, classes []string) (map[string]target, map[types.NamespacedName]registration) {
	jobs = slices.Clone(jobs)
	slices.SortFunc(jobs, func(a, b v1alpha1.ZuulJob) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	functions := map[string]target{}
	registrations := map[types.NamespacedName]registration{}
	for i := range jobs {
		key := types.NamespacedName{Namespace: jobs[i].Namespace, Name: jobs[i].Name}
		registrations[key] = planJob(&jobs[i], key, classes, functions)
	}
	return functions, registrations
}

// planJob adds the functions of one job to the table, all of them or none.
func planJob(job *v1alpha1.ZuulJob, key types.NamespacedName, classes []string, functions map[string]target) registration {
	if job.Spec.Disabled {
		return registration{reason: reasonDisabled, message: "spec.disabled is true"}
	}
	wanted := []target{{key: key, job: job.GearmanName()}}
	if len(job.Spec.Nodes) > 0 {
		classes = job.Spec.Nodes
	}
	for _, class := range classes {
		wanted = append(wanted, target{key: key, job: job.GearmanName(), class: class})
	}
	names := make([]string, 0, len(wanted))
	for _, t := range wanted {
		name := t.function()
		if err := gearman.ValidFunctionName(name); err != nil {
			return registration{reason: reasonInvalidName, message: fmt.Sprintf("%q cannot be a Gearman function: %v", name, err)}
		}
		if other, taken := functions[name]; taken && other != t {
			return registration{reason: reasonNameTaken, message: fmt.Sprintf(
				"function %s belongs to the older ZuulJob %s; change jobName or delete one of the two", name, other.key)}
		}
		names = append(names, name)
	}
	for i, t := range wanted {
		functions[names[i]] = t
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return registration{functions: names, reason: reasonRegistered, message: fmt.Sprintf("Zuul can ask for %s", summary(names))}
}

func summary(names []string) string {
	const shown = 5
	if len(names) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}
