//go:build linux

package conformance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// hostileCases are those under "Hostile input".
func hostileCases() []testCase {
	return []testCase{
		{name: "args-not-json", on: bothKinds, test: func(s *scene) {
			refusesArguments(s, map[string]string{
				"text": "hello", "nothing": "", "blanks": " \n", "truncated UTF-8": "{\"A\": \"\xe6\x97\"}", "half a character": `{"A": "\ud83d"}`,
				"unfinished": `{"A": "b`, "two objects": `{"A": "b"}{"A": "c"}`,
			})
		}},
		{name: "args-array", on: bothKinds, test: func(s *scene) {
			refusesArguments(s, map[string]string{"array": `["A", "b"]`, "string": `"A"`, "number": "42", "null": "null", "true": "true"})
		}},
		{name: "values", on: bothKinds, test: values},
		{name: "large-value", on: bothKinds, test: largeValue},
		{name: "byte-exact", on: bothKinds, test: byteExact},
		{name: "dangerous-names", on: bothKinds, test: dangerousNames},
		{name: "zuul-uuid", on: bothKinds, test: zuulUUID},
		{name: "unique", on: everyServer, test: hostileUniques},
		{name: "paths-and-shell", on: bothKinds, test: pathsAndShell},
		{name: "unlisted-function", on: bothKinds, own: true, flags: []string{"--max-builds", "1"}, test: unlistedFunction},
	}
}

// refused checks a build that was refused for good, with a message that says why.
func (s *scene) refused(what string, state zuulclient.State) {
	s.Helper()
	if state.Outcome != zuulclient.Decided || state.Result != "INVALID_REQUEST" || last(state).Type != gearman.PacketWorkComplete {
		s.Errorf("%s: %q, result %q, by %v", what, state.Outcome, state.Result, last(state).Type)
	}
	if message := state.Worker.Extra["message"]; message == nil || message == "" {
		s.Errorf("%s: worker_extra says no message: %v", what, state.Worker.Extra)
	}
	if made := s.kubelet.everMade(s.namespace, state.UUID); made > 0 {
		s.Errorf("%s: it got a Pod", what)
	}
}

func refusesArguments(s *scene, payloads map[string]string) {
	job := s.job(exits)
	for what, payload := range payloads {
		s.refused(what, s.end(s.submit(zuulclient.Request{Job: job, Payload: []byte(payload)})))
	}
	s.expect(s.run(job), zuulclient.Decided, "SUCCESS")
}

// sees runs a build with the parameters, and compares what of them reaches its container.
func (s *scene) sees(job string, parameters map[string]any, want map[string]string) {
	s.Helper()
	state := s.end(s.submit(zuulclient.Request{Job: job, Parameters: parameters}))
	s.expect(state, zuulclient.Decided, "SUCCESS")
	pod := s.podOf(state.UUID)
	got := environment(pod)
	maps.DeleteFunc(got, func(name, _ string) bool { _, wanted := want[name]; return !wanted })
	if diff := cmp.Diff(want, got); diff != "" {
		s.Errorf("environment (-want +got):\n%s", diff)
	}
}

// values are of the kinds that parameter functions in the field inject (section 6, Wikimedia).
func values(s *scene) {
	s.sees(s.job(exits), map[string]any{
		"INT": 30, "FLOAT": 1.5, "TRUE": true, "FALSE": false, "NULL": nil, "OBJECT": map[string]any{"a": []any{1, "x"}}, "LIST": []any{1, "x", nil},
	}, map[string]string{
		"INT": "30", "FLOAT": "1.5", "TRUE": "true", "FALSE": "false", "NULL": "", "OBJECT": `{"a":[1,"x"]}`, "LIST": `[1,"x",null]`,
	})
}

// largeValue: one that no object of the API can hold, and one that no environment variable can.
func largeValue(s *scene) {
	job := s.job(exits)
	large := func(size int) zuulclient.State {
		return s.end(s.submit(zuulclient.Request{Job: job, Parameters: map[string]any{"LARGE": strings.Repeat("x", size)}}))
	}
	s.refused("3 MiB", large(3<<20))
	state := large(200 << 10)
	if parameterFiles.missing() {
		s.refused("200 KiB", state)
		return
	}
	s.expect(state, zuulclient.Decided, "SUCCESS")
	got := environment(s.podOf(state.UUID))
	if _, given := got["LARGE"]; given || got["LARGE_FILE"] == "" {
		s.Errorf("LARGE is given: %v; LARGE_FILE is %q", given, got["LARGE_FILE"])
	}
}

func byteExact(s *scene) {
	job := s.job(exits)
	parameters := map[string]string{
		"DOLLARS": "$(HOME) $HOME $$ $(ZUUL_PROJECT) $$$(A) $", "NEWLINES": "one\ntwo\r\n\n", "QUOTES": `"double" 'single' \back ` + "`tick`",
		"UNICODE": "ünïcødé 漢字 🚦 \u2028", "EMPTY": "", "BLANKS": "  kept  ", "CONTROL": "\x01\x1b[31m\x7f", "ZUUL_PROJECT": "tools/sandbox",
		"HTML": "<script>&amp;</script>",
	}
	sent := map[string]any{}
	for name, value := range parameters {
		sent[name] = value
	}
	s.sees(job, sent, parameters)
	s.refused("NUL", s.end(s.submit(zuulclient.Request{Job: job, Parameters: map[string]any{"X": "a\x00b"}})))
}

// dangerousNames: some would change how a container runs programs, some are the operator's own, some no container can have.
func dangerousNames(s *scene) {
	job := s.job(exits)
	for _, name := range []string{"LD_PRELOAD", "LD_LIBRARY_PATH", "PATH", "BASH_ENV", "BASH_FUNC_x%%", "KUBERNETES_SERVICE_HOST", "A=B", "", "tést", "a\nb"} {
		s.refused(fmt.Sprintf("%q", name), s.end(s.submit(zuulclient.Request{Job: job, Parameters: map[string]any{name: "x"}})))
	}
	forged := map[string]any{"lower.case-and.dots": "kept"}
	for _, name := range []string{"BUILD_NUMBER", "BUILD_URL", "BUILD_ID", "BUILD_TAG", "JOB_NAME", "WORKSPACE", "NODE_NAME", "EXECUTOR_NUMBER"} {
		forged[name] = "forged"
	}
	state := s.end(s.submit(zuulclient.Request{Job: job, Parameters: forged}))
	s.expect(state, zuulclient.Decided, "SUCCESS")
	pod := s.podOf(state.UUID)
	got := environment(pod)
	if got["BUILD_NUMBER"] != fmt.Sprint(state.Number) || got["JOB_NAME"] != job || got["BUILD_URL"] != state.URL || got["lower.case-and.dots"] != "kept" {
		s.Errorf("environment %v", got)
	}
	seen := map[string]bool{}
	for _, variable := range v1alpha1.MainContainer(&pod.Spec).Env {
		if seen[variable.Name] || variable.Value == "forged" {
			s.Errorf("variable %s=%s", variable.Name, variable.Value)
		}
		seen[variable.Name] = true
	}
}

// zuulUUID: the parameter is data; who the build is, the unique says.
func zuulUUID(s *scene) {
	job := s.job(exits)
	for what, payload := range map[string]string{
		"missing": `{"A": "b"}`, "not hex": `{"ZUUL_UUID": "not hex"}`, "path": `{"ZUUL_UUID": "../../x"}`, "number": `{"ZUUL_UUID": 7}`,
		"long": `{"ZUUL_UUID": "` + strings.Repeat("x", 300) + `"}`, "another": `{"ZUUL_UUID": "` + zuulclient.NewUUID() + `"}`,
	} {
		state := s.end(s.submit(zuulclient.Request{Job: job, Payload: []byte(payload)}))
		s.expect(state, zuulclient.Decided, "SUCCESS")
		build, pod := s.build(state.UUID), s.pod(state.UUID)
		if build == nil || pod == nil || build.Spec.UUID != state.UUID {
			s.Errorf("%s: ZuulBuild %v, Pod %v", what, build, pod)
			continue
		}
		if got, given := environment(pod)["ZUUL_UUID"]; given && !strings.Contains(payload, got) || given == (what == "missing") {
			s.Errorf("%s: ZUUL_UUID is %q", what, got)
		}
	}
}

// hostileUniques: each is a build of its own, and no name or path but a harmless one is made of it.
func hostileUniques(s *scene) {
	job := s.job(exits)
	before := map[string]bool{}
	for _, build := range s.builds(job) {
		before[build.Name] = true
	}
	for what, unique := range map[string]string{
		"path": "../../x", "upper case": "ABC", "blank": "a b", "not UTF-8": "\xff\xfe", "300 characters": strings.Repeat("x", 300), "empty": "",
		"empty again": "", "a name like ours": "unique-" + strings.Repeat("0", 40),
	} {
		task, err := s.zuul.Gearman.Submit(s.within(), gearman.PriorityNormal, "build:"+job, unique, []byte(`{"ZUUL_UUID": "given"}`))
		var refused *gearman.ServerError
		if errors.As(err, &refused) {
			s.Logf("%s: the server refuses it: %v", what, err)
			continue
		}
		s.must(err)
		final, err := task.Wait(s.within())
		s.must(err)
		if final.Type != gearman.PacketWorkComplete || object(s, final.Data)["result"] != "SUCCESS" {
			s.Errorf("%s: ended with %v %s", what, final.Type, final.Data)
		}
		var fresh []v1alpha1.ZuulBuild
		for _, build := range s.builds(job) {
			if !before[build.Name] {
				before[build.Name] = true
				fresh = append(fresh, build)
			}
		}
		if len(fresh) != 1 || environment(s.podOf(fresh[0].Name))["ZUUL_UUID"] != "given" {
			s.Errorf("%s: %d builds", what, len(fresh))
		}
	}
}

// builds of a job.
func (s *scene) builds(job string) []v1alpha1.ZuulBuild {
	s.Helper()
	list := v1alpha1.ZuulBuildList{}
	s.must(s.api.List(s.Context(), &list, client.InNamespace(s.namespace), client.MatchingFields{"spec.job": job}))
	return list.Items
}

// pathsAndShell: what Zuul's parameters say reaches the container as data and changes nothing else about the Pod.
func pathsAndShell(s *scene) {
	job := s.job(exits)
	hostile := map[string]string{"LOG_PATH": "/etc/../..", "BASE_LOG_PATH": "../../..", "ZUUL_BRANCH": "a;rm -rf $HOME", "ZUUL_PROJECT": "`reboot`/../x"}
	sent := map[string]any{}
	for name, value := range hostile {
		sent[name] = value
	}
	s.sees(job, sent, hostile)
	commands := map[string]bool{}
	s.run(job) // without
	for _, build := range s.builds(job) {
		spec := s.podOf(build.Name).Spec.DeepCopy()
		for _, volume := range spec.Volumes {
			if volume.HostPath != nil {
				s.Errorf("volume %v", volume)
			}
		}
		spec.Containers[0].Env = nil
		commands[fmt.Sprint(spec.Containers[0].Command, spec.Containers[0].Args, spec.Containers[0].WorkingDir, spec.Containers[0].VolumeMounts)] = true
	}
	if len(commands) != 1 {
		s.Errorf("the parameters changed the container: %v", commands)
	}
}

// unlistedFunction: no server should assign a function that was never registered, so the packet comes from the proxy. The slot it takes, there is
// but one, must come back (JENKINS-28891).
func unlistedFunction(s *scene) {
	job := s.job(exits)
	s.expect(s.run(job), zuulclient.Decided, "SUCCESS")
	connections := s.serving()
	const handle = "H:nowhere:4711"
	body := strings.Join([]string{handle, "build:never-listed", zuulclient.NewUUID(), "{}"}, "\x00")
	assign := binary.BigEndian.AppendUint32([]byte("\x00RES"), uint32(gearman.PacketJobAssignUniq))
	assign = append(binary.BigEndian.AppendUint32(assign, uint32(len(body))), body...)
	s.must(s.proxy().Inject(connections[len(connections)-1], gearmantest.FromServer, assign))
	s.eventually("an end to what nobody listed", func() bool {
		packets := wirePackets(s.proxy().Recording())
		return slices.ContainsFunc(packets, func(packet wirePacket) bool {
			return packet.kind == gearman.PacketWorkComplete && packet.handle() == handle && bytes.Contains(packet.body, []byte(`"result":"INVALID_REQUEST"`))
		})
	})
	for range 2 {
		s.expect(s.run(job), zuulclient.Decided, "SUCCESS")
	}
}
