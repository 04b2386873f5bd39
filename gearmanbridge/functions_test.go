package gearmanbridge

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
)

// zuulJob is a job that was created so many minutes after the first.
func zuulJob(namespace, name string, minute int, spec v1alpha1.ZuulJobSpec) v1alpha1.ZuulJob {
	created := metav1.NewTime(time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC))
	return v1alpha1.ZuulJob{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: created}, Spec: spec}
}

// lot is what a test says of a registration: the message is for people.
type lot struct {
	Reason    string
	Functions []string
}

func TestPlan(t *testing.T) {
	type spec = v1alpha1.ZuulJobSpec
	tests := map[string]struct {
		jobs    []v1alpha1.ZuulJob
		classes []string
		want    map[string]lot // by namespace/name
	}{
		"nothing": {want: map[string]lot{}},
		"no class": {
			jobs: []v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, spec{})},
			want: map[string]lot{"ci/unit": {reasonRegistered, []string{"build:unit"}}},
		},
		"every class where none is listed": {
			jobs:    []v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, spec{})},
			classes: []string{"arm", "big"},
			want:    map[string]lot{"ci/unit": {reasonRegistered, []string{"build:unit", "build:unit:arm", "build:unit:big"}}},
		},
		"the listed classes only, whether they exist or not": {
			jobs:    []v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, spec{Nodes: []string{"zero", "big", "big"}})},
			classes: []string{"arm", "big"},
			want:    map[string]lot{"ci/unit": {reasonRegistered, []string{"build:unit", "build:unit:big", "build:unit:zero"}}},
		},
		"disabled": {
			jobs:    []v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, spec{Disabled: true})},
			classes: []string{"arm"},
			want:    map[string]lot{"ci/unit": {reasonDisabled, nil}},
		},
		"job name instead of the object's": {
			jobs: []v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, spec{JobName: "Project.Sub_Unit"})},
			want: map[string]lot{"ci/unit": {reasonRegistered, []string{"build:Project.Sub_Unit"}}},
		},
		"colons are part of a name": {
			jobs:    []v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, spec{JobName: "a:b"})},
			classes: []string{"c"},
			want:    map[string]lot{"ci/unit": {reasonRegistered, []string{"build:a:b", "build:a:b:c"}}},
		},
		"names no server stands": {
			jobs: []v1alpha1.ZuulJob{
				zuulJob("ci", "blank", 0, spec{JobName: "a b"}),
				zuulJob("ci", "tab", 0, spec{JobName: "x\ty"}),
				zuulJob("ci", "accent", 0, spec{JobName: "tést"}),
				zuulJob("ci", "bytes", 0, spec{JobName: "bad\xff"}),
				zuulJob("ci", "long", 0, spec{JobName: strings.Repeat("x", 9000)}),
				zuulJob("ci", "node", 0, spec{Nodes: []string{"good", "not good"}}),
				zuulJob("ci", "good", 0, spec{}),
			},
			want: map[string]lot{
				"ci/blank": {reasonInvalidName, nil}, "ci/tab": {reasonInvalidName, nil}, "ci/accent": {reasonInvalidName, nil},
				"ci/bytes": {reasonInvalidName, nil}, "ci/long": {reasonInvalidName, nil}, "ci/node": {reasonInvalidName, nil},
				"ci/good": {reasonRegistered, []string{"build:good"}},
			},
		},
		"nothing but build: can come of a name": {
			jobs: []v1alpha1.ZuulJob{zuulJob("ci", "merge", 0, spec{JobName: "merge:merge"})},
			want: map[string]lot{"ci/merge": {reasonRegistered, []string{"build:merge:merge"}}},
		},
		"the older keeps a name": {
			jobs: []v1alpha1.ZuulJob{
				zuulJob("a", "young", 1, spec{JobName: "unit"}),
				zuulJob("b", "old", 0, spec{JobName: "unit"}),
			},
			classes: []string{"arm"},
			want: map[string]lot{
				"a/young": {reasonNameTaken, nil},
				"b/old":   {reasonRegistered, []string{"build:unit", "build:unit:arm"}},
			},
		},
		"of the same age the first by name keeps it": {
			jobs: []v1alpha1.ZuulJob{zuulJob("b", "unit", 0, spec{}), zuulJob("a", "unit", 0, spec{})},
			want: map[string]lot{"a/unit": {reasonRegistered, []string{"build:unit"}}, "b/unit": {reasonNameTaken, nil}},
		},
		"a disabled job claims nothing": {
			jobs: []v1alpha1.ZuulJob{zuulJob("a", "unit", 0, spec{Disabled: true}), zuulJob("b", "unit", 1, spec{})},
			want: map[string]lot{"a/unit": {reasonDisabled, nil}, "b/unit": {reasonRegistered, []string{"build:unit"}}},
		},
		"a name with a colon that is another's class": {
			jobs:    []v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, spec{}), zuulJob("ci", "trap", 1, spec{JobName: "unit:arm"})},
			classes: []string{"arm"},
			want: map[string]lot{
				"ci/unit": {reasonRegistered, []string{"build:unit", "build:unit:arm"}},
				"ci/trap": {reasonNameTaken, nil},
			},
		},
		"one of two names taken leaves none": {
			jobs: []v1alpha1.ZuulJob{
				zuulJob("ci", "trap", 0, spec{JobName: "unit:arm", Nodes: []string{"x"}}),
				zuulJob("ci", "unit", 1, spec{Nodes: []string{"arm"}}),
			},
			want: map[string]lot{
				"ci/trap": {reasonRegistered, []string{"build:unit:arm", "build:unit:arm:x"}},
				"ci/unit": {reasonNameTaken, nil},
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			functions, registrations := plan(test.jobs, test.classes)
			got := map[string]lot{}
			wanted := map[string]string{} // the owner of each function
			for key, registration := range registrations {
				got[key.String()] = lot{registration.reason, registration.functions}
				for _, function := range registration.functions {
					wanted[function] = key.String()
				}
				if registration.message == "" || len(registration.message) > 32*1024 {
					t.Errorf("%s has a message of %d bytes", key, len(registration.message))
				}
				if registration.registered() != (registration.reason == reasonRegistered) {
					t.Errorf("%s: registered() = %v for reason %s", key, registration.registered(), registration.reason)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("registrations (-want +got):\n%s", diff)
			}
			owners := map[string]string{}
			for function, target := range functions {
				owners[function] = target.key.String()
				if target.function() != function {
					t.Errorf("%q means %+v", function, target)
				}
				if err := gearman.ValidFunctionName(function); err != nil {
					t.Error(err)
				}
			}
			if diff := cmp.Diff(wanted, owners); diff != "" {
				t.Errorf("owners of functions (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanMeans(t *testing.T) {
	functions, _ := plan([]v1alpha1.ZuulJob{zuulJob("ci", "unit", 0, v1alpha1.ZuulJobSpec{JobName: "a:b"})}, []string{"arm"})
	key := types.NamespacedName{Namespace: "ci", Name: "unit"}
	want := map[string]target{
		"build:a:b":     {key: key, job: "a:b"},
		"build:a:b:arm": {key: key, job: "a:b", class: "arm"},
	}
	if diff := cmp.Diff(want, functions, cmp.AllowUnexported(target{})); diff != "" {
		t.Errorf("functions (-want +got):\n%s", diff)
	}
}

func TestPlanNamesTheOlderJob(t *testing.T) {
	_, registrations := plan([]v1alpha1.ZuulJob{
		zuulJob("ci", "old", 0, v1alpha1.ZuulJobSpec{JobName: "unit"}), zuulJob("ci", "young", 1, v1alpha1.ZuulJobSpec{JobName: "unit"}),
	}, nil)
	message := registrations[types.NamespacedName{Namespace: "ci", Name: "young"}].message
	if !strings.Contains(message, "build:unit") || !strings.Contains(message, "ci/old") {
		t.Errorf("message %q does not say which function and who has it", message)
	}
}

func TestFunctionsKeepTheirMeaning(t *testing.T) {
	var table functionTable
	if _, known := table.lookup("build:unit"); known {
		t.Error("an empty table knows a function")
	}
	unit := target{key: types.NamespacedName{Namespace: "ci", Name: "unit"}, job: "unit"}
	table.merge(map[string]target{"build:unit": unit})
	table.merge(map[string]target{"build:other": {job: "other"}})
	if got, known := table.lookup("build:unit"); !known || got != unit {
		t.Errorf("lookup = %+v, %v after the function was unregistered", got, known)
	}
}
