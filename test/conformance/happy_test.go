//go:build linux

package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// happyCases are those under "Protocol, happy paths".
func happyCases() []testCase {
	return []testCase{
		{name: "start-packet", on: everyServer, test: startPacket},
		{name: "success", on: everyServer, test: success},
		{name: "failure", on: everyServer, test: failure},
		{name: "late-url", on: everyServer, test: lateURL},
		{name: "number-stable", on: everyServer, test: numberStable},
		{name: "number-monotonic", on: bothKinds, own: true, test: numberMonotonic},
		{name: "ascii-json", on: bothKinds, test: asciiJSON},
		{name: "complete-nul", on: everyServer, test: completeNUL},
		{name: "both-dialects", on: everyServer, test: bothDialects},
		{name: "args-split", on: everyServer, test: argsSplit},
		{name: "labels", on: bothKinds, test: labels},
		{name: "node-stats", on: bothKinds, test: nodeStats},
		{name: "timer-params", on: bothKinds, test: timerParams},
	}
}

// object is what a packet's data says.
func object(s *scene, data []byte) map[string]any {
	s.Helper()
	var parsed map[string]any
	if err := json.Unmarshal(data, &parsed); err != nil || parsed == nil {
		s.Fatalf("%.200q is no JSON object: %v", data, err)
	}
	return parsed
}

// startPacket: in the strict namespace no Pod can be made, so what comes does not wait for one.
func startPacket(s *scene) {
	job := s.job(holds, func(job *v1alpha1.ZuulJob) { job.Namespace = s.strict })
	const inTime = 200 * time.Millisecond
	quickest := time.Hour // of several, because the machine may be busy with other tests
	for try := 0; try < 3 || try < 40 && quickest > inTime; try++ {
		build := s.submit(zuulclient.Request{Job: job})
		state := s.started(build)
		if diff := cmp.Diff([]gearman.PacketType{gearman.PacketWorkData, gearman.PacketWorkStatus}, kinds(state)[:2]); diff != "" {
			s.Fatalf("first packets (-want +got):\n%s", diff)
		}
		quickest = min(quickest, state.Packets[0].Received.Sub(state.Submitted))
		said := object(s, state.Packets[0].Data)
		for _, key := range []string{"name", "number", "manager", "url", "full_url", "master"} {
			if said[key] == nil {
				s.Errorf("the first WORK_DATA has no %s", key)
			}
		}
		if result, given := said["result"]; given {
			s.Errorf("the first WORK_DATA has result %v", result)
		}
		if said["name"] != job || said["manager"] != manager || said["master"] != manager || said["url"] != said["full_url"] {
			s.Errorf("the first WORK_DATA says %v", said)
		}
		if status := state.Packets[1]; status.Numerator != 0 {
			s.Errorf("WORK_STATUS %d/%d", status.Numerator, status.Denominator)
		}
		s.cancel(build)
		s.end(build)
	}
	if quickest > inTime {
		s.Errorf("the quickest first WORK_DATA took %v", quickest)
	}
}

// ends checks the last two packets of a build that ran: they say the same, and all that Zuul reads then.
func ends(s *scene, state zuulclient.State, result string) {
	s.Helper()
	s.expect(state, zuulclient.Decided, result)
	count := len(state.Packets)
	if count < 4 || state.Packets[count-2].Type != gearman.PacketWorkData || state.Packets[count-1].Type != gearman.PacketWorkComplete {
		s.Fatalf("packets %v", kinds(state))
	}
	data, complete := state.Packets[count-2].Data, state.Packets[count-1].Data
	if !bytes.Equal(data, complete) {
		s.Errorf("the last WORK_DATA and WORK_COMPLETE differ:\n%s\n%s", data, complete)
	}
	said := object(s, complete)
	if said["result"] != result || said["url"] != state.URL || said["node_name"] != nodeName || said["node_labels"] == nil {
		s.Errorf("WORK_COMPLETE says %v", said)
	}
}

func success(s *scene) { ends(s, s.run(s.job(exits)), "SUCCESS") }

func failure(s *scene) { ends(s, s.run(s.job("exit 1")), "FAILURE") }

// lateURL: Zuul reads the URL of WORK_DATA only, so the final one must come there too.
func lateURL(s *scene) {
	state := s.run(s.job(exits))
	if said := object(s, last(state).Data); state.URL == "" || said["url"] != state.URL || !strings.HasPrefix(state.URL, "https://builds.example.org/") {
		s.Errorf("Zuul reports %q, WORK_COMPLETE says %v", state.URL, said["url"])
	}
}

func numberStable(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(holds)})
	state, _ := s.running(build)
	s.exit(state.UUID, 0)
	state = s.end(build)
	told := map[string]int{}
	for _, packet := range state.Packets {
		if packet.Type == gearman.PacketWorkData {
			said := object(s, packet.Data)
			told[fmt.Sprint(said["number"], " ", said["manager"])]++
		}
	}
	want := map[string]int{fmt.Sprint(state.Number, " ", manager): 3}
	if diff := cmp.Diff(want, told); diff != "" {
		s.Errorf("numbers and managers of the WORK_DATA (-want +got):\n%s", diff)
	}
}

func numberMonotonic(s *scene) {
	const first = 4711
	job := s.job(exits, func(job *v1alpha1.ZuulJob) { job.Spec.FirstBuildNumber = first })
	var numbers []int64
	build := func() {
		state := s.run(job)
		number, err := state.Number.(json.Number).Int64()
		if err != nil {
			s.Fatalf("number %v is no integer: %v", state.Number, err)
		}
		numbers = append(numbers, number)
	}
	build()
	s.kill()
	s.restartOperator()
	build()
	build()
	s.terminate()
	s.restartOperator()
	build()
	if numbers[0] != first {
		s.Errorf("the first number is %d, not %d", numbers[0], first)
	}
	for i := 1; i < len(numbers); i++ {
		if numbers[i] <= numbers[i-1] {
			s.Errorf("numbers do not rise: %v", numbers)
		}
	}
}

func asciiJSON(s *scene) {
	const said = "gescheitert: übel 漢字 🚦 \x7f"
	state := s.run(s.job("exit 1 " + said))
	if message := fmt.Sprint(state.Worker.Extra["message"]); !strings.Contains(message, said) {
		s.Errorf("message %q", message)
	}
	for _, packet := range state.Packets {
		if slices.ContainsFunc(packet.Data, func(b byte) bool { return b >= 0x7f }) {
			s.Errorf("%v %q has bytes outside ASCII", packet.Type, packet.Data)
		}
	}
	s.wire("ascii-json")
}

// wire reports what was sent against one rule, by this test and all before it in its world.
func (s *scene) wire(rule string) {
	s.Helper()
	for _, fault := range inspect(s.proxy().Recording()) {
		if fault.rule == rule {
			s.Error(fault.text)
		}
	}
}

// completeNUL has one of each finishing packet sent, and looks at the bytes.
func completeNUL(s *scene) {
	s.run(s.job(exits))
	stopped := s.submit(zuulclient.Request{Job: s.job(holds)})
	s.started(stopped)
	s.cancel(stopped)
	s.end(stopped)
	sent := map[gearman.PacketType]bool{}
	for _, packet := range wirePackets(s.proxy().Recording()) {
		sent[packet.kind] = true
	}
	for _, kind := range []gearman.PacketType{gearman.PacketWorkData, gearman.PacketWorkComplete, gearman.PacketWorkFail} {
		if !sent[kind] {
			s.Errorf("no %v was sent: the test shows nothing", kind)
		}
	}
	s.wire("complete-nul")
}

func bothDialects(s *scene) {
	for _, dialect := range []zuulclient.Dialect{zuulclient.Branch, zuulclient.Zuul2} {
		zuul := s.dial(dialect)
		build := s.submitBy(zuul, zuulclient.Request{Job: s.job(holds)})
		state := s.started(build)
		if state.Number == nil || state.URL == "" || state.Manager != manager {
			s.Errorf("%v: number %v, URL %q, manager %q", dialect, state.Number, state.URL, state.Manager)
		}
		s.awaitPod(state.UUID)
		if !descriptions.missing() {
			describe(s, build, "<b>described</b>")
		}
		s.cancel(build)
		s.awaitNoPod(state.UUID)
		s.expect(s.end(build), zuulclient.Canceled, "ABORTED")
	}
}

// argsSplit: NULs in the argument are the argument's own.
func argsSplit(s *scene) {
	job := s.job(exits)
	build := s.submit(zuulclient.Request{Job: job, Payload: []byte("{\"A\": \"x\"}\x00{\"B\": \"y\"}\x00")})
	s.expect(s.end(build), zuulclient.Decided, "INVALID_REQUEST")
	object := s.build(build.State().UUID)
	if object == nil || object.Spec.Job != job || object.Spec.UUID != build.State().UUID {
		s.Errorf("ZuulBuild %v", object)
	}
	s.expect(s.run(job), zuulclient.Decided, "SUCCESS")
}

func labels(s *scene) {
	limited, free := s.job(exits, func(job *v1alpha1.ZuulJob) { job.Spec.Nodes = []string{"a", "b"} }), s.job(exits)
	registered := func(job string) []string {
		var names []string
		for name := range s.functions() {
			if name == "build:"+job || strings.HasPrefix(name, "build:"+job+":") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	s.eventually("the functions of "+limited, func() bool {
		return cmp.Equal(registered(limited), []string{"build:" + limited, "build:" + limited + ":a", "build:" + limited + ":b"})
	})
	names := slices.DeleteFunc(registered(free), func(name string) bool { return strings.HasPrefix(name, "build:"+free+":"+classPrefix) })
	if len(names) != 1 { // but for the class of class-limit there is none
		s.Errorf("a job without nodes has %v", names)
	}
	state := s.end(s.submit(zuulclient.Request{Job: limited, Node: "a"}))
	s.expect(state, zuulclient.Decided, "SUCCESS")
	pod := s.podOf(state.UUID)
	if environment(pod)["ZUUL_NODE"] != "a" || pod.Spec.NodeSelector[v1alpha1.LabelNode] != "a" {
		s.Errorf("ZUUL_NODE is %q, node selector %v", environment(pod)["ZUUL_NODE"], pod.Spec.NodeSelector)
	}
	if !cmp.Equal(state.NodeLabels, []string{"a"}) {
		s.Errorf("node labels %v", state.NodeLabels)
	}
}

// nodeStats: also of builds that had no node.
func nodeStats(s *scene) {
	job := s.job(exits)
	for name, request := range map[string]zuulclient.Request{
		"ran":     {Job: job},
		"refused": {Job: job, Payload: []byte("null")},
	} {
		said := object(s, last(s.end(s.submit(request))).Data)
		labels, isList := said["node_labels"].([]any)
		node, isText := said["node_name"].(string)
		if !isList || !isText || (name == "ran") != (node == nodeName) {
			s.Errorf("%s: node_labels %v, node_name %v", name, said["node_labels"], said["node_name"])
		}
		for _, label := range labels {
			if _, isText := label.(string); !isText {
				s.Errorf("%s: node label %v", name, label)
			}
		}
	}
	s.wire("node-stats")
}

// timerParams are those of a build that a timer triggered (section 0, version table).
func timerParams(s *scene) {
	job := s.job(exits)
	state := s.end(s.submit(zuulclient.Request{Job: job, Parameters: map[string]any{
		"ZUUL_PROJECT": "tools/sandbox", "ZUUL_PIPELINE": "periodic", "ZUUL_URL": nil, "ZUUL_VOTING": "1", "BASE_LOG_PATH": "",
		"LOG_PATH": "periodic/" + job + "/0123456",
	}}))
	s.expect(state, zuulclient.Decided, "SUCCESS")
	if got := environment(s.podOf(state.UUID)); got["ZUUL_PIPELINE"] != "periodic" || got["ZUUL_UUID"] != state.UUID {
		s.Errorf("environment %v", got)
	}
}
