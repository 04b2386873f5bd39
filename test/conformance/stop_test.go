//go:build linux

package conformance

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// stopCases are those under "stop / describe".
func stopCases() []testCase {
	return []testCase{
		{name: "stop-running", on: everyServer, test: stopRunning},
		{name: "stop-before-pod", on: everyServer, test: stopBeforePod},
		{name: "stop-twice", on: everyServer, test: stopTwice},
		{name: "stop-finished", on: bothKinds, test: stopFinished},
		{name: "stop-unknown", on: bothKinds, test: stopUnknown},
		{name: "stop-wrong-number", on: bothKinds, test: stopWrongNumber},
		{name: "stop-malformed", on: everyServer, test: stopMalformed},
		{name: "stop-at-capacity", on: []*flavour{gearmand, oneWakeup, geard}, own: true, flags: []string{"--max-builds", "1"}, test: stopAtCapacity},
		{name: "stop-other-manager", on: everyServer, test: stopOtherManager},
		{name: "stop-name-mismatch", on: bothKinds, test: stopNameMismatch},
		{name: "describe-running", on: everyServer, needs: descriptions, test: describeRunning},
		{name: "describe-finished", on: everyServer, needs: descriptions, test: describeFinished},
		{name: "describe-aborting", on: everyServer, needs: descriptions, test: describeAborting},
		{name: "describe-hostile", on: bothKinds, needs: descriptions, test: describeHostile},
		{name: "early-cancel", on: bothKinds, own: true, test: earlyCancel},
	}
}

// atOnce is within how long stop: is answered however busy the machine is with other tests; what waits for a Pod or for its turn takes longer. How fast it is
// make load measures.
const atOnce = 15 * time.Second

// stopRunning: the answer does not wait for the Pod, the build's own job ends when it is gone.
func stopRunning(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(lingers)})
	state, pod := s.running(build)
	if took := s.cancel(build); took > atOnce {
		s.Errorf("stop: was answered after %v", took)
	}
	s.eventually("the Pod told to go", func() bool { return s.podOf(state.UUID).DeletionTimestamp != nil })
	if build.State().Ended() {
		s.Error("the build ended before its Pod did")
	}
	s.kubelet.lets(pod.Namespace, pod.Name)
	state = s.end(build)
	s.expect(state, zuulclient.Canceled, "ABORTED")
	if kinds := kinds(state); kinds[len(kinds)-2] != gearman.PacketWorkData || kinds[len(kinds)-1] != gearman.PacketWorkFail {
		s.Errorf("packets %v", kinds)
	}
	s.awaitNoPod(state.UUID)
	// Those of tests beside this one come and go.
	s.eventually("no stop: job left", func() bool { return s.functions()["stop:"+manager].Queued == 0 })
}

// stopBeforePod: a stop: on the heels of the first packet, while the Pod is being made.
func stopBeforePod(s *scene) {
	job := s.job(holds)
	var stopped []string
	for range 3 {
		build := s.submit(zuulclient.Request{Job: job})
		s.await(build, "begin", func(state zuulclient.State) bool { return state.Number != nil })
		s.cancel(build)
		s.expect(s.end(build), zuulclient.Canceled, "ABORTED")
		stopped = append(stopped, build.State().UUID)
	}
	for _, unique := range stopped {
		s.awaitVerdict(unique)
		s.awaitNoPod(unique)
	}
	s.expect(s.run(s.job(exits)), zuulclient.Decided, "SUCCESS") // time for Pods that should not come
	for _, unique := range stopped {
		if pod := s.pod(unique); pod != nil {
			s.Errorf("Pod %s came after the stop", pod.Name)
		}
		if made := s.kubelet.everMade(s.namespace, unique); made > 1 {
			s.Errorf("%d Pods for %s", made, unique)
		}
	}
}

func stopTwice(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(lingers)})
	state, pod := s.running(build)
	s.cancel(build)
	s.cancel(build)
	s.kubelet.lets(pod.Namespace, pod.Name)
	s.expect(s.end(build), zuulclient.Canceled, "ABORTED")
	s.cancel(build)
	s.awaitNoPod(state.UUID)
	if made := s.kubelet.everMade(s.namespace, state.UUID); made != 1 {
		s.Errorf("%d Pods", made)
	}
}

// bystander is a build that runs; the function it returns shows that nothing befell it.
func (s *scene) bystander(job string) (state zuulclient.State, unharmed func()) {
	s.Helper()
	build := s.submit(zuulclient.Request{Job: job})
	state, pod := s.running(build)
	return state, func() {
		s.Helper()
		if now := s.pod(state.UUID); now == nil || now.UID != pod.UID || now.DeletionTimestamp != nil {
			s.Errorf("the build that nobody stopped was stopped: %v", now)
		}
		s.exit(state.UUID, 0)
		s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	}
}

func stopArgument(job string, number any) []byte {
	return fmt.Appendf(nil, `{"name": %q, "number": %v}`, job, number)
}

func (s *scene) expectStop(what string, argument []byte, want gearman.PacketType) {
	s.Helper()
	answer, took := s.ask("stop:"+manager, argument)
	if answer.Type != want || len(answer.Data) > 0 || took > patience/2 {
		s.Errorf("%s: stop: answered with %v %q after %v, want %v", what, answer.Type, answer.Data, took, want)
	}
}

func stopFinished(s *scene) {
	job := s.job(exits)
	state := s.run(job)
	s.kubelet.plays(s.namespace, job, holds)
	_, unharmed := s.bystander(job)
	s.expectStop("finished", stopArgument(job, state.Number), gearman.PacketWorkComplete)
	s.expectStop("finished, by its unique", []byte(state.UUID), gearman.PacketWorkComplete)
	unharmed()
}

func stopUnknown(s *scene) {
	job := s.job(holds)
	state, unharmed := s.bystander(job)
	s.expectStop("unknown job", stopArgument(job+"x", state.Number), gearman.PacketWorkFail)
	s.expectStop("unknown unique", []byte(zuulclient.NewUUID()), gearman.PacketWorkFail)
	unharmed()
}

// stopWrongNumber also takes the right number as text, which the Gearman plugin would have taken.
func stopWrongNumber(s *scene) {
	job := s.job(holds)
	_, unharmed := s.bystander(job)
	for _, number := range []string{"4711", `"4711"`, "0", "-1", "null", "true", "[1]", "18446744073709551617"} {
		s.expectStop("number "+number, stopArgument(job, number), gearman.PacketWorkFail)
	}
	unharmed()
	build := s.submit(zuulclient.Request{Job: job})
	state := s.started(build)
	s.expectStop("the number as text", stopArgument(job, fmt.Sprintf("%q", fmt.Sprint(state.Number))), gearman.PacketWorkComplete)
	s.expect(s.end(build), zuulclient.Decided, "ABORTED") // Zuul did not cancel it
}

func stopMalformed(s *scene) {
	_, unharmed := s.bystander(s.job(holds))
	for name, argument := range map[string][]byte{
		"not JSON":  []byte("hello world"),
		"an array":  []byte(`["name", 1]`),
		"nothing":   {},
		"1 MiB":     []byte(strings.Repeat("x", 1<<20)),
		"deep JSON": []byte(strings.Repeat(`{"name":`, 20_000)),
		"not UTF-8": []byte("{\"name\": \"\xff\", \"number\": 1}"),
		"NULs":      []byte("\x00\x00\x00"),
		"no number": []byte(`{"name": "a"}`),
	} {
		s.expectStop(name, argument, gearman.PacketWorkFail)
	}
	unharmed()
}

// stopAtCapacity: no slot is free for builds, and many wait, but stop: has a connection of its own.
func stopAtCapacity(s *scene) {
	job := s.job(holds)
	running := s.submit(zuulclient.Request{Job: job})
	s.running(running)
	var waiting []*zuulclient.Build
	for range 3 {
		waiting = append(waiting, s.submit(zuulclient.Request{Job: job}))
	}
	if took := s.cancel(running); took > atOnce {
		s.Errorf("stop: was answered after %v", took)
	}
	s.expect(s.end(running), zuulclient.Canceled, "ABORTED")
	for _, build := range waiting {
		s.exit(build.State().UUID, 0)
		s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	}
}

func stopOtherManager(s *scene) {
	const function = "stop:other"
	_, err := s.zuul.Gearman.Submit(s.within(), gearman.PriorityHigh, function, zuulclient.NewUUID(), stopArgument("a", 1))
	s.must(err)
	s.expectStop("ours", stopArgument("a", 1), gearman.PacketWorkFail)
	if status := s.functions()[function]; status.Queued != 1 || status.Running != 0 || status.Workers != 0 {
		s.Errorf("%s: %+v", function, status)
	}
}

func stopNameMismatch(s *scene) {
	job, other := s.job(holds), s.job(exits)
	state, unharmed := s.bystander(job)
	s.run(other)
	for _, name := range []string{other, strings.ToUpper(job), job + " ", ""} {
		if answer, _ := s.ask("stop:"+manager, stopArgument(name, state.Number)); name != other && answer.Type != gearman.PacketWorkFail {
			s.Errorf("stop: for job %q answered with %v", name, answer.Type)
		}
	}
	unharmed()
}

// describe sends a description and waits for the answer, which must be WORK_COMPLETE.
func describe(s *scene, build *zuulclient.Build, html string) {
	s.Helper()
	task, err := build.Describe(s.within(), html)
	s.must(err)
	answer, err := task.Wait(s.within())
	s.must(err)
	if answer.Type != gearman.PacketWorkComplete {
		s.Errorf("set_description: answered with %v", answer.Type)
	}
}

// described is where a ZuulBuild tells its description: anywhere in its object, escaped in whatever way.
func (s *scene) described(unique, text string) bool {
	return strings.Contains(fmt.Sprintf("%+v", s.build(unique)), text)
}

func describeRunning(s *scene) {
	for _, dialect := range []zuulclient.Dialect{zuulclient.Zuul2, zuulclient.Branch} {
		build := s.submitBy(s.dial(dialect), zuulclient.Request{Job: s.job(holds)})
		state := s.started(build)
		describe(s, build, "<b>mark-one</b>")
		s.eventually("the description", func() bool { return s.described(state.UUID, "mark-one") })
		describe(s, build, "<b>mark-two</b>")
		s.eventually("the second description", func() bool { return s.described(state.UUID, "mark-two") })
		s.exit(state.UUID, 0)
		s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	}
}

func describeFinished(s *scene) {
	for _, dialect := range []zuulclient.Dialect{zuulclient.Zuul2, zuulclient.Branch} {
		build := s.submitBy(s.dial(dialect), zuulclient.Request{Job: s.job(exits)})
		s.end(build)
		describe(s, build, "<b>mark-late</b>")
		s.eventually("the description", func() bool { return s.described(build.State().UUID, "mark-late") })
	}
}

func describeAborting(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(lingers)})
	state, pod := s.running(build)
	s.cancel(build)
	describe(s, build, "<b>mark-aborting</b>")
	s.kubelet.lets(pod.Namespace, pod.Name)
	s.expect(s.end(build), zuulclient.Canceled, "ABORTED")
	s.eventually("the description", func() bool { return s.described(state.UUID, "mark-aborting") })
}

// describeHostile: whatever is sent is answered, and what is kept of it is bounded.
func describeHostile(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(holds)})
	state := s.started(build)
	describe(s, build, strings.Repeat("<p>large</p>", 5<<20/12))
	if size := len(fmt.Sprintf("%+v", s.build(state.UUID))); size > 256<<10 {
		s.Errorf("the ZuulBuild has %d bytes", size)
	}
	describe(s, build, "<script>alert(1)</script>")
	describe(s, build, "a\x00b \x1b[31m \u202e")
	for name, argument := range map[string]string{
		"not JSON": "hello", "an array": "[]", "nothing": "", "no description": string(stopArgument(state.Job, state.Number)),
		"another build": `{"name": "other", "number": 4711, "html_description": "x"}`,
	} {
		if answer, _ := s.ask("set_description:"+manager, []byte(argument)); answer.Type != gearman.PacketWorkFail {
			s.Errorf("%s: set_description: answered with %v", name, answer.Type)
		}
	}
	s.exit(state.UUID, 0)
	s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
}

// earlyCancel: between the assignment and the first packet. On geard, the packet comes while Zuul waits for its second look; gearmand says OK and
// tells the worker nothing, so that only a sweep finds the build.
func earlyCancel(s *scene) {
	if !s.flavour.geard {
		orphanSweep.need(s.T)
	}
	job := s.job(holds)
	s.proxy().Delay(250 * time.Millisecond)
	s.zuul.CancelPause = 15 * time.Second // Zuul's own is a second, which a machine that runs all tests at once may take for nothing
	build := s.submit(zuulclient.Request{Job: job})
	s.eventually("the job assigned", func() bool { return s.functions()["build:"+job].Running == 1 })
	cancellation, err := build.Cancel(s.within())
	if s.flavour.geard && (err != nil || cancellation.Stop == nil) {
		s.Fatalf("canceled with %+v, %v: no stop: followed", cancellation, err)
	} else if err != nil && !errors.Is(err, zuulclient.ErrNotCanceled) {
		s.Fatal(err)
	}
	s.proxy().Delay(0)
	unique := build.State().UUID
	ctx := time.Now()
	s.eventuallyWithin(time.Minute+patience/4, "the end of the orphan", func() bool {
		object := s.build(unique)
		return object != nil && object.Complete() && s.pod(unique) == nil
	})
	s.Logf("gone after %v", time.Since(ctx))
	if s.flavour.geard {
		s.expect(s.end(build), zuulclient.Canceled, "ABORTED")
	}
}
