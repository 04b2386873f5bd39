package capacity

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

type buildOption func(*v1alpha1.ZuulBuild)

func grabbed(build *v1alpha1.ZuulBuild) {
	build.Labels = map[string]string{v1alpha1.LabelGearmanServer: "zuul"}
}

func inPhase(phase v1alpha1.BuildPhase) buildOption {
	return func(build *v1alpha1.ZuulBuild) { build.Status.Phase = phase }
}

func tellsOfPod(build *v1alpha1.ZuulBuild) { build.Status.PodName = build.Name }

func byReference(build *v1alpha1.ZuulBuild) {
	build.Spec.JobRef = &v1alpha1.JobReference{Name: "limited"}
}

// newBuild of job Limited, which is ZuulJob limited, on class arm.
func newBuild(name string, options ...buildOption) *v1alpha1.ZuulBuild {
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: name, UID: types.UID("uid of " + name)},
		Spec:       v1alpha1.ZuulBuildSpec{Job: "Limited", Node: "arm"},
	}
	for _, option := range options {
		option(build)
	}
	return build
}

func podOf(build *v1alpha1.ZuulBuild, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: build.Namespace, Name: build.Name, Labels: map[string]string{v1alpha1.LabelBuild: build.Name},
			Annotations: map[string]string{v1alpha1.AnnotationJob: build.Spec.Job, v1alpha1.AnnotationNode: build.Spec.Node},
			OwnerReferences: []metav1.OwnerReference{
				*metav1.NewControllerRef(build, v1alpha1.GroupVersion.WithKind("ZuulBuild")),
			},
		},
		Status: corev1.PodStatus{Phase: phase},
	}
}

// TestBuildsCount: who counts for the bridge, and who for the controllers.
func TestBuildsCount(t *testing.T) {
	type build = *v1alpha1.ZuulBuild
	b := func(options ...buildOption) build { return newBuild("b", options...) }
	succeeded := inPhase(v1alpha1.PhaseSucceeded)
	tests := map[string]struct {
		events            func(*Builds)
		claimed, occupied int
	}{
		"nothing":                 {func(*Builds) {}, 0, 0},
		"grabbed":                 {func(all *Builds) { all.SetBuild(b(grabbed)) }, 1, 0},
		"grabbed, by its ZuulJob": {func(all *Builds) { all.SetBuild(b(grabbed, byReference)) }, 1, 0},
		"by hand":                 {func(all *Builds) { all.SetBuild(b()) }, 0, 0},
		"by hand, tells of a Pod": {func(all *Builds) { all.SetBuild(b(tellsOfPod)) }, 1, 1},
		"by hand, has a Pod":      {func(all *Builds) { all.SetBuild(b()); all.SetPod(podOf(b(), corev1.PodPending)) }, 1, 1},
		"the Pod first":           {func(all *Builds) { all.SetPod(podOf(b(), corev1.PodPending)); all.SetBuild(b()) }, 1, 1},
		"its Pod has ended":       {func(all *Builds) { all.SetBuild(b()); all.SetPod(podOf(b(), corev1.PodFailed)) }, 1, 1},
		"its Pod is gone": {func(all *Builds) {
			all.SetBuild(b(tellsOfPod))
			all.SetPod(podOf(b(), corev1.PodRunning))
			all.DeletePod(jobKey("b"))
		}, 1, 1},
		"seen often": {func(all *Builds) {
			all.SetBuild(b(grabbed))
			all.SetBuild(b(grabbed))
			all.SetBuild(b(grabbed, tellsOfPod))
		}, 1, 1},
		"complete":                {func(all *Builds) { all.SetBuild(b(grabbed, succeeded, tellsOfPod)) }, 0, 0},
		"complete beside its Pod": {func(all *Builds) { all.SetPod(podOf(b(), corev1.PodRunning)); all.SetBuild(b(succeeded)) }, 0, 0},
		"deleted":                 {func(all *Builds) { all.SetBuild(b(grabbed, tellsOfPod)); all.DeleteBuild(jobKey("b")) }, 0, 0},
		"deleted, the Pod is left": {func(all *Builds) {
			all.SetBuild(b(byReference))
			all.SetPod(podOf(b(), corev1.PodRunning))
			all.DeleteBuild(jobKey("b"))
		}, 1, 1},
		"a Pod left before":    {func(all *Builds) { all.SetPod(podOf(b(), corev1.PodRunning)) }, 1, 1},
		"an ended Pod is left": {func(all *Builds) { all.SetPod(podOf(b(), corev1.PodSucceeded)) }, 0, 0},
		"made again": {func(all *Builds) {
			all.SetBuild(b(succeeded))
			all.DeleteBuild(jobKey("b"))
			all.SetBuild(b(grabbed))
		}, 1, 0},
		"a Pod of others": {func(all *Builds) {
			pod := podOf(b(), corev1.PodRunning)
			pod.Labels = nil
			all.SetPod(pod)
		}, 0, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			all := NewBuilds()
			test.events(all)
			for view, counted := range map[string]struct {
				usage *Usage
				want  int
			}{"claimed": {all.Claimed(testLimits()), test.claimed}, "occupied": {all.Occupied(testLimits()), test.occupied}} {
				want := Counts{counted.want, counted.want, counted.want}
				if got := counted.usage.Of(Scope{Class: "arm", Job: jobKey("limited")}); got != want {
					t.Errorf("%s: %+v, want %+v", view, got, want)
				}
				if got := counted.usage.Of(Scope{}); got != (Counts{All: counted.want}) {
					t.Errorf("%s: %+v count for no limit of theirs", view, got)
				}
			}
		})
	}
}

func TestBuildsSettled(t *testing.T) {
	first := newBuild("b")
	second := newBuild("b", func(build *v1alpha1.ZuulBuild) { build.UID = "uid of the second" })
	with := func(build *v1alpha1.ZuulBuild, option buildOption) *v1alpha1.ZuulBuild {
		build = build.DeepCopy()
		option(build)
		return build
	}
	type answer struct{ settled, known bool }
	tests := map[string]struct {
		events        func(*Builds)
		first, second answer
	}{
		"nothing":        {func(*Builds) {}, answer{}, answer{}},
		"no Pod yet":     {func(all *Builds) { all.SetBuild(first) }, answer{false, true}, answer{}},
		"a Pod":          {func(all *Builds) { all.SetBuild(first); all.SetPod(podOf(first, corev1.PodPending)) }, answer{true, true}, answer{}},
		"the Pod first":  {func(all *Builds) { all.SetPod(podOf(first, corev1.PodPending)) }, answer{true, false}, answer{}},
		"tells of a Pod": {func(all *Builds) { all.SetBuild(with(first, tellsOfPod)) }, answer{true, true}, answer{}},
		"complete":       {func(all *Builds) { all.SetBuild(with(first, inPhase(v1alpha1.PhaseAborted))) }, answer{true, true}, answer{}},
		"deleted":        {func(all *Builds) { all.SetBuild(first); all.DeleteBuild(jobKey("b")) }, answer{}, answer{}},
		"deleted, the Pod is left": {func(all *Builds) {
			all.SetBuild(first)
			all.SetPod(podOf(first, corev1.PodRunning))
			all.DeleteBuild(jobKey("b"))
		}, answer{true, false}, answer{}},
		"made again":                       {func(all *Builds) { all.SetBuild(first); all.DeleteBuild(jobKey("b")); all.SetBuild(second) }, answer{}, answer{false, true}},
		"made again, and nobody saw it go": {func(all *Builds) { all.SetBuild(first); all.SetBuild(second) }, answer{}, answer{false, true}},
		"made again beside the Pod of the first": {func(all *Builds) {
			all.SetBuild(first)
			all.SetPod(podOf(first, corev1.PodRunning))
			all.SetBuild(second)
		}, answer{true, false}, answer{false, true}},
		"made again, with its Pod": {func(all *Builds) {
			all.SetPod(podOf(first, corev1.PodRunning))
			all.DeletePod(jobKey("b"))
			all.SetBuild(second)
			all.SetPod(podOf(second, corev1.PodRunning))
		}, answer{}, answer{true, true}},
		"the Pod is gone": {func(all *Builds) {
			all.SetBuild(first)
			all.SetPod(podOf(first, corev1.PodRunning))
			all.DeletePod(jobKey("b"))
		}, answer{false, true}, answer{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			all := NewBuilds()
			test.events(all)
			for which, of := range map[string]struct {
				uid  types.UID
				want answer
			}{"first": {first.UID, test.first}, "second": {second.UID, test.second}} {
				settled, known := all.Settled(jobKey("b"), of.uid)
				if got := (answer{settled, known}); got != of.want {
					t.Errorf("%s: %+v, want %+v", which, got, of.want)
				}
			}
		})
	}
}

// TestBuildsProperties: whatever happened, the counts are those of the objects there are, nothing is kept of those that are gone, and whoever counts
// is told of each that counts no more.
func TestBuildsProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := NewBuilds()
		freed := 0
		all.OnFreed(func() { freed++ })
		builds, pods := map[string]*v1alpha1.ZuulBuild{}, map[string]*corev1.Pod{}
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		phases := rapid.SampledFrom([]v1alpha1.BuildPhase{v1alpha1.PhaseQueued, v1alpha1.PhaseRunning, v1alpha1.PhaseFailed})
		count := func() (claimed, occupied int) {
			for _, name := range []string{"a", "b", "c"} {
				build, pod := builds[name], pods[name]
				var occupies bool
				if build == nil {
					occupies = pod != nil && pod.Status.Phase == corev1.PodRunning
				} else {
					occupies = !build.Complete() && (pod != nil || build.Status.PodName != "")
				}
				if occupies {
					occupied++
				}
				if occupies || build != nil && !build.Complete() && build.Labels[v1alpha1.LabelGearmanServer] != "" {
					claimed++
				}
			}
			return claimed, occupied
		}
		claimed, occupied := 0, 0
		t.Repeat(map[string]func(*rapid.T){
			"build": func(t *rapid.T) {
				build := newBuild(names.Draw(t, "name"), inPhase(phases.Draw(t, "phase")))
				for _, option := range []buildOption{grabbed, tellsOfPod, byReference} {
					if rapid.Bool().Draw(t, "option") {
						option(build)
					}
				}
				builds[build.Name] = build
				all.SetBuild(build)
			},
			"pod": func(t *rapid.T) {
				phase := rapid.SampledFrom([]corev1.PodPhase{corev1.PodRunning, corev1.PodFailed}).Draw(t, "phase")
				pod := podOf(newBuild(names.Draw(t, "name")), phase)
				pods[pod.Name] = pod
				all.SetPod(pod)
			},
			"delete build": func(t *rapid.T) {
				name := names.Draw(t, "name")
				delete(builds, name)
				all.DeleteBuild(jobKey(name))
			},
			"delete Pod": func(t *rapid.T) {
				name := names.Draw(t, "name")
				delete(pods, name)
				all.DeletePod(jobKey(name))
			},
			"": func(t *rapid.T) {
				wasClaimed, wasOccupied := claimed, occupied
				claimed, occupied = count()
				scope := Scope{Class: "arm", Job: jobKey("limited")}
				if got := all.Claimed(testLimits()).Of(scope); got != (Counts{claimed, claimed, claimed}) {
					t.Fatalf("claimed: %+v, want %d", got, claimed)
				}
				if got := len(all.Claimants()); got != claimed {
					t.Fatalf("%d claimants, want %d", got, claimed)
				}
				if got := all.Occupied(testLimits()).Of(scope); got != (Counts{occupied, occupied, occupied}) {
					t.Fatalf("occupied: %+v, want %d", got, occupied)
				}
				if (claimed < wasClaimed || occupied < wasOccupied) && freed == 0 {
					t.Fatalf("nobody is told of less than %d and %d", wasClaimed, wasOccupied)
				}
				freed = 0
				if len(builds)+len(pods) == 0 && len(all.records)+len(all.claimed)+len(all.occupied) > 0 {
					t.Fatalf("left behind: %+v", all)
				}
			},
		})
	})
}
