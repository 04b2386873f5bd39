package gearmanbridge

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

func TestEnds(t *testing.T) {
	tests := map[string]struct {
		phase   v1alpha1.BuildPhase
		result  string
		final   gearman.PacketType
		outcome zuulclient.Outcome
	}{
		"success":                      {v1alpha1.PhaseSucceeded, "SUCCESS", gearman.PacketWorkComplete, zuulclient.Decided},
		"failure":                      {v1alpha1.PhaseFailed, "FAILURE", gearman.PacketWorkComplete, zuulclient.Decided},
		"failure by another word":      {v1alpha1.PhaseFailed, "TIMED_OUT", gearman.PacketWorkComplete, zuulclient.Decided},
		"infrastructure":               {v1alpha1.PhaseLost, "", gearman.PacketWorkFail, zuulclient.Retry},
		"infrastructure once too much": {v1alpha1.PhaseLost, "NODE_FAILURE", gearman.PacketWorkComplete, zuulclient.Decided},
		"stopped by hand":              {v1alpha1.PhaseAborted, "ABORTED", gearman.PacketWorkFail, zuulclient.Decided},
	}
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		for name, test := range tests {
			t.Run(name, func(t *testing.T) {
				request := submit(t, zuul, zuulclient.Request{Job: "unit"})
				build := f.build(request.State().UUID)
				f.runs(build)
				_, err := request.Await(testContext(t), func(state zuulclient.State) bool { return len(state.Packets) >= 4 })
				must(t, err)
				f.ends(build, test.phase, test.result)
				state := awaitEnd(t, request)
				if state.Outcome != test.outcome || state.Result != test.result || state.Starts != 1 {
					t.Errorf("Zuul made of it %s %q, %d starts; want %s %q, 1 start", state.Outcome, state.Result, state.Starts, test.outcome, test.result)
				}
				want := []gearman.PacketType{
					gearman.PacketWorkData, gearman.PacketWorkStatus, // begun
					gearman.PacketWorkData, gearman.PacketWorkStatus, // runs
					gearman.PacketWorkData, test.final,
				}
				if diff := cmp.Diff(want, packetTypes(state)); diff != "" {
					t.Errorf("packets (-want +got):\n%s", diff)
				}
				checkLastPackets(t, state)
			})
		}
	})
}

// checkLastPackets: the end is told twice with the same words, so that it counts also if the connection breaks between the two.
func checkLastPackets(t *testing.T, state zuulclient.State) {
	t.Helper()
	data, final := state.Packets[len(state.Packets)-2], state.Packets[len(state.Packets)-1]
	if final.Type == gearman.PacketWorkComplete && !bytes.Equal(data.Data, final.Data) {
		t.Errorf("WORK_DATA %s and WORK_COMPLETE %s differ", data.Data, final.Data)
	}
	last := decode(t, data.Data)
	if last["node_name"] != "node-1" || last["number"] == nil || last["url"] != state.URL {
		t.Errorf("last WORK_DATA is %v", last)
	}
	for _, packet := range state.Packets[:len(state.Packets)-2] {
		if packet.Type == gearman.PacketWorkData && decode(t, packet.Data)["result"] != nil {
			t.Errorf("a WORK_DATA before the end has a result: %s", packet.Data)
		}
	}
}

// TestDeletedBuild: deleting the ZuulBuild stops the build, and Zuul must not wait for it.
func TestDeletedBuild(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit"})
		awaitStart(t, request)
		must(t, f.api.Delete(t.Context(), f.build(request.State().UUID)))
		state := awaitEnd(t, request)
		if state.Outcome != zuulclient.Decided || state.Result != "ABORTED" {
			t.Errorf("Zuul made of it %s %q", state.Outcome, state.Result)
		}
		if types := packetTypes(state); types[len(types)-1] != gearman.PacketWorkFail {
			t.Errorf("packets %v", types)
		}
	})
}
