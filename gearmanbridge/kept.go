package gearmanbridge

import (
	"context"
	"maps"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/buildlog"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// A ZuulJob may be disabled, deleted or renamed while a build of it runs. The connection that has the build's job keeps its function until that is
// reported. But where that connection is lost gearmand queues the job again, under a function that nobody offers any more, and Zuul would wait for ever,
// also if the build is complete by then. So the leader offers a function as long as gearmand knows the job of a build of it that nobody has.

// unoffered lists the builds of a server, complete or not, whose function no ZuulJob has and whose job is not here.
func (b *Bridge) unoffered(ctx context.Context, s *session) (builds []*v1alpha1.ZuulBuild, err error) {
	if !b.leads.Load() {
		return nil, nil // who takes no jobs need offer nothing for their sake
	}
	all := v1alpha1.ZuulBuildList{}
	err = b.Client.List(ctx, &all, client.MatchingLabels{v1alpha1.LabelGearmanServer: s.server.Name}, client.UnsafeDisableDeepCopy)
	for i := range all.Items {
		if build := &all.Items[i]; build.Spec.JobRef != nil && askable(build) && !b.functions.offers(targetOf(build)) && !b.assignments.has(client.ObjectKeyFromObject(build)) {
			builds = append(builds, build)
		}
	}
	return builds, err
}

// askable tells whether gearmand can be asked for the unique of a build: one that could not be stored as it was cannot.
func askable(build *v1alpha1.ZuulBuild) bool {
	return build.Spec.UUID != "" && buildName(build.Spec.UUID) == build.Name
}

// targetOf is what a build was asked for by.
func targetOf(build *v1alpha1.ZuulBuild) target {
	return target{key: client.ObjectKey{Namespace: build.Namespace, Name: build.Spec.JobRef.Name}, job: build.Spec.Job, class: build.Spec.Node}
}

// keep has the functions offered of those builds whose jobs gearmand knows, and no others but the jobs' own.
func (b *Bridge) keep(ctx context.Context, s *session, admin *gearman.Admin, builds []*v1alpha1.ZuulBuild) error {
	kept := map[string]target{}
	if len(builds) > 0 {
		status, err := admin.Status(ctx)
		if err != nil {
			return err
		}
		busy := map[string]bool{}
		for _, function := range status {
			busy[function.Name] = function.Queued+function.Running > 0
		}
		for _, build := range builds {
			t := targetOf(build)
			if _, is := kept[t.function()]; is || !busy[t.function()] {
				continue
			}
			known, err := admin.KnowsUnique(ctx, build.Spec.UUID)
			if err != nil {
				return err
			}
			if known {
				kept[t.function()] = t
				b.Logger.With(buildlog.Of(build)...).Debug("The function of a lost job is offered although no ZuulJob has it", "gearmanServer", s.server.Name, "function", t.function())
			}
		}
	}
	var now *map[string]target
	if len(kept) > 0 {
		now = &kept
	}
	if before := s.kept.Swap(now); before == nil && now == nil || before != nil && maps.Equal(*before, kept) {
		return nil
	}
	b.lookAgain()
	return nil
}

// withKept adds to the functions of the jobs those that are kept for lost jobs of the server; the jobs' own go before.
func (s *session) withKept(functions map[string]target) map[string]target {
	kept := s.kept.Load()
	if kept == nil || len(*kept) == 0 {
		return functions
	}
	all := maps.Clone(*kept)
	maps.Copy(all, functions)
	return all
}
