package gearmanbridge

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

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
