package gearmanbridge

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
)

func nodeClass(name string, spec v1alpha1.ZuulNodeClassSpec) v1alpha1.ZuulNodeClass {
	return v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
}

func jobKey(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "ci", Name: name}
}

func TestReadLimits(t *testing.T) {
	type keys = map[types.NamespacedName]types.NamespacedName
	got := readLimits(7,
		[]v1alpha1.ZuulJob{
			zuulJob("ci", "unit", 0, v1alpha1.ZuulJobSpec{}),
			zuulJob("ci", "limited", 0, v1alpha1.ZuulJobSpec{MaxBuilds: 2}),
			zuulJob("ci", "named", 0, v1alpha1.ZuulJobSpec{MaxBuilds: 3, JobName: "Name", Disabled: true}),
			zuulJob("ci", "second", 0, v1alpha1.ZuulJobSpec{MaxBuilds: 4, JobName: "Name"}),
		},
		[]v1alpha1.ZuulNodeClass{
			nodeClass("any", v1alpha1.ZuulNodeClassSpec{}),
			nodeClass("arm", v1alpha1.ZuulNodeClassSpec{MaxBuilds: 5}),
			nodeClass("arm-too", v1alpha1.ZuulNodeClassSpec{MaxBuilds: 4, ClassName: "arm"}),
			nodeClass("arm-again", v1alpha1.ZuulNodeClassSpec{MaxBuilds: 6, ClassName: "arm"}),
			nodeClass("arm-unlimited", v1alpha1.ZuulNodeClassSpec{ClassName: "arm"}),
		})
	want := limits{
		all: 7, classes: map[string]int{"arm": 4},
		jobs:   map[types.NamespacedName]int{jobKey("limited"): 2, jobKey("named"): 3, jobKey("second"): 4},
		byName: keys{jobKey("limited"): jobKey("limited"), jobKey("Name"): jobKey("named")},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(limits{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// testLimits limit class arm and job limited.
func testLimits() *limits {
	return &limits{
		all: 3, classes: map[string]int{"arm": 2}, jobs: map[types.NamespacedName]int{jobKey("limited"): 1},
		byName: map[types.NamespacedName]types.NamespacedName{jobKey("Limited"): jobKey("limited")},
	}
}

func TestLimitsPlan(t *testing.T) {
	functions := map[string]target{
		"build:unit":        {key: jobKey("unit"), job: "unit"},
		"build:unit:any":    {key: jobKey("unit"), job: "unit", class: "any"},
		"build:unit:arm":    {key: jobKey("unit"), job: "unit", class: "arm"},
		"build:limited":     {key: jobKey("limited"), job: "limited"},
		"build:limited:any": {key: jobKey("limited"), job: "limited", class: "any"},
		"build:limited:arm": {key: jobKey("limited"), job: "limited", class: "arm"},
	}
	want := map[string]scope{
		"build:unit":        {},
		"build:unit:any":    {},
		"build:unit:arm":    {class: "arm"},
		"build:limited":     {job: jobKey("limited")},
		"build:limited:any": {job: jobKey("limited")},
		"build:limited:arm": {class: "arm", job: jobKey("limited")},
	}
	if diff := cmp.Diff(want, testLimits().plan(functions), cmp.AllowUnexported(scope{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestScopeOfBuild(t *testing.T) {
	type spec = v1alpha1.ZuulBuildSpec
	reference := func(name string) *v1alpha1.JobReference { return &v1alpha1.JobReference{Name: name} }
	tests := map[string]struct {
		namespace string
		spec      spec
		want      scope
	}{
		"under no limit":         {"ci", spec{Job: "unit", JobRef: reference("unit"), Node: "any"}, scope{}},
		"of a class":             {"ci", spec{Job: "unit", JobRef: reference("unit"), Node: "arm"}, scope{class: "arm"}},
		"of a class, any job":    {"ci", spec{Job: "gone", Node: "arm"}, scope{class: "arm"}},
		"of a job":               {"ci", spec{Job: "x", JobRef: reference("limited")}, scope{job: jobKey("limited")}},
		"of a job by its name":   {"ci", spec{Job: "Limited"}, scope{job: jobKey("limited")}},
		"its object's name only": {"ci", spec{Job: "limited"}, scope{}},
		"of both":                {"ci", spec{Job: "Limited", Node: "arm"}, scope{class: "arm", job: jobKey("limited")}},
		"in another namespace":   {"other", spec{Job: "Limited", JobRef: reference("limited")}, scope{}},
		"by name in another one": {"other", spec{Job: "Limited"}, scope{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: test.namespace}, Spec: test.spec}
			if got := testLimits().scopeOf(build); got != test.want {
				t.Errorf("scope %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestRoom(t *testing.T) {
	arm, limited := scope{class: "arm"}, scope{job: jobKey("limited")}
	both := scope{class: "arm", job: jobKey("limited")}
	gone := scope{class: "gone", job: jobKey("gone")} // of a pool whose limits were just taken away
	tests := map[string]struct {
		builds []scope
		want   []scope // with room
	}{
		"none":                    {nil, []scope{{}, arm, limited, both, gone}},
		"a class not yet full":    {[]scope{arm}, []scope{{}, arm, limited, both, gone}},
		"a full class":            {[]scope{arm, arm}, []scope{{}, limited, gone}},
		"a full job":              {[]scope{limited}, []scope{{}, arm, gone}},
		"a build counts for both": {[]scope{both, arm}, []scope{{}, gone}},
		"all":                     {[]scope{{}, {}, {}}, nil},
		"more than all":           {[]scope{{}, {}, {}, {}}, nil},
		"a limit lowered below":   {[]scope{limited, limited}, []scope{{}, arm, gone}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			used := newUsage()
			for _, build := range test.builds {
				used.add(build)
			}
			var got []scope
			for _, s := range []scope{{}, arm, limited, both, gone} {
				if testLimits().room(used, s) {
					got = append(got, s)
				}
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(scope{})); diff != "" {
				t.Errorf("scopes with room (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPoolID(t *testing.T) {
	long := jobKey("a-job-with-quite-a-long-name-as-zuul-has-them-and-some-more-that-no-server-takes-as-the-name-of-a-worker-any-more")
	tests := map[string]struct {
		scope scope
		want  string
	}{
		"default":      {scope{}, "m_builds"},
		"class":        {scope{class: "arm"}, "m_builds:arm"},
		"job":          {scope{job: jobKey("unit")}, "m_builds:ci/unit"},
		"both":         {scope{class: "arm", job: jobKey("unit")}, "m_builds:arm:ci/unit"},
		"cut to fit":   {scope{class: "arm", job: long}, ("m_builds:arm:" + long.String())[:127]},
		"not too much": {scope{class: "arm", job: jobKey(long.Name[:111])}, "m_builds:arm:ci/" + long.Name[:111]},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := poolID("m", test.scope); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
