package gearmanbridge

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// TestRegistration: what is registered follows the jobs, and each job says what became of it.
func TestRegistration(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		first := f.job("a")
		f.awaitRegistered("a", reasonRegistered)
		f.job("b")
		second := f.awaitRegistered("b", reasonRegistered)

		f.changeJob(second, func(job *v1alpha1.ZuulJob) { job.Spec.JobName = "a" })
		second = f.awaitRegistered("b", reasonNameTaken)
		if len(second.Status.Functions) != 0 || second.Status.Conditions[0].ObservedGeneration != second.Generation {
			t.Errorf("status of the second is %+v", second.Status)
		}
		must(t, f.api.Delete(t.Context(), first))
		second = f.awaitRegistered("b", reasonRegistered)
		if diff := cmp.Diff([]string{"build:a"}, second.Status.Functions); diff != "" {
			t.Errorf("functions (-want +got):\n%s", diff)
		}
		f.changeJob(second, func(job *v1alpha1.ZuulJob) { job.Spec.Nodes = []string{"arm", "big"} })

		want := []string{"build:a", "build:a:arm", "build:a:big", "set_description:" + testManager, "stop:" + testManager}
		admin, err := gearman.DialAdmin(testContext(t), address, nil)
		must(t, err)
		defer func() { _ = admin.Close() }()
		var served []string
		gearmantest.Eventually(t, patience, "the functions of all jobs, once each", func() bool {
			status, err := admin.Status(testContext(t))
			must(t, err)
			served = nil
			for _, function := range status {
				if function.Workers == 1 {
					served = append(served, function.Name)
				} else if function.Workers > 1 {
					t.Errorf("%s has %d workers", function.Name, function.Workers)
				}
			}
			slices.Sort(served)
			return slices.Equal(want, served)
		})

		gearmantest.Eventually(t, patience, "the functions in the status", func() bool {
			second = f.awaitRegistered("b", reasonRegistered)
			return len(second.Status.Functions) == 3
		})
		f.changeJob(second, func(job *v1alpha1.ZuulJob) { job.Spec.Disabled = true })
		if disabled := f.awaitRegistered("b", reasonDisabled); len(disabled.Status.Functions) != 0 {
			t.Errorf("a disabled job has functions %v", disabled.Status.Functions)
		}
	})
}

func TestRegisteredClasses(t *testing.T) {
	job := func(spec v1alpha1.ZuulJobSpec, observed int64, functions ...string) v1alpha1.ZuulJob {
		job := zuulJob("ci", "unit", 0, spec)
		job.Generation, job.Status.Functions = 2, functions
		job.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionRegistered, ObservedGeneration: observed}}
		return job
	}
	unseen := job(v1alpha1.ZuulJobSpec{}, 2, "build:unit:arm")
	unseen.Status.Conditions = nil
	for name, c := range map[string]struct {
		jobs []v1alpha1.ZuulJob
		want []string
	}{
		"no job":                      {},
		"no class":                    {[]v1alpha1.ZuulJob{job(v1alpha1.ZuulJobSpec{}, 2, "build:unit")}, nil},
		"classes":                     {[]v1alpha1.ZuulJob{job(v1alpha1.ZuulJobSpec{}, 2, "build:unit", "build:unit:arm", "build:unit:big")}, []string{"arm", "big"}},
		"of several jobs":             {[]v1alpha1.ZuulJob{job(v1alpha1.ZuulJobSpec{}, 2, "build:unit:arm"), job(v1alpha1.ZuulJobSpec{JobName: "a:b"}, 2, "build:a:b:big")}, []string{"arm", "big"}},
		"the job's own list":          {[]v1alpha1.ZuulJob{job(v1alpha1.ZuulJobSpec{Nodes: []string{"arm"}}, 2, "build:unit:arm")}, nil},
		"from before the job changed": {[]v1alpha1.ZuulJob{job(v1alpha1.ZuulJobSpec{}, 1, "build:unit:arm")}, nil},
		"the job's former name":       {[]v1alpha1.ZuulJob{job(v1alpha1.ZuulJobSpec{JobName: "other"}, 2, "build:unit:arm")}, nil},
		"no label of a Node":          {[]v1alpha1.ZuulJob{job(v1alpha1.ZuulJobSpec{}, 2, "build:unit:a:b", "build:unit:")}, nil},
		"never registered":            {[]v1alpha1.ZuulJob{unseen}, nil},
	} {
		if diff := cmp.Diff(c.want, slices.Sorted(maps.Keys(registeredClasses(c.jobs)))); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
	}
}

// TestClassWhoseNodesAreAway: a class that is known from a Node's label alone is known to an operator that starts while the Node is away. It goes with an
// object of its name.
func TestClassWhoseNodesAreAway(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	f := startBridge(t, address, nil)
	const class, function = "away", "build:unit:away"
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "away-1", Labels: map[string]string{v1alpha1.LabelNode: class}}}
	must(t, f.api.Create(t.Context(), node))
	t.Cleanup(func() { _ = f.api.Delete(context.Background(), node) })
	f.job("unit")
	jobs, objects := v1alpha1.ZuulJobList{}, v1alpha1.ZuulNodeClassList{}
	look := func(what string, condition func() bool) {
		t.Helper()
		gearmantest.Eventually(t, patience, what, func() bool {
			must(t, f.bridge.Client.List(t.Context(), &jobs))
			must(t, f.bridge.Client.List(t.Context(), &objects))
			return condition()
		})
	}
	look("the class registered", func() bool { return len(jobs.Items) == 1 && slices.Contains(jobs.Items[0].Status.Functions, function) })
	must(t, f.api.Delete(t.Context(), node))
	gearmantest.Eventually(t, patience, "no Node", func() bool {
		err := f.bridge.Client.Get(t.Context(), client.ObjectKeyFromObject(node), &corev1.Node{})
		must(t, client.IgnoreNotFound(err))
		return err != nil
	})

	started := &registrar{bridge: f.bridge}
	knows := func() bool {
		t.Helper()
		names, err := started.classNames(t.Context(), jobs.Items, objects.Items)
		must(t, err)
		return slices.Contains(names, class)
	}
	for range 2 { // it asks the jobs the first time alone
		if !knows() {
			t.Fatal("an operator that starts while the Node is away does not know the class")
		}
	}
	object := &v1alpha1.ZuulNodeClass{ObjectMeta: metav1.ObjectMeta{Name: class}}
	must(t, f.api.Create(t.Context(), object))
	look("the object", func() bool { return objects.Find(class) != nil && knows() })
	must(t, f.api.Delete(t.Context(), object))
	look("no object", func() bool { return objects.Find(class) == nil })
	if knows() {
		t.Error("the class is known although its object was deleted")
	}
	look("the first operator's word, which has seen the Node", func() bool { return slices.Contains(jobs.Items[0].Status.Functions, function) })
}

// TestAddedLater: a request for a job that does not exist yet runs as soon as the job does, without any other traffic.
func TestAddedLater(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		f.awaitRegistered("unit", reasonRegistered)
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "late"})
		f.job("late")
		awaitStart(t, request)
	})
}
