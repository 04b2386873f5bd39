//go:build linux

package conformance

import (
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// registrationCases are those under "Registration".
func registrationCases() []testCase {
	return []testCase{
		{name: "register-visible", on: everyServer, test: registerVisible},
		{name: "add-wakes", on: []*flavour{gearmand, oneWakeup, geard}, own: true, test: addWakes},
		{name: "cant-do-once", on: bothKinds, test: cantDoOnce},
		{name: "reconnect-burst", on: bothKinds, own: true, test: reconnectBurst},
		{name: "only-standard-packets", on: everyServer, test: onlyStandardPackets},
		{name: "name-policy", on: bothKinds, test: namePolicy},
		{name: "reserved", on: bothKinds, test: reserved},
	}
}

// registerVisible: each function has one worker, also on gearmand, which counts registrations.
func registerVisible(s *scene) {
	job := s.job(exits, func(job *v1alpha1.ZuulJob) { job.Spec.Nodes = []string{"a", "b"} })
	want := []string{"build:" + job, "build:" + job + ":a", "build:" + job + ":b", "stop:" + manager}
	if !descriptions.missing() {
		want = append(want, "set_description:"+manager)
	}
	for _, function := range want {
		s.awaitFunction(function)
		if workers := s.functions()[function].Workers; workers != 1 {
			s.Errorf("%s has %d workers", function, workers)
		}
	}
	s.wire("register-visible")
}

// addWakes: the worker sleeps when a function is added that a job waits for. Nothing else happens that could wake it, but the worker's own look every
// 30 s, which must not be what helps.
func addWakes(s *scene) {
	s.expect(s.run(s.job(exits)), zuulclient.Decided, "SUCCESS")
	const name = "late"
	build := s.submit(zuulclient.Request{Job: name})
	s.newJob(exits, func(job *v1alpha1.ZuulJob) { job.Name = name })
	added := time.Now()
	s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	if took := time.Since(added); took > 10*time.Second {
		s.Errorf("it took %v", took)
	}
}

// cantDoOnce takes functions away and gives them back, also while a build of them runs. geard hangs up at a CANT_DO too many, by which the build
// that runs would be lost.
func cantDoOnce(s *scene) {
	job := s.newJob(holds)
	s.awaitFunction("build:" + job.Name)
	build := s.submit(zuulclient.Request{Job: job.Name})
	state, _ := s.running(build)
	disable := func(disabled bool) {
		patch := `{"spec":{"disabled":false}}`
		if disabled {
			patch = `{"spec":{"disabled":true}}`
		}
		s.must(s.api.Patch(s.Context(), job, client.RawPatch(types.MergePatchType, []byte(patch))))
		s.eventually("the job's condition", func() bool {
			s.must(s.api.Get(s.Context(), client.ObjectKeyFromObject(job), job))
			return meta.IsStatusConditionTrue(job.Status.Conditions, v1alpha1.ConditionRegistered) != disabled
		})
	}
	disable(true)
	disable(false)
	disable(true)
	s.exit(state.UUID, 0)
	s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	s.eventually("the function taken away", func() bool { return !s.served("build:" + job.Name) })
	disable(false)
	s.awaitFunction("build:" + job.Name)
	s.must(s.api.Delete(s.Context(), job))
	s.eventually("the function taken away", func() bool { return !s.served("build:" + job.Name) })
	s.wire("cant-do-once")
}

// reconnectBurst: all functions are back before Zuul thinks that the set has settled.
func reconnectBurst(s *scene) {
	jobs := []string{s.job(exits), s.job(exits), s.job(exits)}
	const enough = 2*time.Second + time.Second/2 // the worker may be on its way while the server is not
	var zuul *zuulclient.Client
	quickest := time.Hour // of several, because the machine may be busy with other tests
	for try := 0; try < 3 && quickest > enough; try++ {
		s.servers[0].restart()
		restarted := time.Now()
		zuul = s.dial(zuulclient.Zuul2)
		settled := true
		for _, job := range jobs {
			settled = settled && zuul.AwaitRegistered(s.within(), "build:"+job) == nil // else: NOT_REGISTERED
		}
		s.awaitFunction("stop:" + manager)
		if settled {
			quickest = min(quickest, time.Since(restarted))
		}
	}
	if quickest > enough {
		s.Errorf("it took at least %v to register again", quickest)
	}
	for _, job := range jobs {
		build, err := zuul.Submit(s.within(), zuulclient.Request{Job: job})
		s.must(err)
		s.expect(s.end(build), zuulclient.Decided, "SUCCESS")
	}
}

func onlyStandardPackets(s *scene) {
	build := s.submit(zuulclient.Request{Job: s.job(holds)})
	s.running(build)
	s.cancel(build)
	s.end(build)
	s.wire("only-standard-packets")
}

// namePolicy: what no Gearman server or no Zuul stands is refused, by the API server or with a condition, and `status` works for others.
func namePolicy(s *scene) {
	refused := map[string]string{
		"blank": "a b", "not ASCII": "tést", "not UTF-8": "bad\xff", "long": strings.Repeat("x", 9000), "tab": "x\ty", "NUL": "a\x00b", "newline": "a\nb",
	}
	for what, name := range refused {
		job := s.jobNamed(name)
		err := s.api.Create(s.Context(), job)
		if err != nil {
			if !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
				s.Errorf("%s: %v", what, err)
			}
			continue
		}
		s.eventually(what+" refused", func() bool {
			s.must(s.api.Get(s.Context(), client.ObjectKeyFromObject(job), job))
			return meta.IsStatusConditionFalse(job.Status.Conditions, v1alpha1.ConditionRegistered)
		})
	}
	for _, name := range []string{"a:b", "Tox-py2.7_(x86)", strings.Repeat("y", 78)} {
		job := s.jobNamed(name)
		s.kubelet.plays(s.namespace, name, exits)
		s.must(s.api.Create(s.Context(), job))
		s.awaitFunction("build:" + name)
		s.expect(s.run(name), zuulclient.Decided, "SUCCESS")
	}
	third := s.dial(zuulclient.Zuul2)
	functions, err := third.Functions(s.within())
	s.must(err)
	for _, function := range functions {
		for _, b := range []byte(function) {
			if b < 0x21 || b > 0x7e {
				s.Errorf("function %q", function)
			}
		}
	}
}

// jobNamed is a job with the Gearman name, which is not made yet.
func (s *scene) jobNamed(name string) *v1alpha1.ZuulJob {
	job := &v1alpha1.ZuulJob{Spec: v1alpha1.ZuulJobSpec{JobName: name, Image: "example.org/image", Script: exits}}
	job.Namespace, job.GenerateName = s.namespace, "named-"
	return job
}

// reserved: functions are Zuul's own where their names do not begin as ours do, whatever jobs are called.
func reserved(s *scene) {
	for _, name := range []string{"merge:merge", "zuul:enqueue", "node_assign:zuul", "stop:" + manager} {
		s.must(s.api.Create(s.Context(), s.jobNamed(name)))
		s.awaitFunction("build:" + name)
	}
	for function, status := range s.functions() {
		ours := strings.HasPrefix(function, "build:") || function == "stop:"+manager || function == "set_description:"+manager
		if !ours && status.Workers > 0 {
			s.Errorf("function %s is served", function)
		}
	}
	if workers := s.functions()["stop:"+manager].Workers; workers != 1 {
		s.Errorf("stop: has %d workers", workers)
	}
}
