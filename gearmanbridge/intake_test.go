package gearmanbridge

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/capacity"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// TestStart: Zuul hears of a build at once, before anything runs, but not before it exists.
func TestStart(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{
			Job: "unit", Parameters: map[string]any{"BUILD_TIMEOUT": 30, "RECURSE": nil, "BRANCH": "a;rm -rf"},
		})
		state := awaitStart(t, request)
		build := &v1alpha1.ZuulBuild{}
		must(t, f.api.Get(t.Context(), types.NamespacedName{Namespace: f.namespace, Name: state.UUID}, build))
		want := v1alpha1.ZuulBuildSpec{
			Job: "unit", JobRef: &v1alpha1.JobReference{Name: "unit"}, UUID: state.UUID, Number: 1,
			Parameters: map[string]string{"BUILD_TIMEOUT": "30", "RECURSE": "", "BRANCH": "a;rm -rf", "ZUUL_UUID": state.UUID},
		}
		if diff := cmp.Diff(want, build.Spec); diff != "" {
			t.Errorf("spec (-want +got):\n%s", diff)
		}
		if build.Labels[v1alpha1.LabelGearmanServer] != "zuul" {
			t.Errorf("labels %v do not say where the request came from", build.Labels)
		}
		if diff := cmp.Diff([]gearman.PacketType{gearman.PacketWorkData, gearman.PacketWorkStatus}, packetTypes(state)); diff != "" {
			t.Errorf("packets (-want +got):\n%s", diff)
		}
		start := decode(t, state.Packets[0].Data)
		if _, there := start["result"]; there || start["number"] != 1.0 || start["master"] != testManager {
			t.Errorf("first WORK_DATA is %v", start)
		}
		if state.Manager != testManager || state.URL != "https://builds.example.org/"+state.UUID {
			t.Errorf("Zuul knows manager %q and URL %q", state.Manager, state.URL)
		}
		checkPackets(t, state)
	})
}

// TestNodes: build:JOB:NODE carries the class to the build.
func TestNodes(t *testing.T) {
	address, _ := gearmantest.StartServer(t, gearman.Geard)
	f := startBridge(t, address, nil)
	job := f.job("unit")
	f.changeJob(job, func(job *v1alpha1.ZuulJob) { job.Spec.Nodes = []string{"arm"} })
	request := submit(t, dialZuul(t, address, zuulclient.Zuul2), zuulclient.Request{Job: "unit", Node: "arm"})
	build := f.build(request.State().UUID)
	if build.Spec.Node != "arm" || build.Spec.Parameters["ZUUL_NODE"] != "arm" {
		t.Errorf("spec is %+v", build.Spec)
	}
	f.ends(build, v1alpha1.PhaseSucceeded, "SUCCESS")
	if state := awaitEnd(t, request); !cmp.Equal(state.NodeLabels, []string{"arm"}) {
		t.Errorf("node labels %v", state.NodeLabels)
	}
}

// TestHostileUniques: whatever the unique, it becomes one build that ends.
func TestHostileUniques(t *testing.T) {
	uniques := map[string]string{
		"path": "../../x", "upper case": "ABC", "long": strings.Repeat("x", 300), "blank": "a b", "not UTF-8": "\xff\xfe",
		"name of another": buildName("ABC"), "empty": "", "that gearmand joins by payload": "-",
	}
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		zuul, err := gearman.DialClient(testContext(t), address, nil)
		must(t, err)
		defer func() { _ = zuul.Close() }()
		names := map[string]bool{}
		for name, unique := range uniques {
			before := len(f.builds())
			task, err := zuul.Submit(testContext(t), gearman.PriorityNormal, "build:unit", unique, []byte("{}"))
			var refused *gearman.ServerError
			if errors.As(err, &refused) {
				t.Logf("%s: the server refuses it: %v", name, err)
				continue
			}
			must(t, err)
			gearmantest.Eventually(t, patience, "a build for unique "+name, func() bool { return len(f.builds()) == before+1 })
			for _, build := range f.builds() {
				if names[build.Name] {
					continue
				}
				names[build.Name] = true
				anonymous := unique == "" || unique == joinByPayload
				if !strings.HasPrefix(build.Name, "anonymous-") && anonymous || !anonymous && build.Name != buildName(unique) {
					t.Errorf("%s: named %s", name, build.Name)
				}
				want := strings.ToValidUTF8(unique, "\uFFFD")
				if anonymous {
					want = ""
				}
				if build.Spec.UUID != want {
					t.Errorf("%s: uuid %q, want %q", name, build.Spec.UUID, want)
				}
				f.ends(&build, v1alpha1.PhaseSucceeded, "SUCCESS")
			}
			final, err := task.Wait(testContext(t))
			must(t, err)
			if final.Type != gearman.PacketWorkComplete {
				t.Errorf("%s: ended with %v", name, final.Type)
			}
		}
	})
}

// TestRequestErrors: a request that cannot be understood becomes a build that says so, for the controllers to fail.
func TestRequestErrors(t *testing.T) {
	payloads := map[string]string{
		"text": "hello", "empty": " ", "array": `["a"]`, "null": "null", "truncated UTF-8": "{\"a\": \"\xe6\x97\"}", "half a character": `{"a": "\ud83d"}`,
		"too big": `{"a": "` + strings.Repeat("x", 3<<20) + `"}`,
	}
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		for name, payload := range payloads {
			request := submit(t, zuul, zuulclient.Request{Job: "unit", Payload: []byte(payload)})
			build := f.build(request.State().UUID)
			if build.Spec.RequestError == "" || len(build.Spec.Parameters) != 0 {
				t.Errorf("%s: error %q, %d parameters", name, build.Spec.RequestError, len(build.Spec.Parameters))
			}
			f.ends(build, v1alpha1.PhaseFailed, "INVALID_REQUEST")
			if state := awaitEnd(t, request); state.Outcome != zuulclient.Decided {
				t.Errorf("%s: %s", name, state.Outcome)
			}
		}
	})
}

// TestRefusals: what cannot even become a build gets a result at once, because Zuul would ask for ever without one.
func TestRefusals(t *testing.T) {
	onEveryServer(t, func(t *testing.T, address string) {
		f := startBridge(t, address, nil)
		f.job("unit")
		f.job("other")
		f.awaitRegistered("unit", reasonRegistered)
		f.awaitRegistered("other", reasonRegistered)
		zuul := dialZuul(t, address, zuulclient.Zuul2)
		refused := func(t *testing.T, request *zuulclient.Build, says string) {
			t.Helper()
			state := awaitEnd(t, request)
			if state.Outcome != zuulclient.Decided || state.Result != resultInvalidRequest {
				t.Errorf("Zuul made of it %s %q", state.Outcome, state.Result)
			}
			if message, _ := state.Worker.Extra["message"].(string); !strings.Contains(message, says) {
				t.Errorf("message %q does not say %q", message, says)
			}
			// A stop: for it, which Zuul may well repeat, must not mean the first build of the job.
			if number := fmt.Sprint(state.Number); number != "-1" {
				t.Errorf("number %s may be that of a build", number)
			}
		}
		t.Run("unknown function", func(t *testing.T) {
			request := submit(t, zuul, zuulclient.Request{Job: "ghost"})
			gearmantest.Eventually(t, patience, "the refusal", func() bool {
				// Again and again, because the registrar takes it back whenever the status of a job was written.
				must(t, f.bridge.sessions[0].builds.set(map[string]capacity.Scope{"build:unit": {}, "build:other": {}, "build:ghost": {}}))
				return request.State().Ended()
			})
			refused(t, request, "never registered")
		})
		t.Run("unique of another job", func(t *testing.T) {
			first := submit(t, zuul, zuulclient.Request{Job: "unit"})
			awaitStart(t, first)
			refused(t, submit(t, zuul, zuulclient.Request{Job: "other", UUID: first.State().UUID}), "was used before")
			f.ends(f.build(first.State().UUID), v1alpha1.PhaseSucceeded, "SUCCESS")
			if state := awaitEnd(t, first); state.Result != "SUCCESS" {
				t.Errorf("the first build ended as %q", state.Result)
			}
		})
		t.Run("more parameters than an object may have", func(t *testing.T) {
			parameters := map[string]any{}
			for i := range 1001 {
				parameters[strings.Repeat("x", i+1)] = ""
			}
			request := submit(t, zuul, zuulclient.Request{Job: "unit", Parameters: parameters})
			if build := f.build(request.State().UUID); !strings.Contains(build.Spec.RequestError, "parameters") {
				t.Errorf("request error %q does not tell of the parameters", build.Spec.RequestError)
			}
		})
	})
}
