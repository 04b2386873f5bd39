//go:build linux

package e2e

import (
	"fmt"
	"testing"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// TestOperatorKilledGearmand: gearmand hands the same unique to the next operator, which goes on with the Pod that runs. Zuul notices nothing.
func TestOperatorKilledGearmand(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	operator := startOperator(t, address)
	build := submit(t, dial(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "pass", Parameters: map[string]any{"SLEEP": 8}})
	before := await(t, build, "run", running)
	pod := getPod(t, before.UUID)

	operator.Kill()
	startOperator(t, address)
	after := wait(t, build)

	expectResult(t, after, "SUCCESS")
	if fmt.Sprint(after.Number) != fmt.Sprint(before.Number) {
		t.Errorf("number %v became %v", before.Number, after.Number)
	}
	if adopted := getPod(t, before.UUID); adopted == nil || adopted.UID != pod.UID {
		t.Errorf("the Pod was made again")
	}
	if last := after.Packets[len(after.Packets)-1]; last.Type != gearman.PacketWorkComplete {
		t.Errorf("the build ended with %v", last.Type)
	}
}

// TestOperatorKilledGeard: geard fails the build at once and Zuul starts another. The Pod left behind must go, and the handle it had, which geard
// may give to another build, must never be heard of again.
func TestOperatorKilledGeard(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	operator := startOperator(t, address)
	zuul := dial(t, address, zuulclient.Zuul2)
	first := submit(t, zuul, zuulclient.Request{Job: "pass", Parameters: map[string]any{"SLEEP": 300}})
	await(t, first, "run", running)

	operator.Kill()
	lost := wait(t, first)
	if lost.Outcome != zuulclient.Retry {
		t.Fatalf("outcome %q with result %q, want a retry", lost.Outcome, lost.Result)
	}
	second := submit(t, zuul, zuulclient.Request{Job: "fail"})
	startOperator(t, address)
	ended := wait(t, second)

	expectResult(t, ended, "FAILURE")
	eventually(t, "the Pod left behind is gone", func() bool { return getPod(t, lost.UUID) == nil })
	eventually(t, "the build left behind has ended", func() bool { return getBuild(t, lost.UUID).Complete() })
	if status := getBuild(t, lost.UUID).Status; status.Phase != v1alpha1.PhaseLost || status.Reason != "Abandoned" {
		t.Errorf("the build left behind ended %s, %s", status.Phase, status.Reason)
	}
	if state := second.State(); len(state.Packets) != len(ended.Packets) {
		t.Errorf("packets arrived for a build that had ended: %v", state.Packets[len(ended.Packets):])
	}
}

// TestNumbersAcrossRestarts: rising, never given twice; without a gap after a clean end.
func TestNumbersAcrossRestarts(t *testing.T) {
	address := gearmantest.StartGearmand(t)
	zuul := dial(t, address, zuulclient.Zuul2)
	var numbers []int64
	for _, unclean := range []bool{false, true, false} {
		operator := startOperator(t, address)
		for range 2 {
			state := wait(t, submit(t, zuul, zuulclient.Request{Job: "pass"}))
			expectResult(t, state, "SUCCESS")
			numbers = append(numbers, getBuild(t, state.UUID).Spec.Number)
		}
		if unclean {
			operator.Kill()
		} else {
			operator.Stop(enough)
		}
	}
	for i := 1; i < len(numbers); i++ {
		if numbers[i] <= numbers[i-1] {
			t.Errorf("numbers do not rise: %v", numbers)
		}
	}
	if numbers[2] != numbers[1]+1 {
		t.Errorf("a clean end left a gap: %v", numbers)
	}
}
