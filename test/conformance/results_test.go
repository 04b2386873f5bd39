//go:build linux

package conformance

import (
	"bytes"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// resultCases are those under "Results".
func resultCases() []testCase {
	return []testCase{
		{name: "infra-loss", on: everyServer, test: infraLoss},
		{name: "no-hot-loop", on: bothKinds, own: true, needs: retryBackoff, test: noHotLoop},
		{name: "bad-config-final", on: bothKinds, test: badConfigFinal},
		{name: "never-empty", on: everyServer, test: neverEmpty},
		{name: "no-warning/exception", on: everyServer, test: noWarning},
		{name: "retry-limit", on: bothKinds, test: retryLimit},
	}
}

// infraLoss: Zuul runs the build again, with another UUID, and that one is a build of its own.
func infraLoss(s *scene) {
	losses := map[string]func(unique string){
		"evicted": s.evict,
		"deleted": func(unique string) { s.must(s.api.Delete(s.Context(), s.awaitPod(unique))) },
	}
	for name, lose := range losses {
		job := s.job(holds)
		build := s.submit(zuulclient.Request{Job: job})
		first, _ := s.running(build)
		lose(first.UUID)
		state := s.end(build)
		s.expect(state, zuulclient.Retry, "")
		if last(state).Type != gearman.PacketWorkFail {
			s.Errorf("%s: ended with %v", name, last(state).Type)
		}
		for _, packet := range state.Packets {
			if bytes.Contains(packet.Data, []byte(`"result"`)) {
				s.Errorf("%s: %v has a result: %s", name, packet.Type, packet.Data)
			}
		}
		if reason := state.Worker.Extra["reason"]; reason == nil || reason == "" {
			s.Errorf("%s: worker_extra says no reason: %v", name, state.Worker.Extra)
		}
		again := s.submit(zuulclient.Request{Job: job})
		second, _ := s.running(again)
		if second.UUID == first.UUID || s.kubelet.everMade(s.namespace, first.UUID) != 1 {
			s.Errorf("%s: the second build is the first", name)
		}
		s.exit(second.UUID, 0)
		s.expect(s.end(again), zuulclient.Decided, "SUCCESS")
	}
}

// noHotLoop plays Zuul 2.5.1, which asks again at once and for ever, about a Pod that finds no node.
func noHotLoop(s *scene) {
	job := s.newJob(unscheduled, func(job *v1alpha1.ZuulJob) {
		job.Spec.Timeouts = &v1alpha1.Timeouts{Unscheduled: &metav1.Duration{Duration: time.Second}}
	})
	s.must(s.api.Patch(s.Context(), job, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"maxAttempts":3}}`)))) // the feature's own field
	s.awaitFunction("build:" + job.Name)
	parameters := map[string]any{"ZUUL_PROJECT": "tools/sandbox", "ZUUL_CHANGE": "4711", "ZUUL_PATCHSET": "2", "ZUUL_PIPELINE": "check"}
	var took []time.Duration
	for {
		asked := time.Now()
		state := s.end(s.submit(zuulclient.Request{Job: job.Name, Parameters: parameters}))
		took = append(took, time.Since(asked))
		if state.Outcome == zuulclient.Decided {
			if state.Result != "RETRY_LIMIT" {
				s.Errorf("result %q", state.Result)
			}
			break
		}
		if len(took) > 3 {
			s.Fatalf("no definite result after attempts of %v", took)
		}
	}
	if len(took) != 3 || took[2] < 10*time.Second {
		s.Errorf("attempts took %v: want three, the third held back", took)
	}
}

// badConfigFinal: what is the job's own fault has a result, because Zuul asks for ever without one.
func badConfigFinal(s *scene) {
	privileged := func(job *v1alpha1.ZuulJob) {
		job.Namespace = s.strict
		job.Spec = v1alpha1.ZuulJobSpec{Template: &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "build", Image: "example.org/image", SecurityContext: &corev1.SecurityContext{Privileged: ptr.To(true)},
		}}}}}
	}
	invalid := func(job *v1alpha1.ZuulJob) {
		job.Spec = v1alpha1.ZuulJobSpec{Template: &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "No Name", Image: "x"}}}}}
	}
	for name, job := range map[string]string{
		"unknown image":       s.job(waits + "InvalidImageName"),
		"forbidden":           s.job(holds, privileged),
		"not a Pod":           s.job(holds, invalid),
		"unknown interpreter": s.job("#!/usr/bin/unknown\n"),
	} {
		state := s.run(job)
		if state.Outcome != zuulclient.Decided || state.Result != "FAILURE" || last(state).Type != gearman.PacketWorkComplete {
			s.Errorf("%s: %q, result %q, by %v", name, state.Outcome, state.Result, last(state).Type)
		}
		if message := state.Worker.Extra["message"]; message == nil || message == "" {
			s.Errorf("%s: worker_extra says no message: %v", name, state.Worker.Extra)
		}
	}
}

// neverEmpty takes every way to an end there is.
func neverEmpty(s *scene) {
	job := s.job(holds)
	for name, test := range map[string]struct {
		request zuulclient.Request
		end     func(build *zuulclient.Build)
		outcome zuulclient.Outcome
	}{
		"success":   {zuulclient.Request{Job: s.job(exits)}, nil, zuulclient.Decided},
		"failure":   {zuulclient.Request{Job: s.job("exit 3")}, nil, zuulclient.Decided},
		"refused":   {zuulclient.Request{Job: job, Payload: []byte("[]")}, nil, zuulclient.Decided},
		"forbidden": {zuulclient.Request{Job: job, Parameters: map[string]any{"PATH": "/tmp"}}, nil, zuulclient.Decided},
		"stopped":   {zuulclient.Request{Job: job}, func(build *zuulclient.Build) { s.started(build); s.cancel(build) }, zuulclient.Canceled},
		"evicted":   {zuulclient.Request{Job: job}, func(build *zuulclient.Build) { s.evict(build.State().UUID) }, zuulclient.Retry},
		"ZuulBuild deleted": {zuulclient.Request{Job: job}, func(build *zuulclient.Build) {
			s.running(build)
			s.must(s.api.Delete(s.Context(), s.build(build.State().UUID)))
		}, zuulclient.Decided},
	} {
		build := s.submit(test.request)
		if test.end != nil {
			test.end(build)
		}
		if state := s.end(build); state.Outcome != test.outcome {
			s.Errorf("%s: Zuul made of it %q, result %q, want %q", name, state.Outcome, state.Result, test.outcome)
		}
	}
	s.wire("never-empty")
}

// noWarning: a failure is told in packets that every server forwards.
func noWarning(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(holds)})
	s.evict(build.State().UUID)
	state := s.end(build)
	if last(state).Type != gearman.PacketWorkFail {
		s.Errorf("packets %v", kinds(state))
	}
	if functions := s.functions(); functions[state.Function].Running+functions[state.Function].Queued != 0 {
		s.Errorf("the server still has the job: %+v", functions[state.Function])
	}
	s.wire("no-warning/exception")
}

// retryLimit plays Zuul 2.6.0: after `attempts` builds without a result it reports RETRY_LIMIT, so each loss must count once.
func retryLimit(s *scene) {
	const attempts = 3
	job := s.job(holds)
	reported, tries := 0, 0
	for tries < 4 && reported == 0 {
		tries++
		build := s.submit(zuulclient.Request{Job: job})
		s.evict(build.State().UUID)
		state := s.end(build)
		switch {
		case state.Outcome != zuulclient.Retry:
			s.Fatalf("try %d: %q, result %q", tries, state.Outcome, state.Result)
		case tries == attempts:
			reported++ // Zuul: RETRY_LIMIT
		}
		if made := s.kubelet.everMade(s.namespace, state.UUID); made != 1 {
			s.Errorf("try %d: %d Pods", tries, made)
		}
	}
	if reported != 1 || tries != attempts {
		s.Errorf("RETRY_LIMIT was reported %d times after %d tries", reported, tries)
	}
}
