package capacity

import (
	"testing"
	"time"

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

func TestNewLimits(t *testing.T) {
	type keys = map[types.NamespacedName]types.NamespacedName
	minute := 0
	zuulJob := func(name string, spec v1alpha1.ZuulJobSpec) v1alpha1.ZuulJob {
		minute-- // the last is the oldest
		created := metav1.NewTime(time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC))
		return v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: "ci", Name: name, CreationTimestamp: created}, Spec: spec}
	}
	got := NewLimits(7,
		[]v1alpha1.ZuulJob{
			zuulJob("unit", v1alpha1.ZuulJobSpec{}),
			zuulJob("limited", v1alpha1.ZuulJobSpec{MaxBuilds: 2}),
			zuulJob("second", v1alpha1.ZuulJobSpec{MaxBuilds: 4, JobName: "Name"}),
			zuulJob("named", v1alpha1.ZuulJobSpec{MaxBuilds: 3, JobName: "Name", Disabled: true}),
			zuulJob("younger", v1alpha1.ZuulJobSpec{MaxBuilds: 5, JobName: "Free"}),
			zuulJob("free", v1alpha1.ZuulJobSpec{JobName: "Free"}),
		},
		[]v1alpha1.ZuulNodeClass{
			nodeClass("any", v1alpha1.ZuulNodeClassSpec{}),
			nodeClass("arm", v1alpha1.ZuulNodeClassSpec{MaxBuilds: 5}),
			nodeClass("arm-too", v1alpha1.ZuulNodeClassSpec{MaxBuilds: 4, ClassName: "arm"}),
			nodeClass("arm-again", v1alpha1.ZuulNodeClassSpec{MaxBuilds: 6, ClassName: "arm"}),
			nodeClass("arm-unlimited", v1alpha1.ZuulNodeClassSpec{ClassName: "arm"}),
		})
	want := Limits{
		All: 7, Classes: map[string]int{"arm": 4},
		Jobs: map[types.NamespacedName]int{jobKey("limited"): 2, jobKey("named"): 3, jobKey("second"): 4, jobKey("younger"): 5},
	}.WithNames(keys{jobKey("limited"): jobKey("limited"), jobKey("Name"): jobKey("named")})
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Limits{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// testLimits limit class arm and job limited.
func testLimits() *Limits {
	l := Limits{All: 3, Classes: map[string]int{"arm": 2}, Jobs: map[types.NamespacedName]int{jobKey("limited"): 1}}
	l = l.WithNames(map[types.NamespacedName]types.NamespacedName{jobKey("Limited"): jobKey("limited")})
	return &l
}

func TestScopeOfBuild(t *testing.T) {
	type spec = v1alpha1.ZuulBuildSpec
	reference := func(name string) *v1alpha1.JobReference { return &v1alpha1.JobReference{Name: name} }
	tests := map[string]struct {
		namespace string
		spec      spec
		want      Scope
	}{
		"under no limit":         {"ci", spec{Job: "unit", JobRef: reference("unit"), Node: "any"}, Scope{}},
		"of a class":             {"ci", spec{Job: "unit", JobRef: reference("unit"), Node: "arm"}, Scope{Class: "arm"}},
		"of a class, any job":    {"ci", spec{Job: "gone", Node: "arm"}, Scope{Class: "arm"}},
		"of a job":               {"ci", spec{Job: "x", JobRef: reference("limited")}, Scope{Job: jobKey("limited")}},
		"of a job by its name":   {"ci", spec{Job: "Limited"}, Scope{Job: jobKey("limited")}},
		"its object's name only": {"ci", spec{Job: "limited"}, Scope{}},
		"of both":                {"ci", spec{Job: "Limited", Node: "arm"}, Scope{Class: "arm", Job: jobKey("limited")}},
		"in another namespace":   {"other", spec{Job: "Limited", JobRef: reference("limited")}, Scope{}},
		"by name in another one": {"other", spec{Job: "Limited"}, Scope{}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			build := &v1alpha1.ZuulBuild{ObjectMeta: metav1.ObjectMeta{Namespace: test.namespace}, Spec: test.spec}
			if got := testLimits().ScopeOf(build); got != test.want {
				t.Errorf("scope %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestRoom(t *testing.T) {
	arm, limited := Scope{Class: "arm"}, Scope{Job: jobKey("limited")}
	both := Scope{Class: "arm", Job: jobKey("limited")}
	gone := Scope{Class: "gone", Job: jobKey("gone")} // of a pool whose limits were just taken away
	tests := map[string]struct {
		builds []Scope
		want   []Scope // with room
	}{
		"none":                    {nil, []Scope{{}, arm, limited, both, gone}},
		"a class not yet full":    {[]Scope{arm}, []Scope{{}, arm, limited, both, gone}},
		"a full class":            {[]Scope{arm, arm}, []Scope{{}, limited, gone}},
		"a full job":              {[]Scope{limited}, []Scope{{}, arm, gone}},
		"a build counts for both": {[]Scope{both, arm}, []Scope{{}, gone}},
		"all":                     {[]Scope{{}, {}, {}}, nil},
		"more than all":           {[]Scope{{}, {}, {}, {}}, nil},
		"a limit lowered below":   {[]Scope{limited, limited}, []Scope{{}, arm, gone}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			used := Usage{}
			for _, build := range test.builds {
				used.Add(build)
			}
			var got []Scope
			for _, s := range []Scope{{}, arm, limited, both, gone} {
				if testLimits().Room(&used, s) {
					got = append(got, s)
				}
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(Scope{})); diff != "" {
				t.Errorf("scopes with room (-want +got):\n%s", diff)
			}
		})
	}
}
