package gearmanbridge

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

// buildThree is build 3 of job unit, made so many minutes after the first.
func buildThree(namespace string, minutes int, phase v1alpha1.BuildPhase, change ...func(*v1alpha1.ZuulBuild)) *v1alpha1.ZuulBuild {
	build := &v1alpha1.ZuulBuild{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: "build-" + namespace, Labels: map[string]string{v1alpha1.LabelGearmanServer: "zuul"},
			CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 1, 0, minutes, 0, 0, time.UTC)),
		},
		Spec:   v1alpha1.ZuulBuildSpec{Job: "unit", Number: 3, UUID: "uuid-" + namespace},
		Status: v1alpha1.ZuulBuildStatus{Phase: phase},
	}
	for _, c := range change {
		c(build)
	}
	return build
}

func aborted(build *v1alpha1.ZuulBuild) { build.Spec.Abort = true }

// TestMeant: of several builds that a command may mean, it means the one that somebody here waits for, else one that is to be stopped yet, else the newest.
func TestMeant(t *testing.T) {
	const running, succeeded = v1alpha1.PhaseRunning, v1alpha1.PhaseSucceeded
	tests := map[string]struct {
		builds  []*v1alpha1.ZuulBuild
		awaited string // in this namespace
		want    string // namespace
	}{
		"one":                        {[]*v1alpha1.ZuulBuild{buildThree("a", 0, succeeded)}, "", "a"},
		"running":                    {[]*v1alpha1.ZuulBuild{buildThree("a", 0, running), buildThree("b", 9, succeeded)}, "", "a"},
		"queued":                     {[]*v1alpha1.ZuulBuild{buildThree("a", 0, ""), buildThree("b", 9, succeeded)}, "", "a"},
		"running, aborted":           {[]*v1alpha1.ZuulBuild{buildThree("a", 0, running), buildThree("b", 9, running, aborted)}, "", "a"},
		"all aborted":                {[]*v1alpha1.ZuulBuild{buildThree("a", 0, succeeded), buildThree("b", 9, running, aborted)}, "", "b"},
		"newest":                     {[]*v1alpha1.ZuulBuild{buildThree("a", 9, running), buildThree("b", 0, running)}, "", "a"},
		"newest that ended":          {[]*v1alpha1.ZuulBuild{buildThree("a", 0, succeeded), buildThree("b", 9, succeeded)}, "", "b"},
		"at the same time":           {[]*v1alpha1.ZuulBuild{buildThree("a", 0, running), buildThree("b", 0, running)}, "", "a"},
		"awaited":                    {[]*v1alpha1.ZuulBuild{buildThree("a", 0, running), buildThree("b", 9, running)}, "a", "a"},
		"awaited, which was aborted": {[]*v1alpha1.ZuulBuild{buildThree("a", 0, running, aborted), buildThree("b", 9, running)}, "a", "a"},
		"awaited, just ended":        {[]*v1alpha1.ZuulBuild{buildThree("a", 0, succeeded), buildThree("b", 9, running)}, "a", "a"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			awaited := func(key types.NamespacedName) bool { return key.Namespace == test.awaited }
			for range 2 {
				if got := meant(test.builds, awaited); got.Namespace != test.want {
					t.Errorf("that of %q, want %q", got.Namespace, test.want)
				}
				slices.Reverse(test.builds)
			}
		})
	}
	if got := meant(nil, func(types.NamespacedName) bool { return true }); got != nil {
		t.Errorf("%v of none", got)
	}
}

// TestFindAmongNamespaces: a build that runs is found, whatever there is in other namespaces, and whether the cache shows it already.
func TestFindAmongNamespaces(t *testing.T) {
	scheme := runtime.NewScheme()
	must(t, v1alpha1.AddToScheme(scheme))
	old, running := buildThree("a", 0, v1alpha1.PhaseSucceeded), buildThree("b", 9, v1alpha1.PhaseRunning)
	others := buildThree("c", 99, v1alpha1.PhaseRunning)
	others.Labels = map[string]string{v1alpha1.LabelGearmanServer: "another"}
	listener := func(server string, build *v1alpha1.ZuulBuild) *assignment {
		return &assignment{server: server, key: client.ObjectKeyFromObject(build), build: build}
	}
	aside := buildThree("d", 99, v1alpha1.PhaseRunning)
	tests := map[string]struct {
		cached    []client.Object
		listeners []*assignment
		server    string
		want      string // namespace
	}{
		"it runs":                     {[]client.Object{old, running}, nil, "zuul", "b"},
		"it runs, in the other":       {[]client.Object{buildThree("b", 0, v1alpha1.PhaseSucceeded), buildThree("a", 9, v1alpha1.PhaseRunning)}, nil, "zuul", "a"},
		"it was just created":         {[]client.Object{old}, []*assignment{listener("zuul", running)}, "zuul", "b"},
		"nothing else is shown":       {nil, []*assignment{listener("zuul", running)}, "zuul", "b"},
		"somebody waits for it":       {[]client.Object{old, running, aside}, []*assignment{listener("zuul", running)}, "zuul", "b"},
		"of another server":           {[]client.Object{old, running, others}, []*assignment{listener("another", others)}, "zuul", "b"},
		"the other server's":          {[]client.Object{old, running, others}, nil, "another", "c"},
		"another server waits for it": {[]client.Object{old, running, aside}, []*assignment{listener("another", running)}, "zuul", "d"},
		"a third server":              {[]client.Object{old, running, others}, []*assignment{listener("zuul", running)}, "third", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(test.cached...).
				WithIndex(&v1alpha1.ZuulBuild{}, indexNumber, func(object client.Object) []string {
					spec := &object.(*v1alpha1.ZuulBuild).Spec
					return []string{numberKey(spec.Job, spec.Number)}
				}).Build()
			b := &Bridge{Client: api}
			for _, a := range test.listeners {
				b.assignments.add(a)
			}
			found, err := b.find(t.Context(), buildReference{server: test.server, job: "unit", number: 3})
			must(t, err)
			got := ""
			if found != nil {
				got = found.Namespace
			}
			if got != test.want {
				t.Errorf("found that of %q, want %q", got, test.want)
			}
		})
	}
}

// TestKeyOf: a request is for the build of its unique, though the ZuulJob has moved to another namespace since.
func TestKeyOf(t *testing.T) {
	scheme := runtime.NewScheme()
	must(t, v1alpha1.AddToScheme(scheme))
	const unique = "0123456789abcdef0123456789abcdef"
	build := func(namespace string, change func(*v1alpha1.ZuulBuild)) client.Object {
		build := &v1alpha1.ZuulBuild{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: unique, Labels: map[string]string{v1alpha1.LabelGearmanServer: "zuul"}},
			Spec:       v1alpha1.ZuulBuildSpec{Job: "unit", Node: "big", UUID: unique},
		}
		if change != nil {
			change(build)
		}
		return build
	}
	for name, test := range map[string]struct {
		builds []client.Object
		unique string
		want   string // namespace
	}{
		"new":                     {nil, unique, "now"},
		"there":                   {[]client.Object{build("now", nil)}, unique, "now"},
		"moved":                   {[]client.Object{build("before", nil)}, unique, "before"},
		"in both":                 {[]client.Object{build("before", nil), build("now", nil)}, unique, "now"},
		"of another job":          {[]client.Object{build("before", func(b *v1alpha1.ZuulBuild) { b.Spec.Job = "other" })}, unique, "now"},
		"for another class":       {[]client.Object{build("before", func(b *v1alpha1.ZuulBuild) { b.Spec.Node = "" })}, unique, "now"},
		"of another server":       {[]client.Object{build("before", func(b *v1alpha1.ZuulBuild) { b.Labels[v1alpha1.LabelGearmanServer] = "other" })}, unique, "now"},
		"by hand, with its UUID":  {[]client.Object{build("before", func(b *v1alpha1.ZuulBuild) { b.Name = "by-hand" })}, unique, "now"},
		"without a unique":        {[]client.Object{build("before", func(b *v1alpha1.ZuulBuild) { b.Spec.UUID = "" })}, "", "now"},
		"without, and one of its": {[]client.Object{build("before", nil)}, "", "now"},
	} {
		t.Run(name, func(t *testing.T) {
			api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(test.builds...).
				WithIndex(&v1alpha1.ZuulBuild{}, indexUUID, func(object client.Object) []string { return []string{object.(*v1alpha1.ZuulBuild).Spec.UUID} }).Build()
			b := &Bridge{Client: api}
			wanted := target{key: types.NamespacedName{Namespace: "now", Name: "unit"}, job: "unit", class: "big"}
			key := b.keyOf(t.Context(), &session{server: Server{Name: "zuul"}}, wanted, test.unique, unique)
			if want := (types.NamespacedName{Namespace: test.want, Name: unique}); key != want {
				t.Errorf("it is %s, want %s", key, want)
			}
		})
	}
}
