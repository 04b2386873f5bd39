//go:build linux

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"zuulbuild.dev/zuulbuild/api/v1alpha1"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman"
	"zuulbuild.dev/zuulbuild/gearmanbridge/gearman/gearmantest"
	"zuulbuild.dev/zuulbuild/gearmanbridge/zuulclient"
)

// scene is a world as one test sees it, with a Zuul.
type scene struct {
	*testing.T
	*world
	zuul *zuulclient.Client
	name string // of the case
}

func newScene(t *testing.T, name string, w *world) *scene {
	t.Helper()
	s := &scene{T: t, world: w, name: name}
	s.zuul = s.dial(zuulclient.Zuul2)
	return s
}

// within is a context that ends the test's patience.
func (s *scene) within() context.Context {
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	s.Cleanup(cancel)
	return ctx
}

func (s *scene) must(err error) {
	s.Helper()
	must(s, err)
}

func (s *scene) eventually(what string, condition func() bool) {
	s.Helper()
	gearmantest.Eventually(s, patience, what, condition)
}

// dial connects another Zuul to the first server, past the proxy.
func (s *scene) dial(dialect zuulclient.Dialect) *zuulclient.Client {
	s.Helper()
	return s.dialServer(s.servers[0], dialect)
}

func (s *scene) dialServer(server *server, dialect zuulclient.Dialect) *zuulclient.Client {
	s.Helper()
	zuul, err := zuulclient.Dial(s.within(), server.address, nil, dialect)
	s.must(err)
	s.Cleanup(func() { _ = zuul.Close() })
	return zuul
}

// jobOption changes a job before it is made.
type jobOption func(*v1alpha1.ZuulJob)

// newJob makes a job with a name of its own whose Pods play the script, and does not wait for its functions.
func (s *scene) newJob(script string, options ...jobOption) *v1alpha1.ZuulJob {
	s.Helper()
	name := strings.NewReplacer("/", "-").Replace(strings.ToLower(s.name))
	job := &v1alpha1.ZuulJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: fmt.Sprintf("%s-%d", name, s.jobs.Add(1))},
		Spec:       v1alpha1.ZuulJobSpec{Image: "example.org/image", Script: script},
	}
	for _, option := range options {
		option(job)
	}
	s.kubelet.plays(job.Namespace, job.GearmanName(), script)
	s.must(s.api.Create(s.Context(), job))
	return job
}

// job is newJob for a job that Zuul can ask for at once. It returns the Gearman name.
func (s *scene) job(script string, options ...jobOption) string {
	s.Helper()
	job := s.newJob(script, options...)
	s.awaitFunction("build:" + job.GearmanName())
	return job.GearmanName()
}

// functions are those that a worker serves now, with the number of workers.
func (s *scene) functions() map[string]gearman.FunctionStatus {
	s.Helper()
	functions, err := s.functionsOf(s.servers[0])
	s.must(err)
	return functions
}

func (s *scene) functionsOf(server *server) (map[string]gearman.FunctionStatus, error) {
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	admin, err := gearman.DialAdmin(ctx, server.address, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = admin.Close() }()
	lines, err := admin.Status(ctx)
	functions := map[string]gearman.FunctionStatus{}
	for _, line := range lines {
		functions[line.Name] = line
	}
	return functions, err
}

// served tells whether a worker serves the function on every server.
func (s *scene) served(function string) bool {
	for _, server := range s.servers {
		functions, err := s.functionsOf(server)
		if err != nil || functions[function].Workers == 0 {
			return false
		}
	}
	return true
}

func (s *scene) awaitFunction(function string) {
	s.Helper()
	s.eventually("a worker for "+function, func() bool { return s.served(function) })
}

// submit launches a build, without a look at what is registered.
func (s *scene) submit(request zuulclient.Request) *zuulclient.Build {
	s.Helper()
	return s.submitBy(s.zuul, request)
}

func (s *scene) submitBy(zuul *zuulclient.Client, request zuulclient.Request) *zuulclient.Build {
	s.Helper()
	request.Unchecked = true
	build, err := zuul.Submit(s.within(), request)
	s.must(err)
	return build
}

// run launches a build of a job and waits for its end.
func (s *scene) run(job string) zuulclient.State {
	s.Helper()
	return s.end(s.submit(zuulclient.Request{Job: job}))
}

// started waits until Zuul knows that the build has begun.
func (s *scene) started(build *zuulclient.Build) zuulclient.State {
	s.Helper()
	return s.await(build, "begin", func(state zuulclient.State) bool { return len(state.Packets) >= 2 })
}

// running waits until the Pod of the build runs, and Zuul was told so.
func (s *scene) running(build *zuulclient.Build) (zuulclient.State, *corev1.Pod) {
	s.Helper()
	state := s.await(build, "run", func(state zuulclient.State) bool { return len(state.Packets) >= 4 })
	pod := s.pod(state.UUID)
	if pod == nil || pod.Status.Phase != corev1.PodRunning {
		s.Fatalf("Zuul was told that %s runs; its Pod is %v", state.UUID, pod)
	}
	return state, pod
}

func (s *scene) await(build *zuulclient.Build, what string, condition func(zuulclient.State) bool) zuulclient.State {
	s.Helper()
	state, err := build.Await(s.within(), condition)
	if err != nil {
		s.Fatalf("%s did not %s: %v", state.Function, what, err)
	}
	return state
}

// end waits for the end of a build, which must be without a fault of the worker.
func (s *scene) end(build *zuulclient.Build) zuulclient.State {
	s.Helper()
	return s.endWithin(patience, build)
}

// endWithin is end for what takes longer.
func (s *scene) endWithin(within time.Duration, build *zuulclient.Build) zuulclient.State {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), within)
	defer cancel()
	state, err := build.Wait(ctx)
	if err != nil && !errors.Is(err, gearman.ErrConnectionLost) {
		s.Fatalf("%s did not end: %v; packets %v", state.Function, err, kinds(state))
	}
	for _, violation := range state.Violations {
		s.Errorf("%s: packet %d breaks rule %s: %s", state.Function, violation.Packet, violation.Rule, violation.Text)
	}
	return state
}

func (s *scene) expect(state zuulclient.State, outcome zuulclient.Outcome, result string) {
	s.Helper()
	if state.Outcome != outcome || state.Result != result || state.Starts != 1 {
		s.Errorf("%s: Zuul made of it %q with result %q after %d starts, want %q with %q after one", state.Function, state.Outcome, state.Result,
			state.Starts, outcome, result)
	}
}

func kinds(state zuulclient.State) []gearman.PacketType {
	types := make([]gearman.PacketType, 0, len(state.Packets))
	for _, packet := range state.Packets {
		types = append(types, packet.Type)
	}
	return types
}

func last(state zuulclient.State) zuulclient.Packet { return state.Packets[len(state.Packets)-1] }

// build is the ZuulBuild of a unique, or nil.
func (s *scene) build(unique string) *v1alpha1.ZuulBuild {
	s.Helper()
	build := &v1alpha1.ZuulBuild{}
	return found(s, build, s.api.Get(s.Context(), types.NamespacedName{Namespace: s.namespace, Name: unique}, build))
}

// pod is the Pod of a unique, or nil.
func (s *scene) pod(unique string) *corev1.Pod {
	s.Helper()
	pod := &corev1.Pod{}
	return found(s, pod, s.api.Get(s.Context(), types.NamespacedName{Namespace: s.namespace, Name: unique}, pod))
}

func found[T any](s *scene, object *T, err error) *T {
	s.Helper()
	if apierrors.IsNotFound(err) {
		return nil
	}
	s.must(err)
	return object
}

// podOf is the Pod of a unique, which must be there.
func (s *scene) podOf(unique string) *corev1.Pod {
	s.Helper()
	pod := s.pod(unique)
	if pod == nil {
		s.Fatalf("%s has no Pod", unique)
	}
	return pod
}

// awaitPod waits for the Pod of a unique to run or to have ended.
func (s *scene) awaitPod(unique string) *corev1.Pod {
	s.Helper()
	var pod *corev1.Pod
	s.eventually("a Pod that runs for "+unique, func() bool {
		pod = s.pod(unique)
		return pod != nil && pod.Status.Phase != corev1.PodPending
	})
	return pod
}

func (s *scene) awaitNoPod(unique string) {
	s.Helper()
	s.eventually("the Pod of "+unique+" gone", func() bool { return s.pod(unique) == nil })
}

// awaitVerdict waits for the end of a ZuulBuild, which Zuul may not hear of.
func (s *scene) awaitVerdict(unique string) *v1alpha1.ZuulBuild {
	s.Helper()
	var build *v1alpha1.ZuulBuild
	s.eventually("a verdict on "+unique, func() bool {
		build = s.build(unique)
		return build != nil && build.Complete()
	})
	return build
}

// exit has the running Pod of a unique end with the code.
func (s *scene) exit(unique string, code int32) {
	s.Helper()
	s.setStatus(s.awaitPod(unique), func(pod *corev1.Pod) corev1.PodStatus { return podEnded(pod, code, "") })
}

// evict has the kubelet end the running Pod of a unique.
func (s *scene) evict(unique string) {
	s.Helper()
	s.setStatus(s.awaitPod(unique), podEvicted)
}

func (s *scene) setStatus(pod *corev1.Pod, status func(*corev1.Pod) corev1.PodStatus) {
	s.Helper()
	s.must(s.kubelet.write(s.Context(), pod, status(pod)))
}

// environment is that of the main container as the kubelet would make it: with $(NAME) and $$ expanded.
func environment(pod *corev1.Pod) map[string]string {
	variables := map[string]string{}
	for _, variable := range v1alpha1.MainContainer(&pod.Spec).Env {
		value := variable.Value
		var expanded strings.Builder
		for i := 0; i < len(value); i++ {
			switch {
			case strings.HasPrefix(value[i:], "$$"):
				i++
				_ = expanded.WriteByte('$')
			case strings.HasPrefix(value[i:], "$(") && strings.Contains(value[i:], ")"):
				name, _, _ := strings.Cut(value[i+2:], ")")
				i += len(name) + 2
				_, _ = expanded.WriteString(variables[name])
			default:
				_ = expanded.WriteByte(value[i])
			}
		}
		variables[variable.Name] = expanded.String()
	}
	return variables
}

// ask sends a job to stop: or set_description: and waits for its answer.
func (s *scene) ask(function string, argument []byte) (answer gearman.Event, took time.Duration) {
	s.Helper()
	asked := time.Now()
	task, err := s.zuul.Gearman.Submit(s.within(), gearman.PriorityHigh, function, zuulclient.NewUUID(), argument)
	s.must(err)
	answer, err = task.Wait(s.within())
	s.must(err)
	return answer, time.Since(asked)
}

// cancel cancels a build as Zuul does and waits for the answer to stop:, which must be one that knows the build.
func (s *scene) cancel(build *zuulclient.Build) (took time.Duration) {
	s.Helper()
	asked := time.Now()
	cancellation, err := build.Cancel(s.within())
	s.must(err)
	if cancellation.Stop == nil {
		s.Fatalf("%s was taken from the queue", build.State().Function)
	}
	answer, err := cancellation.Stop.Wait(s.within())
	s.must(err)
	if answer.Type != gearman.PacketWorkComplete || len(answer.Data) > 0 {
		s.Errorf("stop: answered with %v %q", answer.Type, answer.Data)
	}
	return time.Since(asked)
}

// kill ends the operator as a crash does, terminate as Kubernetes does; both wait for the end.
func (s *scene) kill() { s.operator.Kill() }

func (s *scene) terminate() {
	s.Helper()
	s.must(s.operator.Signal(syscall.SIGTERM))
	select {
	case <-s.operator.Ended():
	case <-time.After(patience):
		s.Fatal("the operator does not end after SIGTERM")
	}
}

func (s *scene) restartOperator() {
	s.Helper()
	s.operator = s.startOperator(s.T)
}

// assigned waits until the server has given the job of a unique to the operator `times` times.
func (s *scene) assigned(unique string, times int) {
	s.Helper()
	s.eventually(fmt.Sprintf("assignment %d of %s", times, unique), func() bool {
		count := 0
		for _, packet := range wirePackets(s.proxy().Recording()) {
			if packet.kind == gearman.PacketJobAssignUniq && bytes.Contains(packet.body, []byte("\x00"+unique+"\x00")) {
				count++
			}
		}
		return count >= times
	})
}

// serving are the connections that ever were to serve builds, in the order they were made; but not those for the class of class-limit, which all
// worlds see.
func (s *scene) serving() []int {
	var connections []int
	for _, packet := range wirePackets(s.proxy().Recording()) {
		builds := packet.direction == gearmantest.ToServer && packet.kind == gearman.PacketCanDo && bytes.HasPrefix(packet.body, []byte("build:")) &&
			!bytes.Contains(packet.body, []byte(":"+classPrefix))
		if builds && !slices.Contains(connections, packet.connection) {
			connections = append(connections, packet.connection)
		}
	}
	return connections
}

// eventuallyWithin is eventually for what takes longer, or must not take as long.
func (s *scene) eventuallyWithin(within time.Duration, what string, condition func() bool) {
	s.Helper()
	gearmantest.Eventually(s, within, what, condition)
}
